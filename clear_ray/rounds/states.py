"""Where every query of a running batch stands, in a few numbers each: what rounds change and verdicts are read from.

Shapes: N queries of the batch, M granted in a round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.report.summary import RoundReport
from clear_ray.rounds.clearing import Clearing


class QueryStates:
    """Sums over the rounds so far; every attribute has shape (N,).

    Args:
        cost_N: What a token of each query takes from the budget, shape (N,).
        failed: Queries that failed before the first round.
    """

    def __init__(self, cost_N: NDArray[np.float64], *, failed: Collection[int] = ()) -> None:
        queries = len(cost_N)
        self.cost_N = cost_N
        self.is_open_N = np.ones(queries, bool)
        self.has_stopped_N = np.zeros(queries, bool)
        self.has_failed_N = np.zeros(queries, bool)
        self.was_granted_N = np.zeros(queries, bool)
        self.is_served_N = np.zeros(queries, bool)
        self.answer_tokens_N = np.zeros(queries, np.int64)
        self.written_tokens_N = np.zeros(queries, np.int64)
        self.granted_tokens_N = np.zeros(queries, np.int64)
        self.last_round_N = np.zeros(queries, np.int32)
        self.rounds_N = np.zeros(queries, np.int32)
        self.price_N = np.zeros(queries)
        self.expected_utility_N = np.zeros(queries)
        self.surplus_N = np.zeros(queries)
        self.correct_N = np.full(queries, np.nan)
        for index in failed:
            self.is_open_N[index], self.has_failed_N[index] = False, True

    def grant(self, clearing: Clearing) -> None:
        """Note a clearing before its grants are run."""
        never = self.rounds_N == 0
        self.price_N[never] = clearing.shadow_price
        self.was_granted_N[clearing.index_M] = True

    def take(
        self, number: int, clearing: Clearing, attempts: Iterable[pa.Table], *, seconds: float, available_tokens: int
    ) -> RoundReport:
        """Note what a round's grants came to.

        Args:
            number: The round.
            clearing: Its grants.
            attempts: `run_folder.read_attempts` of the round; only one table of them is held at a time.
            seconds: Its wall time.
            available_tokens: What it could grant.

        Returns:
            The round's report.
        """
        count = _Count()
        for table in attempts:
            self._take_table(number, table, count)
        was_run_M = self.last_round_N[clearing.index_M] == number
        index, utility = clearing.index_M[was_run_M], clearing.expected_utility_M[was_run_M]
        self.price_N[index] = clearing.shadow_price
        self.expected_utility_N[index] += utility
        self.surplus_N[index] = utility - clearing.shadow_price * clearing.tokens_M[was_run_M] * self.cost_N[index]
        self.is_served_N[index] = clearing.is_service
        return RoundReport(
            number=number,
            shadow_price=clearing.shadow_price,
            available_tokens=available_tokens,
            fresh=count.fresh,
            continued=len(index) - count.fresh,
            granted_tokens=count.granted_tokens,
            expected_tokens=float(clearing.expected_tokens_M[was_run_M].sum()),
            expected_utility=float(utility.sum()),
            dual_bound=clearing.dual_bound,
            gap=clearing.gap,
            spent_tokens=count.spent_tokens,
            finished=count.finished,
            correct=count.correct if count.scored else None,
            seconds=seconds,
            is_service=clearing.is_service,
        )

    def _take_table(self, number: int, attempts: pa.Table, count: _Count) -> None:
        index = attempts["index"].to_numpy().astype(np.int64)
        granted, spent = (attempts[name].to_numpy().astype(np.int64) for name in ("granted_tokens", "attempt_tokens"))
        has_failed, has_stopped = (attempts[name].to_numpy() for name in ("has_failed", "has_stopped"))
        correct = attempts["correct"].to_numpy(zero_copy_only=False).astype(float)
        is_scored = ~np.isnan(correct)
        count.fresh += int((self.rounds_N[index] == 0).sum())
        count.granted_tokens += int(granted.sum())
        count.spent_tokens += int(spent.sum())
        count.finished += int(has_stopped.sum())
        count.scored += int(is_scored.sum())
        count.correct += float(correct[is_scored].sum())
        self.answer_tokens_N[index] = attempts["answer_tokens"].to_numpy()
        self.written_tokens_N[index] += spent
        self.granted_tokens_N[index] += granted
        self.last_round_N[index] = number
        self.rounds_N[index] += 1
        self.correct_N[index] = correct
        self.has_stopped_N[index] = has_stopped
        self.has_failed_N[index] = has_failed
        self.is_open_N[index] = ~(has_stopped | has_failed)


@dataclass(slots=True)
class _Count:
    """Sums over the attempts of one round."""

    fresh: int = 0
    granted_tokens: int = 0
    spent_tokens: int = 0
    finished: int = 0
    scored: int = 0
    correct: float = 0.0
