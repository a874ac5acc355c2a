"""A batch run: probe -> price -> generate -> settle, and again while tokens come back.

    queries/ --probe (stage 1, engine workers)--> estimates/ --clear (driver)--> grants
        --generate (stage 2, the same workers, through the market)--> rounds/ --settle--> price again ... --> completions/

The driver holds a few numbers for each query and never a prompt or an answer. Everything that a round depends on is on
disk before the round begins, so running the same configuration again goes on where the last run ended.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from clear_ray.account import SAMPLE_QUERIES, make_report, plan_report
from clear_ray.clearing import Clearing, clear, minimum_service, nothing_to_grant, reservation_prices
from clear_ray.clearing_rows import clear_rows, reservation_prices_of_rows
from clear_ray.cluster import Crew, engine_workers, joined_cluster, market, quiet_data
from clear_ray.config import InputConfig, RunConfig
from clear_ray.engine.build import prompt_limit
from clear_ray.errors import BudgetError, ConfigError
from clear_ray.estimation.resolve import resolve_head
from clear_ray.hiring import Hiring
from clear_ray.ingest import InputDigest, SourceBatch, ingest, read_input, write_openai_outputs
from clear_ray.journal import wait_until_unused
from clear_ray.node_requests import gpus_for
from clear_ray.progress import Progress
from clear_ray.report.live import Display, QuietDisplay
from clear_ray.report.page import write_page
from clear_ray.report.plan import PlanReport
from clear_ray.report.summary import RoundReport, RunReport
from clear_ray.run_folder import (
    CURVE_COLUMNS,
    MANIFEST,
    SUMMARY,
    Estimates,
    check_same_run,
    describe,
    describe_config,
    describe_input,
    read_attempts,
    read_costs,
    read_estimates,
    read_grants,
    read_manifest,
    read_summary,
    round_folder,
    write_grants,
)
from clear_ray.sketching import is_sketched
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.grants import Abandon, Complete, GrantTable, SelectGranted, Verdicts
from clear_ray.stages.probe import Probe
from clear_ray.standing import Standing
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks import generate_queries, load_scorer

DIRECT_TEXT = "Answer at once, with the result alone."
"""What asks for the direct answer of the minimum service, put after the prompt."""
_BATCH_ROWS = 4_096
_OPEN_BLOCKS = 2
"""Blocks that a caller of stage 2 works on: one that runs out, and the next one."""
_SHARES_A_CALLER = 16


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run.

    Attributes:
        report: The account; the same as `summary.json`.
        run_dir: The run folder.
    """

    report: RunReport
    run_dir: str

    def completions(self) -> Dataset:
        """Return the completions as a Ray Dataset, one row a query (`records.COMPLETION_SCHEMA`)."""
        folder = open_folder(self.run_dir).child("completions")
        return ray.data.read_parquet(folder.path, filesystem=folder.filesystem)


