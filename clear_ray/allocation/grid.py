"""Reading tables of points that hang on a grid of token counts.

Legend: N queries, K grid points. A table holds one row a query; between grid points it is a straight line, before the
first it comes from (0, 0), and beyond the last it stays. Grid points are counted from 0; -1 stands for the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clear_ray.allocation.columns import FloatArray, IntArray, PerQuery


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
