"""Several answers to one query: what ends a query that may be asked again, and what its earlier answers came to.

One answer to a query is one *attempt*, from its first token to its end, over however many grants. A query has one current
attempt; those before it are past: nothing can be added to them.

Shapes: N queries, P past attempts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.run import Objective
from clear_ray.rounds.attempts import Attempts

SOLVED_SCORE = 1.0
"""Score from which on an answer has solved its query."""


@dataclass(frozen=True, slots=True, eq=False)
class AttemptRule:
    """What ends a query.

    Attributes:
        objective: What the answers of a query are for.
        most_N: Most attempts of each query, shape (N,); one each if not given.
    """

    objective: Objective = "correct"
    most_N: NDArray[np.int64] | None = None

    @property
    def is_single(self) -> bool:
        """Whether no query is asked twice."""
        return self.most_N is None or not (self.most_N > 1).any()

    def most_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the most attempts of some queries."""
        return np.ones(len(index), np.int64) if self.most_N is None else self.most_N[index]

    def closes_M(self, attempts: Attempts, number_M: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which queries nothing more can be granted to.

        Args:
            attempts: What came of their grants.
            number_M: The number of each one's attempt, from 1.
        """
        is_last_M = attempts.is_over_M & (number_M >= self.most_of(attempts.index_M))
        closes_M: NDArray[np.bool_] = attempts.has_failed_M | is_last_M
        if self.objective == "solved":
            closes_M = closes_M | (attempts.has_stopped_M & (attempts.correct_M >= SOLVED_SCORE))
        return closes_M


@dataclass(slots=True, eq=False)
class PastAttempts:
    """Attempts that others came after, in the order in which they were left."""

    _parts: list[
        tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]
    ] = field(default_factory=list)

    def add(
        self,
        index: NDArray[np.int64],
        *,
        tokens: NDArray[np.int64],
        has_stopped: NDArray[np.bool_],
        correct: NDArray[np.float64],
        option: NDArray[np.int64] | None = None,
    ) -> None:
        """Note some attempts that others come after."""
        if len(index):
            self._parts.append(
                (index, tokens, has_stopped, correct, np.zeros_like(index) if option is None else option)
            )

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    @property
    def index_P(self) -> NDArray[np.int64]:
        """The query of each."""
        return np.concatenate([np.zeros(0, np.int64), *(part[0] for part in self._parts)])

    @property
    def tokens_P(self) -> NDArray[np.int64]:
        """Tokens of its answer."""
        return np.concatenate([np.zeros(0, np.int64), *(part[1] for part in self._parts)])

    @property
    def has_stopped_P(self) -> NDArray[np.bool_]:
        """Whether its answer ended by itself."""
        return np.concatenate([np.zeros(0, np.bool_), *(part[2] for part in self._parts)])

    @property
    def correct_P(self) -> NDArray[np.float64]:
        """Its score; NaN if it has none."""
        return np.concatenate([np.zeros(0), *(part[3] for part in self._parts)])

    @property
    def option_P(self) -> NDArray[np.int64]:
        """Which of its options the query took, such as one of several models."""
        return np.concatenate([np.zeros(0, np.int64), *(part[4] for part in self._parts)])
