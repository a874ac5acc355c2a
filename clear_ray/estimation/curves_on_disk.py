"""Curves of very many queries, whose tables lie in a file of this machine: rows are read when they are taken, and not held.

Shapes: N queries, K grid points, B rows of a block.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.errors import UtilityError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.window import Window

_TABLES = ("success_NK", "spend_NK", "survival_NK")


@dataclass(frozen=True, slots=True, eq=False)
class CurvesOnDisk(Curves):
    """See `Curves`; what `take` returns is in memory.

    Attributes:
        mapping: The file, which has no name and is gone with this object.
    """

    mapping: mmap.mmap

    def take(self, index: ArrayLike) -> Curves:
        """Return the curves of the queries at `index`, in that order."""
        taken = Curves.take(self, index)
        self.mapping.madvise(mmap.MADV_DONTNEED)  # what was looked at would count as memory of this process
        return taken

    @staticmethod
    def of(blocks: Iterable[tuple[NDArray[np.int64], Curves]], queries: int) -> CurvesOnDisk:
        """Write curves that come a block at a time.

        Args:
            blocks: Places of some queries and their curves, all on one grid; each place comes once.
            queries: How many queries there are, N, at least one.
        """
        growing: GrowingCurves | None = None
        for place_B, curves in blocks:
            growing = growing or GrowingCurves(curves.tokens_K, queries)
            growing.put(place_B, curves)
        return (growing or GrowingCurves(np.ones(1, np.int64), queries)).curves


@dataclass(frozen=True, slots=True, eq=False)
class HeldCurves(CurvesOnDisk):
    """Curves of some queries of a batch, taken by their numbers in it.

    Attributes:
        row_N: Row of each query of the batch; -1 of those whose curves are not held.
    """

    row_N: NDArray[np.int32]

    def __len__(self) -> int:
        """Return how many queries the batch has."""
        return len(self.row_N)

    def take(self, index: ArrayLike) -> Curves:
        """Return the curves of the queries at `index`, in that order.

        Raises:
            UtilityError: One of them is not held; a defect.
        """
        rows = self.row_N[np.asarray(index)]
        if (rows < 0).any():
            raise UtilityError("the curve of a query is not held any more", "curves", remedy="Please report it.")
        return CurvesOnDisk.take(self, rows)


class GrowingCurves:
    """Curves of a batch as they come.

    Args:
        tokens_K: Their grid.
        queries: How many queries there will be, N, at least one.

    Attributes:
        curves: Of all queries; those of a query that has not come are zeros.
    """

    def __init__(self, tokens_K: NDArray[np.int64], queries: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="clear_ray_curves_")  # noqa: SIM115 - as long as this object
        os.ftruncate(self._file.fileno(), queries * len(_TABLES) * len(tokens_K) * np.dtype(np.float32).itemsize)
        mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        tables = np.frombuffer(mapping, np.float32).reshape(queries, len(_TABLES), len(tokens_K))
        self._numbers_N = np.zeros((3, queries), np.float32)
        success_NK, spend_NK, survival_NK = (tables[:, number] for number in range(len(_TABLES)))
        threshold_N, solvability_N, beta_N = self._numbers_N
        self.curves = CurvesOnDisk(
            tokens_K, success_NK, spend_NK, survival_NK, threshold_N, solvability_N, beta_N, mapping=mapping
        )

    def put(self, place_B: NDArray[np.int64], curves: Curves) -> None:
        """Write the curves of some queries, each to its place."""
        self._numbers_N[:, place_B] = curves.threshold_tokens_N, curves.solvability_N, curves.beta_N
        _write(self._file.fileno(), place_B, np.stack([getattr(curves, name) for name in _TABLES], axis=1))


class CurvesInWindow:
    """Curves of a batch as they come, of which those in a window are held.

    Args:
        tokens_K: Their grid.
        queries: How many queries there will be, N.
        rows: Of how many of them curves are held at once.

    Attributes:
        curves: Of all queries; only what is held may be taken.
        window: Which those are.
    """

    def __init__(self, tokens_K: NDArray[np.int64], queries: int, rows: int) -> None:
        self.window = Window(queries, rows)
        self._growing = GrowingCurves(tokens_K, rows)
        of_rows = self._growing.curves
        columns = {each.name: getattr(of_rows, each.name) for each in fields(of_rows)}
        self.curves = HeldCurves(**columns, row_N=self.window.row_N)

    def put(self, place_B: NDArray[np.int64], curves: Curves) -> None:
        """Write the curves of some queries, in place of those that leave; each comes once."""
        row_B = self.window.take_in(place_B)
        held = np.flatnonzero(row_B >= 0)
        self._growing.put(row_B[held].astype(np.int64), curves.take(held))


def _write(file: int, place_B: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
    """Write rows to their places; neighbours at once."""
    order = np.argsort(place_B)
    row_bytes = rows[0].nbytes if len(rows) else 0
    for some in np.split(order, np.flatnonzero(np.diff(place_B[order]) != 1) + 1):
        if len(some):
            left = memoryview(rows[some].tobytes())
            at = int(place_B[some[0]]) * row_bytes
            while left:
                written = os.pwrite(file, left, at)
                left, at = left[written:], at + written
