"""The documented order of queries that are otherwise equal, and funding in that order.

Legend: N queries, M rows out of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, query_column
from clear_ray.allocation.utility import Utility


def checked_tie_break(tie_break_N: ArrayLike | None, *, queries: int) -> FloatArray:
    """Return the tie break as float64, zeros if there is none; 64-bit keys lose their lowest bits.

    Raises:
        UtilityError: wrong length or not finite.
    """
    given = 0.0 if tie_break_N is None else tie_break_N
    return query_column(given, name="tie_break_N", queries=queries, low=-np.inf)


def funding_order(utility: Utility, rows: IntArray, primary_M: FloatArray, tie_break_N: FloatArray) -> IntArray:
    """Return the order of M rows: by `primary_M`, then by curve parameters, then by tie break, then by position.

    Args:
        utility: N curves.
        rows: M positions in them.
        primary_M: Key of each row, smallest first.
        tie_break_N: Key of each query.

    Returns:
        Positions in `rows`, shape (M,).
    """
    order = np.argsort(primary_M, kind="stable")
    sorted_keys = primary_M[order]
    is_same = np.zeros(order.size + 1, dtype=bool)
    is_same[1:-1] = sorted_keys[1:] == sorted_keys[:-1]
    is_tied = is_same[1:] | is_same[:-1]
    if is_tied.any():  # the whole comparison is needed for equal keys only
        tied = order[is_tied]
        columns = [primary_M[tied], *utility.tie_columns(rows[tied]), tie_break_N[rows[tied]], rows[tied]]
        order[is_tied] = tied[np.lexsort(columns[::-1])]
    return order


def take_while_it_fits(cost_M: FloatArray, *, available: float) -> BoolArray:
    """Return which of M costs are met, one after the other, passing over those that do not fit any more.

    Args:
        cost_M: Costs in the order of funding, each >= 0.
        available: What may be spent in all.
    """
    is_taken = np.zeros(cost_M.size, dtype=bool)
    waiting = np.arange(cost_M.size)
    left = available
    while waiting.size:
        waiting = waiting[cost_M[waiting] <= left]
        running = np.cumsum(cost_M[waiting])
        fitting = int(np.searchsorted(running, left, side="right"))
        is_taken[waiting[:fitting]] = True
        left -= float(running[fitting - 1]) if fitting else 0.0
        waiting = waiting[fitting + 1 :]
    return is_taken
