"""What an allocation must beat: fixed rules with the signature and result of `allocate`.

Legend: N queries.

Each spends at most the same budget, counted the same way, and is judged on the same curves: `shadow_price`,
`dual_bound` and `gap` are those of the best allocation, so `gap` says how much the rule leaves on the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.allocate import Allocation, certify
from clear_ray.allocation.columns import FloatArray, IntArray
from clear_ray.allocation.price import check_budget, solve_shadow_price
from clear_ray.allocation.price_grid import price_at, price_index
from clear_ray.allocation.search import Bracket, first_fitting_index
from clear_ray.allocation.slack import unspent
from clear_ray.allocation.spread import raise_to_one_level
from clear_ray.allocation.surge import ShiftedSurge
from clear_ray.allocation.ties import checked_tie_break, funding_order, take_while_it_fits
from clear_ray.allocation.units import Unit
from clear_ray.allocation.utility import Utility

_PAPER_BETA = 0.005  # of the paper's illustration, where the curves have no rate of their own


def uniform(
    utility: Utility, *, budget_tokens: float, spread_unspent: bool = True, tie_break_N: ArrayLike | None = None
) -> Allocation:
    """Give every query the same cap, as high as the budget pays for; floors and ceilings hold.

    Args:
        utility: N curves.
        budget_tokens: Budget, >= 0.
        spread_unspent: Ignored: nothing is left to spread.
        tie_break_N: Numbers that order queries for the last few tokens.

    Raises:
        PriceError: as for `allocate`.
    """
    check_budget(utility, budget_tokens)
    tie_break = checked_tie_break(tie_break_N, queries=len(utility))
    floors = utility.min_tokens_N.astype(np.int64)
    tokens = raise_to_one_level(utility, floors, budget=budget_tokens, tie_break_N=tie_break)
    return _judged(utility, tokens, budget_tokens)


def proportional(
    utility: Utility, *, budget_tokens: float, spread_unspent: bool = True, tie_break_N: ArrayLike | None = None
) -> Allocation:
    """Give every query a cap in proportion to its emergence threshold; floors and ceilings hold.

    Args:
        utility: N curves.
        budget_tokens: Budget, >= 0.
        spread_unspent: Whether what the ceilings leave over is spread as by `allocate`.
        tie_break_N: Numbers that order queries for the last few tokens.

    Raises:
        PriceError: as for `allocate`.
    """
    check_budget(utility, budget_tokens)
    tie_break = checked_tie_break(tie_break_N, queries=len(utility))

    def caps(index: int) -> IntArray:
        # The factor falls as the index rises, so that one search serves prices and factors.
        with np.errstate(over="ignore"):
            share = np.floor(utility.threshold_tokens_N / price_at(index)) if index else utility.max_tokens_N
        return np.clip(share, utility.min_tokens_N, np.minimum(utility.max_tokens_N, 2.0**52)).astype(np.int64)

    highest = np.asarray([price_index(utility.threshold_tokens_N.max(initial=0.0) + 1.0)[0]])
    tokens = caps(_first_within(utility, caps, budget_tokens, highest))
    if spread_unspent:
        tokens = raise_to_one_level(utility, tokens, budget=budget_tokens, tie_break_N=tie_break)
    return _judged(utility, tokens, budget_tokens)


def smallest_threshold(
    utility: Utility, *, budget_tokens: float, spread_unspent: bool = True, tie_break_N: ArrayLike | None = None
) -> Allocation:
    """Fund the smallest thresholds first, with equal headroom: what the paper's policy comes to.

    With alpha and beta shared, the marginal threshold t and the headroom D satisfy `beta * D * (t + D) = t`.

    Args:
        utility: N curves; only thresholds, limits and costs are looked at, and the mean rate where there is one.
        budget_tokens: Budget, >= 0.
        spread_unspent: Whether what remains when every query is at its peak is spread as by `allocate`.
        tie_break_N: Numbers that order queries with equal thresholds; smaller is funded first.

    Raises:
        PriceError: as for `allocate`.

    Source: docs/method.md, section 2.1.
    """
    check_budget(utility, budget_tokens)
    tie_break = checked_tie_break(tie_break_N, queries=len(utility))
    beta_N = getattr(utility, "beta_N", None)
    surge = ShiftedSurge(
        utility.threshold_tokens_N,
        alpha=1.0,
        beta=_PAPER_BETA if beta_N is None else float(np.mean(beta_N)),
        max_tokens_N=np.minimum(utility.max_tokens_N, 2.0**52),
        min_tokens_N=utility.min_tokens_N,
    )

    def caps(index: int) -> IntArray:
        return np.floor(surge.demand(price_at(index))).astype(np.int64)

    breakpoints = price_index(surge.reservation_price)
    index = _first_within(utility, caps, budget_tokens, breakpoints)
    tokens = caps(index)
    if index > 0:
        tokens = _with_ties(utility, tokens, caps(index - 1), budget_tokens, tie_break)
        tokens = _with_equal_headroom(utility, tokens, budget_tokens)
    elif spread_unspent:
        tokens = raise_to_one_level(utility, tokens, budget=budget_tokens, tie_break_N=tie_break)
    return _judged(utility, tokens, budget_tokens)


def _first_within(utility: Utility, caps: Callable[[int], IntArray], budget: float, breakpoints: IntArray) -> int:
    """Return the smallest index whose caps fit the budget; caps fall as the index rises."""
    unit = Unit.of_limit(budget)
    limit = unit.limit(budget)

    def excess(index: int) -> int:
        return unit.total(utility.spend(caps(index))) - limit

    if breakpoints.size == 0 or excess(0) <= 0:
        return 0
    return first_fitting_index(Bracket(excess, low=0, high=int(breakpoints.max()) + 1), breakpoints)


def _with_ties(
    utility: Utility, tokens: IntArray, more_tokens: IntArray, budget: float, tie_break: FloatArray
) -> IntArray:
    """Raise caps to `more_tokens` one query at a time, fewest further tokens first, while the budget lasts."""
    rows = np.flatnonzero(more_tokens > tokens)
    step = utility.spend(more_tokens)[rows] - utility.spend(tokens)[rows]
    order = funding_order(utility, rows, step, tie_break)
    is_taken = take_while_it_fits(step[order], available=unspent(utility, tokens, budget))
    raised = tokens.copy()
    raised[rows[order[is_taken]]] = more_tokens[rows[order[is_taken]]]
    return raised


def _with_equal_headroom(utility: Utility, tokens: IntArray, budget: float) -> IntArray:
    """Raise the caps of the funded by the same number of tokens, as large as the budget pays for."""
    ceiling = np.minimum(utility.max_tokens_N, 2.0**52).astype(np.int64)
    unit = Unit.of_limit(budget)
    low, high = 0, 1 + int((ceiling - tokens)[tokens > 0].max(initial=0))
    while high - low > 1:
        middle = (low + high) // 2
        raised = np.where(tokens > 0, np.minimum(tokens + middle, ceiling), tokens)
        is_paid = unit.total(utility.spend(raised)) <= unit.limit(budget)
        low, high = (middle, high) if is_paid else (low, middle)
    return np.where(tokens > 0, np.minimum(tokens + low, ceiling), tokens)


def _judged(utility: Utility, tokens: IntArray, budget: float) -> Allocation:
    return certify(utility, tokens, budget_tokens=budget, cleared=solve_shadow_price(utility, budget_tokens=budget))
