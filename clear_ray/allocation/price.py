"""The shadow price: the lowest price whose demand fits the budget.

Legend: N queries.

Total demand never rises with the price, and falls in leaps where queries leave. At a reservation price a query is as
well off with its tokens as without, so demand there is a range: with all such ties funded, or with none. The shadow
price is the lowest price at which demand *without ties* fits. Either demand meets the budget there, or the price is a
reservation price and the ties are what does not fit as a whole.

Prices are positions on a grid (`price_grid`) and spend is counted in whole units (`SpendUnit`), so sums do not depend
on the order of queries and the lowest price is one definite number: `fits(index)` and not `fits(index - 1)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.price_grid import price_at, price_index
from clear_ray.allocation.utility import Utility
from clear_ray.errors import PriceError

_ROWS_AT_ONCE = 1 << 14  # a dozen float64 columns of this many rows stay in the cache
_SAMPLE_ROWS = 1 << 14
_LISTED_BREAKPOINTS = 64
_UNITS_OF_BUDGET_BITS = 46
_FIRST_REACH = 1 << 34  # about one percent in price


@dataclass(frozen=True, kw_only=True)
class ShadowPrice:
    """The price that clears a budget, with its certificate.

    Attributes:
        shadow_price: Expected value per further unit of budget; 0 if the budget does not bind.
        demanded: Spend of all demand at the price, ties left out; at most the budget. In tokens, or in the unit of
            the cost per token.
        demanded_with_ties: The same with every tie funded; above the budget, unless the price is 0.
        utility: Expected value of the demand without ties.
        dual_bound: No allocation within the budget is worth more: `price * budget + sum of surplus`.
        gap: `dual_bound - utility`, at most price x slack (and rounding).
        slack: Budget less `demanded`.
    """

    shadow_price: float
    demanded: float
    demanded_with_ties: float
    utility: float
    dual_bound: float
    gap: float
    slack: float


@dataclass(frozen=True)
class SpendUnit:
    """Spend counted in whole units of a power of two, about 2**-46 of the budget.

    Whole numbers add up to the same sum in any order. Rounding is upward, so a sum that fits the budget in units fits
    it in truth. A single spend is cut off at a few budgets: it does not fit, and the sum must not overflow.
    """

    exponent: int

    @classmethod
    def of_budget(cls, budget: float) -> SpendUnit:
        """Return the unit for a budget."""
        return cls(math.frexp(budget)[1] - _UNITS_OF_BUDGET_BITS if budget > 0.0 else 0)

    def count(self, spend_N: FloatArray) -> IntArray:
        """Return spends in units, rounded up."""
        scaled = np.minimum(np.ldexp(spend_N, -self.exponent), 2.0 ** (_UNITS_OF_BUDGET_BITS + 2))
        return np.ceil(scaled, out=scaled).astype(np.int64)

    def total(self, spend_N: FloatArray) -> int:
        """Return the sum of spends in units, exact for any number of queries."""
        units = self.count(spend_N)
        return sum(int(units[first : first + _ROWS_AT_ONCE].sum()) for first in range(0, units.size, _ROWS_AT_ONCE))

    def budget(self, budget: float) -> int:
        """Return a budget in units, rounded down."""
        return math.floor(math.ldexp(budget, -self.exponent))


def solve_shadow_price(utility: Utility, *, budget_tokens: float) -> ShadowPrice:
    """Return the lowest price at which demand fits the budget.

    Exact: the price is a breakpoint of demand, or the lowest price on the grid of `price_grid` (one part in 1e12) at
    which demand fits. It is the same for every order of the queries.

    Args:
        utility: N curves.
        budget_tokens: Budget, >= 0: tokens, or the unit of the cost per token.

    Raises:
        PriceError: the budget is negative or not finite, or smaller than the sum of the floors.

    Source: method.md 3.
    """
    check_budget(utility, budget_tokens)
    price = price_at(_shadow_price_index(utility, budget_tokens))
    blocks = row_blocks(utility)
    above = price_at(int(price_index(price)[0]) + 1)
    demanded = math.fsum(float(block.demanded_spend(above).sum()) for block in blocks)
    with_ties = math.fsum(float(block.demanded_spend(price).sum()) for block in blocks)
    worth = math.fsum(float(block.utility(block.demand(above)).sum()) for block in blocks)
    if price == 0.0 and with_ties <= budget_tokens:
        demanded, worth = with_ties, math.fsum(float(block.utility(block.demand(0.0)).sum()) for block in blocks)
    dual_bound = price * budget_tokens + math.fsum(float(block.surplus(price).sum()) for block in blocks)
    return ShadowPrice(
        shadow_price=price,
        demanded=demanded,
        demanded_with_ties=with_ties,
        utility=worth,
        dual_bound=dual_bound,
        gap=max(dual_bound - worth, 0.0),
        slack=max(budget_tokens - demanded, 0.0),
    )


def check_budget(utility: Utility, budget_tokens: float) -> None:
    """Raise unless the budget is a number that covers the floors.

    Raises:
        PriceError: it is negative, not finite, or smaller than the sum of the floors.
    """
    if not (math.isfinite(budget_tokens) and budget_tokens >= 0.0):
        raise PriceError("a budget must be finite and not negative", "budget_tokens", repr(budget_tokens))
    owed = float(utility.spend(utility.min_tokens_N).sum())
    if owed > budget_tokens:
        remedy = f"Raise the budget to at least {owed:g} or lower min_tokens_N."
        raise PriceError(
            "no price exists: the floors alone exceed the budget", "budget_tokens", f"{budget_tokens:g}", remedy
        )


def row_blocks(utility: Utility) -> list[Utility]:
    """Return the curves in blocks of rows that fit the processor's cache; views, no copies."""
    return [utility.take(slice(first, first + _ROWS_AT_ONCE)) for first in range(0, len(utility), _ROWS_AT_ONCE)]


