"""Pricing a batch that does not fit one machine: demand reduced to a few kilobytes a block.

Legend: N queries of a block, Q = 3 quantities (spend, utility, number funded), E positions on the price grid, H tie
classes.

A sketch holds, for E prices, what the queries added so far demand at each: spend, expected value and number funded, all
in whole units and at whole tokens, so that sketches add up to the same bits in any number of blocks and any order. The
first sketch (5 kilobytes) covers every price there may be, in steps of a factor of two; the second (52 kilobytes) the
step in which the first found the answer, in steps of six percent or less. Demand on both sides of the answer is then known
exactly.

Ties of any size, and what six percent leave of the budget, are divided by *tie classes*: a hash splits the queries into
H classes, and as many classes as the budget allows buy at the lower price, the others at the upper. So of ten thousand
equal queries, with tokens for seven thousand, some 6,950 are funded; the rest of the budget is slack for the next round.

Where the first pass finds that nothing binds, the second is about the unspent budget instead: its positions are levels,
to which the caps of all queries are raised as far as the budget goes, so that no query is abandoned.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import IntArray
from clear_ray.allocation.demand import row_blocks
from clear_ray.allocation.price_grid import HIGHEST_INDEX, price_between, price_index
from clear_ray.allocation.sketch_price import SketchPrice, tie_classes_of, whole_demand
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Utility
from clear_ray.errors import PriceError, UtilityError

# Prices of the first pass are powers of two: from a billionth of an answer worth a millionth in 2**31 tokens to one worth
# 1e12 in a thousandth of a token. An answer beyond them is bracketed, too, only less finely.
_OCTAVES = range(-81, 51)
_LEVELS = np.unique(np.exp2(np.arange(0.0, 31.5, 0.5)).astype(np.int64))[::-1]  # of the second pass at price 0
_SECOND_PASS_POSITIONS = 17
_TIE_CLASSES = 128
_FIRST_UTILITY_EXPONENT = -24
_VALUE_BITS = (
    40  # of the highest value of a query in the second pass, or less where the sum of a cell would not hold it
)
_MOST_UNITS = 1 << 61  # of a whole sketch: sums stop there, and two of them still add up in 64 bits
_SPEND, _UTILITY, _FUNDED = range(3)
_HEADER = struct.Struct("<4sIIii?qd")
_MAGIC = b"cds2"


@dataclass(frozen=True, eq=False)
class DemandSketch:
    """What queries demand at some prices, in sums that add up the same in every order. Immutable.

    Spend is counted in about 2**-46 of the budget that the sketch was made for, value in 2**-24 in the first pass and in a
    small share of the highest value that the first pass saw in the second. Sums that reach the most that a cell can hold
    stay there: no budget is that large, and order does not matter to such sums either.

    Attributes:
        positions_E: Where demand is known: halfway above these positions of the price grid, rising; 0 is price 0. Or,
            at price 0, levels in tokens, falling.
        sums_QEH: Spend, utility and number funded in whole units, by position and tie class; int64.
        queries: How many were added.
        spend_exponent: Spend is counted in units of 2**spend_exponent.
        utility_exponent: Value is counted in units of 2**utility_exponent.
        highest_value: The most that any of the queries is worth at any price.
        is_of_levels: Whether the positions are levels.
    """

    positions_E: IntArray
    sums_QEH: IntArray
    queries: int
    spend_exponent: int
    utility_exponent: int = _FIRST_UTILITY_EXPONENT
    highest_value: float = 0.0
    is_of_levels: bool = False

    @classmethod
    def first_pass(cls, *, budget_tokens: float) -> Self:
        """Return an empty sketch that covers every price.

        Args:
            budget_tokens: The budget, tokens or the unit of the cost per token. Budgets up to a hundred times larger
                can be priced from the same sketch, smaller ones less finely.

        Raises:
            PriceError: the budget is negative or not finite.
        """
        _check(budget_tokens)
        octaves = price_index(np.exp2(np.asarray(_OCTAVES, dtype=np.float64)))
        positions = np.concatenate([[0], octaves, [HIGHEST_INDEX]])
        unit = Unit.of_limit(budget_tokens)
        return cls(positions, _zeros(positions, 1), 0, unit.exponent)

    def second_pass(self, *, budget_tokens: float, spread_unspent: bool = True) -> Self:
        """Return an empty sketch of the interval in which this one finds the price of a budget.

        Args:
            budget_tokens: The budget.
            spread_unspent: As for `allocate`: whether a budget that does not bind raises the lowest caps.

        Raises:
            PriceError: as for `price`.
        """
        upper = self._lowest_that_fits(budget_tokens)
        if upper == 0 and spread_unspent:
            levels = np.append(_LEVELS, 0)
            return self._second(levels, _TIE_CLASSES // 4, is_of_levels=True)
        low, high = int(self.positions_E[max(upper - 1, 0)]), int(self.positions_E[upper])
        count = min(_SECOND_PASS_POSITIONS, high - low + 1)
        return self._second(np.linspace(low, high, count).astype(np.int64), _TIE_CLASSES, is_of_levels=False)

    def add(self, utility: Utility, *, tie_break_N: ArrayLike | None = None) -> Self:
        """Return this sketch with some queries added.

        Args:
            utility: N curves.
            tie_break_N: A number that belongs to each query and not to its place, such as a hash of its id. Without
                it the curve decides, so equal curves fall into one tie class.

        Raises:
            UtilityError: `tie_break_N` has the wrong length.
        """
        class_N = tie_classes_of(utility, tie_break_N, self.sums_QEH.shape[2])
        sums, start, highest = self.sums_QEH.copy(), 0, self.highest_value
        for block in row_blocks(utility):
            self._add_block(sums, block, class_N[start : start + len(block)])
            start += len(block)
            highest = max(highest, float(block.demanded_off_grid(0.0).utility_N.max()))
        return replace(self, sums_QEH=sums, queries=self.queries + len(utility), highest_value=highest)

    def merge(self, other: DemandSketch) -> Self:
        """Return the sketch of the queries of both.

        Raises:
            UtilityError: the sketches belong to different passes.
        """
        if self._pass != other._pass or not np.array_equal(self.positions_E, other.positions_E):
            raise UtilityError("only sketches of one pass can be merged", "DemandSketch", repr(other.positions_E[:2]))
        sums = np.minimum(self.sums_QEH + other.sums_QEH, _MOST_UNITS // self.sums_QEH.shape[2])
        highest = max(self.highest_value, other.highest_value)
        return replace(self, sums_QEH=sums, queries=self.queries + other.queries, highest_value=highest)

    def price(self, *, budget_tokens: float) -> SketchPrice:
        """Return the price at which everything added fits a budget.

        Raises:
            PriceError: the budget is negative or not finite, or smaller than the sum of the floors.
        """
        upper = self._lowest_that_fits(budget_tokens)
        lower = max(upper - 1, 0)
        at_lower, at_upper = self.sums_QEH[:, lower], self.sums_QEH[:, upper]
        left = Unit(self.spend_exponent).limit(budget_tokens) - int(at_upper[_SPEND].sum())
        classes = int(np.searchsorted(np.cumsum((at_lower - at_upper)[_SPEND]), left, side="right"))
        chosen = at_lower[:, :classes].sum(axis=1) + at_upper[:, classes:].sum(axis=1)
        price, lower_price = (_price_of(self._price_position(e)) for e in (upper, lower))
        spend, utility = self._amounts(chosen)
        bound = self._dual_bound(price, at_upper.sum(axis=1), budget_tokens)
        return SketchPrice(
            shadow_price=price,
            lower_price=lower_price,
            level_tokens=int(self.positions_E[upper]) if self.is_of_levels else 0,
            lower_level_tokens=int(self.positions_E[lower]) if self.is_of_levels else 0,
            lower_classes=classes,
            tie_classes=self.sums_QEH.shape[2],
            spend=spend,
            slack_tokens=budget_tokens - spend,
            utility=utility,
            dual_bound=bound,
            gap=max(bound - utility, 0.0),
            funded=int(chosen[_FUNDED]),
            queries=self.queries,
        )

    def to_bytes(self) -> bytes:
        """Return the sketch as bytes: a header, the positions and the sums, little-endian. No pickle."""
        _, positions, classes = self.sums_QEH.shape
        facts = self.spend_exponent, self.utility_exponent, self.is_of_levels, self.queries, self.highest_value
        header = _HEADER.pack(_MAGIC, positions, classes, *facts)
        return header + self.positions_E.astype("<i8").tobytes() + self.sums_QEH.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the sketch that `to_bytes` wrote.

        Raises:
            UtilityError: the bytes are not a sketch.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise UtilityError("these bytes are not a demand sketch", "DemandSketch", repr(data[:8]))
        _, positions, classes, spend, value, is_of_levels, queries, highest = _HEADER.unpack_from(data)
        if len(data) != _HEADER.size + 8 * positions * (1 + 3 * classes):
            raise UtilityError("a demand sketch was cut off", "DemandSketch", f"{len(data)} bytes")
        numbers = np.frombuffer(data, dtype="<i8", offset=_HEADER.size).astype(np.int64)
        sums = numbers[positions:].reshape(3, positions, classes)
        return cls(numbers[:positions], sums, queries, spend, value, highest, is_of_levels)

    @property
    def _pass(self) -> tuple[bool, int, int, int]:
        """What sketches have in common that can be merged, beside their positions."""
        return self.is_of_levels, self.spend_exponent, self.utility_exponent, self.sums_QEH.shape[2]

    def _second(self, positions_E: IntArray, classes: int, *, is_of_levels: bool) -> Self:
        """Return an empty sketch of the second pass, whose cells hold the value of all queries of this one."""
        most, queries = math.frexp(self.highest_value)[1], max(self.queries - 1, 0).bit_length()
        bits = min(_VALUE_BITS, (_MOST_UNITS // classes).bit_length() - 2 - queries)
        exponent = most - bits if self.highest_value > 0.0 else _FIRST_UTILITY_EXPONENT
        return type(self)(
            positions_E, _zeros(positions_E, classes), 0, self.spend_exponent, exponent, is_of_levels=is_of_levels
        )

    def _lowest_that_fits(self, budget_tokens: float) -> int:
        """Return the first position whose demand fits a budget."""
        _check(budget_tokens)
        limit = Unit(self.spend_exponent).limit(budget_tokens)
        if limit >= _MOST_UNITS // self.sums_QEH.shape[2]:
            raise PriceError(
                "this sketch was made for a far smaller budget",
                "budget_tokens",
                f"{budget_tokens:g}",
                "Pass the largest budget to first_pass.",
            )
        fits = self.sums_QEH[_SPEND].sum(axis=1) <= limit
        if not fits[-1]:
            raise PriceError("no price exists: the floors exceed the budget", "budget_tokens", f"{budget_tokens:g}")
        return int(np.argmax(fits))

    def _amounts(self, units_Q: IntArray) -> tuple[float, float]:
        """Return spend and utility that whole units stand for."""
        spend, utility = Unit(self.spend_exponent), Unit(self.utility_exponent)
        return spend.amount(int(units_Q[_SPEND])), utility.amount(int(units_Q[_UTILITY]))

    def _dual_bound(self, price: float, units_Q: IntArray, budget_tokens: float) -> float:
        """Return the bound `utility + price x (budget - spend)` of demand at a price, rounded so that it stays one.

        A query's spend was counted up by less than a unit, and either amount may be off by the rounding of float64, which
        is less than a unit: the spend counts two units a query less, the value one more. In between nothing is rounded.
        """
        if self.highest_value > Unit(self.utility_exponent).most:
            return math.inf  # of a first pass alone: values were cut off
        spend_unit, value_unit = (Fraction(2) ** exponent for exponent in (self.spend_exponent, self.utility_exponent))
        spend = max(int(units_Q[_SPEND]) - 2 * self.queries, 0) * spend_unit
        value = (int(units_Q[_UTILITY]) + self.queries) * value_unit
        return float(value + Fraction(price) * (Fraction(budget_tokens) - spend))

    def _price_position(self, position: int) -> int:
        return 0 if self.is_of_levels else int(self.positions_E[position])

    def _add_block(self, sums: IntArray, block: Utility, class_N: IntArray) -> None:
        """Add the demand of a block to `sums`, asking each query only at prices around its own steps."""
        last = self.positions_E.shape[0] - 1
        at_first, at_last = self._ask(block, 0), self._ask(block, last)
        _add(sums, 0, 1, at_first, class_N)
        _add(sums, max(last, 1), last + 1, at_last, class_N)
        waiting = [(0, last, block, class_N, at_first, at_last)]
        while waiting:
            low, high, part, classes, at_low, at_high = waiting.pop()
            # Demand never rises along the positions, so the same at both ends is the same in between.
            is_open = at_low[_SPEND] != at_high[_SPEND]
            _add(sums, low + 1, high, at_low[:, ~is_open], classes[~is_open])
            rows, middle = np.flatnonzero(is_open), (low + high) // 2
            if middle == low or rows.size == 0:
                continue
            part, classes = part.take(rows), classes[rows]
            at_middle = self._ask(part, middle)
            _add(sums, middle, middle + 1, at_middle, classes)
            waiting.append((low, middle, part, classes, at_low[:, rows], at_middle))
            waiting.append((middle, high, part, classes, at_middle, at_high[:, rows]))

    def _ask(self, block: Utility, position: int) -> IntArray:
        """Return spend, utility and whether funded of each query at a position, in units, shape (Q, N)."""
        price = _price_of(self._price_position(position))
        if block.is_smooth or self.is_of_levels:
            tokens = whole_demand(block, np.full(len(block), price))
            if self.is_of_levels:
                tokens = np.maximum(tokens, np.minimum(self.positions_E[position], block.max_tokens_N))
            spend, utility = block.spend(tokens), block.utility(tokens)
        else:
            demanded = block.demanded_off_grid(price)
            spend, utility = demanded.spend_N, demanded.utility_N
        counted = Unit(self.spend_exponent).count(spend), Unit(self.utility_exponent).count(utility)
        return np.stack([*counted, (spend > 0.0).astype(np.int64)])


def _add(sums: IntArray, first: int, end: int, units_QN: IntArray, class_N: IntArray) -> None:
    """Add the units of some queries to the positions from `first` to before `end`. Changes `sums`."""
    if first < end and class_N.size:
        by_class = np.zeros((sums.shape[2], 3), dtype=np.int64)
        np.add.at(by_class, class_N, units_QN.T)
        cells = sums[:, first:end]
        np.minimum(cells + by_class.T[:, None], _MOST_UNITS // sums.shape[2], out=cells)


def _zeros(positions_E: IntArray, classes: int) -> IntArray:
    return np.zeros((3, positions_E.shape[0], classes), dtype=np.int64)


def _check(budget_tokens: float) -> None:
    if not (np.isfinite(budget_tokens) and budget_tokens >= 0.0):
        raise PriceError("a budget must be finite and not negative", "budget_tokens", repr(budget_tokens))


def _price_of(position: int) -> float:
    return price_between(position) if position > 0 else 0.0
