"""The shadow price: the lowest price whose demand fits the budget.

Legend: N queries.

Total demand never rises with the price, and falls in leaps where queries leave. At a reservation price a query is as
well off with its tokens as without, so demand there is a range: with all such ties funded, or with none. The shadow
price is the lowest price at which demand *without ties* fits. Either demand meets the budget there, or the price is a
breakpoint and the ties are what does not fit as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clear_ray.allocation.demand import clear
from clear_ray.allocation.price_grid import price_at
from clear_ray.allocation.utility import Utility
from clear_ray.errors import PriceError


@dataclass(frozen=True, kw_only=True)
class ShadowPrice:
    """The price that clears a budget, with its certificate.

    Attributes:
        shadow_price: Expected value per further unit of budget; 0 if the budget does not bind.
        demanded: Spend of all demand at the price, ties left out; at most the budget. In tokens, or in the unit of
            the cost per token.
        demanded_with_ties: The same with every tie funded; above the budget, unless the price is 0.
        utility: Expected value of the demand without ties.
        dual_bound: No allocation within the budget is worth more: `price * budget + sum of surplus`.
        gap: `dual_bound - utility`, at most price x slack (and rounding).
        slack: Budget less `demanded`.
    """

    shadow_price: float
    demanded: float
    demanded_with_ties: float
    utility: float
    dual_bound: float
    gap: float
    slack: float


def solve_shadow_price(utility: Utility, *, budget_tokens: float) -> ShadowPrice:
    """Return the lowest price at which demand fits the budget.

    Exact: the price is a breakpoint of demand, or the lowest price on the grid of `price_grid` (one part in 1e12) at
    which demand fits. It is the same for every order of the queries.

    Args:
        utility: N curves.
        budget_tokens: Budget, >= 0: tokens, or the unit of the cost per token.

    Raises:
        PriceError: the budget is negative or not finite, or smaller than the sum of the floors.

    Source: docs/method.md, section 3.
    """
    check_budget(utility, budget_tokens)
    cleared = clear(utility, budget_tokens)
    price = price_at(cleared.index)
    # No query is indifferent at price 0; elsewhere ties are left out by asking for demand just above.
    untied = cleared.demand.totals(cleared.index + (cleared.index > 0))
    tied = cleared.demand.totals(cleared.index)
    # A tie has the same surplus with its tokens as without, so demand without ties has all the surplus there is.
    dual_bound = price * (budget_tokens - untied.spend) + untied.utility
    return ShadowPrice(
        shadow_price=price,
        demanded=untied.spend,
        demanded_with_ties=max(tied.spend, untied.spend),
        utility=untied.utility,
        dual_bound=dual_bound,
        gap=max(dual_bound - untied.utility, 0.0),
        slack=max(budget_tokens - untied.spend, 0.0),
    )


def check_budget(utility: Utility, budget_tokens: float) -> None:
    """Raise unless the budget is a number that covers the floors.

    Raises:
        PriceError: it is negative, not finite, or smaller than the sum of the floors.
    """
    if not (math.isfinite(budget_tokens) and budget_tokens >= 0.0):
        raise PriceError("a budget must be finite and not negative", "budget_tokens", repr(budget_tokens))
    owed = float(utility.spend(utility.min_tokens_N).sum()) if utility.min_tokens_N.any() else 0.0
    if owed > budget_tokens:
        remedy = f"Raise the budget to at least {owed:g} or lower min_tokens_N."
        raise PriceError(
            "no price exists: the floors alone exceed the budget", "budget_tokens", f"{budget_tokens:g}", remedy
        )
