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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.batch.checking import heads_of, notes_of
from clear_ray.batch.complete import close_run
from clear_ray.batch.context import RunContext
from clear_ray.batch.earlier_runs import make_ready
from clear_ray.batch.first_stage import (
    begun_run,
    checked_costs,
    first_stage,
    opened_rounds,
    probed,
    rounds_while_read,
    start_of,
)
from clear_ray.batch.generate import open_callers
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.learning import Lesson, lesson_of
from clear_ray.batch.memory import give_back_memory
from clear_ray.batch.metered_display import Measured
from clear_ray.batch.orders import heeding_orders
from clear_ray.batch.pricing import (
    PROBE,
    first_token_fee,
    priced,
    probe_parts,
    token_costs,
)
from clear_ray.batch.probe import most_curves
from clear_ray.batch.progress import Progress
from clear_ray.batch.round_loop import play_rounds
from clear_ray.batch.startup import Engines
from clear_ray.batch.streamed import StreamedProbe, is_read, is_streamed_run, streamed_probe, streaming_notes
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.callers import Callers
from clear_ray.cluster.engines import EngineActors
from clear_ray.cluster.joining import joined_cluster, quiet_data
from clear_ray.cluster.market import opened_market
from clear_ray.cluster.several import engines_of_run
from clear_ray.config.run import RunConfig
from clear_ray.estimation.head import Head
from clear_ray.ingest import InputDigest
from clear_ray.ledger.client import MarketClient
from clear_ray.ledger.identity import begin
from clear_ray.ledger.journal import wait_until_unused
from clear_ray.ledger.lock import alone_with
from clear_ray.report.live import Display, QuietDisplay
from clear_ray.report.page import import_plots
from clear_ray.report.summary import RoundReport, RunReport
from clear_ray.rounds.rounds import Rounds
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.completions import completion_rows
from clear_ray.run_folder.estimates import Estimates
from clear_ray.run_folder.locations import refuse_passing, with_absolute_paths
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe, describe_config, read_manifest
from clear_ray.run_folder.status import read_summary
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks.survey import FIRST_SCORED, survey_queries

if TYPE_CHECKING:
    from ray.data import Dataset

_FIRST_GRANTS_SECONDS = 3.0
"""In which the first grants reach their engine: what is wanted later is not imported meanwhile."""


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
    return run_on(engines_of_run, queries, config, display=display or QuietDisplay())


def run_on(engines: Engines, queries: Dataset | None, config: RunConfig, *, display: Display) -> RunResult:
    """Do what `run` does, on engines that are started, or found, in another way."""
    config = with_absolute_paths(config)
    folder = open_folder(config.run_dir)
    refuse_passing(folder, "run_dir")
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
    with begun_run(start_engines, queries, config, heads, folder, display) as (progress, begun):
        notes = notes_of(config, heads)
        digest = take_in(queries, config, folder, manifest)
        give_back_memory(digest.rows)
        if config.scoring.scorer is not None:
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            progress.warn("; ".join(survey.warnings()), if_all_wrong=survey.all_wrong(FIRST_SCORED))
        digest = replace(digest, notices=(*digest.notices, *notes, *streaming_notes(config, digest.rows)))
        input_cost_N = checked_costs(config, folder, digest.rows)
        cost_N = token_costs(config, input_cost_N)
        progress.begin(first_stage(config), queries=digest.rows, waiting_for="starting Ray")
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
            progress.begin(first_stage(config), waiting_for=start_of(config))
            scaler = EngineScaler(config, engines, market, lambda: progress.seconds)
            start = _Start(
                *(folder, config, heads, scaler, market, callers, progress, input_cost_N),
                open_run=lambda: _open_run(folder, manifest, config, digest, engines, run_id),
            )
            is_streamed = is_streamed_run(config, digest.rows) and not is_read(folder)
            opened, reports = _answered_while_read(start) if is_streamed else _read_then_answered(start)
            report = close_run(opened, reports, digest)
    return RunResult(report, config.run_dir)


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """What a run has before its first prompt is read."""

    folder: Folder
    config: RunConfig
    heads: tuple[Head, ...]
    scaler: EngineScaler
    market: MarketClient
    callers: Callers
    progress: Progress
    input_cost_N: NDArray[np.float64]
    open_run: Callable[[], None]


def _read_then_answered(start: _Start) -> tuple[RunContext, list[RoundReport]]:
    """Read all prompts, then play all rounds."""
    folder, config, progress = start.folder, start.config, start.progress
    queries = len(start.input_cost_N)
    found, lesson = probed(
        folder,
        config,
        start.scaler.engines,
        start.heads,
        queries,
        progress,
        open_run=start.open_run,
        has_states=config.reads_states,
        fee=first_token_fee(config, start.market),
    )
    give_back_memory(queries)
    progress.learns_from("" if lesson is None or lesson.left_out else lesson.label)
    estimates = priced(config, found, start.input_cost_N)
    if parts := probe_parts(config, estimates, start.input_cost_N):
        start.market.charge(PROBE, parts)
    rounds = opened_rounds(folder, config, estimates, token_costs(config, start.input_cost_N), lesson)
    opened = _opened(start, estimates, rounds, lesson=lesson)
    return opened, play_rounds(opened)


def _answered_while_read(start: _Start) -> tuple[RunContext, list[RoundReport]]:
    """Play the rounds while prompts are being read."""
    config, engines, progress = start.config, start.scaler.engines, start.progress

    def open_run() -> None:
        engines.wait(told=progress.note_loaded)
        progress.begin(first_stage(config))
        start.open_run()

    head, cost_N = start.heads[0].card, start.input_cost_N
    with streamed_probe(start.folder, config, engines, head, cost_N, open_run) as reader:
        progress.reads_on()
        lesson = lesson_of(start.folder, config, engines.model)
        progress.learns_from("" if lesson is None else lesson.label)
        rounds = rounds_while_read(start.folder, config, reader, lesson)
        opened = _opened(start, reader.growing.so_far(), rounds, lesson=lesson, reader=reader)
        reports = play_rounds(opened)
        return replace(opened, estimates=reader.growing.whole(most_curves(config, len(cost_N)))), reports


def _opened(
    start: _Start,
    estimates: Estimates,
    rounds: Rounds,
    *,
    lesson: Lesson | None = None,
    reader: StreamedProbe | None = None,
) -> RunContext:
    plots = threading.Timer(_FIRST_GRANTS_SECONDS, import_plots)  # they are wanted at the end alone
    plots.daemon = True
    plots.start()
    answers = AnswerFiles(estimates.prompt_tokens_N)
    return RunContext(
        *(start.folder, start.config, start.scaler, start.market, start.callers, answers, estimates, rounds),
        start.progress,
        lesson,
        reader,
    )


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
