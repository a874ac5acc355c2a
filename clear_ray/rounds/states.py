"""Where every query of a running batch stands, in a few numbers each: what rounds change and verdicts are read from.

Shapes: N queries of the batch, M of them granted or run.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
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
        self.price_N[self.rounds_N == 0] = clearing.shadow_price
        self.was_granted_N[clearing.index_M] = True

    def take(self, number: int, clearing: Clearing, place_M: NDArray[np.int64], attempts: Attempts) -> None:
        """Note what some grants of a round came to.

        Args:
            number: The round.
            clearing: Its clearing.
            place_M: The place of each attempt's grant in the clearing.
            attempts: What came of them.
        """
        index, utility = attempts.index_M, clearing.expected_utility_M[place_M]
        taken = clearing.parts_M(self.cost_N)[place_M] / COST_PARTS
        self.price_N[index] = clearing.shadow_price
        self.expected_utility_N[index] += utility
        self.surplus_N[index] = utility - clearing.shadow_price * taken
        self.is_served_N[index] = clearing.is_service
        self.answer_tokens_N[index] = attempts.answer_tokens_M
        self.written_tokens_N[index] += attempts.attempt_tokens_M
        self.granted_tokens_N[index] += attempts.granted_tokens_M
        self.last_round_N[index] = number
        self.rounds_N[index] += 1
        self.correct_N[index] = attempts.correct_M
        self.has_stopped_N[index] = attempts.has_stopped_M
        self.has_failed_N[index] = attempts.has_failed_M
        self.is_open_N[index] = ~attempts.is_over_M
