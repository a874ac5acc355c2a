"""Prices all queries of a batch by what a sample of it teaches, where their coordinates are: the driver sees sketches.

Shapes: N queries of the batch, B rows of a block, P coordinates.

Source: docs/method.md, sections 3 and 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from clear_ray.batch.coordinates import points_of
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.batch.sketched import ReadsBeliefs, SketchedOffers, clear_rows, reservation_prices_of_rows, with_calls
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.sampled_learning import Learned
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True, eq=False)
class SketchedWhole:
    """See the module, and `rounds.sampled_learning.Whole`.

    Attributes:
        uninformed: All queries by the uninformed law.
        rows: Makes the coordinates of all queries, a row each, for each clearing anew.
        weight_N: Value of a correct answer.
        given: Where beliefs that were there before lie; None if there are none.
    """

    uninformed: SketchedOffers
    rows: Callable[[], Dataset]
    weight_N: NDArray[np.float64]
    given: GivenRows | None = None

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """See `Whole`."""
        return self.uninformed.cost_N

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """See `Whole`."""
        return self.uninformed.max_tokens_N

    def clear(
        self, learned: Learned | None, states: QueryStates, *, is_free_N: NDArray[np.bool_], available_tokens: int
    ) -> Clearing:
        """See `Whole`."""
        calls = self.uninformed.calls
        rows, believed = self._read(learned)
        return clear_rows(rows, believed, states, is_free_N=is_free_N, available_tokens=available_tokens, calls=calls)

    def reservation_prices(self, learned: Learned | None) -> NDArray[np.float64]:
        """Return the price above which each query is not worth a first token, shape (N,)."""
        return reservation_prices_of_rows(*self._read(learned), len(self.weight_N))

    def _read(self, learned: Learned | None) -> tuple[Dataset, ReadsBeliefs]:
        """Return rows of all queries, and what reads from them what is believed."""
        offers = self.uninformed
        if learned is None:
            return offers.rows(), offers.believed()
        facts = ray.put((self.weight_N, offers.max_tokens_N, offers.tie_break_N, offers.cost_N, offers.calls))
        return self.rows(), _FromCoordinates(learned, offers.tokens_K, facts, self.given)


@dataclass(frozen=True)
class _FromCoordinates:
    """Makes the curves of a block's queries from their coordinates."""

    learned: Learned
    tokens_K: NDArray[np.int64]
    facts: Any
    given: GivenRows | None

    def __call__(self, block: pa.Table) -> Batch:
        weight_N, max_tokens_N, tie_break_N, cost_N, calls = ray.get(self.facts)
        index_B, belief = block["index"].to_numpy(), self.learned.belief
        given = None if self.given is None else self.given.of(index_B)
        found = belief.incidence(
            points_of(block), tokens_K=self.tokens_K, given=given, is_guarded=self.learned.is_guarded
        )
        curves = curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=self.tokens_K)
        facts_B = (each[index_B] for each in (weight_N, max_tokens_N, tie_break_N, cost_N))
        return with_calls(Batch(curves, *facts_B), calls, index_B)
