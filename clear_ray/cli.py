"""The `clear-ray` command.

Exit codes: 0 done; 1 no Ray cluster or a full one, a dead engine, a full or closed disk, or a defect; 2 the input or the
configuration was refused; 3 ended early because the budget was spent before every funded query was run; 4 some queries
failed; 130 interrupted by Ctrl-C or SIGTERM, run it again.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer

from clear_ray.config import few_threads  # noqa: F401 - before what imports NumPy
from clear_ray.config.run import RunConfig
from clear_ray.config.uncollected import uncollected
from clear_ray.errors import ClearRayError, ConfigError, ResumeError, SchemaError
from clear_ray.redaction import printable, without_secrets
from clear_ray.report.printing import give_up_unwritable, print_result, say
from clear_ray.run_folder.operating import register as register_operating
from clear_ray.sweep.command import sweep

DONE, BROKEN, REFUSED, OUT_OF_BUDGET, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130
_ONE_OF_BOTH = "Write `RUN_DIR` or `--config FILE`."
_ON_INTERRUPT = "Interrupted. What was settled is kept: run the same command again to go on."

app = typer.Typer(
    help="LLM batch inference under one budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Config = Annotated[str, typer.Option("--config", "-c", help="YAML file of the run; see jobs/configs.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: dotted.key=value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print_result(f"clear-ray {version('clear_ray')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """LLM batch inference under one budget."""


@app.command()
def run(config: Config, set_: Overrides = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Answer a batch under its budget; run it again to go on after an interruption."""
    _run(RunConfig.load(config, tuple(set_ or ())), as_json=as_json, quiet=quiet)