def shadow_price_at_most(utility: Utility, *, budget: float, price: float) -> float:
    """Return the shadow price alone, given one that is not below it; for clearing again after few changes."""
    return price_at(_shadow_price_index(utility, budget, near=int(price_index(price)[0])))


def _shadow_price_index(utility: Utility, budget: float, *, near: int | None = None) -> int:
    """Return the grid position of the shadow price; `near` is a guess."""
    blocks = row_blocks(utility)
    unit = SpendUnit.of_budget(budget)
    limit = unit.budget(budget)

    def excess(index: int) -> int:
        """Return how far demand at a price, ties included, exceeds the budget, in units."""
        price = price_at(index)
        return sum(int(unit.count(block.demanded_spend(price)).sum()) for block in blocks) - limit

    if not blocks or excess(0) <= 0:
        return 0
    breakpoints = np.concatenate([price_index(block.breakpoints) for block in blocks])
    guess = near
    if guess is None and len(utility) >= 4 * _SAMPLE_ROWS:
        sample = utility.take(slice(0, None, len(utility) // _SAMPLE_ROWS))
        guess = _shadow_price_index(sample, budget * len(sample) / len(utility))
    # Demand at `index + 1`, ties included, is demand at `index` with ties left out.
    return first_fitting_index(excess, breakpoints, guess=guess) - 1


def first_fitting_index(excess: Callable[[int], int], breakpoints: IntArray, *, guess: int | None) -> int:
    """Return the smallest index with `excess(index) <= 0`, given `excess(0) > 0`.

    `excess` must not rise with the index, and must not be positive above all breakpoints. Many breakpoints inside the
    bracket look like a smooth curve, so the bracket is narrowed by interpolation; a few are tried one by one, by
    halving; between two of them `excess` is smooth, and interpolation again ends within a few calls.

    Args:
        excess: Function of a grid position.
        breakpoints: Positions where demand leaps, any order; demand is lower just above each.
        guess: A position that is probably near; only saves time.
    """
    bracket = _Bracket(excess, low=0, high=int(breakpoints.max()) + 1)
    if guess is not None:
        bracket.close_in_on(guess)
    inside = breakpoints
    while bracket.width > 1:
        inside = inside[(inside >= bracket.low) & (inside < bracket.high - 1)]
        if inside.size > _LISTED_BREAKPOINTS:
            bracket.try_at(bracket.interpolated(shift=bracket.width >> 4))
        elif inside.size > 0:
            inside = np.unique(inside)
            bracket.try_at(int(inside[inside.size // 2]) + 1)
        elif not bracket.is_top_tried:
            bracket.try_at(bracket.high - 1)
        else:
            bracket.try_at(bracket.interpolated(shift=max(bracket.width >> 10, 1)))
    return bracket.high


class _Bracket:
    """Two grid positions with demand above the budget at `low` and within it at `high`."""

    def __init__(self, excess: Callable[[int], int], *, low: int, high: int) -> None:
        self._excess = excess
        self.low, self.high = low, high
        self._low_value: int | None = None
        self._high_value: int | None = None
        self._slow_tries = 0
        self.is_top_tried = False  # whether the position just under `high` was tried since the last leap was passed

    @property
    def width(self) -> int:
        return self.high - self.low

    def try_at(self, index: int) -> None:
        """Move one end to `index`, which lies strictly between the ends. Changes the bracket."""
        width, value = self.width, self._excess(index)
        self.is_top_tried = index == self.high - 1
        if value > 0:
            self.low, self._low_value = index, value
        else:
            self.high, self._high_value = index, value
        self._slow_tries = 0 if 2 * self.width <= width else self._slow_tries + 1

    def close_in_on(self, guess: int) -> None:
        """Move both ends to the neighbourhood of a guess, wider and wider until it holds the answer."""
        reach = _FIRST_REACH
        while self._low_value is None and self.low < guess - reach < self.high:
            self.try_at(guess - reach)
            reach *= 8
        reach = _FIRST_REACH
        while self._high_value is None and self.low < guess + reach < self.high:
            self.try_at(guess + reach)
            reach *= 8

    def interpolated(self, *, shift: int) -> int:
        """Return where a straight line through the ends crosses zero, moved by `shift` toward the middle.

        Without the shift one end would creep and the other never move. Falls back to the middle while an end has no
        value yet, or when two tries in a row did not halve the bracket.
        """
        middle = self.low + self.width // 2
        if self._low_value is None or self._high_value is None or self._slow_tries >= 2:
            return middle
        crossing = self.low + self.width * self._low_value // (self._low_value - self._high_value)
        moved = min(crossing + shift, middle) if crossing < middle else max(crossing - shift, middle)
        return min(max(moved, self.low + 1), self.high - 1)
