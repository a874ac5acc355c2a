"""Stage 2: a round's grants on their way to the callers, and what became of answers whose writer died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from clear_ray.batch.context import RunContext
from clear_ray.batch.intake import load_scorer_of
from clear_ray.cluster.callers import Callers, generate_callers
from clear_ray.cluster.engines import EngineActors, this_actor
from clear_ray.config.engine import EngineConfig
from clear_ray.config.run import RunConfig
from clear_ray.errors import BudgetError
from clear_ray.ledger.client import MarketClient
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.running import Round
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.granted import GrantedCall
from clear_ray.stages.probe import homes_of
from clear_ray.storage import Folder

DIRECT_TEXT = "Answer at once, with the result alone."
"""What asks for the direct answer of the minimum service, put after the prompt."""
Calls = Iterator[GrantedCall]
_LENGTHS_PER_DOUBLING = 4
_CALL_TOKENS, _MOST_CALL_ROWS, _CALLS_A_CALLER = 256, 128, 4
_ROWS_A_CALL = 4


def calls_of(run: RunContext, granted: Round, is_due_M: NDArray[np.bool_]) -> Iterator[tuple[int, int, Calls]]:
    """Yield the place of each engine that a round has grants of, how many, and their calls, each made when it is asked for.

    The calls are in order of dispatch: few queries where long answers are expected.

    Args:
        run: The open run.
        granted: The round.
        is_due_M: Which of its grants have no attempt yet.
    """
    clearing = granted.clearing
    engine_M = np.zeros(len(clearing.index_M), np.int64) if clearing.option_M is None else clearing.option_M
    begins_M, sample_M = run.states.begins_M(clearing), _samples(run, clearing)
    for engine, named in enumerate(run.config.named_engines):
        due = np.flatnonzero(is_due_M & (engine_M == engine))
        if len(due):
            read_at_N = None if run.reader is None else run.reader.place_N
            queries = len(run.states.cost_N)
            places = places_of_calls(run.config, named.config, clearing, due, queries=queries, read_at_N=read_at_N)
            yield engine, len(due), _calls(run, granted, engine, places, begins_M, sample_M)


def _calls(
    run: RunContext,
    granted: Round,
    engine: int,
    places: Iterable[tuple[int, NDArray[np.intp]]],
    begins_M: NDArray[np.bool_],
    sample_M: NDArray[np.int32],
) -> Calls:
    clearing = granted.clearing
    direct_text, parts_M = direct_text_of(run.config) if clearing.is_service else "", clearing.reserved_parts_M
    for home, some in places:
        index_M = clearing.index_M[some]
        yield GrantedCall(
            granted.number,
            index_M,
            clearing.tokens_M[some],
            *run.answers.of(index_M, begins_M=begins_M[some]),
            direct_text,
            None if parts_M is None else parts_M[some],
            sample_M[some],
            run.scaler.engines.each[engine].times_ended,
            engine,
            home,
        )


def places_of_calls(
    config: RunConfig,
    engine: EngineConfig,
    clearing: Clearing,
    due: NDArray[np.intp],
    *,
    queries: int,
    read_at_N: NDArray[np.int64] | None = None,
) -> list[tuple[int, NDArray[np.intp]]]:
    """Return for each call of an engine the worker where its grants are at home, and their places.

    Args:
        config: Configuration of the run.
        engine: Settings of the engine.
        clearing: The grants.
        due: Places of those that the engine is asked for.
        queries: Number of queries of the batch.
        read_at_N: Place of each query in the order in which prompts were read; that of the batch if not given.
    """
    read_at_M = clearing.index_M[due] if read_at_N is None else read_at_N[clearing.index_M[due]]
    due = due[reading_order(read_at_M, clearing.tokens_M[due])]
    at_once = rows_each(config, engine, workers=1)
    most_rows = config.dispatch.batch_rows or max(at_once // _CALLS_A_CALLER, 1)
    most_tokens = None if config.dispatch.batch_rows else _CALL_TOKENS
    home_M = homes_of(config, queries, workers=engine.workers).of(clearing.index_M[due])
    length = _length_of(clearing.tokens_M[due])
    rank_M = np.cumsum(np.diff(length, prepend=length[:1]) != 0)
    calls: list[tuple[int, int, int, NDArray[np.intp]]] = []
    for home in np.unique(home_M).tolist():
        own = np.flatnonzero(home_M == home)
        expected_tokens_M = clearing.expected_tokens_M[due[own]]
        turn_of: Counter[int] = Counter()
        for part in in_calls(expected_tokens_M, most_rows=most_rows, most_tokens=most_tokens):
            rank = int(rank_M[own[part][0]])
            calls.append((rank, turn_of[rank], home, due[own[part]]))
            turn_of[rank] += 1
    calls.sort(key=itemgetter(0, 1, 2))  # homes take turns with grants of one length
    return [(home, some) for _, _, home, some in calls]


def in_calls(expected_tokens_M: NDArray[np.float64], *, most_rows: int, most_tokens: float | None) -> Iterator[slice]:
    """Yield stretches of the order of dispatch of at most so many queries, or so many tokens expected of them together.

    A call comes back, and another takes its place, when the last of its answers has ended. So a long answer has a call to
    itself, and short ones share its cost: below twice the tokens of a call what is half as long counts a quarter, for it is
    waited for half as long, too.
    """
    first = 0
    while first < len(expected_tokens_M):
        rows = min(most_rows, _MOST_CALL_ROWS) if most_tokens is not None else most_rows
        if most_tokens is not None:
            tokens = expected_tokens_M[first : first + rows]
            taken = np.cumsum(tokens * np.minimum(tokens / (2 * most_tokens), 1.0))
            rows = max(int(np.searchsorted(taken, most_tokens, side="right")), 1)
        yield slice(first, min(first + rows, len(expected_tokens_M)))
        first += rows


def reading_order(read_at_M: NDArray[np.int64], tokens_M: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the order of dispatch of a round's grants, with those of about one length from the last one read to the first.

    What was read last is the likeliest to be in an engine's cache still. And a caller keeps some files at hand, of which a
    large round reads each a few dozen times, not once a call.

    Args:
        read_at_M: Place of each query in the order in which prompts were read, in order of dispatch.
        tokens_M: What they are granted: first longest first, then, if it cannot all be reserved at once, as it is.
    """
    rises = np.flatnonzero(np.diff(tokens_M) > 0)
    many = int(rises[0]) + 1 if len(rises) else len(tokens_M)
    return np.concatenate(
        [np.lexsort((-read_at_M[:many], -_length_of(tokens_M[:many]))), np.arange(many, len(tokens_M))]
    )


