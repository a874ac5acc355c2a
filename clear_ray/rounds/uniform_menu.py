"""Equal shares of several models: what a price over them is compared with.

Every query may take the same from the budget, and is asked of one model, drawn at random: as many of each. What comes
back goes in equal shares to answers that were cut off, by the model that began them.

Shapes: N queries, J models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS
from clear_ray.rounds.clearing import Clearing, clear_menu
from clear_ray.rounds.menu import Option
from clear_ray.rounds.menu_offers import MenuOffers, MenuRule
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True, eq=False)
class UniformMenuOffers(MenuOffers):
    """See the module; nothing is learned."""

    @property
    def rule(self) -> MenuRule:
        """What ends a query: one answer."""
        return MenuRule("correct", np.ones(len(self.weight_N), np.int64))

    @property
    def model_N(self) -> NDArray[np.int64]:
        """Which model each query is asked of: of those that can read it, taking turns in a random order."""
        found, order = np.zeros(len(self.weight_N), np.int64), np.argsort(self.tie_break_N, kind="stable")
        can_JN = self.max_tokens_JN > 0
        sets, of_set = np.unique(can_JN[:, order], axis=1, return_inverse=True)
        for number, can_J in enumerate(sets.T):
            queries, models = order[of_set.ravel() == number], np.flatnonzero(can_J)
            if len(models):
                found[queries] = models[np.arange(len(queries)) % len(models)]
        return found

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`."""
        model_N, believed = self.model_N, self._believed(None)
        options = [
            Option(self._batch(curves, model), states.answer_tokens_N, model_N == model)
            for model, curves in enumerate(believed.fresh)
        ]
        clearing = clear_menu(
            options,
            is_open_N=is_free_N,
            available_tokens=available_tokens,
            policy="uniform",
            owed_tokens_N=owed_tokens_N,
        )
        index = clearing.index_M
        token_parts_JN = np.stack([calls.token_parts_N for calls in self.calls])
        return replace(
            clearing, option_M=model_N[index], token_cost_M=token_parts_JN[model_N[index], index] / COST_PARTS
        )
