"""Reading tables of points that hang on a grid of token counts.

Legend: N queries, K grid points. A table holds one row a query; between grid points it is a straight line, before the
first it comes from (0, 0), and beyond the last it stays. Grid points are counted from 0; -1 stands for the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import FloatArray, IntArray, PerQuery, refuse_first
from clear_ray.errors import UtilityError

_TOLERANCE = 1e-6  # of the largest value that a table may hold or holds: heads compute in float32


@dataclass(frozen=True, eq=False)
class Cells:
    """The cell of the grid that each of N token counts lies in.

    Attributes:
        left_N: Grid point at its left end.
        right_N: Grid point at its right end; the same as `left_N` beyond the grid.
        run_N: Tokens from left to right.
        share_N: How far along the cell the token count lies, 0 to 1.
    """

    left_N: IntArray
    right_N: IntArray
    run_N: FloatArray
    share_N: FloatArray

    def read(self, table_NK: FloatArray | IntArray) -> FloatArray:
        """Return the table at the token counts, shape (N,)."""
        left = entry_at(table_NK, self.left_N)
        return left + self.share_N * (entry_at(table_NK, self.right_N) - left)

    def slope(self, table_NK: FloatArray) -> FloatArray:
        """Return the slope of the table over the cells, per token; 0 beyond the grid."""
        climb = entry_at(table_NK, self.right_N) - entry_at(table_NK, self.left_N)
        return np.where(self.run_N > 0.0, climb / np.maximum(self.run_N, 1.0), 0.0)


def cells_of(tokens_NK: IntArray, tokens_N: PerQuery, *, is_from_right: bool = False) -> Cells:
    """Return the cells that token counts lie in.

    Args:
        tokens_NK: Grid of each query, never falling along K.
        tokens_N: Token counts, one or N.
        is_from_right: Whether a token count on a grid point belongs to the cell that begins there.
    """
    tokens = np.broadcast_to(np.asarray(tokens_N, dtype=np.float64), tokens_NK.shape[:1])
    is_passed = tokens_NK <= tokens[:, None] if is_from_right else tokens_NK < tokens[:, None]
    passed = is_passed.sum(axis=1)
    left, right = passed - 1, np.minimum(passed, tokens_NK.shape[1] - 1)
    at_left = entry_at(tokens_NK, left)
    run = entry_at(tokens_NK, right) - at_left
    share = np.where(run > 0.0, np.minimum((tokens - at_left) / np.maximum(run, 1.0), 1.0), 0.0)
    return Cells(left_N=left, right_N=right, run_N=run, share_N=share)


def entry_at(table_NK: FloatArray | IntArray, k_N: IntArray) -> FloatArray:
    """Return one entry of each row, 0 at the origin, shape (N,)."""
    entries = np.take_along_axis(table_NK, np.maximum(k_N, 0)[:, None], axis=1)[:, 0]
    return np.where(k_N < 0, 0.0, entries)


def tokens_within(tokens_NK: IntArray, table_NK: FloatArray, amount_N: FloatArray) -> FloatArray:
    """Return the largest token counts at which a table is at most some amounts; the last grid point if it never is more.

    Args:
        tokens_NK: Grid of each query.
        table_NK: Table of amounts, never falling along K.
        amount_N: One amount a query, >= 0.
    """
    passed = (table_NK <= amount_N[:, None]).sum(axis=1)
    left, right = passed - 1, np.minimum(passed, tokens_NK.shape[1] - 1)
    amount_left, tokens_left = entry_at(table_NK, left), entry_at(tokens_NK, left)
    run = entry_at(table_NK, right) - amount_left
    share = np.where(run > 0.0, (amount_N - amount_left) / np.where(run > 0.0, run, 1.0), 0.0)
    return tokens_left + np.clip(share, 0.0, 1.0) * (entry_at(tokens_NK, right) - tokens_left)


def checked_grid(tokens_K: ArrayLike) -> IntArray:
    """Return a shared grid as int64.

    Raises:
        UtilityError: not one row of whole, positive, strictly increasing numbers.
    """
    given = np.asarray(tokens_K, dtype=np.float64)
    if given.ndim != 1 or given.shape[0] == 0:
        raise UtilityError("tokens_K must be one row of grid points", "tokens_K", f"shape {given.shape}")
    is_bad = ~np.isfinite(given) | (np.floor(given) != given) | (given < 1.0) | (np.diff(given, prepend=0.0) <= 0.0)
    if is_bad.any():
        first = int(np.argmax(is_bad))
        raise UtilityError(
            "tokens_K must be whole, positive and strictly increasing", f"grid point {first}", repr(float(given[first]))
        )
    return given.astype(np.int64)


def checked_table(values: ArrayLike, *, name: str, grid_points: int, high: float = np.inf) -> FloatArray:
    """Return a table of shape (N, K) as float64, read-only; falls within the rounding of float32 are levelled.

    Raises:
        UtilityError: wrong shape, or a value that is not finite, out of range or falling; the first query is named.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != grid_points:
        raise UtilityError(f"{name} must have shape (N, {grid_points})", name, f"shape {table.shape}")
    largest = high if np.isfinite(high) else float(np.max(table, initial=0.0, where=np.isfinite(table)))
    tolerance = _TOLERANCE * largest
    is_bad = ~np.isfinite(table) | (table < -tolerance) | (table > high + tolerance)
    refuse_first(is_bad, table, name=name, rule=f"finite and between 0 and {high:g}")
    fall = np.diff(table, axis=1)
    refuse_first(fall < -tolerance, table[:, 1:], name=name, rule="non-decreasing along the grid")
    is_exact = not (fall < 0.0).any() and not (table < 0.0).any() and not (table > high).any()
    table = table.view() if is_exact else np.clip(np.maximum.accumulate(table, axis=1), 0.0, high)
    table.flags.writeable = False
    return table
