"""Which queries of a very large batch are held while they come: those that came last, and an even sample of those before.

    come:   |x....x....x....x....x....x....x....|
    held:    x    x    x    x    |newest .......|        x: one in so many, which stays

Shapes: N queries of the batch, B of them that come together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_SHARE = 1 / 5
"""Of the rows: so many are for the sample."""


class Window:
    """See the module.

    Args:
        queries: How many will come, N.
        rows: How many are held at once, at least 2 and less than N.

    Attributes:
        row_N: Row of each query that is held, from 0; -1 of others. It changes in place, as all these do.
        is_newest_N: Which queries came last.
        is_sample_N: Which of those before them are held, and stand for all of them.
    """

    def __init__(self, queries: int, rows: int) -> None:
        self._stays = max(int(SAMPLE_SHARE * rows), 1)
        self._newest = rows - self._stays
        self._stride = -(-queries // self._stays)
        self._order_N, self._come = np.zeros(queries, np.int32), 0
        self.row_N = np.full(queries, -1, np.int32)
        self.is_newest_N, self.is_sample_N = np.zeros(queries, bool), np.zeros(queries, bool)

    @property
    def each(self) -> float:
        """How many of those before the newest each of the sample stands for, itself included."""
        return max(self._come - self._newest, 0) / max(int(self.is_sample_N.sum()), 1)

    def take_in(self, index_B: NDArray[np.int64]) -> NDArray[np.int32]:
        """Note that queries have come, each for the first time; return their rows, -1 of those that have left by now."""
        first, self._come = self._come, self._come + len(index_B)
        number_B = np.arange(first, self._come)
        self._order_N[number_B], self.is_newest_N[index_B] = index_B, True
        before_B = -(-number_B // self._stride)  # of the sample
        place_B = self._stays + (number_B - before_B) % self._newest
        self.row_N[index_B] = np.where(number_B % self._stride == 0, before_B, place_B)
        number_L = np.arange(max(first - self._newest, 0), max(self._come - self._newest, 0))
        left_L, stays_L = self._order_N[number_L], number_L % self._stride == 0
        self.is_newest_N[left_L], self.is_sample_N[left_L[stays_L]] = False, True
        self.row_N[left_L[~stays_L]] = -1
        rows_B: NDArray[np.int32] = self.row_N[index_B]
        return rows_B