def run(queries: Dataset | None, config: RunConfig, *, display: Display | None = None) -> RunResult:
    """Answer a batch under one budget.

    Running it again with the same configuration goes on with what is not done; a finished run is only read.

    Args:
        queries: Rows with the columns of `config.input.columns`; None reads what `config.input` names.
        config: What the batch may cost, and how.
        display: Told of the progress, a few times a second.

    Returns:
        The report, and where the answers are.

    Raises:
        SchemaError: The input is refused; nothing was written.
        ConfigError: A setting is refused, or the run folder holds something else or a link; nothing was written.
        ResumeError: The run folder belongs to another configuration or input, or another run is writing to it.
        EngineError: An engine failed as a whole; what was settled is kept.
        StorageError: The run folder's disk is full or broken; what was settled is kept.
    """
    folder = open_folder(config.run_dir)
    folder.refuse_links()
    manifest = read_manifest(folder)
    if manifest is not None:
        check_same_run(manifest, describe_config(config), folder)
    load_scorer_of(config)
    head = resolve_head(config.estimate.head, cap_tokens=config.allocation.max_tokens)
    wait_until_unused(folder)
    with (
        writing_errors(config.run_dir),
        joined_cluster(),
        quiet_data(),
        Progress(config.budget_tokens, display or QuietDisplay()) as progress,
    ):
        digest = take_in(queries, config, folder, manifest)
        if manifest is not None and (report := read_summary(folder)) is not None:
            return RunResult(report, config.run_dir)
        cost_N = read_costs(folder, digest.rows)
        _check_minimum_service(config, cost_N, folder)
        progress.begin("probe", queries=digest.rows)
        with (
            market(config.run_dir, config.budget_tokens, cost_N) as desk,  # first: it makes sure that we are alone
            gpus_for(desk, config.engine.num_gpus) as ask_for,
            engine_workers(
                config.engine,
                head,
                run_dir=config.run_dir,
                ask_for=ask_for,
                calls_each=_calls_for(config, workers=1) if config.scaling.max_workers else None,
            ) as crew,
            progress.watching(desk),
        ):
            _open_run(folder, manifest, config, digest, crew)
            estimates = _probe(folder, config, crew, digest.rows)
            hiring = Hiring(config, crew, desk, lambda: progress.seconds)
            standing = Standing(cost_N, failed=estimates.error_of_index)
            rounds = _rounds(folder, config, hiring, desk, estimates, standing, progress)
            report = _close_run(folder, config, hiring, desk, estimates, standing, rounds, progress, digest)
    return RunResult(report, config.run_dir)


def plan(queries: Dataset | None, config: RunConfig, *, display: Display | None = None) -> PlanReport:
    """Validate and probe a batch and price it, without generating a token; what it writes it removes again.

    Args:
        queries: As for `run`.
        config: As for `run`.
        display: Told of the progress.

    Raises:
        SchemaError: The input is refused.
        ConfigError: A setting is refused.
        EngineError: The model cannot be loaded.
    """
    folder = open_folder(f"{config.run_dir.rstrip('/')}.plan-{uuid4().hex[:8]}")  # a name of its own: it is deleted
    head = resolve_head(config.estimate.head, cap_tokens=config.allocation.max_tokens)
    try:
        with joined_cluster(), quiet_data(), Progress(config.budget_tokens, display or QuietDisplay()) as progress:
            digest = take_in(queries, config, folder)
            cost_N = read_costs(folder, digest.rows)
            _check_minimum_service(config, cost_N, folder)
            progress.begin("probe", queries=digest.rows)
            with engine_workers(config.engine, head, run_dir=folder.path) as crew:
                estimates = _probe(folder, config, crew, digest.rows)
            progress.begin("price")
            standing = Standing(cost_N, failed=estimates.error_of_index)
            clearing = _clear(folder, config, estimates, standing, config.budget_tokens)
            return plan_report(estimates, standing, clearing, config.budget_tokens, crew.head)
    finally:
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)


def take_in(
    queries: Dataset | None, config: RunConfig, folder: Folder, manifest: dict[str, Any] | None = None
) -> InputDigest:
    """Check the whole input and write `queries/`; nothing is left behind if it is refused.

    Args:
        queries: As for `run`.
        config: As for `run`.
        folder: Of the run.
        manifest: Of the run that is there: its input must be the same.

    Raises:
        SchemaError: A row cannot be read as a query.
        ConfigError: There is no input, or two.
        ResumeError: The run that is there had another input.
    """
    if queries is not None and (config.input.path or config.input.tasks):
        raise ConfigError(
            "queries were passed and the configuration names an input", "input", remedy="Remove one of the two."
        )
    if queries is not None:
        batches: Iterable[SourceBatch] = _dataset_batches(queries, config.input)
    elif config.input.tasks:
        batches = _row_batches(generate_queries(config.input.tasks), "generated query")
    else:
        batches = read_input(config.input)
    return ingest(
        batches,
        queries=folder.child("queries"),
        max_tokens=config.allocation.max_tokens,
        prompt_limit=prompt_limit(config.engine),
        accept=None if manifest is None else lambda digest: check_same_run(manifest, describe_input(digest), folder),
    )


def load_scorer_of(config: RunConfig) -> Callable[[], Any] | None:
    """Return what makes the scorer of a run, after trying it once here, where a mistake can still be mended.

    Raises:
        ConfigError: No such scorer.
    """
    if config.scoring.scorer is None:
        return None
    load_scorer(config.scoring.scorer)
    return partial(load_scorer, config.scoring.scorer)


