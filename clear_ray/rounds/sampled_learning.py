"""Offers of a run that teaches itself on a batch too large for its curves to be held together.

    even sample of the queries --pilot, stages--> answers --fit--> belief --prices--> all queries

**Exploring** is done on the sample, with its part of the budget, by the law of a batch of that size (`learning_offers`).
**The rest** of the budget is priced over all queries, by what the sample's answers teach. The sample goes on being answered
with all others, so each clearing fits anew. A fit costs what one of the sample does, however large the batch is.

A function of where the queries stand and of the seed, without memory, as the others are.

Shapes: N queries of the batch, S of them in the sample.

Source: method.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.learning import Belief
from clear_ray.rounds.batch import taken_tokens
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.learning_offers import LearningOffers, observe
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True)
class Learned:
    """What is believed of queries by their coordinates.

    Attributes:
        belief: What the answers teach.
        is_guarded: Whether it is trusted as far as it has shown itself, and no further.
    """

    belief: Belief
    is_guarded: bool


class Whole(Protocol):
    """Prices all queries of a batch."""

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """What a token of each query takes from the budget, shape (N,)."""

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """Ceiling of each query over all its grants, shape (N,)."""

    def clear(
        self, learned: Learned | None, states: QueryStates, *, is_free_N: NDArray[np.bool_], available_tokens: int
    ) -> Clearing:
        """Return which queries are granted how much, by what was learned, or by the uninformed law if nothing was."""


WholeT = TypeVar("WholeT", bound=Whole)


@dataclass(frozen=True, slots=True, eq=False)
class SampledLearningOffers(Generic[WholeT]):
    """See the module, and `offers.Offers`. There is no minimum service.

    Attributes:
        part: The law of the sample.
        sample: Which queries are in it, rising, shape (S,).
        whole: What prices all queries.
    """

    part: LearningOffers
    sample: NDArray[np.int64]
    whole: WholeT

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """See `Offers`."""
        return self.whole.cost_N

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """See `Offers`."""
        return self.whole.max_tokens_N

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`; nothing is owed."""
        part_states, part_tokens = states.some(self.sample), self._part_tokens(states, available_tokens)
        if part_tokens >= 1 and self.part.is_exploring(part_states, part_tokens):
            explored = self.part.clear(
                part_states,
                is_free_N=is_free_N[self.sample],
                available_tokens=part_tokens,
                owed_tokens_N=owed_tokens_N[self.sample],
            )
            if len(explored.index_M):
                return replace(explored, index_M=self.sample[explored.index_M], surplus_N=np.zeros(0))
        learned = self.learned(states, available_tokens)
        is_free_N = is_free_N & states.is_unanswered_N
        return self.whole.clear(learned, states, is_free_N=is_free_N, available_tokens=available_tokens)

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`; there is no such service."""
        return nothing_to_grant(len(owed_tokens_N))

    def learned(self, states: QueryStates, available_tokens: int) -> Learned | None:
        """Return what the sample's answers teach by now; None if there are none."""
        part_states = states.some(self.sample)
        observed = observe(part_states, label=self.part.label)
        if not len(observed):
            return None
        is_guarded = self.part.is_guarded(part_states, self._part_tokens(states, available_tokens))
        return Learned(self.part.learned(observed), is_guarded)

    def _part_tokens(self, states: QueryStates, available_tokens: int) -> int:
        """Return what is left of the sample's part of the budget."""
        written_N, share = states.written_tokens_N, len(self.sample) / len(states.cost_N)
        whole_tokens = available_tokens + taken_tokens(written_N, states.cost_N)
        return int(share * whole_tokens) - taken_tokens(written_N[self.sample], states.cost_N[self.sample])
