"""The votes of a run whose queries are asked several times and have no verifier: which answer is the most frequent by now.

Shapes: N queries, M attempts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.votes import Votes, pooled_chance, vote_worth

NO_VOTE = 0
"""Vote of an answer that was cut off, failed, or holds no result."""


class Ballot(NamedTuple):
    """One answer that gives a result.

    Attributes:
        vote: The result, as a number.
        attempt: Which attempt it is, from 1.
        round: The round in which it ended.
        score: Its score; NaN if it has none.
    """

    vote: int
    attempt: int
    round: int
    score: float


@dataclass(slots=True, eq=False)
class Ballots:
    """All votes so far, by query, in the order in which they came."""

    _of: dict[int, list[Ballot]] = field(default_factory=dict)

    def cast(self, index: int, ballot: Ballot) -> Ballot:
        """Add a vote; return the one to keep: the first of those that give the most frequent result."""
        own = self._of.setdefault(index, [])
        own.append(ballot)
        counted = Counter(each.vote for each in own)
        most = max(counted.values())
        return next(each for each in own if counted[each.vote] == most)

    def of(self, place_N: NDArray[np.int64]) -> Ballots:
        """Return those of some queries, with their places among these; -1 for a query that is not one of them."""
        return Ballots({int(place_N[query]): own for query, own in self._of.items() if place_N[query] >= 0})

    def votes_of(self, index_M: NDArray[np.int64]) -> list[Votes]:
        """Return the votes of some queries, the most frequent result first."""
        none: list[Ballot] = []
        return [
            tuple(sorted(Counter(each.vote for each in self._of.get(int(index), none)).values(), reverse=True))
            for index in index_M
        ]

    def is_right_P(self, query_P: NDArray[np.int64], vote_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the chance that each of some answers is right, by how often those to its query agree, shape (P,).

        It is NaN where a query has one answer, which nothing can agree with, and for an answer without a result.
        """
        habits, chance = pooled_chance(self.votes_of(np.array(list(self._of), np.int64)))
        worth, found_of = vote_worth(habits), dict[Votes, NDArray[np.float64]]()
        found = np.full(len(query_P), np.nan)
        for place, (query, vote) in enumerate(zip(query_P.tolist(), vote_P.tolist(), strict=True)):
            own = self._of.get(query, [])
            if len(own) < 2 or vote == NO_VOTE:
                continue
            counted = Counter(each.vote for each in own)
            votes = tuple(sorted(counted.values(), reverse=True))
            if votes not in found_of:
                found_of[votes] = worth.each_is_right(votes, chance)
            found[place] = found_of[votes][votes.index(counted[vote])]
        return found
