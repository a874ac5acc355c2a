"""Several answers to one query: what ends a query that may be asked again, and what its earlier answers came to.

One answer to a query is one *attempt*, from its first token to its end, over however many grants. A query has one current
attempt; those before it are past: nothing can be added to them.

Shapes: N queries, P past attempts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import Objective
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

    def of(self, index: NDArray[np.int64]) -> AttemptRule:
        """Return the rule of some queries."""
        return replace(self, most_N=None if self.most_N is None else self.most_N[index])

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
        if self.objective in ("solved", "best_of_n"):
            # No later answer can be better, or nothing says that one is: NaN is below nothing.
            closes_M = closes_M | (attempts.has_stopped_M & ~(attempts.correct_M < SOLVED_SCORE))
        if self.objective == "groups":  # nothing would say that another answer differs
            closes_M = closes_M | (attempts.has_stopped_M & np.isnan(attempts.correct_M))
        return closes_M


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """Attempts that were left at the same time."""

    index: NDArray[np.int64]
    tokens: NDArray[np.int64]
    has_stopped: NDArray[np.bool_]
    correct: NDArray[np.float64]
    option: NDArray[np.int64]
    number: NDArray[np.int32]
    last_round: NDArray[np.int32]
    vote: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class PastAttempts:
    """Attempts that others came after, in the order in which they were left."""

    _parts: list[_Left] = field(default_factory=list)

    def add(
        self,
        index: NDArray[np.int64],
        *,
        tokens: NDArray[np.int64],
        has_stopped: NDArray[np.bool_],
        correct: NDArray[np.float64],
        option: NDArray[np.int64],
        number: NDArray[np.int32],
        last_round: NDArray[np.int32],
        vote: NDArray[np.int64],
    ) -> None:
        """Note some attempts that others come after."""
        if len(index):
            self._parts.append(_Left(index, tokens, has_stopped, correct, option, number, last_round, vote))

    def of(self, place_N: NDArray[np.int64]) -> PastAttempts:
        """Return those of some queries, with their places among these; -1 for a query that is not one of them."""
        parts = []
        for part in self._parts:
            rows = np.flatnonzero(place_N[part.index] >= 0)
            some = {each.name: getattr(part, each.name)[rows] for each in fields(part)}
            parts.append(_Left(**some | {"index": place_N[part.index[rows]]}))
        return PastAttempts(parts)

    def __len__(self) -> int:
        return sum(len(part.index) for part in self._parts)

    @property
    def index_P(self) -> NDArray[np.int64]:
        """The query of each."""
        return np.concatenate([np.zeros(0, np.int64), *(part.index for part in self._parts)])

    @property
    def tokens_P(self) -> NDArray[np.int64]:
        """Tokens of its answer."""
        return np.concatenate([np.zeros(0, np.int64), *(part.tokens for part in self._parts)])

    @property
    def has_stopped_P(self) -> NDArray[np.bool_]:
        """Whether its answer ended by itself."""
        return np.concatenate([np.zeros(0, np.bool_), *(part.has_stopped for part in self._parts)])

    @property
    def correct_P(self) -> NDArray[np.float64]:
        """Its score; NaN if it has none."""
        return np.concatenate([np.zeros(0), *(part.correct for part in self._parts)])

    @property
    def option_P(self) -> NDArray[np.int64]:
        """Which of its options the query took, such as one of several models."""
        return np.concatenate([np.zeros(0, np.int64), *(part.option for part in self._parts)])

    @property
    def vote_P(self) -> NDArray[np.int64]:
        """The result that its answer gives, as a number, where votes are counted."""
        return np.concatenate([np.zeros(0, np.int64), *(part.vote for part in self._parts)])

    @property
    def number_P(self) -> NDArray[np.int32]:
        """Which attempt of its query each is, from 1."""
        return np.concatenate([np.zeros(0, np.int32), *(part.number for part in self._parts)])

    @property
    def last_round_P(self) -> NDArray[np.int32]:
        """The round of its last grant."""
        return np.concatenate([np.zeros(0, np.int32), *(part.last_round for part in self._parts)])
