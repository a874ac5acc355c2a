"""An unspent budget abandons no query: the lowest caps are raised to one common level.

Legend: N queries.
"""

from __future__ import annotations

import numpy as np

from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.slack import unspent
from clear_ray.allocation.ties import funding_order, take_while_it_fits
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Utility

_HIGHEST_LEVEL = 1 << 52


def raise_to_one_level(utility: Utility, tokens_N: IntArray, *, budget: float, tie_break_N: FloatArray) -> IntArray:
    """Raise the lowest caps to the highest common level that the budget pays for, within the ceilings.

    Extra tokens are paid at expected spend. What is left after the last whole level goes out as one more token each,
    in funding order.

    Args:
        utility: N curves.
        tokens_N: Caps to start from, whole.
        budget: Budget in the unit of spend.
        tie_break_N: Key of each query for ties.

    Source: docs/method.md, section 3, the rule that an unspent budget abandons no query.
    """
    unit = Unit.of_limit(budget)
    limit = unit.limit(budget)

    def raised(level: int) -> IntArray:
        return np.maximum(tokens_N, np.minimum(utility.max_tokens_N, level).astype(np.int64))

    def fits(level: int) -> bool:
        return unit.total(utility.spend(raised(level))) <= limit

    highest = int(min(utility.max_tokens_N.max(initial=0.0), _HIGHEST_LEVEL))
    low, high = 0, 1
    while high < highest and fits(high):
        low, high = high, min(2 * high, highest)
    high += 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle <= highest and fits(middle) else (low, middle)
    tokens = raised(low)
    rows = np.flatnonzero((tokens == low) & (utility.max_tokens_N > low))
    step = utility.spend(tokens + 1)[rows] - utility.spend(tokens)[rows]
    order = funding_order(utility, rows, step, tie_break_N)
    is_taken = take_while_it_fits(step[order], available=max(unspent(utility, tokens, budget), 0.0))
    tokens[rows[order[is_taken]]] += 1
    return tokens
