"""All queries of a batch priced by what a sample of them teaches, in one process and without sketches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing, clear, nothing_to_grant
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.sampled_learning import Learned
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, eq=False)
class HeldWhole:
    """See `rounds.sampled_learning.Whole`.

    Attributes:
        offers: What is known of all queries.
    """

    offers: LearningOffers

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """What a token takes."""
        return self.offers.cost_N

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """Ceilings."""
        return self.offers.max_tokens_N

    def clear(
        self, learned: Learned | None, states: QueryStates, *, is_free_N: NDArray[np.bool_], available_tokens: int
    ) -> Clearing:
        """Price all queries."""
        if learned is None:
            return nothing_to_grant(len(is_free_N))
        o = self.offers
        found = learned.belief.incidence(o.x_NP, tokens_K=o.tokens_K, given=o.given, is_guarded=learned.is_guarded)
        curves = curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=o.tokens_K)
        return clear(
            Batch(curves, o.weight_N, o.max_tokens_N, o.tie_break_N, o.cost_N),
            generated_tokens_N=states.answer_tokens_N,
            is_open_N=is_free_N,
            available_tokens=available_tokens,
        )