def _row_batches(rows: Iterator[dict[str, Any]], origin: str) -> Iterator[SourceBatch]:
    first_row = 1
    while chunk := list(islice(rows, _BATCH_ROWS)):
        yield SourceBatch(chunk, origin, range(first_row, first_row + len(chunk)))
        first_row += len(chunk)


def _dataset_batches(queries: Dataset, config: InputConfig) -> Iterator[SourceBatch]:
    first_row = 1
    for table in queries.iter_batches(batch_format="pyarrow", batch_size=_BATCH_ROWS):
        yield SourceBatch.from_arrow(table, origin="dataset", first_row=first_row, columns=config.columns)
        first_row += len(table)


def _open_run(
    folder: Folder, manifest: dict[str, Any] | None, config: RunConfig, digest: InputDigest, crew: Crew
) -> None:
    wanted = describe(
        config,
        digest,
        model={"name": crew.model.name, "fingerprint": crew.model.fingerprint},
        head={"kind": crew.head.kind, "data_digest": crew.head.data_digest},
    )
    if manifest is not None:
        check_same_run(manifest, wanted, folder)
        return
    folder.write(MANIFEST, json.dumps(wanted, indent=2).encode())


def _probe(folder: Folder, config: RunConfig, crew: Crew, rows: int) -> Estimates:
    """Stage 1: have every query's prompt read once; skipped if the estimates are there already."""
    tokens_K = np.asarray(crew.head.tokens_K, np.int64)
    if not folder.exists("estimates"):
        folder.delete("estimates.partial")
        partial_folder = folder.child("estimates.partial")
        queries = folder.child("queries")
        (
            ray.data.read_parquet(queries.path, filesystem=queries.filesystem, file_extensions=["parquet"])
            .repartition(target_num_rows_per_block=config.dispatch.block_rows)
            .map_batches(
                Probe,
                fn_constructor_args=(crew.workers, tuple(crew.head.tokens_K)),
                batch_size=config.estimate.batch_rows,
                batch_format="pyarrow",
                num_cpus=0.1,
                compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2 * config.engine.workers),
            )
            .write_parquet(partial_folder.path, filesystem=folder.filesystem)
        )
        folder.rename("estimates.partial", "estimates")
    most_curves = SAMPLE_QUERIES if _is_sketched(config, rows) else None
    estimates = read_estimates(folder, tokens_K, config.seed, most_curves=most_curves)
    if estimates.queries != rows:
        raise BudgetError(f"{rows} queries came in and {estimates.queries} estimates came out", folder.path)
    return estimates


def _is_sketched(config: RunConfig, queries: int) -> bool:
    return config.allocation.policy == "clear_ray" and is_sketched(queries, config.allocation.sketched)


def _clear(
    folder: Folder, config: RunConfig, estimates: Estimates, standing: Standing, available_tokens: int
) -> Clearing:
    if _is_sketched(config, estimates.queries):
        return clear_rows(
            _estimate_rows(folder),
            estimates.batch.curves.tokens_K,
            standing,
            tie_break_N=estimates.tie_break_N,
            available_tokens=available_tokens,
        )
    return clear(
        estimates.batch,
        generated_tokens_N=standing.answer_tokens_N,
        is_open_N=standing.is_open_N,
        available_tokens=available_tokens,
        policy=config.allocation.policy,
        minimum_service_tokens=config.allocation.minimum_service_tokens or 0,
    )


def _serve_the_rest(config: RunConfig, estimates: Estimates, standing: Standing, available_tokens: int) -> Clearing:
    """Return the minimum service of the queries that no round has funded; no grants if there is none."""
    if config.allocation.minimum_service_tokens is None:
        return nothing_to_grant(estimates.queries)
    return minimum_service(
        estimates.batch,
        generated_tokens_N=standing.answer_tokens_N,
        is_open_N=standing.is_open_N & (standing.rounds_N == 0),
        available_tokens=available_tokens,
        minimum_service_tokens=config.allocation.minimum_service_tokens,
        shadow_price=float(standing.price_N[standing.rounds_N == 0].max(initial=0.0)),
    )


