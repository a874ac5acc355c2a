"""What other budgets would buy, and what a wanted number of answers would cost.

Legend: N queries, M budgets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.allocate import Allocation, allocate
from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.demand import SAMPLE_REACH, clear, row_blocks, sample_of
from clear_ray.allocation.price import check_budget
from clear_ray.allocation.price_grid import HIGHEST_INDEX, price_at
from clear_ray.allocation.utility import Totals, Utility
from clear_ray.errors import PriceError

_SAMPLE_ROWS = 1 << 12
_CLOSE_ENOUGH = 1e-5  # of the budget: how far from the fewest tokens the answer may be


@dataclass(frozen=True, kw_only=True, eq=False)
class DemandCurve:
    """What each of M budgets buys.

    Attributes:
        budget_M: The budgets.
        shadow_price_M: Price at each; 0 where the budget does not bind. For more than some 16,000 queries it is read
            off a sample, good to about two percent.
        spend_M: Expected spend: the budget, or all that is demanded at price 0.
        utility_M: Expected value.
        funded_M: Queries with any tokens.
    """

    budget_M: FloatArray
    shadow_price_M: FloatArray
    spend_M: FloatArray
    utility_M: FloatArray
    funded_M: IntArray


@dataclass(frozen=True, kw_only=True)
class RequiredBudget:
    """The fewest tokens for a wanted expected value.

    Attributes:
        budget_tokens: A budget that `allocate` turns into at least the wanted value.
        lower_bound_tokens: No budget below this can.
        shadow_price: Expected value per further token there.
        utility: Expected value of that allocation.
    """

    budget_tokens: float
    lower_bound_tokens: float
    shadow_price: float
    utility: float


def demand_curve(utility: Utility, *, budgets: ArrayLike) -> DemandCurve:
    """Return price, expected value and number of funded queries for many budgets, in one pass over the queries.

    Demand is added up at a price on either side of each budget's; in between, spend, value and number lie on a straight
    line (exactly so for ties, and a little below the truth elsewhere). The prices come from all queries if there are
    few, and from a sample otherwise; the totals always come from all.

    Args:
        utility: N curves.
        budgets: M budgets, >= 0.

    Raises:
        PriceError: a budget is negative, not finite, or smaller than the sum of the floors.

    Source: docs/method.md, section 3.
    """
    budget_M = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
    check_budget(utility, float(budget_M.min(initial=np.inf)) if budget_M.size else 0.0)
    check_budget(utility, float(budget_M.max(initial=0.0)))
    sample = sample_of(utility, rows=_SAMPLE_ROWS)
    share = len(sample) / max(len(utility), 1)
    found = [clear(sample, float(budget) * share).index for budget in budget_M]
    reach = 0 if len(sample) == len(utility) else 2 * SAMPLE_REACH
    around = {max(index - reach, 0) for index in found} | {index + 1 + reach for index in found}
    positions = sorted({0, HIGHEST_INDEX} | around, reverse=True)
    totals = _totals_at(utility, positions)
    spend = np.array([total.spend for total in totals])
    spend_M = np.minimum(budget_M, spend[-1])
    is_scarce_M = budget_M < spend[-1]
    return DemandCurve(
        budget_M=budget_M,
        shadow_price_M=np.where(is_scarce_M, [price_at(index) for index in found], 0.0),
        spend_M=spend_M,
        utility_M=np.interp(spend_M, spend, [total.utility for total in totals]),
        funded_M=np.interp(spend_M, spend, [total.funded for total in totals]).astype(np.int64),
    )


def budget_for(utility: Utility, *, target_utility: float) -> RequiredBudget:
    """Return the fewest tokens with which `allocate` reaches a wanted expected value.

    The price is the highest at which demand, ties included, is worth enough. Of the ties as many are counted as are
    needed; then the budget is raised by what whole tokens and whole queries cost beyond that, found by halving.

    Args:
        utility: N curves.
        target_utility: Wanted expected value, > 0: correct answers where all weights are 1.

    Raises:
        PriceError: the target is not positive, or no budget reaches it.

    Source: docs/method.md, section 3, read in the other direction; the lower bound is weak duality.
    """
    if not (math.isfinite(target_utility) and target_utility > 0.0):
        raise PriceError("a wanted value must be finite and positive", "target_utility", repr(target_utility))
    most = _totals_at(utility, [0])[0]
    if most.utility < target_utility:
        raise PriceError(
            "no budget is worth that much",
            "target_utility",
            f"{target_utility:g}",
            f"Ask for {most.utility:g} or less.",
        )
    cleared = clear(utility, target_utility, quantity="utility")
    price = price_at(cleared.index)
    untied = cleared.demand.totals(cleared.index + (cleared.index > 0))
    # At the price every further unit of spend is worth the price, so what is missing costs missing / price.
    missing = max(target_utility - untied.utility, 0.0)
    bound = untied.spend + (missing / price if price > 0.0 else 0.0)
    low, high, allocation = _bracketed(utility, target_utility, start=bound, price=price)
    while high - low > max(_finest(utility, high), _CLOSE_ENOUGH * high):
        middle = _rounded_up(utility, 0.5 * (low + high))
        tried = allocate(utility, budget_tokens=middle, spread_unspent=False)
        if tried.utility < target_utility:
            low = middle
        else:
            high, allocation = middle, tried
    return RequiredBudget(
        budget_tokens=high,
        lower_bound_tokens=min(bound, high),
        shadow_price=allocation.shadow_price,
        utility=allocation.utility,
    )


def _bracketed(utility: Utility, target: float, *, start: float, price: float) -> tuple[float, float, Allocation]:
    """Return a budget that is too small (or the same, if the first is enough), one that is enough, and its allocation."""
    low = high = _rounded_up(utility, start)
    raise_by = _finest(utility, start)
    allocation = allocate(utility, budget_tokens=high, spread_unspent=False)
    while allocation.utility < target:
        # What is short costs about this much; a leap costs more, so each raise is at least twice the last.
        raise_by = max(2.0 * raise_by, (target - allocation.utility) / max(allocation.shadow_price, price))
        low, high = high, _rounded_up(utility, high + raise_by)
        allocation = allocate(utility, budget_tokens=high, spread_unspent=False)
    return low, high, allocation


def _finest(utility: Utility, budget: float) -> float:
    """Return the step between budgets that are told apart: one token, or a millionth where tokens have a cost."""
    return 1.0 if (utility.cost_per_token_N == 1.0).all() else 1e-6 * budget


def _rounded_up(utility: Utility, budget: float) -> float:
    """Return a budget in whole tokens; as it is where tokens have a cost."""
    return float(math.ceil(budget - 1e-6)) if (utility.cost_per_token_N == 1.0).all() else budget


def _totals_at(utility: Utility, positions: list[int]) -> list[Totals]:
    """Return the sums of demand, ties included, at grid positions; each block of queries is read once."""
    nothing = Totals(spend=0.0, utility=0.0, funded=0)
    totals = [nothing] * len(positions)
    for block in row_blocks(utility):
        totals = [
            total + block.demanded(price_at(index)).totals for total, index in zip(totals, positions, strict=True)
        ]
    return totals
