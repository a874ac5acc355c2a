from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, Utility, allocate, solve_shadow_price
from clear_ray.allocation.ties import take_while_it_fits
from clear_ray.errors import UtilityError
from tests.unit.allocation.curves import PROPERTY, curves, steepest

BUDGETS = st.integers(0, 3000)
ANY_CURVES = curves(has_floors=True, has_costs=True)


def payable(utility: Utility, budget: float) -> float:
    """A budget that covers the floors."""
    return budget + float(np.ceil(utility.spend(utility.min_tokens_N).sum()))


@PROPERTY
@given(ANY_CURVES, BUDGETS, st.booleans())
def test_budget_and_limits_hold(utility: Utility, budget: int, spread: bool) -> None:
    budget = payable(utility, budget)
    allocation = allocate(utility, budget_tokens=budget, spread_unspent=spread)
    assert allocation.tokens_N.dtype == np.int64
    assert allocation.spend_N.sum() <= budget
    assert np.all(allocation.tokens_N >= utility.min_tokens_N)
    assert np.all(allocation.tokens_N <= utility.max_tokens_N)
    np.testing.assert_array_equal(allocation.is_funded_N, allocation.tokens_N > 0)
    assert allocation.slack_tokens == pytest.approx(budget - allocation.spend_N.sum(), abs=1e-9)


@PROPERTY
@given(ANY_CURVES, BUDGETS)
def test_certificate_holds_after_rounding(utility: Utility, budget: int) -> None:
    """Gap at most price x (slack before it was given away), plus what whole tokens cost."""
    budget = payable(utility, budget)
    allocation = allocate(utility, budget_tokens=budget)
    cleared = solve_shadow_price(utility, budget_tokens=budget)
    assert allocation.dual_bound == cleared.dual_bound
    assert allocation.utility <= allocation.dual_bound + 1e-9 * (1 + allocation.dual_bound)
    # Rounding moves a cap by less than a token from its best, which costs no more than the steepest token there is.
    rounding = len(utility) * (steepest(utility) + allocation.shadow_price) * (1.0 if utility.is_smooth else 0.0)
    assert allocation.gap <= allocation.shadow_price * cleared.slack + rounding + 1e-9 * (1 + allocation.dual_bound)


