"""The documented order of queries that are otherwise equal, and funding in that order.

Legend: N queries, M rows out of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, query_column
from clear_ray.allocation.utility import Utility

_COLUMNS_AT_ONCE = 8


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
        last = (tie_break_N[rows[tied]], rows[tied])
        order[is_tied] = tied[_sorted_by(chain((primary_M[tied],), utility.tie_columns(rows[tied]), last))]
    return order


def _sorted_by(columns: Iterable[FloatArray | IntArray]) -> IntArray:
    """Return the order of rows by columns, the most significant first; no more of them are looked at than it takes."""
    waiting = iter(columns)
    order, group, tied = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    while chunk := list(islice(waiting, _COLUMNS_AT_ONCE)):
        if not order.size:
            order, group = np.arange(chunk[0].size), np.zeros(chunk[0].size, np.int64)
            tied = order.copy()
        keys = [column[order[tied]] for column in chunk if (column != column[:1]).any()]
        if keys:
            keys.insert(0, group[tied])
            by_keys = np.lexsort(keys[::-1])
            order[tied] = order[tied][by_keys]
            is_next = np.any([key[by_keys][1:] != key[by_keys][:-1] for key in keys], axis=0)
            group[tied] = np.cumsum(np.concatenate([[0], is_next]))
            is_same = np.zeros(tied.size + 1, np.bool_)
            is_same[1:-1] = ~is_next
            tied = tied[is_same[1:] | is_same[:-1]]
        if not tied.size:
            break
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
