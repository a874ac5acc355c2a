"""Which of several engine workers a query is at home with: the one that has read its prompt, and need not read it again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Homes:
    """The homes of a batch: stretches of queries go to the workers in turn.

    Attributes:
        stretch: Queries in a row that have the same home.
        workers: How many workers there are.
    """

    stretch: int
    workers: int

    def of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each query's worker."""
        return index // self.stretch % self.workers

    def spread(self, queries: int, *, seed: int) -> NDArray[np.int64]:
        """Return the queries of a batch in an order whose every beginning is a sample of it, a stretch at a time."""
        order = spread_order(-(-queries // self.stretch), seed=seed)
        index = (order[:, None] * self.stretch + np.arange(self.stretch)).ravel()
        return index[index < queries]

    def parts(self, index: NDArray[np.int64]) -> list[slice]:
        """Return the places of some queries in their order as calls: each of one home, and of no more than a stretch."""
        stretch = index // self.stretch
        bounds = [0, *(np.flatnonzero(np.diff(stretch)) + 1).tolist(), len(index)]
        return [slice(first, last) for first, last in pairwise(bounds) if first < last]


def spread_order(count: int, *, seed: int) -> NDArray[np.int64]:
    """Return the numbers below `count` in an order in which, at any time, those that have come lie evenly.

    The first two are of different halves, the first four of different quarters, and so on, each at random in its part: a list
    that is sorted is sampled at even distances, and one that repeats itself at no period of its own.

    Args:
        count: How many.
        seed: Of the order.
    """
    rng = np.random.default_rng([seed, count])
    levels = max(count - 1, 0).bit_length()
    key_N, number_N = np.zeros(count, np.int64), np.arange(count)
    for level in range(levels):  # which half of each part comes first is drawn for each part
        part_N, is_second_N = number_N >> (levels - level), (number_N >> (levels - level - 1)) & 1
        swaps = rng.integers(0, 2, 1 << level)
        key_N |= (is_second_N ^ swaps[part_N]) << level
    return np.argsort(key_N, kind="stable")
