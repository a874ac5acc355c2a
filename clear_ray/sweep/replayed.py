"""A whole run on recorded rollouts in one thread: the policy, the ledger and the order of dispatch of a real run.

Real: `clear`, `Ledger`, the market's line (first come, first served; the head waits for refunds; what can never fit is
refused), and the rounds. Simulated: the engine, which runs `max_batch` answers at once, one token of each a step, and the
callers, of which so many rows at a time have been let in. There is no Ray, no journal and no clock, so a run takes
milliseconds.

Shapes: N queries, M granted in a round.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.clearing import Clearing
from clear_ray.ledger import Ledger

Clear = Callable[[NDArray[np.int64], NDArray[np.bool_], int], Clearing]
"""From tokens generated so far, which queries are open, and the tokens available to the grants of a round."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """How grants travel; the defaults are those of a run with one caller and one engine of 64 slots.

    Attributes:
        max_batch: Answers that run at the same time.
        rows_in_flight: Grants that callers hold at the same time, reserved and waiting for a slot.
        smallest_grant_tokens: Rounds end when less than this is left.
        max_rounds: Most clearings.
        minimum_service_tokens: Set aside for every query; the rule that is replayed has to heed it.
    """

    max_batch: int = 64
    rows_in_flight: int = 128
    smallest_grant_tokens: int = 4
    max_rounds: int = 8
    minimum_service_tokens: int = 0


@dataclass(frozen=True, eq=False)
class Replayed:
    """What came of a run.

    Attributes:
        is_right_N: Ended by itself within its grants, and correct.
        spent_tokens_N: Tokens generated.
        rounds: Clearings that were dispatched.
        price: Price of the first clearing.
    """

    is_right_N: NDArray[np.bool_]
    spent_tokens_N: NDArray[np.int64]
    rounds: int
    price: float


def replay_run(
    clear_round: Clear,
    *,
    length_N: NDArray[np.int64],
    is_stopped_N: NDArray[np.bool_],
    is_right_N: NDArray[np.bool_],
    budget_tokens: int,
    dispatched: Dispatched | None = None,
    serve_rest: Clear | None = None,
) -> Replayed:
    """Run rounds until nothing useful is left to buy, as `pipeline.run` does.

    Args:
        clear_round: The policy.
        length_N: Tokens of each query's recorded answer.
        is_stopped_N: Whether it ended by itself there.
        is_right_N: Whether it is correct.
        budget_tokens: What the run may generate.
        dispatched: How grants travel.
        serve_rest: The minimum service at the end, if there is one.
    """
    how = dispatched or Dispatched()
    queries = len(length_N)
    ledger, answer_N, is_open_N = Ledger(budget_tokens, queries), np.zeros(queries, np.int64), np.ones(queries, bool)
    rounds, price = 0, 0.0
    for number in range(how.max_rounds):
        owed_tokens = how.minimum_service_tokens * int((is_open_N & (answer_N == 0)).sum())
        if ledger.available_tokens - owed_tokens < how.smallest_grant_tokens:
            break
        clearing = clear_round(answer_N, is_open_N, ledger.available_tokens)
        if not len(clearing.index_M):
            break
        before = ledger.spent_tokens
        price = clearing.shadow_price if number == 0 else price
        served = _dispatch(ledger, clearing, length_N, answer_N, how)
        # A recording that was cut at its own cap has nothing to continue, though it did not stop.
        is_open_N &= answer_N < length_N
        rounds += 1
        if not served or ledger.spent_tokens == before:
            break
    if serve_rest is not None:
        _dispatch(ledger, serve_rest(answer_N, is_open_N, ledger.available_tokens), length_N, answer_N, how)
    ledger.check()
    return Replayed(is_right_N & is_stopped_N & (answer_N >= length_N), ledger.spent_tokens_N, rounds, price)


def _dispatch(
    ledger: Ledger, clearing: Clearing, length_N: NDArray[np.int64], answer_N: NDArray[np.int64], how: Dispatched
) -> int:
    """Reserve in order, run in slots, settle as answers end; return how many grants were served. Changes `answer_N`."""
    line = deque(zip(clearing.index_M.tolist(), clearing.tokens_M.tolist(), strict=True))
    waiting: deque[tuple[int, int, int]] = deque()
    running: list[tuple[int, int, int, int]] = []
    now = served = 0
    while line or waiting or running:
        while line and len(waiting) + len(running) < how.rows_in_flight:
            index, tokens = line[0]
            if not ledger.could_fit(index, tokens):
                line.popleft()
            elif ledger.fits(index, tokens):
                line.popleft()
                spend = min(tokens, int(length_N[index] - answer_N[index]))
                waiting.append((index, ledger.reserve(index, tokens).attempt, spend))
                served += 1
            else:
                break
        while waiting and len(running) < how.max_batch:
            index, attempt, spend = waiting.popleft()
            heapq.heappush(running, (now + spend, index, attempt, spend))
        if running:
            now, index, attempt, spend = heapq.heappop(running)
            ledger.settle(index, attempt, spend)
            answer_N[index] += spend
    return served
