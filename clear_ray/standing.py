"""Where every query of a running batch stands, in a few numbers each: what rounds change and verdicts are read from.

Shapes: N queries of the batch, M granted in a round.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.clearing import Clearing
from clear_ray.report.summary import RoundReport


class Standing:
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
        self.expected_tokens_N = np.zeros(queries)
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
        self, number: int, clearing: Clearing, attempts: pa.Table, *, seconds: float, available_tokens: int
    ) -> RoundReport:
        """Note what a round's grants came to.

        Args:
            number: The round.
            clearing: Its grants.
            attempts: `run_folder.read_attempts` of the round.
            seconds: Its wall time.
            available_tokens: What it could grant.

        Returns:
            The round's report.
        """
        index = attempts["index"].to_numpy().astype(np.int64)
        fresh = int((self.rounds_N[index] == 0).sum())
        place_of_index = np.full(len(self.is_open_N), -1, np.int64)
        place_of_index[clearing.index_M] = np.arange(len(clearing.index_M))
        place = place_of_index[index]
        granted = attempts["granted_tokens"].to_numpy().astype(np.int64)
        has_failed, has_stopped = (attempts[name].to_numpy() for name in ("has_failed", "has_stopped"))
        correct = attempts["correct"].to_numpy(zero_copy_only=False).astype(float)
        self.answer_tokens_N[index] = attempts["answer_tokens"].to_numpy()
        self.written_tokens_N[index] += attempts["attempt_tokens"].to_numpy().astype(np.int64)
        self.granted_tokens_N[index] += granted
        self.last_round_N[index] = number
        self.rounds_N[index] += 1
        self.price_N[index] = clearing.shadow_price
        self.expected_utility_N[index] += clearing.expected_utility_M[place]
        self.expected_tokens_N[index] += clearing.expected_tokens_M[place]
        taken = clearing.tokens_M[place] * self.cost_N[index]
        self.surplus_N[index] = clearing.expected_utility_M[place] - clearing.shadow_price * taken
        self.correct_N[index] = correct
        self.has_stopped_N[index] = has_stopped
        self.has_failed_N[index] = has_failed
        self.is_open_N[index] = ~(has_stopped | has_failed)
        self.is_served_N[index] = clearing.is_service
        scored = correct[~np.isnan(correct)]
        return RoundReport(
            number=number,
            shadow_price=clearing.shadow_price,
            available_tokens=available_tokens,
            fresh=fresh,
            continued=len(index) - fresh,
            granted_tokens=int(granted.sum()),
            expected_tokens=float(clearing.expected_tokens_M[place].sum()),
            expected_utility=float(clearing.expected_utility_M[place].sum()),
            dual_bound=clearing.dual_bound,
            gap=clearing.gap,
            spent_tokens=int(attempts["attempt_tokens"].to_numpy().sum()) if len(index) else 0,
            finished=int(has_stopped.sum()),
            correct=float(scored.sum()) if len(scored) else None,
            seconds=seconds,
            is_service=clearing.is_service,
        )
