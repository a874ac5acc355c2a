"""What every family of utility curves can answer; the rest of `allocation/` knows nothing else about it.

Legend: N queries.

A utility curve says, for each query, the chance of a correct answer by a cap of b generated tokens, times the weight
(value) of that answer. All numbers are over arrays: one entry a query. Where a cost per token is given, "spend" and
"budget" are in its unit (money, GPU-seconds) and the price is correct answers per that unit; otherwise they are tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, PerQuery


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over queries at their demand.

    Attributes:
        spend: Expected spend.
        utility: Expected value.
        funded: Queries with any tokens.
    """

    spend: float
    utility: float
    funded: int

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            spend=self.spend + other.spend, utility=self.utility + other.utility, funded=self.funded + other.funded
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Demanded:
    """What each query's demand at a price comes to.

    Attributes:
        spend_N: Expected spend.
        utility_N: Expected value.
    """

    spend_N: FloatArray
    utility_N: FloatArray

    @property
    def totals(self) -> Totals:
        """Return the sums."""
        return Totals(
            spend=float(self.spend_N.sum()),
            utility=float(self.utility_N.sum()),
            funded=int(np.count_nonzero(self.spend_N)),
        )

    def take(self, indices: IntArray | BoolArray) -> Demanded:
        """Return that of some queries."""
        return Demanded(spend_N=self.spend_N[indices], utility_N=self.utility_N[indices])


class Utility(Protocol):
    """N utility curves of one family; immutable.

    Attributes:
        threshold_tokens_N: Emergence threshold, tokens: below it utility is nothing, or not worth stopping at.
        weight_N: Value of a correct answer.
        cost_per_token_N: Unit of the budget per token; 1 where it is tokens.
        max_tokens_N: Ceiling of each query, tokens; infinity where there is none.
        min_tokens_N: Floor of each query, tokens: owed whatever the price.
        is_smooth: Whether demand moves continuously once a query is funded. If not, it moves from step to step.
    """

    is_smooth: bool

    @property
    def threshold_tokens_N(self) -> FloatArray: ...  # noqa: D102
    @property
    def weight_N(self) -> FloatArray: ...  # noqa: D102
    @property
    def cost_per_token_N(self) -> FloatArray: ...  # noqa: D102
    @property
    def max_tokens_N(self) -> FloatArray: ...  # noqa: D102
    @property
    def min_tokens_N(self) -> FloatArray: ...  # noqa: D102

    def __len__(self) -> int: ...

    def utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the expected value (weight x chance of a correct answer) at a cap of `tokens_N`."""

    def marginal_utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the value of one further token at `tokens_N` (the derivative from the right)."""

    def spend(self, tokens_N: PerQuery) -> FloatArray:
        """Return the expected spend under a cap of `tokens_N`."""

    def demand(self, price: PerQuery) -> FloatArray:
        """Return the cap that each query would buy at `price` (tokens, not yet whole).

        Where several caps are equally good the largest is returned, so a query whose reservation price equals `price`
        is funded.
        """

    def demanded_spend(self, price: PerQuery) -> FloatArray:
        """Return `spend(demand(price))`, often for less work."""

    def demanded(self, price: PerQuery) -> Demanded:
        """Return spend and utility at `demand(price)`."""

    def demanded_off_grid(self, price: float) -> Demanded:
        """Return `demanded(price)` for less work, at a price that is no breakpoint: one halfway between grid prices."""

    def surplus(self, price: PerQuery) -> FloatArray:
        """Return utility minus price x spend at `demand(price)`."""

    @property
    def reservation_price(self) -> FloatArray:
        """The price above which a query buys nothing beyond its floor; 0 if it never buys anything."""

    @property
    def breakpoints(self) -> FloatArray:
        """Every price at which some demand leaps, flat, in no order, zeros included."""

    def rows_indifferent_at(self, price: float) -> IntArray:
        """Return the queries whose demand leaps at a price above 0 on the price grid."""

    def next_step_price(self, tokens_N: PerQuery) -> FloatArray:
        """Return the price of the next leap of demand above `tokens_N`; 0 where none is left.

        It lands at `demand` of that price.
        """

    def affordable_tokens(self, spend_N: PerQuery) -> IntArray:
        """Return the largest whole cap within `max_tokens_N` whose expected spend is at most `spend_N`."""

    def tie_columns(self, rows: IntArray) -> Iterable[FloatArray]:
        """Return the parameters of some rows, most significant first, so that equal curves compare equal.

        One that is the same in all of these rows may be left out.
        """

    def take(self, indices: IntArray | BoolArray | slice) -> Utility:
        """Return the curves of some queries; a slice shares memory."""
