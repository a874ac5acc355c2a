"""Several budgets at once: each group of queries has an own budget, and all share a common one.

Legend: N queries, G groups (tenants, models, GPU pools).

The dual has one price a budget, and it is small: a group pays the common price p plus what its own budget adds. A group
whose own budget alone would clear at a price above p is bound by it and clears there; all others clear together at p,
with what the bound groups leave of the common budget. When a group turns out to be bound, the others get more, p falls,
and more groups may be bound: so the set of bound groups only grows, and is found after at most 2 G clearings. A group that
would clear at p itself is bound if that lets p fall: its own budget, not the common one, is then what its ties wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.allocate import Allocation, allocate
from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, query_column, refuse_first
from clear_ray.allocation.price import check_budget, solve_shadow_price
from clear_ray.allocation.ties import checked_tie_break
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Utility


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupAllocation:
    """Tokens for every query under G own budgets and a common one.

    Attributes:
        allocation: As from `allocate`; `shadow_price` is the common price, `surplus_N` is at each group's price, and
            `dual_bound` and `gap` certify all budgets together.
        shadow_price_G: What a further unit of spend is worth in each group: the common price plus what the group's own
            budget adds.
        spend_G: Expected spend of each group, at most its budget.
        is_bound_G: Whether the group is held by its own budget.
    """

    allocation: Allocation
    shadow_price_G: FloatArray
    spend_G: FloatArray
    is_bound_G: BoolArray


def allocate_groups(
    utility: Utility,
    group_N: ArrayLike,
    *,
    budgets_G: ArrayLike,
    budget_tokens: float,
    spread_unspent: bool = True,
    tie_break_N: ArrayLike | None = None,
) -> GroupAllocation:
    """Divide a common budget among queries so that no group exceeds its own.

    Args:
        utility: N curves.
        group_N: Group of each query, 0 to G - 1.
        budgets_G: Own budget of each group, >= 0; infinity for none.
        budget_tokens: Common budget, >= 0.
        spread_unspent: As for `allocate`.
        tie_break_N: As for `allocate`.

    Raises:
        PriceError: a budget is negative or not a number, or smaller than the floors it has to cover.
        UtilityError: a query names a group that has no budget, or `group_N` has the wrong length.

    Source: docs/method.md, section 3, with one multiplier a budget.
    """
    own_G = np.atleast_1d(np.asarray(budgets_G, dtype=np.float64))
    groups = _checked_groups(group_N, queries=len(utility), groups=own_G.shape[0])
    check_budget(utility, budget_tokens)
    alone_G = np.array([_price_alone(utility.take(groups == g), float(own_G[g])) for g in range(own_G.shape[0])])
    price, is_bound_G = _common_price(utility, groups, own_G, budget_tokens, alone_G)
    price_G = np.where(is_bound_G, alone_G, price)
    tie_break = checked_tie_break(tie_break_N, queries=len(utility))

    def share(rows: IntArray, budget: float) -> IntArray:
        part, keys = utility.take(rows), tie_break[rows]
        return allocate(part, budget_tokens=budget, spread_unspent=spread_unspent, tie_break_N=keys).tokens_N

    tokens = _tokens(utility, groups, own_G, budget_tokens, is_bound_G, share)
    return GroupAllocation(
        allocation=_certified(utility, tokens, groups, own_G, price_G, budget_tokens, price),
        shadow_price_G=price_G,
        spend_G=_by_group(utility.spend(tokens), groups, own_G.shape[0]),
        is_bound_G=is_bound_G,
    )


def _common_price(
    utility: Utility, groups: IntArray, own_G: FloatArray, budget: float, alone_G: FloatArray
) -> tuple[float, BoolArray]:
    """Return the price of the common budget, and which groups are bound by their own."""
    is_bound_G = np.zeros(own_G.shape[0], dtype=bool)
    price = _shared_price(utility, groups, own_G, budget, is_bound_G)
    while True:
        newly_bound_G = (alone_G > price) & ~is_bound_G
        is_tied_G = (alone_G == price) & (price > 0.0) & ~is_bound_G
        candidates_G = is_bound_G | (newly_bound_G if newly_bound_G.any() else is_tied_G)
        lower = _shared_price(utility, groups, own_G, budget, candidates_G)
        if not newly_bound_G.any() and not lower < price:
            return price, is_bound_G
        price, is_bound_G = lower, candidates_G


def _shared_price(utility: Utility, groups: IntArray, own_G: FloatArray, budget: float, is_bound_G: BoolArray) -> float:
    """Return the price at which the groups that are not bound share what the bound ones leave; infinity if too little."""
    shared, left = utility.take(~is_bound_G[groups]), budget - float(own_G[is_bound_G].sum())
    owed = float(shared.spend(shared.min_tokens_N).sum())
    if left < owed - 1e-12 * budget:  # not just the rounding of the sum of own budgets
        return np.inf
    return solve_shadow_price(shared, budget_tokens=max(left, owed)).shadow_price


def _tokens(
    utility: Utility,
    groups: IntArray,
    own_G: FloatArray,
    budget: float,
    is_bound_G: BoolArray,
    share: Callable[[IntArray, float], IntArray],
) -> IntArray:
    """Return whole caps: bound groups share their own budgets, the others what those leave of the common one."""
    tokens = np.zeros(len(utility), dtype=np.int64)
    is_apart_G = is_bound_G.copy()
    while True:
        for g in np.flatnonzero(is_apart_G):
            rows = np.flatnonzero(groups == g)
            tokens[rows] = share(rows, float(own_G[g]))
        rows = np.flatnonzero(~is_apart_G[groups])
        tokens[rows] = 0
        unit = Unit.of_limit(budget)
        left = unit.limit(budget) - unit.total(utility.spend(tokens)[is_apart_G[groups]])
        tokens[rows] = share(rows, unit.amount(left))
        spend_G = _by_group(utility.spend(tokens), groups, own_G.shape[0])
        exceeds_G = (spend_G > own_G) & ~is_apart_G
        if not exceeds_G.any():
            return tokens
        is_apart_G |= exceeds_G  # slack or unspent tokens carried a group past its own budget: it shares just that


def _certified(
    utility: Utility,
    tokens: IntArray,
    groups: IntArray,
    own_G: FloatArray,
    price_G: FloatArray,
    budget: float,
    price: float,
) -> Allocation:
    """Return the allocation with the bound `p B + sum of q_g B_g + sum of surplus at p + q_g`."""
    added_G = price_G - price
    is_held = added_G > 0.0
    paid = price * budget + float((added_G[is_held] * own_G[is_held]).sum())
    bound = paid + float(utility.surplus(price_G[groups]).sum())
    spend_N, utility_N = utility.spend(tokens), utility.utility(tokens)
    worth = float(utility_N.sum())
    return Allocation(
        tokens_N=tokens,
        spend_N=spend_N,
        utility_N=utility_N,
        surplus_N=utility_N - price_G[groups] * spend_N,
        reservation_price_N=utility.reservation_price,
        is_funded_N=tokens > 0,
        budget_tokens=budget,
        slack_tokens=max(budget - float(spend_N.sum()), 0.0),
        shadow_price=price,
        utility=worth,
        dual_bound=bound,
        gap=max(bound - worth, 0.0),
    )


def _by_group(amount_N: FloatArray, groups: IntArray, count: int) -> FloatArray:
    return np.bincount(groups, weights=amount_N, minlength=count).astype(np.float64)


def _price_alone(utility: Utility, own_budget: float) -> float:
    """Return the price at which a group would clear with its own budget alone; 0 if it has none."""
    return 0.0 if own_budget == np.inf else solve_shadow_price(utility, budget_tokens=own_budget).shadow_price


def _checked_groups(group_N: ArrayLike, *, queries: int, groups: int) -> IntArray:
    """Return the group of each query, or raise naming the first query without one."""
    group = query_column(group_N, name="group_N", queries=queries)
    refuse_first((group >= groups) | (np.floor(group) != group), group, name="group_N", rule=f"0 to {groups - 1}")
    return group.astype(np.int64)
