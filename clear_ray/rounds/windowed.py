"""Offers of a very large batch while its prompts are being read: to those that were read last, at the price of all.

    read a part --> clear --> its grants run, the next part is read --> clear --> ... --> all are read: `whole`

**The window** (`estimation.window`) holds the curves of the queries that were read last, the newest part among them, and of
an even sample of those before.

**The newest are granted**, and at the price of all that is known: each query of the sample counts as many times as it
stands for, in what it wants and in what its running grant may give back (`beside.Standing`). What those before would buy is
held back for them. If it were not, all that comes back would go to the newest, below its worth.

**Those before wait** until all prompts are read. Then `whole` prices everything that is open, on what is left: a query that
was not worth an early price is offered again, and one that was cut off may go on.

What known queries may spend together is `widening`'s law. A certificate is of the queries in the window.

Shapes: N queries of the batch, M of them running, S of them in the sample.

Source: docs/method.md, section 11.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.window import Window
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.beside import RunningGrants, Standing, clear_beside
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.offers import Offers
from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True, eq=False)
class WindowedOffers:
    """See the module, and `offers.Offers`. There is no minimum service before all is read.

    Attributes:
        batch: The batch, of which the curves in the window are held.
        is_known_N: Which queries have been read; changes in place.
        window: Which of these have their curves in `batch`; None if all have.
        whole: What prices all of them once they are known; it waits for what is running.
    """

    batch: Batch
    is_known_N: NDArray[np.bool_]
    window: Window | None
    whole: Offers

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """See `Offers`."""
        return self.batch.cost_N

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """See `Offers`."""
        return self.batch.max_tokens_N

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`."""
        if self._is_whole:
            return self.whole.clear(
                states, is_free_N=is_free_N, available_tokens=available_tokens, owed_tokens_N=owed_tokens_N
            )
        nothing = np.zeros(0, np.int64)
        return self._clear_window(states, is_free_N, RunningGrants(nothing, nothing, nothing), available_tokens)

    def clear_beside(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        running: RunningGrants,
        available_tokens: int,
    ) -> Clearing:
        """See `OverlappingOffers`."""
        if self._is_whole:
            return nothing_to_grant(len(is_free_N))
        return self._clear_window(states, is_free_N, running, available_tokens)

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`."""
        return self.whole.serve(owed_tokens_N, available_tokens=available_tokens, shadow_price=shadow_price)

    @property
    def _is_whole(self) -> bool:
        return bool(self.is_known_N.all())

    def _clear_window(
        self, states: QueryStates, is_free_N: NDArray[np.bool_], running: RunningGrants, available_tokens: int
    ) -> Clearing:
        window = self.window
        is_held_N = self.is_known_N if window is None else window.row_N >= 0
        index_S = np.flatnonzero(np.zeros(0, bool) if window is None else window.is_sample_N)
        held_M = np.flatnonzero(is_held_N[running.index_M])
        columns = (running.index_M, running.tokens_M, running.progress_M)
        clearing = clear_beside(
            self.batch,
            generated_tokens_N=states.answer_tokens_N,
            is_free_N=is_free_N & is_held_N,
            running=RunningGrants(*(column[held_M] for column in columns)),
            available_tokens=available_tokens,
            standing=Standing(index_S, 1.0 if window is None else window.each),
        )
        return replace(clearing, over_queries=int(is_held_N.sum()) if len(index_S) else None)
