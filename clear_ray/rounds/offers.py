"""What queries are offered, and what is believed of them: the input of every clearing.

Shapes: N queries of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.batch import Basis, Batch
from clear_ray.rounds.beside import RunningGrants, clear_beside
from clear_ray.rounds.clearing import Clearing, Policy, Solve, clear, nothing_to_grant
from clear_ray.rounds.minimum_service import minimum_service
from clear_ray.rounds.states import QueryStates


class Offers(Protocol):
    """Turns tokens into grants; `Rounds` says when it is asked, of which queries, and with how many tokens.

    It is asked anew at every clearing and sees where every query stands. So it may offer whatever it can price: to go on
    with a cut answer, to begin again, another model; and what it believes may have changed since the last clearing.
    """

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """What a token of each query takes from the budget, shape (N,), in whole thousandths; the same at all times."""

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """Ceiling of each query over all its grants, shape (N,); the same at all times."""

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """Return which queries are granted how much, each query once.

        Args:
            states: Where every query stands; not to be changed.
            is_free_N: Queries that may be granted tokens now: open, and without a grant that is running, shape (N,).
            available_tokens: What may be granted, in tokens of cost 1; at least 1.
            owed_tokens_N: Minimum service of each query, a floor under what is granted it, shape (N,); 0 where none is owed.
        """

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """Return the grants of the minimum service.

        Args:
            owed_tokens_N: Tokens of each query that no clearing has funded, shape (N,); some are above 0.
            available_tokens: What may be granted, in tokens of cost 1.
            shadow_price: The price that these queries were not worth.
        """


@runtime_checkable
class OverlappingOffers(Protocol):
    """Offers that can be asked while grants are running."""

    def clear_beside(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        running: RunningGrants,
        available_tokens: int,
    ) -> Clearing:
        """Return which free queries are granted how much beside what is running; nothing to wait for that.

        Args:
            states: As for `Offers.clear`.
            is_free_N: As for `Offers.clear`.
            running: The grants that are running.
            available_tokens: As for `Offers.clear`.
        """


@dataclass(frozen=True, slots=True, eq=False)
class HeldBatch:
    """What all offers by the curves of a batch that is held in memory have in common.

    Attributes:
        batch: The whole batch.
    """

    batch: Batch

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """See `Offers`."""
        return self.batch.cost_N

    @property
    def max_tokens_N(self) -> NDArray[np.int64]:
        """See `Offers`."""
        return self.batch.max_tokens_N

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`."""
        return minimum_service(
            self.batch, owed_tokens_N=owed_tokens_N, available_tokens=available_tokens, shadow_price=shadow_price
        )


@dataclass(frozen=True, slots=True, eq=False)
class BatchOffers(HeldBatch):
    """To go on, by the curves of a batch that is held in memory.

    Attributes:
        policy: See `clear`.
        basis: See `clear`.
    """

    policy: Policy | Solve = "clear_ray"
    basis: Basis = "ceilings"

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`."""
        return clear(
            self.batch,
            generated_tokens_N=states.answer_tokens_N,
            is_open_N=is_free_N,
            available_tokens=available_tokens,
            policy=self.policy,
            basis=self.basis,
            owed_tokens_N=owed_tokens_N,
        )

    def clear_beside(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        running: RunningGrants,
        available_tokens: int,
    ) -> Clearing:
        """See `OverlappingOffers`; rules that have no price wait for what is running."""
        if self.policy != "clear_ray" or self.basis != "ceilings" or self.batch.calls is not None:
            return nothing_to_grant(len(is_free_N))
        return clear_beside(
            self.batch,
            generated_tokens_N=states.answer_tokens_N,
            is_free_N=is_free_N,
            running=running,
            available_tokens=available_tokens,
        )
