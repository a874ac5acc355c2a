"""Sums that do not depend on the order of queries: amounts counted in whole units.

Legend: N queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clear_ray.allocation.columns import ROWS_AT_ONCE, FloatArray, IntArray

_BITS = 46  # of a limit; a block of 2**14 amounts, each cut off at 2**48 units, still adds up in 64 bits

_SMALLEST_LIMIT = -400  # 2**-400: smaller limits are nothing


@dataclass(frozen=True)
class Unit:
    """A power of two that amounts are counted in.

    Whole numbers add up to the same sum in any order. Counting rounds up, so a sum that fits a limit in units fits it
    in truth.

    Attributes:
        exponent: The unit is 2**exponent.
    """

    exponent: int

    @classmethod
    def of_limit(cls, limit: float) -> Unit:
        """Return the unit for sums that are compared with a limit: about 2**-46 of it."""
        return cls(max(math.frexp(limit)[1], _SMALLEST_LIMIT) - _BITS if limit > 0.0 else 0)

    @property
    def most(self) -> float:
        """The largest amount that is counted in full."""
        return math.ldexp(1.0, self.exponent + _BITS + 2)

    def count(self, amount_N: FloatArray) -> IntArray:
        """Return amounts >= 0 in units, rounded up, cut off at 2**48: no limit is that large, and sums must hold."""
        scaled = np.minimum(np.ldexp(amount_N, -self.exponent), 2.0 ** (_BITS + 2))
        return np.ceil(scaled, out=scaled).astype(np.int64)

    def total(self, amount_N: FloatArray) -> int:
        """Return the sum of amounts in units, exact for any number of queries."""
        units = self.count(amount_N)
        return sum(int(units[start : start + ROWS_AT_ONCE].sum()) for start in range(0, units.size, ROWS_AT_ONCE))

    def limit(self, limit: float) -> int:
        """Return a limit in units, rounded down."""
        return math.floor(math.ldexp(limit, -self.exponent))

    def amount(self, units: int) -> float:
        """Return what a number of units amounts to."""
        return math.ldexp(float(units), self.exponent)
