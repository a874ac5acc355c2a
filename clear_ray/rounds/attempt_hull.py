"""The plans of a menu that some price would buy, of many queries in blocks: so memory is that of one block's plans.

A query has hundreds of plans, one for each ceiling and number of attempts. Whatever the price, only the vertices of the upper
concave envelope of (spend, success) are bought, a few dozen of them: the others are dropped as soon as a block is made.
Vertices are found by wrapping: from each the steepest way to a plan that spends more.

Shapes: N queries, M of a block, J plans, V vertices of the query that has most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.attempt_menu import Menu

_ROWS_AT_ONCE = 1 << 8
_PLAN_COLUMNS = ("success_JN", "spend_JN", "tokens_JN", "first_success_JN", "first_spend_JN", "is_fresh_JN")


def menu_in_blocks(queries: int, menu_of_rows: Callable[[NDArray[np.int64]], Menu]) -> Menu:
    """Return the menu of N queries with the plans alone that some price would buy.

    Args:
        queries: Number of queries, N.
        menu_of_rows: Returns the menu of some of them, with all their plans.
    """
    blocks = [
        on_the_hull(menu_of_rows(np.arange(first, min(first + _ROWS_AT_ONCE, queries))))
        for first in range(0, queries, _ROWS_AT_ONCE)
    ]
    if len(blocks) == 1:
        return blocks[0]
    most = max(len(block.success_JN) for block in blocks)
    columns = {
        name: np.concatenate([_padded(getattr(block, name), most) for block in blocks], axis=1)
        for name in _PLAN_COLUMNS
    }
    return Menu(**columns, most_tokens_N=np.concatenate([block.most_tokens_N for block in blocks]))


def on_the_hull(menu: Menu) -> Menu:
    """Return a menu without the plans that no price would buy; the first still buys nothing."""
    vertex_VN = _vertices(menu.spend_JN, menu.success_JN)
    columns = {name: np.take_along_axis(getattr(menu, name), vertex_VN, axis=0) for name in _PLAN_COLUMNS}
    return Menu(**columns, most_tokens_N=menu.most_tokens_N)


def _vertices(spend_JN: NDArray[np.float64], success_JN: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which plans are vertices, in order of spend; the last one again where a query has fewer than others."""
    found = [np.zeros(spend_JN.shape[1], np.int64)]
    open_rows, spend, success = np.arange(spend_JN.shape[1]), spend_JN, success_JN
    while True:
        at, rows = found[-1][open_rows], np.arange(len(open_rows))
        run, slope = spend - spend[at, rows], success - success[at, rows]
        np.divide(slope, run, out=slope, where=run > 0.0)
        np.copyto(slope, 0.0, where=run <= 0.0)
        following = slope.argmax(axis=0)
        has_more = slope[following, rows] > 0.0
        if not has_more.any():
            break
        vertex = found[-1].copy()
        vertex[open_rows[has_more]] = following[has_more]
        found.append(vertex)
        if 2 * has_more.sum() < len(rows):
            open_rows = open_rows[has_more]
            spend, success = spend_JN[:, open_rows], success_JN[:, open_rows]
    return np.array(found)


def _padded(column_JN: NDArray[np.generic], plans: int) -> NDArray[np.generic]:
    return np.concatenate([column_JN, np.repeat(column_JN[-1:], plans - len(column_JN), axis=0)])
