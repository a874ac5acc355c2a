"""Commands that operate a run by its folder alone, while it goes on or when it is done: budget, cancel, watch, export."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from clear_ray.errors import ConfigError
from clear_ray.report.printing import print_result
from clear_ray.report.summary import RunReport
from clear_ray.report.text import summary_text
from clear_ray.report.wording import amount as words
from clear_ray.storage import open_folder

RunDir = Annotated[str, typer.Argument(help="Folder of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines for machines.")]
TAKES_SIGNS = {"ignore_unknown_options": True}
"""Settings of a command whose argument may begin with a minus."""
_LONGEST_SHARE = 4.0


def budget(
    run_dir: RunDir,
    amount: Annotated[str, typer.Argument(help="`+200k`, `-50k`, or what it is to be: `2M tokens`.")],
    as_json: AsJson = False,
) -> None:
    """Raise or cut the budget of a run that goes on: its next clearing has a new price."""
    from clear_ray.run_folder.orders import order_budget, unit_in

    folder = open_folder(run_dir)
    ordered = order_budget(folder, amount)
    unit = unit_in(folder)
    said = f"The budget is {words(ordered, unit)} from the next clearing on, or what is spent and promised if that is more."
    print_result(json.dumps({"budget_tokens": ordered, "unit": unit}) if as_json else said)


def cancel(run_dir: RunDir, as_json: AsJson = False) -> None:
    """End a run and keep what was answered: what is being generated ends, and nothing more is begun."""
    from clear_ray.run_folder.orders import order_stop

    order_stop(open_folder(run_dir), "batch_cancelled")
    said = "It ends when what is being generated has ended; one that was killed ends when it is resumed."
    print_result(json.dumps({"cancelled": True}) if as_json else said)


def export(
    run_dir: RunDir,
    to: Annotated[
        str | None,
        typer.Option("--to", help="File in .jsonl, .csv or .parquet; JSON lines to the screen if not given."),
    ] = None,
) -> None:
    """Write the completions of a run that is done, in the order of its input."""
    from clear_ray.run_folder.export import export as write
    from clear_ray.run_folder.export import finished, json_lines

    folder = open_folder(run_dir)
    if to is None:
        for batch in finished(folder):
            print_result("".join(json_lines(batch)).removesuffix("\n"))
        return
    target = Path(to).expanduser()
    try:
        rows = write(folder, target)
    except OSError as error:
        raise ConfigError(
            "the file cannot be written", "--to", f"{to}: {error.strerror}", "Name another one."
        ) from error
    print(f"{rows:,} completions in {to}.", file=sys.stderr)


def watch(
    run_dir: RunDir,
    seconds: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Follow a run from its folder until it is done; it may be on another machine."""
    from clear_ray.run_folder.orders import unit_in
    from clear_ray.run_folder.status import read_progress, read_summary

    folder, last = open_folder(run_dir), None
    unit = unit_in(folder)
    while (report := read_summary(folder)) is None:
        started = time.monotonic()
        facts = read_progress(folder)
        if facts != last:
            print_result(json.dumps({"event": "progress"} | facts) if as_json else _line(facts, unit))
        last = facts
        time.sleep(max(seconds, _LONGEST_SHARE * (time.monotonic() - started)))  # a long journal takes long to read
    _print_end(report, as_json=as_json)


def _line(facts: dict[str, Any], unit: str) -> str:
    names = ("spent_tokens", "budget_tokens", "reserved_tokens")
    spent, whole, promised = (words(facts[name], unit) for name in names)
    price = facts["shadow_price"]
    at = "" if price is None or unit != "tokens" else f"  price {1000 * price:.3g} per 1,000 tokens"
    return f"{facts['queries']:,} queries  round {facts['rounds']}  spent {spent} of {whole}, {promised} promised{at}"


def _print_end(report: RunReport, *, as_json: bool) -> None:
    print_result(json.dumps({"event": "summary"} | report.model_dump()) if as_json else summary_text(report))


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(context_settings=TAKES_SIGNS)(budget)
    for command in (cancel, export, watch):
        app.command()(command)
