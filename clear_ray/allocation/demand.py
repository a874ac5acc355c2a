"""Total demand of a batch over prices, and the lowest price at which it is no more than a limit.

Legend: N queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clear_ray.allocation.columns import ROWS_AT_ONCE, FloatArray, IntArray
from clear_ray.allocation.price_grid import HIGHEST_INDEX, price_at, price_between, price_index
from clear_ray.allocation.search import Bracket, first_fitting_index
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Demanded, Totals, Utility

Quantity = Literal["spend", "utility"]

SAMPLE_ROWS = 1 << 14
SAMPLE_REACH = 1 << 34  # about one percent in price: how well a sample of that many rows knows it


@dataclass(frozen=True)
class PriceBracket:
    """Where total demand meets a limit.

    Attributes:
        index: The lowest grid position at which demand without ties is within the limit.
        demand: The demand, ready to be asked at and just above that position.
    """

    index: int
    demand: TotalDemand


class TotalDemand:
    """Total demand of N queries at grid positions, in spend or in utility, against a limit.

    Most queries are nowhere near indifferent. Once a bracket around the price is known, those that want the same on
    both sides of it are settled, and only the others are looked at again.

    Args:
        utility: N curves.
        limit: What the total is compared with.
        quantity: What is added up.
    """

    def __init__(self, utility: Utility, limit: float, *, quantity: Quantity = "spend") -> None:
        if utility.is_smooth:
            utility.reservation_price  # noqa: B018  # computed once here, shared by the blocks and by later callers
        self._blocks = row_blocks(utility)
        self._quantity: Quantity = quantity
        self._unit = Unit.of_limit(limit)
        self._limit = self._unit.limit(limit)
        self._settled_units = 0
        self._settled = Totals(spend=0.0, utility=0.0, funded=0)
        self._asked: dict[int, list[Demanded]] = {}

    @property
    def breakpoints(self) -> IntArray:
        """Positions where demand may leap, settled queries left out."""
        empty = np.zeros(0, dtype=np.int64)
        return np.concatenate([empty, *(price_index(block.breakpoints) for block in self._blocks)])

    def excess(self, index: int) -> int:
        """Return by how many units the total at a position, ties included, exceeds the limit."""
        price = price_at(index)
        total = 0
        for block in self._blocks:
            is_spend = self._quantity == "spend"
            amount = block.demanded_spend(price) if is_spend else block.demanded(price).utility_N
            total += int(self._unit.count(amount).sum())
        return self._settled_units + total - self._limit

    def look_above(self, *indices: int) -> None:
        """Find out what `excess_above` of some positions needs, in one pass over the queries."""
        asked: dict[int, list[Demanded]] = {index: [] for index in indices}
        for block in self._blocks:
            curves = block.take(slice(None))  # what one price leaves there serves the next, and goes with this block
            for index, demanded in asked.items():
                demanded.append(curves.demanded_off_grid(price_between(index)))
        self._asked |= asked

    def excess_above(self, index: int) -> int:
        """Return the excess halfway to the next position: not above `excess(index)`, not below `excess(index + 1)`."""
        if index not in self._asked:
            self.look_above(index)
        return sum(self._unit.total(self._amount(demanded)) for demanded in self._asked[index]) - self._limit

    def settle_between(self, bracket: Bracket) -> None:
        """Count once and for all the queries that want the same at both ends: they want it in between, too.

        Does nothing unless `excess_above` was asked for at both ends. Later positions must lie inside the bracket.
        Changes this object, not the demand.
        """
        most, least = self._asked.get(bracket.low), self._asked.get(bracket.high - 1)
        self._asked = {}
        if most is None or least is None:
            return
        blocks, self._blocks = self._blocks, []
        for block, at_low, at_high in zip(blocks, most, least, strict=True):
            is_open = at_low.spend_N != at_high.spend_N
            settled = at_high.take(~is_open)
            self._settled_units += int(self._unit.count(self._amount(settled)).sum())
            self._settled += settled.totals
            self._blocks.append(block.take(np.flatnonzero(is_open)))

    def totals(self, index: int) -> Totals:
        """Return the sums over all queries at a position, ties included."""
        price = price_at(index)
        return sum((block.demanded(price).totals for block in self._blocks), start=self._settled)

    def _amount(self, demanded: Demanded) -> FloatArray:
        return demanded.spend_N if self._quantity == "spend" else demanded.utility_N


def row_blocks(utility: Utility) -> list[Utility]:
    """Return the curves in blocks of rows that fit the processor's cache; views, no copies."""
    return [utility.take(slice(start, start + ROWS_AT_ONCE)) for start in range(0, len(utility), ROWS_AT_ONCE)]


def sample_of(utility: Utility, *, rows: int) -> Utility:
    """Return every so many-th query, at least `rows` of them, or all if there are not many more."""
    return utility if len(utility) < 4 * rows else utility.take(slice(0, None, len(utility) // rows))


def clear(
    utility: Utility,
    limit: float,
    *,
    quantity: Quantity = "spend",
    near: int | None = None,
    reach: int = SAMPLE_REACH,
    stop_width: int = 1,
) -> PriceBracket:
    """Return the lowest grid position at which total demand, ties left out, is within a limit.

    Args:
        utility: N curves.
        limit: Limit on the total, not below that of the floors.
        quantity: What is added up.
        near: A guess of the position; if there is none and N is large, a sample is cleared first.
        reach: How far from the guess to look first.
        stop_width: 1 for the exact answer; more for a position up to that far above it.
    """
    demand = TotalDemand(utility, limit, quantity=quantity)
    is_large = len(utility) >= 4 * SAMPLE_ROWS
    sample = sample_of(utility, rows=SAMPLE_ROWS if is_large else SAMPLE_ROWS // 4)
    if near is None and not is_large:
        reach *= 2  # a smaller sample knows it less well
    if near is None and len(sample) < len(utility):
        share = limit * len(sample) / len(utility)
        near = clear(sample, share, quantity=quantity, stop_width=SAMPLE_REACH // 4).index
    bracket = Bracket(demand.excess, low=-1, high=HIGHEST_INDEX)
    if near is not None:
        demand.look_above(*(end for end in (near - reach, near + reach) if bracket.low < end < bracket.high - 1))
        bracket.close_in_on(near, demand.excess_above, first_reach=reach)
    if bracket.low < 0 and demand.excess_above(0) <= 0:
        return PriceBracket(0, demand)
    bracket.low = max(bracket.low, 0)
    demand.settle_between(bracket)
    # Demand at `index + 1`, ties included, is demand at `index` with ties left out.
    return PriceBracket(first_fitting_index(bracket, demand.breakpoints, stop_width=stop_width) - 1, demand)
