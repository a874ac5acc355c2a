"""The price over plans of several attempts, and which plan each query buys at it.

The price is the lowest at which the plans bought are expected to spend no more than is available; it is found by halving, on
the feasible side. Sums are taken over whole thousandths, so that the order of the queries does not matter. Queries that would
buy more just below the price follow one at a time, those that gain most per token first, while what is available lasts.

Shapes: N queries, J plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempt_menu import Menu
from clear_ray.rounds.clearing import Clearing

Array = NDArray[np.float64]
_HALVINGS = 60
_CLOSE = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Bought:
    """What every query buys.

    Attributes:
        price: Expected answers per token.
        plan_N: Place of each query's plan in the menu; 0 buys nothing.
        dual_bound: No plans that are expected to spend what is available can be expected to solve more.
    """

    price: float
    plan_N: NDArray[np.int64]
    dual_bound: float


def buy(menu: Menu, *, available_tokens: int, tie_break_N: NDArray[np.uint64]) -> Bought:
    """Return the price and the plans bought at it.

    Args:
        menu: All plans.
        available_tokens: What all plans together may be expected to spend, in tokens of cost 1.
        tie_break_N: Decides between queries that gain the same.
    """
    rows = np.arange(menu.success_JN.shape[1])
    limit = available_tokens * COST_PARTS
    parts_JN = np.rint(menu.spend_JN * COST_PARTS).astype(np.int64)
    low_N = _best(menu, rows, 0.0)
    if int(parts_JN[low_N, rows].sum()) <= limit:
        return Bought(0.0, low_N, float(menu.success_JN[low_N, rows].sum()))
    with np.errstate(divide="ignore", invalid="ignore"):
        steepest = np.nanmax(np.where(menu.spend_JN > 0, menu.success_JN / menu.spend_JN, 0.0), initial=0.0)
    low, high = 0.0, 2.0 * float(steepest)
    high_N, settled_parts, open_rows = np.zeros_like(low_N), 0, rows
    for _ in range(_HALVINGS):
        if not len(open_rows) or high - low <= _CLOSE * high:
            break
        # Prices span many orders of magnitude: halve their ratio once a lower end is known.
        middle = high / 64.0 if low == 0.0 else float(np.sqrt(low * high))
        found = _best(menu, open_rows, middle)
        if settled_parts + int(parts_JN[found, open_rows].sum()) <= limit:
            high, high_N[open_rows] = middle, found
        else:
            low, low_N[open_rows] = middle, found
        is_settled = low_N[open_rows] == high_N[open_rows]
        settled = open_rows[is_settled]
        settled_parts += int(parts_JN[high_N[settled], settled].sum())
        open_rows = open_rows[~is_settled]
    dual = high * available_tokens + float((menu.success_JN - high * menu.spend_JN)[high_N, rows].sum())
    plan_N = _with_ties(menu, parts_JN, high_N, low_N, limit=limit, tie_break_N=tie_break_N)
    return Bought(high, plan_N, dual)


def _best(menu: Menu, rows: NDArray[np.int64], price: float) -> NDArray[np.int64]:
    """Return the plan of most surplus of some queries; of equal ones the first."""
    surplus = menu.success_JN[:, rows] - price * menu.spend_JN[:, rows]
    found: NDArray[np.int64] = surplus.argmax(axis=0)
    return found


def _with_ties(
    menu: Menu,
    parts_JN: NDArray[np.int64],
    high_N: NDArray[np.int64],
    low_N: NDArray[np.int64],
    *,
    limit: int,
    tie_break_N: NDArray[np.uint64],
) -> NDArray[np.int64]:
    plan_N, rows = high_N.copy(), np.flatnonzero(low_N != high_N)
    left = limit - int(parts_JN[high_N, np.arange(len(high_N))].sum())
    more_parts = parts_JN[low_N[rows], rows] - parts_JN[high_N[rows], rows]
    gain = menu.success_JN[low_N[rows], rows] - menu.success_JN[high_N[rows], rows]
    order = np.lexsort((tie_break_N[rows], -gain / np.maximum(more_parts, 1)))
    for place in order:
        if more_parts[place] <= left:
            plan_N[rows[place]] = low_N[rows[place]]
            left -= int(more_parts[place])
    return plan_N


def bought_calls(
    menu: Menu,
    bought: Bought,
    index: NDArray[np.int64],
    tokens_M: NDArray[np.int64],
    chosen: NDArray[np.int64],
    *,
    queries: int,
) -> Clearing:
    """Return the next calls of plans that were bought, as a clearing that says nothing yet of their kind.

    Args:
        menu: The plans of the queries that were priced.
        bought: Which of them are bought, and at what price.
        index: Those queries, in the batch.
        tokens_M: What the next call of each is granted.
        chosen: Which of them are granted it, in the order of dispatch.
        queries: Number of queries in the batch, N.
    """
    rows, plan_M = np.arange(len(index)), bought.plan_N
    success_M = menu.success_JN[plan_M, rows]
    surplus_N = np.zeros(queries)
    surplus_N[index] = success_M - bought.price * menu.spend_JN[plan_M, rows]
    utility = menu.first_success_JN[plan_M, rows][chosen]
    return Clearing(
        index_M=index[chosen],
        tokens_M=tokens_M[chosen],
        expected_tokens_M=np.minimum(menu.first_spend_JN[plan_M, rows][chosen], tokens_M[chosen]),
        expected_utility_M=utility,
        surplus_N=surplus_N,
        shadow_price=bought.price,
        dual_bound=bought.dual_bound,
        gap=max(bought.dual_bound - float(success_M.sum()), 0.0),
        later_utility=float(success_M.sum() - utility.sum()),
    )
