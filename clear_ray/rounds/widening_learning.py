"""A run that teaches itself while its prompts are still being read: its law is that of a batch of those that are known.

    K of N known --> the law of K queries with K/N of the budget --> grants of these
                     all are known: the law of the batch, to the bit

So everything that has a size follows what is known: ceilings of the pilot and stages, how much of the budget is explored
before the guard is heeded, how many answers may be missing when a stage begins, what a query may take on average. The pilot
alone asks as many as that of the whole batch. A query that is not known has no coordinates and no part in a fit, and no curve
of it is made.

**Stages follow what was spent.** A part that has grown is as far from its half as it was some stages before, so their number
says nothing: each may spend what leads from the pilot to half of what is known has in as many stages as ever.

**A part is explored, and no more.** Before all is known the stages lead to half of what the part has, and the rest waits:
what is granted then is granted by what was learned of all. An input may have its kinds of query one after the other, and a
part of it few of them; of a kind that no stage has seen nothing is believed but what is believed of all.

**Reading on.** A pilot and the first stages leave slots idle. The law is asked whenever they are, and while it waits for
answers, or has explored what is known, the next part is read (`widening`).

A function of where the queries stand, of which are known, and of the seed.

Shapes: N queries of the batch, K of them known.

Source: method.md sections 8 and 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.beside import RunningGrants
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True, eq=False)
class KnownPart:
    """The queries that are known, and their law.

    Attributes:
        index_K: Which they are, rising.
        offers: Their law, with their part of the budget.
    """

    index_K: NDArray[np.int64]
    offers: OverlappingLearningOffers


@dataclass(slots=True, eq=False)
class WideningLearningOffers:
    """See the module, and `offers.Offers`. There is no minimum service.

    Attributes:
        law_of: Returns the law of some of the queries, which are known, with their part of the budget; `is_streamed` there.
        is_known_N: Which are known; changes in place, and no query is forgotten but by a start of the run that ended.
        cost_N: What a token of each query takes from the budget.
        max_tokens_N: Ceiling of each query that is known; changes in place.
    """

    law_of: Callable[[NDArray[np.int64]], OverlappingLearningOffers]
    is_known_N: NDArray[np.bool_]
    cost_N: NDArray[np.float64]
    max_tokens_N: NDArray[np.int64]
    _part: KnownPart | None = field(default=None, init=False)

    @property
    def part(self) -> KnownPart | None:
        """What is known by now; None if nothing is."""
        known = int(self.is_known_N.sum())
        if known and (self._part is None or known > len(self._part.index_K)):
            self._part = None  # its coordinates need not be held beside those of the next
            index_K = np.flatnonzero(self.is_known_N)
            law, queries = self.law_of(index_K), len(self.is_known_N)
            self._part = KnownPart(index_K, replace(law, part_of=queries) if known < queries else law)
        return self._part

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`; nothing is owed."""
        part = self.part
        if part is None:
            return nothing_to_grant(len(is_free_N))
        granted = part.offers.clear(
            self._states_of(part, states),
            is_free_N=is_free_N[part.index_K],
            available_tokens=available_tokens,
            owed_tokens_N=owed_tokens_N[part.index_K],
        )
        return self._of_all(part, granted)

    def clear_beside(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        running: RunningGrants,
        available_tokens: int,
    ) -> Clearing:
        """See `OverlappingOffers`."""
        part = self.part
        if part is None:
            return nothing_to_grant(len(is_free_N))
        granted = part.offers.clear_beside(
            self._states_of(part, states),
            is_free_N=is_free_N[part.index_K],
            running=self._among(part, running),
            available_tokens=available_tokens,
        )
        return self._of_all(part, granted)

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`; there is no such service."""
        return nothing_to_grant(len(owed_tokens_N))

    def _states_of(self, part: KnownPart, states: QueryStates) -> QueryStates:
        return states if len(part.index_K) == len(self.is_known_N) else states.some(part.index_K)

    def _among(self, part: KnownPart, running: RunningGrants) -> RunningGrants:
        """Return what is running of the known queries, by their places among them.

        A start before may have known others: a file of theirs was damaged since, or stands there twice, and the one is kept
        that has no coordinates yet.
        """
        known = np.flatnonzero(self.is_known_N[running.index_M])
        index_M = np.searchsorted(part.index_K, running.index_M[known])
        return RunningGrants(index_M, running.tokens_M[known], running.progress_M[known])

    def _of_all(self, part: KnownPart, granted: Clearing) -> Clearing:
        """Return a clearing of the known queries as one of all; the surplus of the others is 0."""
        surplus_N = np.zeros(len(self.is_known_N))
        surplus_N[part.index_K] = granted.surplus_N
        return replace(granted, index_M=part.index_K[granted.index_M], surplus_N=surplus_N)
