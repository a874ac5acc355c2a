"""A batch run: probe -> price -> generate -> settle, and again while tokens come back.

    queries/ --probe (stage 1, engine workers)--> estimates/ --clear (driver)--> grants
        --generate (stage 2, the same workers, through the market)--> rounds/ --settle--> price again ... --> completions/

While answers run the driver holds a few numbers for each query, and no prompt and no answer. Everything that a round
depends on is on disk before the round begins, so running the same configuration again goes on where the last run ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from clear_ray.batch.beginning import Beginning, Engines, beginning
from clear_ray.batch.checking import heads_of, notes_of
from clear_ray.batch.complete import close_run
from clear_ray.batch.context import RunContext
from clear_ray.batch.earlier import make_ready
from clear_ray.batch.gain import gain_of
from clear_ray.batch.generate import open_callers, rows_each
from clear_ray.batch.given import GivenRows
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.learning import Lesson, can_differ, head_name, lesson_of, rounds_of, with_earlier
from clear_ray.batch.measured import Measured
from clear_ray.batch.menu import cheapest_calls, queries_of_engines
from clear_ray.batch.opening import opened_meanwhile
from clear_ray.batch.orders import heeding_orders
from clear_ray.batch.playing import play_rounds
from clear_ray.batch.pricing import (
    PROBE,
    check_first_tokens,
    check_minimum_service,
    check_one_call,
    first_token_fee,
    offers_of,
    planned_probe_parts,
    priced,
    probe_parts,
    token_costs,
)
from clear_ray.batch.probe import probe, together
from clear_ray.batch.progress import Progress
from clear_ray.batch.report import budget_for_share, plan_report
from clear_ray.batch.samples import MOST_SHARE, Sampled, sampled_answers, with_interval
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.engines import EngineActors, begun_engines
from clear_ray.cluster.joining import joined_cluster, quiet_data
from clear_ray.cluster.market import opened_market
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Head
from clear_ray.ingest import InputDigest
from clear_ray.ledger.identity import begin
from clear_ray.ledger.journal import wait_until_unused
from clear_ray.ledger.lock import alone_with
from clear_ray.records import COST_PARTS
from clear_ray.report.live import Display, QuietDisplay
from clear_ray.report.page import import_plots
from clear_ray.report.plan import PlanReport
from clear_ray.report.summary import RunReport
from clear_ray.rounds.clearing import nothing_to_grant
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.completions import completion_rows
from clear_ray.run_folder.estimates import (
    Estimates,
    read_answers_asked,
    read_costs,
)
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe, describe_config, read_manifest
from clear_ray.run_folder.status import read_summary
from clear_ray.stages.first_tokens import FirstTokenFee
from clear_ray.stages.gate import Gate
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks.survey import FIRST_SCORED, survey_queries

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        report: What came of it; the same as `summary.json`.
        run_dir: The run folder.
    """

    report: RunReport
    run_dir: str

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the completions in the order of the input, one row a query (`records.COMPLETION_SCHEMA`)."""
        return completion_rows(open_folder(self.run_dir))

    def completions(self) -> Dataset:
        """Return the completions as a Ray Dataset, in no order that Ray promises; `index` is the place in the input."""
        import ray.data

        folder = open_folder(self.run_dir).child("completions")
        return ray.data.read_parquet(folder.path, filesystem=folder.filesystem)


def run(queries: Dataset | None, config: RunConfig, *, display: Display | None = None) -> RunResult:
    """Answer a batch under one budget.

    Running it again with the same configuration goes on with what is not done; a finished run is only read.

    Args:
        queries: Rows with the columns of `config.input.columns`; None reads what `config.input` names.
        config: What the batch may cost, and how.
        display: Display that is told of the progress, a few times a second.

    Returns:
        The report, and where the answers are.

    Raises:
        SchemaError: The input is refused; nothing was written.
        ConfigError: A setting is refused, or the run folder holds something else or a link; nothing was written.
        ResumeError: The run folder belongs to another configuration or input, or another run is writing to it.
        EngineError: An engine failed as a whole; what was settled is kept.
        ClusterError: No Ray cluster can be had, or it is full.
        StorageError: The run folder's disk is full or broken, or closed to this user; what was settled is kept.
    """
    return run_on(begun_engines, queries, config, display=display or QuietDisplay())


def run_on(engines: Engines, queries: Dataset | None, config: RunConfig, *, display: Display) -> RunResult:
    """Do what `run` does, on engines that are started, or found, in another way."""
    config = with_absolute_paths(config)
    folder = open_folder(config.run_dir)
    with writing_errors(config.run_dir):
        folder.refuse_links()
        with alone_with(folder):
            return _run_alone(engines, queries, config, folder, Measured(display, config.run_dir))


def _run_alone(
    start_engines: Engines, queries: Dataset | None, config: RunConfig, folder: Folder, display: Display
) -> RunResult:
    manifest = read_manifest(folder)
    if manifest is not None:
        check_same_run(manifest, describe_config(config), folder)
    load_scorer_of(config)
    heads = heads_of(config)
    if manifest is not None and (report := read_summary(folder)) is not None:
        return _only_read(queries, config, folder, manifest, report)
    if config.estimate.store is not None:
        make_ready(config.estimate.store)
    wait_until_unused(folder)
    with _begun(start_engines, queries, config, heads, folder, display) as (progress, begun):
        notes = notes_of(config, heads)
        digest = take_in(queries, config, folder, manifest)
        if config.scoring.scorer is not None:
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            progress.warn("; ".join(survey.warnings()), if_all_wrong=survey.all_wrong(FIRST_SCORED))
        digest = replace(digest, notices=(*digest.notices, *notes))
        input_cost_N = _checked_costs(config, folder, digest.rows)
        cost_N = token_costs(config, input_cost_N)
        progress.begin(_first_stage(config), queries=digest.rows, waiting_for="starting Ray")
        run_id = begin(folder, manifest)
        begun.ray()
        with (
            # First: it makes sure that we are alone.
            opened_market(config.run_dir, config.budget_tokens, cost_N, run_id=run_id) as market,
            heeding_orders(folder, config.budget_tokens, market),
            progress.watching(market),
            open_callers(config, folder, engines := begun.engines(), market) as callers,
            begun.gpus.made(market.actor),
        ):
            progress.begin(_first_stage(config), waiting_for=_start_of(config))
            found, lesson = _probed(
                folder,
                config,
                engines,
                heads,
                digest.rows,
                progress,
                open_run=lambda: _open_run(folder, manifest, config, digest, engines, run_id),
                has_states=config.reads_states,
                fee=first_token_fee(config, market),
            )
            progress.learns_from("" if lesson is None or lesson.left_out else lesson.label)
            estimates = priced(config, found, input_cost_N)
            if parts := probe_parts(config, estimates, input_cost_N):
                market.charge(PROBE, parts)
            scaler = EngineScaler(config, engines, market, lambda: progress.seconds)
            rounds = _rounds_of(folder, config, estimates, cost_N, lesson)
            answers = AnswerFiles(digest.rows)
            opened = RunContext(folder, config, scaler, market, callers, answers, estimates, rounds, progress, lesson)
            threading.Thread(target=import_plots, name="clear_ray plots", daemon=True).start()
            report = close_run(opened, play_rounds(opened), digest)
    return RunResult(report, config.run_dir)


def _only_read(
    queries: Dataset | None, config: RunConfig, folder: Folder, manifest: dict[str, Any], report: RunReport
) -> RunResult:
    """Return what came of a run that is over, after making sure that it had this input."""
    with ExitStack() as needed:
        if queries is not None:
            needed.enter_context(joined_cluster())
            needed.enter_context(quiet_data())
        take_in(queries, config, folder, manifest)
    return RunResult(report, config.run_dir)


def plan(
    queries: Dataset | None,
    config: RunConfig,
    *,
    share: float | None = None,
    sample_share: float | None = None,
    display: Display | None = None,
) -> PlanReport:
    """Validate and probe a batch and price it; what it writes it removes again.

    It generates nothing, unless it is allowed to sample a few answers.

    Args:
        queries: As for `run`.
        config: As for `run`.
        share: Also find the budget that is expected to give this share, above 0 and below 1, of what ample tokens give.
        sample_share: Part of the budget, at most a hundredth, that answers to random queries may take, for an interval that
            rests on what they took. It is beside the budget of the run.
        display: Display that is told of the progress.

    Raises:
        SchemaError: The input is refused.
        ConfigError: A setting is refused.
        EngineError: The model cannot be loaded.
        StorageError: The disk beside the run folder, where it works, is full or broken, or closed to this user.
    """
    if share is not None and not 0 < share < 1:
        raise ConfigError("a share lies between 0 and 1", "share", str(share), "Write 0.5 for half of the answers.")
    if sample_share is not None and not 0 < sample_share <= MOST_SHARE:
        said = "answers are sampled for at most a hundredth of the budget"
        raise ConfigError(said, "sample_share", str(sample_share), "Write 0.01 or less.")
    config = with_absolute_paths(config)
    beside = open_folder(config.run_dir)
    folder = replace(beside, path=f"{beside.path}.plan-{uuid4().hex[:8]}")  # a name of its own: it is deleted
    with writing_errors(folder.path):
        return _plan_in(folder, queries, config, share, display or QuietDisplay(), sample_share)


def _plan_in(
    folder: Folder,
    queries: Dataset | None,
    config: RunConfig,
    share: float | None,
    display: Display,
    sample_share: float | None,
) -> PlanReport:
    load_scorer_of(config)
    heads = heads_of(config)
    try:
        with _begun(begun_engines, queries, config, heads, folder, display) as (progress, begun):
            notes = notes_of(config, heads)
            digest = take_in(queries, config, folder)
            input_cost_N = _checked_costs(config, folder, digest.rows)
            cost_N = token_costs(config, input_cost_N)
            progress.begin(_first_stage(config), queries=digest.rows, waiting_for=_start_of(config))
            begun.ray()
            engines = begun.engines()
            # Without the model's own numbers, which nothing here reads and an endpoint is paid for.
            found, lesson = _probed(folder, config, engines, heads, digest.rows, progress)
            estimates = priced(config, found, input_cost_N)
            sampled = (Sampled(),) * len(config.named_engines)
            if sample_share:
                sampled = sampled_answers(folder, config, estimates, engines, share=sample_share)
            progress.begin("price")
            # Of a run that learns nothing is known before its first answers but what earlier ones have left.
            estimates, earlier = with_earlier(folder, config, estimates, lesson)
            rounds = _rounds_of(folder, config, estimates, cost_N, None, given=earlier.rows)
            probe_tokens = -(-planned_probe_parts(config, estimates, input_cost_N) // COST_PARTS)
            first = rounds.next(max(config.budget_tokens - probe_tokens, 0))
            clearing = first.clearing if first else nothing_to_grant(digest.rows)
            money: dict[str, Any] = {"unit": config.unit, "probe_tokens": probe_tokens}
            report = plan_report(estimates, rounds.states, clearing, config.budget_tokens, engines.head, **money)
            report = with_interval(report, estimates, sampled, is_followed=config.allocation.objective == "solved")
            asked = None if share is None else budget_for_share(estimates, share)
            learned = {
                "learning": None if lesson is None else earlier.told(lesson.report()),
                "head": head_name(lesson, engines.head.kind),
                "engines": queries_of_engines(config, clearing),
                "gain": gain_of(report, config, estimates, lesson, sampled[0].answers, earlier, engines.head.kind),
            }
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            facts = {"for_share": asked, "notices": (*digest.notices, *notes)}
            scores = {"scorer": survey.choice() or survey.scorer, "warnings": survey.warnings()}
            return report.model_copy(update=facts | scores | learned)
    finally:
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)


@contextmanager
def _begun(
    start_engines: Engines,
    queries: Dataset | None,
    config: RunConfig,
    heads: tuple[Head, ...],
    folder: Folder,
    display: Display,
) -> Iterator[tuple[Progress, Beginning]]:
    """Have Ray and the engines begin while the input is read; what waits for Ray sets Ray Data up as well, once."""
    room = rows_each(config, config.engine, workers=1) if config.scaling.max_workers else None
    engines = [(named.config, head) for named, head in zip(config.named_engines, heads, strict=True)]
    with (
        Progress(config.budget_tokens, display, unit=config.unit) as progress,
        beginning(start_engines, engines, run_dir=folder.path, rows_each=room) as begun,
        ExitStack() as data,
    ):

        @cache
        def ray_and_data() -> None:
            begun.ray()
            data.enter_context(quiet_data())

        if queries is not None:  # they are read by Ray Data
            ray_and_data()
        progress.begin("read")
        yield progress, replace(begun, ray=ray_and_data)


def _probed(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    heads: tuple[Head, ...],
    rows: int,
    progress: Progress,
    *,
    open_run: Callable[[], object] = lambda: None,
    has_states: bool = False,
    fee: FirstTokenFee | None = None,
) -> tuple[Estimates, Lesson | None]:
    """Open the run once its engines are up, and return what each of them finds in the prompts, and what is to be learned."""

    def opened(gate: Gate) -> Lesson | None:
        engines.wait(gate.is_there)
        progress.begin(_first_stage(config))
        open_run()
        gate.open()
        return lesson_of(folder, config, *(each.model for each in engines.each))

    told = progress.note_probed
    with opened_meanwhile(folder, opened) as (gate, lesson):
        found = [
            probe(folder, config, each, head.card, rows, told, gate=gate, number=number, has_states=has_states, fee=fee)
            for number, (each, head) in enumerate(zip(engines.each, heads, strict=True))
        ]
        return together(found), lesson()


def _checked_costs(config: RunConfig, folder: Folder, queries: int) -> NDArray[np.float64]:
    """Return the costs of the input, after making sure that the run can be priced and its budget pays for it."""
    cost_N = read_costs(folder, queries)
    check_one_call(config, cost_N, folder)
    check_first_tokens(config, cost_N, folder)
    check_minimum_service(config, token_costs(config, cost_N, of=min), folder)
    return cost_N


def _first_stage(config: RunConfig) -> str:
    return "probe" if config.is_probed else "estimate"


def _start_of(config: RunConfig) -> str:
    """Return what has to be there before anything is asked."""
    if config.engines is not None:
        return f"starting {len(config.engines)} engines"
    words = {"openai": "asking the endpoint", "replay": "reading the recording"}
    return words.get(config.engine.kind, "loading the model")


def _rounds_of(
    folder: Folder,
    config: RunConfig,
    estimates: Estimates,
    cost_N: NDArray[np.float64],
    lesson: Lesson | None,
    *,
    given: GivenRows | None = None,
) -> Rounds:
    offers, settings = offers_of(folder, config, estimates, cost_N, lesson, given=given), config.allocation
    learns = lesson is not None and not lesson.left_out
    most_alone = rounds_of(config) if learns else None
    if isinstance(offers, MenuOffers):
        settings = settings.model_copy(update={"max_rounds": rounds_of(config)})
        calls = cheapest_calls(offers)
        return Rounds(offers, settings, failed=estimates.error_of_index, rule=offers.rule, calls=calls)
    if lesson is not None and learns and lesson.agreement is not None:
        rule = lesson.agreement.rule(can_differ(folder, estimates.queries))
    else:
        rule = AttemptRule(settings.objective, _most_attempts(folder, config, estimates.queries))
    return Rounds(
        offers,
        settings,
        failed=estimates.error_of_index,
        rule=rule,
        calls=estimates.calls,
        most_alone=most_alone,
    )


def _most_attempts(folder: Folder, config: RunConfig, queries: int) -> NDArray[np.int64]:
    """Return the most answers to each query: the run's, and no more than its row asks for."""
    settings = config.allocation
    most_N = np.full(queries, settings.most_attempts)
    if settings.objective == "correct":
        return most_N
    asked_N = read_answers_asked(folder, queries)
    own_N = asked_N if settings.attempts is None else np.minimum(asked_N, settings.attempts)
    return np.where(asked_N > 0, own_N, most_N)


def _open_run(
    folder: Folder,
    manifest: dict[str, Any] | None,
    config: RunConfig,
    digest: InputDigest,
    engines: EngineActors,
    run_id: str,
) -> None:
    wanted = describe(
        config,
        digest,
        run_id=run_id,
        model=_of_each(config, engines, lambda each: {"name": each.model.name, "fingerprint": each.model.fingerprint}),
        head=_of_each(config, engines, lambda each: {"kind": each.head.kind, "data_digest": each.head.data_digest}),
    )
    if manifest is not None:
        check_same_run(manifest, wanted, folder)
        return
    folder.write(MANIFEST, json.dumps(wanted, indent=2).encode())


def _of_each(
    config: RunConfig, engines: EngineActors, card: Callable[[EngineActors], dict[str, Any]]
) -> dict[str, Any]:
    """Return the card of the engine, or of several by their names."""
    if config.engines is None:
        return card(engines)
    return {name: card(each) for name, each in zip(config.engines, engines.each, strict=True)}
