"""Per-query columns: broadcast to N queries, checked once, never written to.

Legend: N queries, K grid points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.errors import UtilityError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ROWS_AT_ONCE = 1 << 14  # a dozen float64 columns of this many rows stay in the processor's cache
PerQuery = float | FloatArray | IntArray  # one number for all queries, or N


def query_column(
    values: ArrayLike,
    *,
    name: str,
    queries: int,
    low: float = 0.0,
    high: float = np.inf,
    is_low_allowed: bool = True,
) -> FloatArray:
    """Return one finite float64 value a query, as a read-only view where possible.

    Args:
        values: A scalar, or an array of N.
        name: Name of the parameter, for the error.
        queries: Number of queries, N.
        low: Smallest value.
        high: Largest value.
        is_low_allowed: Whether `low` itself is a value.

    Raises:
        UtilityError: wrong length, or a value that is not finite or out of range; the first such query is named.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim > 1 or (column.ndim == 1 and column.shape[0] != queries):
        raise UtilityError(
            f"{name} must be one number or {queries} numbers, one a query", name, f"shape {column.shape}"
        )
    is_above = column >= low if is_low_allowed else column > low
    refuse_first(~(np.isfinite(column) & is_above & (column <= high)), column, name=name, rule=_rule(low, high))
    column = np.broadcast_to(column, (queries,)) if column.ndim == 0 else column.view()
    column.flags.writeable = False
    return column


def refuse_first(is_bad: BoolArray, values: FloatArray, *, name: str, rule: str) -> None:
    """Raise for the first query with a bad value, if there is one.

    Args:
        is_bad: Any shape whose first axis is N, or a scalar.
        values: Same shape as `is_bad`.
        name: Name of the parameter.
        rule: What the values must be, for the remedy.

    Raises:
        UtilityError: `is_bad` has a true entry.
    """
    if not is_bad.any():
        return
    first = np.unravel_index(int(np.argmax(is_bad)), is_bad.shape)
    where = f"query {first[0]}" if first else "every query"
    where += f", grid point {first[1]}" if len(first) > 1 else ""
    raise UtilityError(f"{name} must be {rule}", where, repr(float(values[first])), f"Correct or drop {where}.")


def token_limits(
    max_tokens_N: ArrayLike | None, min_tokens_N: ArrayLike | None, *, queries: int
) -> tuple[FloatArray, FloatArray]:
    """Return ceiling and floor of every query in whole tokens; no ceiling is infinity, no floor is 0.

    Raises:
        UtilityError: a limit is negative, not whole, not finite, or a floor lies above its ceiling.
    """
    unlimited = np.broadcast_to(np.float64(np.inf), (queries,))
    ceiling = unlimited if max_tokens_N is None else query_column(max_tokens_N, name="max_tokens_N", queries=queries)
    floor = query_column(0.0 if min_tokens_N is None else min_tokens_N, name="min_tokens_N", queries=queries)
    for limit, name in ((ceiling, "max_tokens_N"), (floor, "min_tokens_N")):
        refuse_first(np.floor(limit) != limit, limit, name=name, rule="a whole number of tokens")
    refuse_first(floor > ceiling, floor, name="min_tokens_N", rule="at most max_tokens_N")
    return ceiling, floor


def _rule(low: float, high: float) -> str:
    return f"finite and at least {low:g}" if np.isinf(high) else f"finite and between {low:g} and {high:g}"
