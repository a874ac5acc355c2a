"""From the shadow price to whole tokens for every query.

Legend: N queries.

    price -> demand -> ties, one at a time -> slack -> whole tokens -> unspent budget -> certificate
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray
from clear_ray.allocation.price import ShadowPrice, solve_shadow_price
from clear_ray.allocation.slack import clear_with_slack
from clear_ray.allocation.spread import raise_to_one_level
from clear_ray.allocation.ties import checked_tie_break
from clear_ray.allocation.utility import Utility


@dataclass(frozen=True, kw_only=True, eq=False)
class Allocation:
    """Tokens for every query, with the certificate that they are close to the best.

    Budget, spend, slack and price are in tokens, or in the unit of the cost per token where one is given.

    Attributes:
        tokens_N: Cap of each query, whole tokens, int64; 0 means abandoned.
        spend_N: Expected spend under that cap; the cap itself for curves without a spend column.
        utility_N: Expected value of each query under its cap.
        surplus_N: `utility_N - shadow_price * spend_N`.
        reservation_price_N: The price above which a query buys nothing beyond its floor.
        is_funded_N: Whether a query has any tokens.
        budget_tokens: The budget.
        slack_tokens: Budget less the sum of `spend_N`; never negative.
        shadow_price: Expected value per further unit of budget; 0 if the budget does not bind.
        utility: Sum of `utility_N`.
        dual_bound: No allocation within the budget is worth more.
        gap: `dual_bound - utility`: at most price x (slack at the price), less than one query's worth, apart from the
            rounding to whole tokens.
    """

    tokens_N: IntArray
    spend_N: FloatArray
    utility_N: FloatArray
    surplus_N: FloatArray
    reservation_price_N: FloatArray
    is_funded_N: BoolArray
    budget_tokens: float
    slack_tokens: float
    shadow_price: float
    utility: float
    dual_bound: float
    gap: float


def allocate(
    utility: Utility, *, budget_tokens: float, spread_unspent: bool = True, tie_break_N: ArrayLike | None = None
) -> Allocation:
    """Divide a budget among queries so that the expected value of their answers is greatest.

    Every query buys what it wants at the shadow price. Queries that are indifferent at that price are funded one at a
    time: fewest tokens first, then by curve parameters (see `tie_columns` of the family), then by `tie_break_N`, then
    by position; one that no longer fits is passed over. What is left goes to further steps that fit, best value per
    token first, and to the headroom of funded queries. Only rows that are equal in curve and in `tie_break_N` depend
    on their position: give distinct keys (a hash of the query_id) and the result follows the query through every
    permutation.

    Args:
        utility: N curves.
        budget_tokens: Budget, >= 0: tokens, or the unit of the cost per token. The sum of expected spend never
            exceeds it.
        spread_unspent: When every priced demand is met and budget remains, raise the lowest caps to one common level,
            within `max_tokens_N`: an estimate of zero utility is never certain.
        tie_break_N: Numbers that order queries with equal curves; smaller is funded first.

    Raises:
        PriceError: the budget is negative or not finite, or smaller than the sum of the floors.
        UtilityError: `tie_break_N` has the wrong length.

    Source: docs/method.md, section 3.
    """
    tie_break = checked_tie_break(tie_break_N, queries=len(utility))
    cleared = solve_shadow_price(utility, budget_tokens=budget_tokens)
    tokens = clear_with_slack(utility, budget=budget_tokens, price=cleared.shadow_price, tie_break_N=tie_break)
    if spread_unspent and cleared.shadow_price == 0.0:
        tokens = raise_to_one_level(utility, tokens, budget=budget_tokens, tie_break_N=tie_break)
    return certify(utility, tokens, budget_tokens=budget_tokens, cleared=cleared)


def certify(utility: Utility, tokens_N: IntArray, *, budget_tokens: float, cleared: ShadowPrice) -> Allocation:
    """Return the allocation of given caps, judged at the price that clears the same curves and budget."""
    spend_N = utility.spend(tokens_N)
    utility_N = utility.utility(tokens_N)
    worth = float(utility_N.sum())
    return Allocation(
        tokens_N=tokens_N,
        spend_N=spend_N,
        utility_N=utility_N,
        surplus_N=utility_N - cleared.shadow_price * spend_N,
        reservation_price_N=utility.reservation_price,
        is_funded_N=tokens_N > 0,
        budget_tokens=budget_tokens,
        slack_tokens=max(budget_tokens - float(spend_N.sum()), 0.0),
        shadow_price=cleared.shadow_price,
        utility=worth,
        dual_bound=cleared.dual_bound,
        gap=max(cleared.dual_bound - worth, 0.0),
    )
