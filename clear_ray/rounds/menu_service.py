"""The minimum service of a menu: what each query is owed, by the model that serves it at the least cost.

As of one model (`minimum_service`), floors are paid before anything is priced, and the last round pays out those of queries
that nothing has been bought for. A query that buys more, or of a dearer model, has had its floor with that.

Shapes: N queries, M of them granted, J models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Batch, expected_spend
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, nothing_to_grant

Integers = NDArray[np.int64]
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class MenuService:
    """See the module.

    Attributes:
        calls: What calls of each model take.
        max_tokens_JN: Ceilings by model.
        owed_tokens_N: Tokens that each query is owed; 0 where none are.
    """

    calls: Sequence[CallCosts]
    max_tokens_JN: Integers
    owed_tokens_N: Integers

    @property
    def _parts_JN(self) -> Integers:
        """Return what serving each query takes by each model, thousandths; never where that cannot read it."""
        index = np.arange(len(self.owed_tokens_N))
        tokens_JN = np.minimum(self.max_tokens_JN, self.owed_tokens_N)
        parts = [
            calls.taken_parts(index, tokens_N, np.zeros_like(index))
            for calls, tokens_N in zip(self.calls, tokens_JN, strict=True)
        ]
        return np.where(tokens_JN > 0, np.stack(parts), _NEVER)

    @property
    def floor_parts_N(self) -> Integers:
        """What each query is owed, thousandths of the budget's unit."""
        least_N = self._parts_JN.min(axis=0)
        return np.where(least_N < _NEVER, least_N, 0)

    @property
    def kept_tokens(self) -> int:
        """What all are owed, in the budget's unit."""
        return -(-int(self.floor_parts_N.sum()) // COST_PARTS)

    def with_floors(self, clearing: Clearing, *, available_tokens: int) -> Clearing:
        """Return a clearing of what is not owed with no grant below its floor, and what it keeps back for others.

        A floor may be dearer by the model that was bought: grants that do not fit then are left to the next clearing.
        """
        if not self.owed_tokens_N.any() or not len(clearing.index_M):
            return clearing
        index, floor_parts_N = clearing.index_M, self.floor_parts_N
        option_M = np.zeros_like(index) if clearing.option_M is None else clearing.option_M
        owed_M = np.minimum(self.owed_tokens_N[index], self.max_tokens_JN[option_M, index])
        tokens_M, parts_M = np.maximum(clearing.tokens_M, owed_M), clearing.parts_M(np.zeros(0)).copy()
        for place in np.flatnonzero(
            tokens_M > clearing.tokens_M
        ):  # owed is what no grant was run of: answers that begin
            one, none = index[[place]], np.zeros(1, np.int64)
            parts_M[place] = self.calls[option_M[place]].taken_parts(one, tokens_M[[place]], none)[0]
        left_parts = available_tokens * COST_PARTS - int(floor_parts_N.sum())
        fits = np.cumsum(parts_M - floor_parts_N[index]) <= left_parts
        raised = replace(clearing, tokens_M=tokens_M, reserved_parts_M=parts_M).some(np.flatnonzero(fits))
        kept_parts = int(floor_parts_N.sum() - floor_parts_N[raised.index_M].sum())
        return replace(raised, kept_tokens=-(-kept_parts // COST_PARTS))

    def paid_out(self, batches: Sequence[Batch], *, available_tokens: int, shadow_price: float) -> Clearing:
        """Grant what is owed, as far as it goes, in the order in which ties are broken.

        Args:
            batches: What is believed of each model.
            available_tokens: What may be granted.
            shadow_price: The price that these queries were not worth.
        """
        first, parts_N = batches[0], self.floor_parts_N
        index = np.flatnonzero(parts_N > 0)
        index = index[np.argsort(first.tie_break_N[index], kind="stable")]
        index = index[np.cumsum(parts_N[index]) <= available_tokens * COST_PARTS]
        model_M = self._parts_JN.argmin(axis=0)[index]
        tokens_M = np.minimum(self.max_tokens_JN[model_M, index], self.owed_tokens_N[index])
        expected_M, worth_M = np.zeros(len(index)), np.zeros(len(index))
        for model, batch in enumerate(batches):
            of = np.flatnonzero(model_M == model)
            curves, tokens = batch.curves.take(index[of]), tokens_M[of]
            expected_M[of] = expected_spend(curves, np.zeros_like(tokens), tokens)
            weight = batch.weight_N[index[of]]
            worth_M[of] = Tabulated(curves.tokens_K, curves.success_NK, weight_N=weight).utility(tokens)
        return replace(
            nothing_to_grant(len(self.owed_tokens_N)),
            index_M=index,
            tokens_M=tokens_M,
            expected_tokens_M=expected_M,
            expected_utility_M=worth_M,
            shadow_price=shadow_price,
            dual_bound=float(worth_M.sum()),
            is_service=True,
            option_M=model_M,
            is_fresh_M=np.ones(len(index), bool),
            reserved_parts_M=parts_N[index],
        )
