"""What demand at the shadow price leaves of the budget, and which queries get it.

Legend: N queries, M rows out of them.

Slack is smaller than the step of the query that did not fit. Smooth curves: that query (and every other whose entry is
larger than the slack) is set aside and the price is cleared again for the rest, so that the slack becomes headroom of
the funded and entries that fit, in the order of their price. Stepwise curves: the steepest step that fits is taken, one
after the other. What then remains is offered as a part of a step to the query that gains most from it.
"""

from __future__ import annotations

import math

import numpy as np

from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.demand import clear
from clear_ray.allocation.price_grid import next_price, price_at, price_index
from clear_ray.allocation.ties import funding_order, take_while_it_fits
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Utility

_CLEARINGS = 64  # more than that many sets of queries set aside are left aside
_SLACK_REACH = 1 << 22  # a millionth: how far slack moves the price of a large batch
_STEEPEST_ROWS = 4096  # slack is less than one step: of a large batch only the steepest further steps matter
_STEPS = 1024
_PARTS = 8


def clear_with_slack(utility: Utility, *, budget: float, price: float, tie_break_N: FloatArray) -> IntArray:
    """Return whole caps: demand at the price, ties, slack.

    Args:
        utility: N curves.
        budget: Budget in the unit of spend; at least the sum of the floors.
        price: Shadow price of these curves at this budget.
        tie_break_N: Key of each query for ties.
    """
    tokens = _demand_with_ties(utility, price, budget, tie_break_N)
    if utility.is_smooth:
        tokens = _cleared_again(utility, tokens, budget, price, tie_break_N)
        whole = _whole_tokens(utility, tokens, budget, tie_break_N)
    else:
        whole = tokens.astype(np.int64)
    if price > 0.0 and len(utility):
        _give_steps(utility, whole, budget, tie_break_N)
    return whole


def unspent(utility: Utility, tokens_N: FloatArray | IntArray, budget: float) -> float:
    """Return what is left of a budget, rounded down, the same for every order of the queries."""
    unit = Unit.of_limit(budget)
    return unit.amount(unit.limit(budget) - unit.total(utility.spend(tokens_N)))


def _demand_with_ties(utility: Utility, price: float, budget: float, tie_break_N: FloatArray) -> FloatArray:
    """Return demand at the shadow price, with queries that are indifferent there funded one at a time."""
    if price == 0.0:
        return utility.demand(price)
    tokens = utility.demand(next_price(price))
    rows = utility.rows_indifferent_at(price)
    ties = utility.take(rows)
    more = ties.demand(price)
    step = ties.spend(more) - ties.spend(tokens[rows])
    order = funding_order(utility, rows, step, tie_break_N)
    taken = order[take_while_it_fits(step[order], available=unspent(utility, tokens, budget))]
    tokens[rows[taken]] = more[taken]
    return tokens


def _cleared_again(
    utility: Utility, tokens_N: FloatArray, budget: float, price: float, tie_break_N: FloatArray
) -> FloatArray:
    """Return demand of smooth curves, not yet whole, cleared again without the queries that do not fit."""
    tokens, rows, part, part_budget = tokens_N, np.arange(len(utility)), utility, budget
    for _ in range(_CLEARINGS):
        left = unspent(part, tokens[rows], part_budget)
        a_token_each = part.spend((tokens[rows] > part.min_tokens_N).astype(np.float64))
        # Up to a token for each of the funded is headroom already: rounding to whole tokens hands it out.
        if price == 0.0 or left <= math.fsum(a_token_each):
            break
        entry_price = part.next_step_price(tokens[rows])
        entry_spend = part.demanded_spend(entry_price) - part.spend(tokens[rows])
        is_aside = (entry_price > 0.0) & (entry_spend > left)
        if not is_aside.any():
            break
        part_budget -= math.fsum(part.spend(tokens[rows])[is_aside])
        rows, part = rows[~is_aside], part.take(~is_aside)
        price = price_at(clear(part, part_budget, near=int(price_index(price)[0]), reach=_SLACK_REACH).index)
        tokens[rows] = _demand_with_ties(part, price, part_budget, tie_break_N[rows])
    return tokens


def _whole_tokens(utility: Utility, tokens_N: FloatArray, budget: float, tie_break_N: FloatArray) -> IntArray:
    """Round down, then give one more token each by largest remainder while the budget lasts."""
    whole = np.floor(tokens_N)
    rows = np.flatnonzero(tokens_N > whole)
    order = rows[funding_order(utility, rows, (whole - tokens_N)[rows], tie_break_N)]
    one_more = utility.spend(whole + 1.0)[order] - utility.spend(whole)[order]
    whole[order[take_while_it_fits(one_more, available=unspent(utility, whole, budget))]] += 1.0
    return whole.astype(np.int64)


def _give_steps(utility: Utility, tokens_N: IntArray, budget: float, tie_break_N: FloatArray) -> None:
    """Take the steepest further steps that fit, then parts of steps. Changes `tokens_N`."""
    price = utility.next_step_price(tokens_N)
    if utility.is_smooth:  # the next entry is not all a smooth curve can still use
        price = np.maximum(price, utility.marginal_utility(tokens_N))
    rows = np.flatnonzero(price > 0.0)
    if rows.size > _STEEPEST_ROWS:
        least = np.partition(price[rows], -_STEEPEST_ROWS)[-_STEEPEST_ROWS]
        rows = rows[price[rows] >= least]
    part, tokens = utility.take(rows), tokens_N[rows]
    left = unspent(utility, tokens_N, budget)
    if not utility.is_smooth:
        left = _steps_that_fit(part, tokens, left, tie_break_N[rows])
    _parts_of_steps(part, tokens, left, tie_break_N[rows])
    tokens_N[rows] = tokens


def _steps_that_fit(utility: Utility, tokens_N: IntArray, left: float, tie_break_N: FloatArray) -> float:
    """Take the steepest step that fits, until none does, and return what is left. Changes `tokens_N`."""
    rows = np.arange(len(utility))
    for _ in range(_STEPS):
        part = utility.take(rows)
        price = part.next_step_price(tokens_N[rows])
        landing = part.demand(price)
        step = part.spend(landing) - part.spend(tokens_N[rows])
        fits = (price > 0.0) & (step <= left)
        if not fits.any():
            break
        steepest = np.flatnonzero(fits & (price == price[fits].max()))
        chosen = steepest[funding_order(part, steepest, step[steepest], tie_break_N[rows])[0]]
        tokens_N[rows[chosen]] = landing[chosen]
        left -= float(step[chosen])
        rows = rows[fits]  # a step that does not fit now never will
    return left


def _parts_of_steps(utility: Utility, tokens_N: IntArray, left: float, tie_break_N: FloatArray) -> None:
    """Give what is left to the query that gains most from it alone, as long as any query gains. Changes `tokens_N`."""
    for _ in range(_PARTS):
        spend = utility.spend(tokens_N)
        reach = np.maximum(utility.affordable_tokens(spend + max(left, 0.0)), tokens_N)
        gain = utility.utility(reach) - utility.utility(tokens_N)
        best = float(gain.max(initial=0.0))
        if best <= 0.0 or left <= 0.0:
            break
        rows = np.flatnonzero(gain == best)
        row = rows[funding_order(utility, rows, utility.spend(reach)[rows], tie_break_N)[0]]
        tokens_N[row] = reach[row]
        left -= float(utility.spend(tokens_N)[row] - spend[row])
