"""Stage 2 on Ray Data: one round's grants on their way to the callers, and what became of answers whose writer died."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from clear_ray.batch.context import RunContext
from clear_ray.batch.intake import load_scorer_of
from clear_ray.cluster.engines import this_actor
from clear_ray.config.run import RunConfig
from clear_ray.errors import BudgetError
from clear_ray.rounds.clearing import Clearing
from clear_ray.run_folder.attempts import read_attempts, round_folder
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.select import GrantTable, SelectGranted

DIRECT_TEXT = "Answer at once, with the result alone."
"""What asks for the direct answer of the minimum service, put after the prompt."""
_OPEN_BLOCKS = 2
"""Blocks that a caller of stage 2 works on: one that runs out, and the next one."""
_SHARES_A_CALLER = 16


def generate_round(run: RunContext, clearing: Clearing, number: int) -> None:
    """Stage 2: run one round's grants that have no attempt yet."""
    folder, config, states = run.folder, run.config, run.states
    has_attempt_N, written_N = np.zeros(len(states.is_open_N), bool), states.written_tokens_N.copy()
    for attempts in read_attempts(folder, number, len(has_attempt_N), run.void_attempts()):
        has_attempt_N[attempts.index_M] = True
        written_N[attempts.index_M] += attempts.attempt_tokens_M
    mark_lost_answers(run, written_N)
    is_due = ~has_attempt_N[clearing.index_M]
    if not is_due.any():
        return
    begins_M = states.begins_M(clearing)[is_due]
    index_M = clearing.index_M[is_due]
    sample_M = (config.sample + np.maximum(states.attempt_N[index_M] + begins_M, 1) - 1).astype(np.int32)
    grants = GrantTable(number, index_M, clearing.tokens_M[is_due], sample_M)
    calls = config.dispatch.calls_in_flight or calls_for(config, workers=config.most_workers)
    rows = block_rows(config, len(grants.index_M), calls)
    is_small = len(grants.index_M) <= config.dispatch.block_rows
    granted = in_order(_granted_rows(run, grants, begins_M), "rank", is_small=is_small)
    granted = granted.repartition(target_num_rows_per_block=rows)
    dispatch = Dispatch(
        workers=run.scaler.engines.workers,
        market=run.market.awaitable(),
        scorer=load_scorer_of(config, folder),
        seed=config.seed,
        this_caller=this_actor,
        direct_text=direct_text_of(config) if clearing.is_service else "",
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
        batch_size=rows,
        batch_format="pyarrow",
        num_cpus=0.1,
        compute=ActorPoolStrategy(
            size=config.dispatch.callers,
            max_concurrent_calls_per_actor=_OPEN_BLOCKS,
            max_tasks_in_flight_per_actor=_OPEN_BLOCKS + 1,
        ),
    )
    expected_tokens = float(clearing.expected_tokens_M[is_due] @ states.cost_N[grants.index_M])
    queries, is_scarce = int(is_due.sum()), clearing.shadow_price > 0
    with run.scaler.round(expected_tokens=expected_tokens, queries=queries, is_scarce=is_scarce):
        generated.materialize()


def direct_text_of(config: RunConfig) -> str:
    """Return what the minimum service puts after a prompt; nothing if there is no such service."""
    if config.allocation.minimum_service_tokens is None:
        return ""
    return config.allocation.minimum_service_text or DIRECT_TEXT


def calls_for(config: RunConfig, *, workers: int) -> int:
    """Return how many calls a caller keeps open: no engine idle, and no more reserved than a crash may cost.

    Twice what the engines run at once, since the queries of a call end one by one and the next call comes after the last.
    """
    at_once = 2 * workers * config.engine.max_batch
    return max(-(-at_once // (config.dispatch.callers * config.dispatch.batch_rows)), 2)


def block_rows(config: RunConfig, queries: int, calls_in_flight: int) -> int:
    """Return how many granted queries travel to a caller at a time: few tasks, but shares for all callers to the end.

    A task of Ray Data costs tens of milliseconds of CPU. A caller needs at least what its calls hold, and no caller may be
    left with so many that the others wait for it.
    """
    dispatch = config.dispatch
    share = -(-queries // (_SHARES_A_CALLER * dispatch.callers))
    return max(min(share, dispatch.block_rows), calls_in_flight * dispatch.batch_rows)


def _granted_rows(run: RunContext, grants: GrantTable, is_fresh_M: NDArray[np.bool_]) -> Dataset:
    """Return the granted queries: those that begin an answer from `queries/`, those that go on from what they have."""
    folder, states, void = run.folder, run.states, run.void_attempts()
    parts = []
    for name, is_wanted_M, last_round_N in (
        ("queries", is_fresh_M, None),
        ("rounds", ~is_fresh_M, states.last_round_N),
    ):
        if is_wanted_M.any():
            select = SelectGranted(grants, is_wanted_M, last_round_N, void)
            rows = ray.data.read_parquet(folder.child(name).files(".parquet"), filesystem=folder.filesystem)
            parts.append(rows.map_batches(select, batch_format="pyarrow"))
    return union(parts)


def in_order(rows: Dataset, column: str | list[str], *, is_small: bool) -> Dataset:
    """Return rows in the order of a column, or of several; what fits one block is not worth a distributed sort."""
    if not is_small:
        return rows.sort(column)
    return rows.repartition(1).map_batches(partial(_sorted, column), batch_size=None, batch_format="pyarrow")


def _sorted(column: str | list[str], block: pa.Table) -> pa.Table:
    return block.sort_by(column if isinstance(column, str) else [(name, "ascending") for name in column])


def union(parts: list[Dataset]) -> Dataset:
    """Return the rows of several datasets, of at least one."""
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def mark_lost_answers(run: RunContext, written_N: NDArray[np.int64]) -> None:
    """Mark spending as wasted whose answers are in no file: their writer died after they were settled.

    Args:
        run: The open run.
        written_N: Tokens of each query that are in files, shape (N,).

    Raises:
        BudgetError: Files hold more than was charged; a defect of clear_ray.
    """
    spent_N, wasted_N = run.market.charges()
    lost_N = spent_N - wasted_N - written_N
    if (lost_N < 0).any():
        said = "answers hold more tokens than the ledger charged"
        raise BudgetError(said, run.folder.path, str(int(lost_N.argmin())))
    if lost_N.any():
        wasted_of_index = {int(i): int(wasted_N[i] + lost_N[i]) for i in np.flatnonzero(lost_N)}
        run.market.mark_wasted(wasted_of_index)