@PROPERTY
@given(ANY_CURVES, BUDGETS, st.randoms(use_true_random=False))
def test_order_does_not_matter(utility: Utility, budget: int, random: object) -> None:
    """With distinct tie breaks the tokens follow the query through every permutation."""
    budget = payable(utility, budget)
    rows = list(range(len(utility)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    keys = np.arange(len(utility)) * 7 % 11
    first = allocate(utility, budget_tokens=budget, tie_break_N=keys)
    second = allocate(utility.take(np.array(rows)), budget_tokens=budget, tie_break_N=keys[rows])
    np.testing.assert_array_equal(second.tokens_N, first.tokens_N[rows])


@PROPERTY
@given(curves(has_costs=True), st.integers(1, 3000))
def test_more_budget_is_never_worth_less_than_the_gap(utility: Utility, budget: int) -> None:
    less = allocate(utility, budget_tokens=budget)
    more = allocate(utility, budget_tokens=budget * 1.5)
    assert more.dual_bound >= less.utility - 1e-9
    assert more.shadow_price <= less.shadow_price


@PROPERTY
@given(curves(), st.integers(1, 400))
def test_nothing_useful_is_left_unused(utility: Utility, budget: int) -> None:
    """No single query gains from the slack that remains."""
    allocation = allocate(utility, budget_tokens=budget)
    reach = np.maximum(
        utility.affordable_tokens(allocation.spend_N + allocation.slack_tokens - 1e-9), allocation.tokens_N
    )
    gain = utility.utility(reach) - allocation.utility_N
    assert np.all(gain <= 1e-9)


def test_ten_equal_queries_and_tokens_for_seven() -> None:
    for utility in (
        ShiftedSurge(np.full(10, 200.0)),
        ShiftedErlang(np.full(10, 200.0), 0.7, 0.0157),
        Tabulated([320, 330, 600], np.tile([0.0, 0.5, 0.6], (10, 1))),
    ):
        entry = float(utility.demand(utility.reservation_price)[0])
        allocation = allocate(utility, budget_tokens=int(np.ceil(7.4 * entry)), tie_break_N=np.arange(10)[::-1])
        assert allocation.is_funded_N.tolist() == [False] * 3 + [True] * 7


def test_slack_becomes_headroom_of_the_funded() -> None:
    utility = ShiftedSurge(np.array([100.0, 1000.0]))
    allocation = allocate(utility, budget_tokens=250)
    assert allocation.tokens_N.tolist() == [250, 0]
    assert allocation.shadow_price < utility.reservation_price[0]


def test_slack_is_shared_by_the_funded() -> None:
    """At the price of the large query the three want 814 of 840 tokens; the rest is headroom of all, not of one."""
    utility = ShiftedSurge(np.array([100.0, 100.0, 100.0, 1000.0]))
    assert 20 < solve_shadow_price(utility, budget_tokens=840).slack < 40
    assert allocate(utility, budget_tokens=840).tokens_N.tolist() == [280, 280, 280, 0]


def test_slack_goes_to_further_queries_that_fit() -> None:
    """The second query is too large for what the first leaves; the third is worse but fits."""
    utility = Tabulated([10, 90, 100], [[0.5, 0.5, 0.5], [0.0, 0.0, 0.9], [0.05, 0.05, 0.05]])
    assert allocate(utility, budget_tokens=60).tokens_N.tolist() == [10, 0, 10]


def test_budget_below_every_entry_is_not_wasted() -> None:
    """220 tokens reach past the threshold, though 324 would be the better buy."""
    assert allocate(ShiftedSurge(np.array([200.0, 210.0])), budget_tokens=220).tokens_N.tolist() == [220, 0]


def test_unspent_budget_abandons_no_query() -> None:
    utility = ShiftedErlang(np.array([10.0, 10.0, 0.0]), [0.9, 0.0, 0.0], 0.5, max_tokens_N=[1000, 1000, 30])
    met = allocate(utility, budget_tokens=400, spread_unspent=False)
    assert met.shadow_price == 0.0
    assert met.tokens_N.tolist() == [44, 0, 0]
    spread = allocate(utility, budget_tokens=400)
    assert spread.tokens_N.tolist() == [185, 185, 30]
    assert spread.slack_tokens == 0.0


def test_unspent_budget_is_spread_at_expected_spend() -> None:
    """A hopeless query that stops early costs its expected length, not its cap."""
    utility = Tabulated([100, 200], [[0.5, 0.5], [0.0, 0.0]], [[50.0, 60.0], [20.0, 25.0]])
    allocation = allocate(utility, budget_tokens=85)
    assert allocation.tokens_N.tolist() == [200, 200]
    assert allocation.slack_tokens == pytest.approx(0.0)


def test_what_does_not_fit_is_passed_over() -> None:
    """Tokens left by rounding differ in cost; one too dear for what remains does not stop those after it."""
    cost = np.array([5.0, 9.0, 1.0, 4.0, 3.0])
    assert take_while_it_fits(cost, available=9.0).tolist() == [True, False, True, False, True]
    assert take_while_it_fits(cost, available=0.5).tolist() == [False] * 5


@PROPERTY
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_whole_tokens_go_to_the_largest_remainders(seed: int, queries: int) -> None:
    """Where demand meets the budget exactly: down to whole tokens, and the rest one by one to those cut most."""
    rng = np.random.default_rng(seed)
    utility = ShiftedSurge(rng.uniform(20, 60, queries), alpha=1.5, beta=rng.uniform(0.004, 0.02, queries))
    # A budget at which every query is funded and none is at the peak: the price is below the lowest reservation price.
    demand = utility.demand(0.5 * float(utility.reservation_price.min()))
    budget = int(demand.sum())
    exact = utility.demand(solve_shadow_price(utility, budget_tokens=budget).shadow_price)
    assert exact.sum() == pytest.approx(budget, abs=1e-6)
    expected = np.floor(exact)
    expected[np.argsort(expected - exact)[: budget - int(expected.sum())]] += 1
    allocation = allocate(utility, budget_tokens=budget)
    assert allocation.tokens_N.tolist() == expected.tolist()
    assert allocation.slack_tokens == 0


def test_a_remainder_too_dear_for_what_is_left_is_passed_over() -> None:
    """Cut by .9 and .6 of a token, with 1 left of the budget: the first token costs 2, the second fits."""
    utility = ShiftedSurge([10.0, 10.0], beta=0.02, cost_per_token_N=[2.0, 1.0])
    for budget in range(150, 170):
        exact = utility.demand(solve_shadow_price(utility, budget_tokens=budget).shadow_price)
        whole, left = np.floor(exact), budget - utility.spend(np.floor(exact)).sum()
        allocation = allocate(utility, budget_tokens=budget)
        assert allocation.spend_N.sum() <= budget
        if exact[0] - whole[0] > exact[1] - whole[1] and 1 <= left < 2:
            assert allocation.tokens_N.tolist() == [whole[0], whole[1] + 1]
            return
    pytest.fail("no budget shows the case")


def test_tie_break_must_have_one_entry_a_query() -> None:
    with pytest.raises(UtilityError, match="tie_break_N"):
        allocate(ShiftedSurge([1.0, 2.0]), budget_tokens=5, tie_break_N=[1.0, 2.0, 3.0])


def test_small_instances_against_exhaustive_search() -> None:
    """The best of all whole allocations lies between what was found and the dual bound."""
    rng = np.random.default_rng(5)
    caps = np.array(list(itertools.product(range(10), repeat=3)))
    for _ in range(200):
        success = np.sort(rng.uniform(0, 1, (3, 3)), axis=1) * rng.integers(0, 2, (3, 1))
        utility = Tabulated([2, 5, 9], success)
        budget = int(rng.integers(0, 28))
        by_cap = np.array([utility.utility(float(cap)) for cap in range(10)]).T
        best = float(by_cap[np.arange(3), caps[caps.sum(axis=1) <= budget]].sum(axis=1).max())
        allocation = allocate(utility, budget_tokens=budget)
        assert allocation.utility <= best + 1e-12
        assert best <= allocation.dual_bound + 1e-12
        assert best - allocation.utility <= allocation.gap + 1e-12


@pytest.mark.parametrize(
    "utility", [ShiftedSurge(np.zeros(0)), ShiftedErlang(np.zeros(0), 0.5, 0.1), Tabulated([4], np.zeros((0, 1)))]
)
def test_no_queries_are_allocated_nothing(utility: Utility) -> None:
    allocation = allocate(utility, budget_tokens=100)
    assert allocation.tokens_N.shape == (0,)
    assert allocation.shadow_price == 0.0
    assert allocation.slack_tokens == 100.0


WORTH = {"weight_N": [1, 1, 0, 1, 1], "max_tokens_N": [9, 9, 9, 30, 9]}
THRESHOLDS = [0.0, 5.0, 5.0, 50.0, 5.0]


@pytest.mark.parametrize(
    "utility",
    [
        ShiftedSurge(THRESHOLDS, [1.0, 0.0, 1.0, 1.0, 1.0], **WORTH),
        ShiftedErlang(THRESHOLDS, [1, 0, 1, 1, 1], 0.9, **WORTH),
        Tabulated([2, 9, 40], [[0.5, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1], [0, 1, 1]], **WORTH),
    ],
)
def test_degenerate_queries_buy_nothing(utility: Utility) -> None:
    """Threshold 0; nothing to gain; worth nothing; ceiling before the threshold (or before the only step); ordinary."""
    buys = [True, False, False, isinstance(utility, Tabulated), True]
    assert (utility.reservation_price > 0.0).tolist() == buys
    allocation = allocate(utility, budget_tokens=1000, spread_unspent=False)
    assert allocation.is_funded_N.tolist() == buys
    everyone = allocate(utility, budget_tokens=1000)
    np.testing.assert_array_equal(everyone.tokens_N, utility.max_tokens_N)


def test_floors_are_paid_first() -> None:
    utility = ShiftedSurge([100.0, 0.0, 30.0], min_tokens_N=[20, 0, 60])
    allocation = allocate(utility, budget_tokens=80)
    assert allocation.tokens_N.tolist() == [20, 0, 60]
    more = allocate(utility, budget_tokens=100)
    assert more.tokens_N.tolist() == [20, 20, 60]
