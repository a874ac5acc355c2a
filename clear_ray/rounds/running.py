"""One round while its grants run: what was granted, and sums over what came of it so far.

Shapes: M queries granted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clear_ray.errors import BudgetError
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.states import QueryStates

DEFECT = "This is a defect of clear_ray: keep the run folder and report it."


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Grants that were made together.

    Attributes:
        number: Number of the round, from 1.
        available_tokens: What could be granted, in tokens of cost 1.
        clearing: The grants, in order of dispatch, and their price.
        is_beside: Whether others were running when it was cleared.
        known_queries: How many queries had been read by then; None if all had.
    """

    number: int
    available_tokens: int
    clearing: Clearing
    is_beside: bool = False
    known_queries: int | None = None


@dataclass(slots=True, eq=False)
class RunningRound:
    """A round whose grants are running, and sums over those that have ended."""

    granted: Round
    was_run_M: NDArray[np.bool_] = field(init=False)
    order_M: NDArray[np.int64] = field(init=False)
    fresh: int = 0
    again: int = 0
    granted_tokens: int = 0
    spent_tokens: int = 0
    finished: int = 0
    scored: int = 0
    correct: float = 0.0

    def __post_init__(self) -> None:
        index_M = self.granted.clearing.index_M
        self.was_run_M, self.order_M = np.zeros(len(index_M), bool), np.argsort(index_M)

    def note(self, attempts: Attempts, states: QueryStates) -> None:
        """Count some attempts and note them in the states."""
        place_M = self._places_of(attempts)
        grants = self.granted.clearing.some(place_M)  # few of what may be a million
        is_scored_M = ~np.isnan(attempts.correct_M)
        self.was_run_M[place_M] = True
        is_first_M = states.rounds_N[attempts.index_M] == 0
        self.fresh += int(is_first_M.sum())
        self.again += int((states.begins_M(grants) & ~is_first_M).sum())
        self.granted_tokens += int(attempts.granted_tokens_M.sum())
        self.spent_tokens += int(attempts.attempt_tokens_M.sum())
        self.finished += int(attempts.has_stopped_M.sum())
        self.scored += int(is_scored_M.sum())
        self.correct += float(attempts.correct_M[is_scored_M].sum())
        states.take(self.granted.number, grants, attempts)

    def _places_of(self, attempts: Attempts) -> NDArray[np.int64]:
        """Return where the grants of attempts are in the clearing.

        Raises:
            BudgetError: One is not, or has an attempt already.
        """
        index_M, clearing = attempts.index_M, self.granted.clearing
        at_M = np.searchsorted(clearing.index_M, index_M, sorter=self.order_M)
        place_M = self.order_M[np.minimum(at_M, len(self.order_M) - 1)]
        is_grant_M = (clearing.index_M[place_M] == index_M) & ~self.was_run_M[place_M]
        is_grant_M &= clearing.tokens_M[place_M] == attempts.granted_tokens_M
        if not is_grant_M.all() or len(np.unique(index_M)) < len(index_M):
            said = f"query {index_M[~is_grant_M][:1]}"
            raise BudgetError("an attempt of no running grant", f"round {self.granted.number}", said, DEFECT)
        return place_M

    def report(self) -> RoundReport:
        """Return what the round came to."""
        clearing, was_run_M = self.granted.clearing, self.was_run_M
        return RoundReport(
            number=self.granted.number,
            shadow_price=clearing.shadow_price,
            available_tokens=self.granted.available_tokens,
            fresh=self.fresh,
            continued=int(was_run_M.sum()) - self.fresh - self.again,
            again=self.again,
            granted_tokens=self.granted_tokens,
            expected_tokens=float(clearing.expected_tokens_M[was_run_M].sum()),
            expected_utility=float(clearing.expected_utility_M[was_run_M].sum()),
            dual_bound=clearing.dual_bound,
            gap=clearing.gap,
            later_utility=clearing.later_utility,
            spent_tokens=self.spent_tokens,
            finished=self.finished,
            correct=self.correct if self.scored else None,
            is_service=clearing.is_service,
            known_queries=self.granted.known_queries,
            over_queries=clearing.over_queries,
        )
