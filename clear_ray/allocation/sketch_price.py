"""A price found from sketches, and the caps that any block of the queries reads off it.

Legend: N queries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.ties import checked_tie_break
from clear_ray.allocation.utility import Utility


@dataclass(frozen=True, kw_only=True)
class SketchPrice:
    """The price of everything that was added to a sketch.

    Attributes:
        shadow_price: Price of most tie classes; the lowest of the sketch whose demand fits. 0 if nothing binds.
        lower_price: Price of the tie classes below `lower_classes`.
        lower_classes: How many tie classes buy at the lower price, or are raised to the higher level.
        level_tokens: Where nothing binds, the level that the lowest caps are raised to; otherwise 0.
        lower_level_tokens: The level of the tie classes below `lower_classes`: the next one up.
        tie_classes: Number of tie classes, H.
        spend: Expected spend of all whole caps at these prices; at most the budget.
        slack_tokens: Budget less `spend`.
        utility: Expected value at these caps.
        dual_bound: No allocation of whole tokens within the budget is worth more.
        gap: `dual_bound - utility`.
        funded: Queries with any tokens.
        queries: All queries added.
    """

    shadow_price: float
    lower_price: float
    lower_classes: int
    level_tokens: int
    lower_level_tokens: int
    tie_classes: int
    spend: float
    slack_tokens: float
    utility: float
    dual_bound: float
    gap: float
    funded: int
    queries: int

    def tokens(self, utility: Utility, *, tie_break_N: ArrayLike | None = None) -> IntArray:
        """Return the whole caps of any block of the queries that were priced.

        Args:
            utility: N curves.
            tie_break_N: The keys with which the block was added.
        """
        classes = tie_classes_of(utility, tie_break_N, self.tie_classes)
        is_lower = classes < self.lower_classes
        tokens = whole_demand(utility, np.where(is_lower, self.lower_price, self.shadow_price))
        level = np.where(is_lower, self.lower_level_tokens, self.level_tokens)
        return np.maximum(tokens, np.minimum(level, utility.max_tokens_N)).astype(np.int64)


def whole_demand(utility: Utility, price_N: FloatArray) -> FloatArray:
    """Return the best whole cap at a price, tokens: demand rounded to the better side, or the floor."""
    tokens = utility.demand(price_N)
    if not utility.is_smooth:
        return tokens
    best, floor = np.floor(tokens), utility.min_tokens_N
    surplus = utility.utility(best) - price_N * utility.spend(best)
    for other in (np.minimum(best + (tokens > floor), utility.max_tokens_N), floor):
        value = utility.utility(other) - price_N * utility.spend(other)
        best, surplus = np.where(value > surplus, other, best), np.maximum(value, surplus)
    return best


def tie_classes_of(utility: Utility, tie_break_N: ArrayLike | None, classes: int) -> IntArray:
    """Return the tie class of each query: from its key, or from its curve if there is none, never from its place."""
    if classes == 1:
        return np.zeros(len(utility), dtype=np.int64)
    if tie_break_N is None:
        columns = utility.tie_columns(np.arange(len(utility)))
    else:
        columns = [checked_tie_break(tie_break_N, queries=len(utility))]
    mixed = np.zeros(len(utility), dtype=np.uint64)
    for column in columns:
        mixed = _mix(mixed ^ np.ascontiguousarray(column + 0.0).view(np.uint64))
    return (mixed % np.uint64(classes)).astype(np.int64)


def _mix(bits_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits well mixed: the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    bits_N = bits_N + np.uint64(0x9E3779B97F4A7C15)
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))
