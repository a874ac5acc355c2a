"""A batch run: probe -> price -> generate -> settle, and again while tokens come back.

    queries/ --probe (stage 1, engine workers)--> estimates/ --clear (driver)--> grants
        --generate (stage 2, the same workers, through the market)--> rounds/ --settle--> price again ... --> completions/

The driver holds a few numbers for each query and never a prompt or an answer. Everything that a round depends on is on
disk before the round begins, so running the same configuration again goes on where the last run ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.data import Dataset

from clear_ray.batch.checking import head_of
from clear_ray.batch.complete import close_run
from clear_ray.batch.context import RunContext
from clear_ray.batch.generate import calls_for, generate_round
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.learning import Lesson, head_name, lesson_of, rounds_of
from clear_ray.batch.pricing import check_minimum_service, offers_of
from clear_ray.batch.probe import probe
from clear_ray.batch.progress import Progress
from clear_ray.batch.report import budget_for_share, plan_report
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.engines import EngineActors, engine_workers
from clear_ray.cluster.gpu_requests import gpus_for
from clear_ray.cluster.joining import joined_cluster, quiet_data
from clear_ray.cluster.market import opened_market
from clear_ray.cluster.room import settled
from clear_ray.config.run import RunConfig
from clear_ray.engine.checking import engine_notes
from clear_ray.engine.conversations import check_conversations
from clear_ray.errors import ConfigError
from clear_ray.ingest import InputDigest
from clear_ray.ledger.identity import begin
from clear_ray.ledger.journal import wait_until_unused
from clear_ray.ledger.lock import alone_with
from clear_ray.report.live import Display, QuietDisplay
from clear_ray.report.plan import PlanReport
from clear_ray.report.summary import RoundReport, RunReport
from clear_ray.rounds.clearing import nothing_to_grant
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.run_folder.attempts import read_attempts
from clear_ray.run_folder.completions import completion_rows
from clear_ray.run_folder.estimates import (
    Estimates,
    read_costs,
)
from clear_ray.run_folder.grants import read_grants, write_grants
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe, describe_config, read_manifest
from clear_ray.run_folder.status import read_summary
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks.survey import FIRST_SCORED, survey_queries


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
    config = with_absolute_paths(config)
    folder = open_folder(config.run_dir)
    with writing_errors(config.run_dir):
        folder.refuse_links()
        with alone_with(folder):
            return _run_alone(queries, config, folder, display or QuietDisplay())


def _run_alone(queries: Dataset | None, config: RunConfig, folder: Folder, display: Display) -> RunResult:
    manifest = read_manifest(folder)
    if manifest is not None:
        check_same_run(manifest, describe_config(config), folder)
    load_scorer_of(config)
    head, notes = head_of(config), engine_notes(config.engine)
    if manifest is None or read_summary(folder) is None:
        wait_until_unused(folder)
    with joined_cluster(), quiet_data(), Progress(config.budget_tokens, display) as progress:
        digest = take_in(queries, config, folder, manifest)
        if manifest is not None and (report := read_summary(folder)) is not None:
            return RunResult(report, config.run_dir)
        if config.scoring.scorer is not None:
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            progress.warn("; ".join(survey.warnings()), if_all_wrong=survey.all_wrong(FIRST_SCORED))
        notes += check_conversations(config.engine, folder.child("queries"))
        cost_N = read_costs(folder, digest.rows)
        check_minimum_service(config, cost_N, folder)
        progress.begin("probe", queries=digest.rows)
        run_id = begin(folder, manifest)
        engine = settled(config.engine)
        with (
            # First: it makes sure that we are alone.
            opened_market(config.run_dir, config.budget_tokens, cost_N, run_id=run_id) as market,
            gpus_for(market.actor, engine.num_gpus or 0) as ask_for,
            engine_workers(
                engine,
                head,
                run_dir=config.run_dir,
                run_id=run_id,
                ask_for=ask_for,
                calls_each=calls_for(config, workers=1) if config.scaling.max_workers else None,
            ) as engines,
            progress.watching(market),
        ):
            _open_run(folder, manifest, config, digest, engines, run_id)
            lesson = lesson_of(folder, config, digest.rows)
            progress.learns_from("" if lesson is None or lesson.left_out else lesson.label)
            estimates = probe(folder, config, engines, digest.rows)
            scaler = EngineScaler(config, engines, market, lambda: progress.seconds)
            rounds = _rounds_of(folder, config, estimates, cost_N, lesson)
            opened = RunContext(folder, config, scaler, market, estimates, rounds, progress, lesson, notes)
            report = close_run(opened, _rounds(opened), digest)
    return RunResult(report, config.run_dir)


def plan(
    queries: Dataset | None, config: RunConfig, *, share: float | None = None, display: Display | None = None
) -> PlanReport:
    """Validate and probe a batch and price it, without generating a token; what it writes it removes again.

    Args:
        queries: As for `run`.
        config: As for `run`.
        share: Also find the budget that is expected to give this share, above 0 and below 1, of what ample tokens give.
        display: Display that is told of the progress.

    Raises:
        SchemaError: The input is refused.
        ConfigError: A setting is refused.
        EngineError: The model cannot be loaded.
        StorageError: The disk beside the run folder, where it works, is full or broken, or closed to this user.
    """
    if share is not None and not 0 < share < 1:
        raise ConfigError("a share lies between 0 and 1", "share", str(share), "Write 0.5 for half of the answers.")
    config = with_absolute_paths(config)
    beside = open_folder(config.run_dir)
    folder = replace(beside, path=f"{beside.path}.plan-{uuid4().hex[:8]}")  # a name of its own: it is deleted
    with writing_errors(folder.path):
        return _plan_in(folder, queries, config, share, display or QuietDisplay())


def _plan_in(
    folder: Folder, queries: Dataset | None, config: RunConfig, share: float | None, display: Display
) -> PlanReport:
    load_scorer_of(config)
    head, notes = head_of(config), engine_notes(config.engine)
    try:
        with joined_cluster(), quiet_data(), Progress(config.budget_tokens, display) as progress:
            digest = take_in(queries, config, folder)
            notes += check_conversations(config.engine, folder.child("queries"))
            cost_N = read_costs(folder, digest.rows)
            check_minimum_service(config, cost_N, folder)
            progress.begin("probe", queries=digest.rows)
            with engine_workers(settled(config.engine), head, run_dir=folder.path, run_id="") as engines:
                estimates = probe(folder, config, engines, digest.rows)
            progress.begin("price")
            # Of a run that learns as well: nothing is known before its first answers, and the uninformed law says so.
            rounds = _rounds_of(folder, config, estimates, cost_N, None)
            first = rounds.next(config.budget_tokens)
            clearing = first.clearing if first else nothing_to_grant(digest.rows)
            report = plan_report(estimates, rounds.states, clearing, config.budget_tokens, engines.head)
            asked = None if share is None else budget_for_share(estimates, share)
            lesson = lesson_of(folder, config, digest.rows)
            learned = {
                "learning": None if lesson is None else lesson.report(),
                "head": head_name(lesson, engines.head.kind),
            }
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            facts = {"for_share": asked, "notes": notes, "notices": digest.notices}
            scores = {"scorer": survey.choice() or survey.scorer, "warnings": survey.warnings()}
            return report.model_copy(update=facts | scores | learned)
    finally:
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)


def _rounds_of(
    folder: Folder, config: RunConfig, estimates: Estimates, cost_N: NDArray[np.float64], lesson: Lesson | None
) -> Rounds:
    offers, settings = offers_of(folder, config, estimates, cost_N, lesson), config.allocation
    if isinstance(offers, LearningOffers):
        settings = settings.model_copy(update={"max_rounds": rounds_of(config)})
    rule = AttemptRule(settings.objective, np.full(estimates.queries, settings.most_attempts))
    return Rounds(offers, settings, failed=estimates.error_of_index, rule=rule)


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
        model={"name": engines.model.name, "fingerprint": engines.model.fingerprint},
        head={"kind": engines.head.kind, "data_digest": engines.head.data_digest},
    )
    if manifest is not None:
        check_same_run(manifest, wanted, folder)
        return
    folder.write(MANIFEST, json.dumps(wanted, indent=2).encode())


def _rounds(opened: RunContext) -> list[RoundReport]:
    """Clear, generate and settle until nothing useful is left to buy; what the folder holds of that is replayed first."""
    folder, rounds, market, progress = opened.folder, opened.rounds, opened.market, opened.progress
    reports: list[RoundReport] = []
    market.close_open_reservations()
    while True:
        started = time.monotonic()
        kept = read_grants(folder, rounds.number + 1)
        granted = rounds.replay(kept) if kept else _next_round(opened)
        if granted is None:
            return reports
        number, clearing = granted.number, granted.clearing
        if kept is None:
            write_grants(folder, granted)
        if kept is None or read_grants(folder, number + 1) is None:
            price, many = clearing.shadow_price, int(opened.states.was_granted_N.sum())
            progress.begin("generate", round_number=number, price=price, granted=many)
            market.open_round(number, {"price": price, "available": granted.available_tokens})
            generate_round(opened, clearing, number)
        attempts = read_attempts(folder, number, len(opened.states.cost_N), opened.void_attempts())
        report = rounds.take(number, attempts)
        reports.append(report.model_copy(update={"seconds": time.monotonic() - started}))


def _next_round(opened: RunContext) -> Round | None:
    unspent_tokens = opened.market.balance().available_tokens  # nothing is reserved between two rounds
    if opened.rounds.may_clear(unspent_tokens):
        opened.progress.begin("price", round_number=opened.rounds.number + 1)
    return opened.rounds.next(unspent_tokens)