def _check_minimum_service(config: RunConfig, cost_N: NDArray[np.float64], folder: Folder) -> None:
    """Refuse a minimum service that the budget does not pay for, or whose floors no process holds; leave nothing behind.

    Raises:
        ConfigError: It is so.
    """
    tokens = config.allocation.minimum_service_tokens
    if tokens is None:
        return
    queries = len(cost_N)
    owed, remedy = math.ceil(tokens * cost_N.sum()), "Raise the budget or serve less."
    if owed <= config.budget_tokens and not _is_sketched(config, queries):
        return
    said = f"the minimum service of {queries:,} queries takes {owed:,} tokens of a budget of {config.budget_tokens:,}"
    if owed <= config.budget_tokens:
        said, remedy = "a batch that is priced from sketches has no minimum service", "Leave one of them out."
    folder.delete("queries")
    raise ConfigError(said, "allocation.minimum_service_tokens", str(tokens), remedy)


def _estimate_rows(folder: Folder) -> Dataset:
    paths = folder.child("estimates").files(".parquet")
    return ray.data.read_parquet(paths, filesystem=folder.filesystem).select_columns(CURVE_COLUMNS)


def _reservation_prices(folder: Folder, estimates: Estimates) -> NDArray[np.float64]:
    if not estimates.is_sample:
        return reservation_prices(estimates.batch)
    return reservation_prices_of_rows(_estimate_rows(folder), estimates.batch.curves.tokens_K, estimates.queries)


def _rounds(
    folder: Folder,
    config: RunConfig,
    hiring: Hiring,
    desk: Any,
    estimates: Estimates,
    standing: Standing,
    progress: Progress,
) -> list[RoundReport]:
    """Clear, generate and settle until nothing useful is left to buy; `standing` changes."""
    rounds: list[RoundReport] = []
    is_priced = True
    ray.get(desk.close_open_reservations.remote())
    for number in range(1, config.allocation.max_rounds + 2):
        started = time.monotonic()
        kept = read_grants(folder, number)
        is_last_kept = kept is not None and read_grants(folder, number + 1) is None and not folder.exists("closing")
        if kept is None:
            available_tokens = ray.get(desk.balance.remote()).available_tokens
            clearing = nothing_to_grant(estimates.queries)
            if is_priced and _is_worth_a_round(config, standing, number, available_tokens):
                progress.begin("price", round_number=number)
                clearing = _clear(folder, config, estimates, standing, available_tokens)
            if not len(clearing.index_M):
                clearing = _serve_the_rest(config, estimates, standing, available_tokens)
            if not len(clearing.index_M):
                break
            write_grants(folder, number, clearing, available_tokens)
        else:
            clearing, available_tokens = kept
        standing.grant(clearing)
        if kept is None or is_last_kept:
            granted = int(standing.was_granted_N.sum())
            progress.begin("generate", round_number=number, price=clearing.shadow_price, granted=granted)
            ray.get(desk.open_round.remote(number, {"price": clearing.shadow_price, "available": available_tokens}))
            _generate(folder, config, hiring, desk, standing, clearing, number)
        attempts = read_attempts(folder, number)
        seconds = time.monotonic() - started
        rounds.append(standing.take(number, clearing, attempts, seconds=seconds, available_tokens=available_tokens))
        if clearing.is_service:
            break
        is_priced = len(attempts) > 0
    return rounds


def _is_worth_a_round(config: RunConfig, standing: Standing, number: int, available_tokens: int) -> bool:
    """Return whether there may be another clearing, and enough for it beside what is owed as minimum service."""
    is_owed_N = standing.is_open_N & (standing.rounds_N == 0)
    owed_tokens = (config.allocation.minimum_service_tokens or 0) * float(standing.cost_N[is_owed_N].sum())
    is_enough = number == 1 or available_tokens - owed_tokens >= config.allocation.smallest_grant_tokens
    return number <= config.allocation.max_rounds and is_enough


