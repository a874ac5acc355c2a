"""The grid that prices live on.

A price is a float64 whose twelve lowest bits are zero, so neighbours differ by about one part in 1e12. Reservation
prices are rounded down to this grid once, where they are computed. That buys three things: two curves that are equal
up to rounding tie exactly; the price search runs over whole numbers and has one answer, whatever path it takes; and a
step of the grid moves demand by far more than the rounding error of computing it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import FloatArray, IntArray

_DROPPED_BITS = 12
HIGHEST_INDEX = int(np.float64(1e300).view(np.int64)) >> _DROPPED_BITS
SMALLEST_PRICE = 2.0**-960  # reservation prices below are 0: in the subnormal numbers further down nothing divides well


def price_index(price: ArrayLike) -> IntArray:
    """Return the position of non-negative prices on the grid, rounded down."""
    return np.atleast_1d(np.asarray(price, dtype=np.float64)).view(np.int64) >> _DROPPED_BITS


def price_at(index: int) -> float:
    """Return the price at a position of the grid."""
    return float(np.int64(index << _DROPPED_BITS).view(np.float64))


def round_price_down(price: FloatArray) -> FloatArray:
    """Return prices on the grid, none above what was given; 0 where they are below the smallest."""
    rounded = (np.ascontiguousarray(price).view(np.int64) & np.int64(-(1 << _DROPPED_BITS))).view(np.float64)
    return np.where(rounded >= SMALLEST_PRICE, rounded, 0.0)


def next_price(price: float) -> float:
    """Return the grid price just above `price`."""
    return price_at(int(price_index(price)[0]) + 1)


def price_between(index: int) -> float:
    """Return the price halfway between a position and the next one; no breakpoint of demand lies there."""
    return float(np.int64((index << _DROPPED_BITS) + (1 << (_DROPPED_BITS - 1))).view(np.float64))