@app.command()
def resume(
    run_dir: Annotated[str | None, typer.Argument(help="Folder of the run to go on with.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Or the YAML file it was started with.")] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was interrupted, under the configuration in its manifest; `--set scaling.…` may change it."""
    from clear_ray.run_folder.manifest import MANIFEST, read_manifest
    from clear_ray.storage import open_folder

    if (run_dir is None) == (config is None):
        raise ConfigError("name either the run folder or its configuration", "resume", remedy=_ONE_OF_BOTH)
    overrides = tuple(set_ or ())
    found = run_dir or ""
    if config:
        found = RunConfig.load(config, overrides).run_dir
        overrides = tuple(override for override in overrides if not override.startswith("run_dir="))
    manifest, shown = read_manifest(open_folder(found)), without_secrets(found)
    if manifest is None:
        raise ResumeError("there is no run to go on with", shown, remedy="Start it with `clear-ray run`.")
    settings = manifest["config"] | {"run_dir": found}
    began = RunConfig.parse(settings, where=f"{shown}/{MANIFEST}")
    _run(began.resumed(overrides), as_json=as_json, quiet=quiet)


@app.command()
def retry(
    run_dir: Annotated[str, typer.Argument(help="Folder of the run that is done.")],
    into: Annotated[str, typer.Argument(help="Folder of the new run.")],
    budget: Annotated[str | None, typer.Option("--budget", help="Its budget; by default what the other left.")] = None,
    unanswered: Annotated[bool, typer.Option("--unanswered", help="Ask those that were abandoned, too.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Ask the queries of a run again that failed, and pay for those alone."""
    from clear_ray.batch.retrying import check_something_left, retry_config

    config = retry_config(run_dir, into, budget=budget, is_unanswered=unanswered)
    check_something_left(config)
    _run(config, as_json=as_json, quiet=quiet)


@app.command()
def plan(
    config: Config,
    share: Annotated[
        float | None,
        typer.Option("--share", help="Also say what this share of all it could get right would cost: 0.5."),
    ] = None,
    sample_share: Annotated[
        float | None,
        typer.Option(
            "--sample-share", help="Sample answers for this part of the budget, at most 0.01, to know better."
        ),
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check every line and price the batch, without generating a token unless it may sample a few answers."""
    from clear_ray.batch.plan import plan as price_batch
    from clear_ray.report.live import choose_display
    from clear_ray.report.text import plan_text

    settings = RunConfig.load(config, tuple(set_ or ()))
    display = choose_display(sys.stderr, as_json=as_json, is_quiet=quiet)
    planned = price_batch(None, settings, share=share, sample_share=sample_share, display=display)
    print_result(planned.model_dump_json() if as_json else plan_text(planned))


@app.command()
def validate(config: Config, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check configuration, run folder, model files and every line of the input; load no model and write nothing."""
    from clear_ray.batch.checking import check_run
    from clear_ray.report.text import notices_text
    from clear_ray.report.wording import amount, plural

    settings = RunConfig.load(config, tuple(set_ or ()))
    checked = check_run(settings)
    digest, survey = checked.digest, checked.survey
    facts = {"queries": digest.rows, "sha256": digest.sha256, "budget_tokens": settings.budget_tokens}
    facts |= {
        "unit": settings.unit,
        "scorer": survey.chosen,
        "warnings": survey.warnings(),
        "notices": list(digest.notices),
    }
    under = amount(settings.budget_tokens, settings.unit)
    valid = f"Valid: {plural(digest.rows, 'query')}, budget {under}, sha256 {digest.sha256}."
    lines = [valid, *notices_text(digest.notices)]
    if settings.engines is not None:
        facts["engines"] = list(settings.engines)
        lines.append(f"engines: {', '.join(settings.engines)}; every query is offered each of them, at one price")
    lines += [f"scorer: {survey.choice()}"] if survey.choice() else []
    lines += [f"warning: {printable(warning, most=400)}" for warning in survey.warnings()]
    print_result(json.dumps({"valid": True} | facts) if as_json else "\n".join(lines))


@app.command()
def status(
    run_dir: Annotated[str | None, typer.Argument(help="Folder of the run.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Or its YAML file.")] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say how far a run is, from its folder alone; works while it runs and after a crash."""
    from clear_ray.report.text import summary_text
    from clear_ray.run_folder.status import read_progress, read_summary
    from clear_ray.storage import open_folder

    if (run_dir is None) == (config is None):
        raise ConfigError("name either the run folder or its configuration", "status", remedy=_ONE_OF_BOTH)
    if set_ and not config:
        raise ConfigError(
            "a run folder says by itself how far its run is, and no setting changes that",
            "status --set",
            set_[0],
            "Leave `--set` out; with `--config` it may name another run_dir.",
        )
    folder = open_folder(RunConfig.load(config, tuple(set_ or ())).run_dir if config else run_dir or "")
    report = read_summary(folder)
    if report is not None:
        print_result(report.model_dump_json() if as_json else summary_text(report))
        return
    facts = read_progress(folder)
    lines = [f"{name.replace('_', ' '):<18} {value}" for name, value in facts.items()]
    print_result(json.dumps(facts) if as_json else "\n".join(lines))


@app.command()
def calibrate(
    head_dir: Annotated[str, typer.Option("--head-dir", help="Folder to write the head to.")],
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="YAML file of queries, engine and budget.")
    ] = None,
    rollouts: Annotated[str | None, typer.Option("--rollouts", help="Or Parquet of recorded rollouts.")] = None,
    features: Annotated[str | None, typer.Option("--features", help="Parquet of their probe features.")] = None,
    folds: Annotated[str | None, typer.Option("--folds", help="JSON of folds, for cross-fitting.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to each query; 1 for greedy decoding.")] = 4,
    kind: Annotated[str, typer.Option("--kind", help="Model of curves to fit.")] = "competing_risks",
    engine: Annotated[str | None, typer.Option("--engine", help="Which of several engines, by its name.")] = None,
    set_: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Sample rollouts and fit the head that estimates this model's curves; without a scorer, of what ends by itself."""
    from clear_ray.calibrate import calibrate as sample_and_fit
    from clear_ray.calibrate import diagnostics_lines, fit_recorded
    from clear_ray.report.live import choose_display

    if config is not None and rollouts is None:
        settings = RunConfig.load(config, tuple(set_ or ()))
        display = choose_display(sys.stderr, as_json=False, is_quiet=quiet)
        command = f"clear-ray calibrate --config {config} --samples {samples} --kind {kind}"
        command += f" --engine {engine}" if engine else ""
        made = sample_and_fit(
            settings,
            head_dir=head_dir,
            samples=samples,
            kind=kind,
            engine=engine,
            created_by=command,
            display=display,
        )
    elif rollouts is not None and features is not None and config is None:
        command = f"clear-ray calibrate --rollouts {rollouts} --features {features} --kind {kind}"
        made = fit_recorded(rollouts, features, head_dir=head_dir, folds_path=folds, kind=kind, created_by=command)
    else:
        raise ConfigError(
            "give either --config, or --rollouts with --features", "calibrate", remedy="See calibrate --help."
        )
    sampled = f"{made.rollouts:,} rollouts of {made.queries:,} queries, {made.spent_tokens:,} tokens"
    lines = [f"Head in {made.head_dir}: {sampled}.", *diagnostics_lines(made.head.card.diagnostics)]
    lines += [f"warning: {printable(warning, most=400)}" for warning in made.warnings]
    print_result("\n".join(lines))


app.command()(sweep)
register_operating(app)


@app.command()
def serve(
    config: Annotated[str, typer.Option("--config", "-c", help="YAML file of the server; see jobs/serve.")],
    set_: Overrides = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on, in place of the file's.")] = None,
) -> None:
    """Answer OpenAI clients over HTTP, under a budget of tokens per second, until interrupted."""
    from clear_ray.serve.command import serve_until_interrupted
    from clear_ray.serve.settings import ServeConfig

    overrides = (*(set_ or ()), *(() if port is None else (f"port={port}",)))
    serve_until_interrupted(ServeConfig.load(config, overrides))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error of ours becomes one line and an exit code."""
    raise SystemExit(guarded(lambda: app(args=arguments)))


def guarded(command: Callable[[], Any]) -> int:
    """Run `command` and return the exit code for what came of it; errors are printed in a line."""
    try:
        result, stop = command(), None
    except (SystemExit, KeyboardInterrupt, ClearRayError) as error:
        result, stop = None, error
    with suppress(ValueError):  # what came of it stays, however often Ctrl-C is pressed; only a main thread hears of it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    code, said = (int(result) if isinstance(result, int) else DONE, "") if stop is None else _end(stop)
    if said:
        say(said)
    give_up_unwritable()
    return code


def _end(stop: BaseException) -> tuple[int, str]:
    """Return the exit code for what ended a command, and the line that says so."""
    # Typer shows usage errors itself and ends with 2; it turns Ctrl-C into 130. Ray ends with SIGTERM's number.
    is_told_to = isinstance(stop, SystemExit) and stop.code in (INTERRUPTED, signal.SIGTERM)
    if is_told_to or isinstance(stop, KeyboardInterrupt):
        return INTERRUPTED, _ON_INTERRUPT
    if isinstance(stop, SystemExit):
        return int(stop.code or 0), ""
    is_refusal = isinstance(stop, (ConfigError, SchemaError, ResumeError))
    return (REFUSED, f"Refused: {stop}") if is_refusal else (BROKEN, f"Failed: {stop}")


def _run(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    from clear_ray.cluster.joining import joining_cluster
    from clear_ray.cluster.uninterrupted import uninterrupted

    with joining_cluster():  # Ray starts beside the imports of all that follows
        with uncollected(), uninterrupted():
            from clear_ray.batch.run import run as run_batch
            from clear_ray.report.live import choose_display
            from clear_ray.report.text import summary_text

        stream = sys.stdout if as_json else sys.stderr
        display = choose_display(stream, as_json=as_json, is_quiet=quiet)
        report = run_batch(None, config, display=display).report
        # Before Ray has ended, which takes seconds and says nothing.
        print_result(json.dumps({"event": "summary"} | report.model_dump()) if as_json else summary_text(report))
    if report.failed:
        raise SystemExit(SOME_FAILED)
    if report.stopped_early:
        raise SystemExit(OUT_OF_BUDGET)


if __name__ == "__main__":
    main()
