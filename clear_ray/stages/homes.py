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

    def parts(self, index: NDArray[np.int64]) -> list[slice]:
        """Return the places of some queries in their order as calls: each of one home, and of no more than a stretch."""
        stretch = index // self.stretch
        bounds = [0, *(np.flatnonzero(np.diff(stretch)) + 1).tolist(), len(index)]
        return [slice(first, last) for first, last in pairwise(bounds) if first < last]