def _generate(
    folder: Folder, config: RunConfig, hiring: Hiring, desk: Any, standing: Standing, clearing: Clearing, number: int
) -> None:
    """Stage 2: run one round's grants that have no attempt yet."""
    attempts = read_attempts(folder, number)
    _mark_lost_answers(folder, desk, standing, attempts)
    is_due = ~np.isin(clearing.index_M, attempts["index"].to_numpy())
    if not is_due.any():
        return
    grants = GrantTable(number, clearing.index_M[is_due], clearing.tokens_M[is_due])
    calls = config.dispatch.calls_in_flight or _calls_for(config, workers=config.most_workers)
    block_rows = _block_rows(config, len(grants.index_M), calls)
    granted = _in_order(_granted_rows(folder, standing, grants), config, len(grants.index_M))
    granted = granted.repartition(target_num_rows_per_block=block_rows)
    dispatch = Dispatch(
        workers=hiring.crew.workers,
        market=desk,
        scorer=load_scorer_of(config),
        seed=config.seed,
        sample=config.sample,
        direct_text=(config.allocation.minimum_service_text or DIRECT_TEXT) if clearing.is_service else "",
    )
    target = round_folder(folder, number)
    target.make()
    generated = granted.map_batches(
        GenerateToFiles,
        fn_constructor_args=(dispatch, target),
        fn_constructor_kwargs={
            "rows_per_file": config.dispatch.rows_per_file,
            "call_rows": config.dispatch.batch_rows,
            "calls_in_flight": calls,
        },
        batch_size=block_rows,
        batch_format="pyarrow",
        num_cpus=0.1,
        compute=ActorPoolStrategy(
            size=config.dispatch.callers,
            max_concurrent_calls_per_actor=_OPEN_BLOCKS,
            max_tasks_in_flight_per_actor=_OPEN_BLOCKS + 1,
        ),
    )
    expected_tokens = float(clearing.expected_tokens_M[is_due] @ standing.cost_N[grants.index_M])
    with hiring.round(expected_tokens=expected_tokens, queries=int(is_due.sum()), is_scarce=clearing.shadow_price > 0):
        generated.materialize()