def _length_of(tokens_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the same number for grants of about one length."""
    length: NDArray[np.int64] = np.floor(_LENGTHS_PER_DOUBLING * np.log2(tokens_M)).astype(np.int64)
    return length


@contextmanager
def open_callers(config: RunConfig, folder: Folder, engines: EngineActors, market: MarketClient) -> Iterator[Callers]:
    """Start the callers of stage 2, which live as long as the run."""
    scorer = load_scorer_of(config, folder)
    dispatches = [
        Dispatch(
            workers=each.workers,
            market=market.awaitable(),
            scorer=scorer,
            seed=config.seed,
            this_caller=this_actor,
            prices=named.prices,
            engine=named.name or None,
            votes_by=config.votes_by,
        )
        for each, named in zip(engines.each, config.named_engines, strict=True)
    ]
    with generate_callers(
        dispatches,
        folder,
        callers=config.dispatch.callers,
        rows_each=[
            rows_each(config, named.config, workers=config.most_workers_of(named)) for named in config.named_engines
        ],
        rows_per_file=config.dispatch.rows_per_file,
    ) as callers:
        yield callers


def _samples(run: RunContext, clearing: Clearing) -> NDArray[np.int32]:
    """Return which of a query's independent answers each grant belongs to."""
    number_M = run.states.attempt_N[clearing.index_M] + run.states.begins_M(clearing)
    return (run.config.sample + np.maximum(number_M, 1) - 1).astype(np.int32)


def direct_text_of(config: RunConfig) -> str:
    """Return what the minimum service puts after a prompt; nothing if there is no such service."""
    if config.allocation.minimum_service_tokens is None:
        return ""
    return config.allocation.minimum_service_text or DIRECT_TEXT


def rows_each(config: RunConfig, engine: EngineConfig, *, workers: int) -> int:
    """Return how many queries a caller has in open calls: no worker idle, and no more reserved than a crash may cost.

    Twice what the engines run at once, since the queries of a call end one by one and the next call comes after the last.
    """
    dispatch = config.dispatch
    if dispatch.calls_in_flight is not None:
        return dispatch.calls_in_flight * (dispatch.batch_rows or _ROWS_A_CALL)
    at_once = 2 * workers * engine.max_batch
    return max(-(-at_once // dispatch.callers), 2 * (dispatch.batch_rows or 1))


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
