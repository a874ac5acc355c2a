"""What demand at the shadow price leaves of the budget, and who gets it.

Legend: N queries, M rows out of them.

Slack is smaller than the step of the query that did not fit. Smooth curves: that query (and every other whose entry
is larger than the slack) is set aside and the price is cleared again for the rest, so the slack becomes headroom of
the funded and entries that fit, in the order of their price. Stepwise curves: the steepest step that fits is taken,
one after the other. What then remains is offered as a part of a step to the query that gains most from it.
"""

from __future__ import annotations

import heapq

import numpy as np

from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.price import SpendUnit, shadow_price_at_most
from clear_ray.allocation.price_grid import next_price
from clear_ray.allocation.ties import funding_order, take_while_it_fits
from clear_ray.allocation.utility import Utility

_CLEARINGS = 64
_STEPS_TRIED = 4096
_PARTS = 8


def clear_with_slack(utility: Utility, *, budget: float, price: float, tie_break_N: FloatArray) -> IntArray:
    """Return whole caps: demand at the price, ties, slack.

    Args:
        utility: N curves.
        budget: Budget in the unit of spend; at least the sum of the floors.
        price: Shadow price of these curves at this budget.
        tie_break_N: Key of each query for ties.
    """
    if utility.is_smooth:
        tokens = _whole_tokens(utility, _cleared_smooth(utility, budget, price, tie_break_N), budget, tie_break_N)
    else:
        tokens = demand_with_ties(utility, price, budget, tie_break_N).astype(np.int64)
        tokens = _steps_that_fit(utility, tokens, budget, tie_break_N)
    return tokens if price == 0.0 else _parts_of_steps(utility, tokens, budget, tie_break_N)


def unspent(utility: Utility, tokens_N: FloatArray | IntArray, budget: float) -> float:
    """Return what is left of a budget, rounded down, the same for every order of the queries."""
    unit = SpendUnit.of_budget(budget)
    return float(np.ldexp(float(unit.budget(budget) - unit.total(utility.spend(tokens_N))), unit.exponent))


def demand_with_ties(utility: Utility, price: float, budget: float, tie_break_N: FloatArray) -> FloatArray:
    """Return demand at the shadow price, with queries that are indifferent there funded one at a time."""
    with_ties = utility.demand(price)
    tokens = utility.demand(next_price(price))
    rows = np.flatnonzero(with_ties > tokens)
    step = utility.spend(with_ties)[rows] - utility.spend(tokens)[rows]
    order = funding_order(utility, rows, step, tie_break_N)
    is_taken = take_while_it_fits(step[order], available=unspent(utility, tokens, budget))
    taken = rows[order[is_taken]]
    tokens[taken] = with_ties[taken]
    return tokens


def _cleared_smooth(utility: Utility, budget: float, price: float, tie_break_N: FloatArray) -> FloatArray:
    """Return demand of smooth curves, not yet whole, cleared again without the queries that do not fit."""
    tokens = demand_with_ties(utility, price, budget, tie_break_N)
    rows = np.arange(len(utility))
    part, part_budget = utility, budget
    for _ in range(_CLEARINGS):
        left = unspent(part, tokens[rows], part_budget)
        if price == 0.0 or left < float(part.spend(np.ones(len(part))).min(initial=np.inf)):
            break
        entry_price, entry = part.next_step(tokens[rows])
        is_aside = (entry_price > 0.0) & (part.spend(entry) - part.spend(tokens[rows]) > left)
        if not is_aside.any():
            break
        part_budget -= float(part.spend(tokens[rows])[is_aside].sum())
        rows, part = rows[~is_aside], part.take(~is_aside)
        price = shadow_price_at_most(part, budget=part_budget, price=price)
        tokens[rows] = demand_with_ties(part, price, part_budget, tie_break_N[rows])
    return tokens


def _whole_tokens(utility: Utility, tokens_N: FloatArray, budget: float, tie_break_N: FloatArray) -> IntArray:
    """Round down, then give one more token each by largest remainder while the budget lasts."""
    whole = np.floor(tokens_N)
    remainder = tokens_N - whole
    rows = np.flatnonzero(remainder > 0.0)
    order = funding_order(utility, rows, -remainder[rows], tie_break_N)
    one_more = (utility.spend(whole + 1.0) - utility.spend(whole))[rows[order]]
    is_taken = take_while_it_fits(one_more, available=unspent(utility, whole, budget))
    whole[rows[order[is_taken]]] += 1.0
    return whole.astype(np.int64)


def _steps_that_fit(utility: Utility, tokens_N: IntArray, budget: float, tie_break_N: FloatArray) -> IntArray:
    """Take the steepest further step that fits, until none does; a query that does not fit now never will."""
    tokens = tokens_N.copy()
    left = unspent(utility, tokens, budget)
    price, landing = utility.next_step(tokens)
    rows = np.flatnonzero((price > 0.0) & (utility.spend(landing) - utility.spend(tokens) <= left))
    if rows.size > _STEPS_TRIED:  # the slack is less than one step, so the steepest few use it up
        steepest = -np.partition(-price[rows], _STEPS_TRIED)[_STEPS_TRIED]
        rows = rows[price[rows] >= steepest]
    order = funding_order(utility, rows, -price[rows], tie_break_N)
    part = utility.take(rows[order])
    heap = [(-slope, place) for place, slope in enumerate(price[rows[order]].tolist())]
    caps = tokens[rows[order]]
    while heap:
        _, place = heapq.heappop(heap)
        one = part.take(slice(place, place + 1))
        landing_one = one.next_step(caps[place : place + 1])[1]
        step = float((one.spend(landing_one) - one.spend(caps[place : place + 1]))[0])
        if step > left:
            continue
        left -= step
        caps[place] = int(landing_one[0])
        next_slope = float(one.next_step(landing_one)[0][0])
        if next_slope > 0.0:
            heapq.heappush(heap, (-next_slope, place))
    tokens[rows[order]] = caps
    return tokens


def _parts_of_steps(utility: Utility, tokens_N: IntArray, budget: float, tie_break_N: FloatArray) -> IntArray:
    """Give what is left to the query that gains most from it alone, as long as anyone gains."""
    tokens = tokens_N.copy()
    for _ in range(_PARTS):
        left = unspent(utility, tokens, budget)
        if left <= 0.0 or len(utility) == 0:
            break
        reach = np.maximum(utility.affordable_tokens(utility.spend(tokens) + left), tokens)
        gain = utility.utility(reach) - utility.utility(tokens)
        best = float(gain.max())
        if best <= 0.0:
            break
        rows = np.flatnonzero(gain == best)
        row = rows[funding_order(utility, rows, utility.spend(reach)[rows], tie_break_N)[0]]
        tokens[row] = reach[row]
        if unspent(utility, tokens, budget) < 0.0:
            tokens[row] -= 1
    return tokens