def _calls_for(config: RunConfig, *, workers: int) -> int:
    """Return how many calls a caller keeps open: no engine idle, and no more reserved than a crash may cost.

    Twice what the engines run at once, since the queries of a call end one by one and the next call comes after the last.
    """
    at_once = 2 * workers * config.engine.max_batch
    return max(-(-at_once // (config.dispatch.callers * config.dispatch.batch_rows)), 2)


def _block_rows(config: RunConfig, queries: int, calls_in_flight: int) -> int:
    """Return how many granted queries travel to a caller at a time: few tasks, but shares for all callers to the end.

    A task of Ray Data costs tens of milliseconds of CPU. A caller needs at least what its calls hold, and no caller may be
    left with so many that the others wait for it.
    """
    dispatch = config.dispatch
    share = -(-queries // (_SHARES_A_CALLER * dispatch.callers))
    return max(min(share, dispatch.block_rows), calls_in_flight * dispatch.batch_rows)


def _granted_rows(folder: Folder, standing: Standing, grants: GrantTable) -> Dataset:
    """Return the granted queries: those never run before from `queries/`, those that go on from their last attempt."""
    is_fresh_M = standing.rounds_N[grants.index_M] == 0
    parts = []
    for name, is_wanted_M, last_round_N in (
        ("queries", is_fresh_M, None),
        ("rounds", ~is_fresh_M, standing.last_round_N),
    ):
        if is_wanted_M.any():
            select = SelectGranted(grants, is_wanted_M, last_round_N)
            rows = ray.data.read_parquet(folder.child(name).files(".parquet"), filesystem=folder.filesystem)
            parts.append(rows.map_batches(select, batch_format="pyarrow"))
    return _union(parts)


def _in_order(granted: Dataset, config: RunConfig, queries: int) -> Dataset:
    """Return granted rows in order of dispatch; what fits one block is not worth a distributed sort."""
    if queries > config.dispatch.block_rows:
        return granted.sort("rank")
    return granted.repartition(1).map_batches(_sorted_by_rank, batch_size=None, batch_format="pyarrow")


def _sorted_by_rank(block: pa.Table) -> pa.Table:
    return block.sort_by("rank")


def _union(parts: list[Dataset]) -> Dataset:
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def _mark_lost_answers(folder: Folder, desk: Any, standing: Standing, attempts: pa.Table | None = None) -> None:
    """Mark spending as wasted whose answers are in no file: their writer died after they were settled.

    Args:
        folder: The run folder.
        desk: The market.
        standing: Has taken the rounds before.
        attempts: What there is of the round that is under way.
    """
    spent_N, wasted_N = ray.get(desk.charges.remote())
    written_N = standing.written_tokens_N.copy()
    if attempts is not None:
        written_N[attempts["index"].to_numpy().astype(np.int64)] += (
            attempts["attempt_tokens"].to_numpy().astype(np.int64)
        )
    lost_N = spent_N - wasted_N - written_N
    if (lost_N < 0).any():
        raise BudgetError("answers hold more tokens than the ledger charged", folder.path, str(int(lost_N.argmin())))
    if lost_N.any():
        wasted_of_index = {int(i): int(wasted_N[i] + lost_N[i]) for i in np.flatnonzero(lost_N)}
        ray.get(desk.mark_wasted.remote(wasted_of_index))


def _close_run(
    folder: Folder,
    config: RunConfig,
    hiring: Hiring,
    desk: Any,
    estimates: Estimates,
    standing: Standing,
    rounds: list[RoundReport],
    progress: Progress,
    digest: InputDigest,
) -> RunReport:
    """Write every query's completion and the report; the summary last."""
    progress.begin("write")
    _mark_lost_answers(folder, desk, standing)
    spent_N, _ = ray.get(desk.charges.remote())
    verdicts = Verdicts(
        last_round_N=standing.last_round_N,
        rounds_N=standing.rounds_N,
        max_tokens_N=standing.granted_tokens_N,
        is_served_N=standing.is_served_N,
        spent_tokens_N=spent_N,
        price_N=standing.price_N,
        expected_utility_N=standing.expected_utility_N,
        surplus_N=standing.surplus_N,
        reservation_price_N=_reservation_prices(folder, estimates),
        prompt_tokens_N=estimates.prompt_tokens_N,
        error_of_index=estimates.error_of_index,
    )
    _write_completions(folder, verdicts)
    report = make_report(
        config,
        hiring.crew.model,
        hiring.crew.head,
        estimates,
        standing,
        ray.get(desk.balance.remote()),
        spent_N,
        tuple(rounds),
        has_gold_N=_has_gold(folder, len(spent_N)),
        workers=hiring.most_up,
        worker_tokens_per_second=hiring.tokens_per_second,
        seconds=progress.seconds,
    )
    if digest.openai_url is not None:
        write_openai_outputs(_completion_rows(folder), folder, model=hiring.crew.model.name, url=digest.openai_url)
    write_page(report, completions=_completion_rows(folder), folder=folder)
    folder.write(SUMMARY, report.model_dump_json(indent=2).encode())
    return report


def _write_completions(folder: Folder, verdicts: Verdicts) -> None:
    folder.delete("completions.partial")
    folder.delete("completions")
    sources: list[tuple[Folder, Any]] = [
        (folder.child("queries"), Abandon(verdicts)),
        (folder.child("rounds"), Complete(verdicts)),
    ]
    parts = [
        ray.data.read_parquet(paths, filesystem=folder.filesystem).map_batches(finish, batch_format="pyarrow")
        for source, finish in sources
        if (paths := source.files(".parquet"))
    ]
    target = folder.child("completions.partial")
    _union(parts).write_parquet(target.path, filesystem=folder.filesystem)
    folder.rename("completions.partial", "completions")


def _has_gold(folder: Folder, queries: int) -> NDArray[np.bool_]:
    has_gold_N = np.zeros(queries, bool)
    for path in folder.child("completions").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["index", "gold"])
        has_gold_N[table["index"].to_numpy()] = table["gold"].is_valid().to_numpy()
    return has_gold_N


def _completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one, with one batch of them in memory."""
    for path in folder.child("completions").files(".parquet"):
        with folder.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024):
                yield from batch.to_pylist()
