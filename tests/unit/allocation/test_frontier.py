from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import (
    ShiftedErlang,
    ShiftedSurge,
    Tabulated,
    Utility,
    allocate,
    budget_for,
    demand_curve,
    solve_shadow_price,
)
from clear_ray.errors import PriceError
from tests.unit.allocation.curves import PROPERTY, curves


@PROPERTY
@given(curves(has_costs=True), st.lists(st.floats(0.0, 5000.0), min_size=1, max_size=6))
def test_curve_has_the_price_and_the_frontier_of_each_budget(utility: Utility, budgets: list[float]) -> None:
    curve = demand_curve(utility, budgets=budgets)
    for m, budget in enumerate(budgets):
        cleared = solve_shadow_price(utility, budget_tokens=budget)
        bound = cleared.dual_bound + 1e-9 * (1 + cleared.dual_bound)
        assert cleared.utility * (1 - 1e-9) - 1e-9 <= curve.utility_M[m] <= bound
        assert curve.spend_M[m] <= budget
        if curve.shadow_price_M[m] > 0.0:
            assert curve.shadow_price_M[m] == cleared.shadow_price
            assert curve.spend_M[m] == budget
    order = np.argsort(budgets)
    assert np.all(np.diff(curve.utility_M[order]) >= -1e-9)
    assert np.all(np.diff(curve.funded_M[order]) >= 0)


def test_curve_of_ties_is_a_straight_line() -> None:
    utility = ShiftedSurge(np.full(10, 200.0))
    entry = float(utility.demand(utility.reservation_price)[0])
    curve = demand_curve(utility, budgets=np.arange(11) * entry)
    np.testing.assert_array_equal(curve.funded_M, np.arange(11))
    np.testing.assert_allclose(np.diff(curve.utility_M), curve.utility_M[1])


def test_curve_of_a_large_batch_is_read_off_a_sample() -> None:
    rng = np.random.default_rng(4)
    utility = ShiftedErlang(rng.uniform(0, 300, 40_000), rng.uniform(0, 1, 40_000), rng.uniform(0.01, 0.1, 40_000))
    budgets = 40_000 * np.array([5.0, 20.0, 80.0])
    curve = demand_curve(utility, budgets=budgets)
    for m, budget in enumerate(budgets):
        cleared = solve_shadow_price(utility, budget_tokens=budget)
        assert curve.utility_M[m] == pytest.approx(cleared.utility, rel=2e-3)
        assert curve.utility_M[m] <= cleared.dual_bound
        assert curve.shadow_price_M[m] == pytest.approx(cleared.shadow_price, rel=0.05)


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(PriceError, match="finite"):
        demand_curve(ShiftedSurge([1.0]), budgets=[10.0, np.nan])


@PROPERTY
@given(curves(has_costs=True), st.floats(0.01, 0.999))
def test_budget_for_is_enough_and_bounded_below(utility: Utility, share: float) -> None:
    most = float(utility.utility(utility.demand(0.0)).sum())
    if most <= 1e-6:
        return
    target = share * most
    answer = budget_for(utility, target_utility=target)
    assert answer.utility >= target
    assert answer.lower_bound_tokens <= answer.budget_tokens
    assert allocate(utility, budget_tokens=answer.budget_tokens, spread_unspent=False).utility == answer.utility
    too_little = answer.lower_bound_tokens * (1 - 1e-6) - 1e-6
    if too_little > 0.0:
        assert solve_shadow_price(utility, budget_tokens=too_little).dual_bound <= target * (1 + 1e-9)


def test_budget_for_against_exhaustive_search() -> None:
    rng = np.random.default_rng(8)
    caps = np.array(list(itertools.product(range(10), repeat=3)))
    for _ in range(100):
        utility = Tabulated([2, 5, 9], np.sort(rng.uniform(0, 1, (3, 3)), axis=1))
        by_cap = np.array([utility.utility(float(cap)) for cap in range(10)]).T
        worth = by_cap[np.arange(3), caps].sum(axis=1)
        target = float(rng.uniform(0.05, 0.95)) * worth.max()
        fewest = int(caps.sum(axis=1)[worth >= target].min())
        answer = budget_for(utility, target_utility=target)
        assert answer.lower_bound_tokens <= fewest + 1e-9
        assert fewest <= answer.budget_tokens <= fewest + 9  # within one query


@pytest.mark.parametrize("target", [0.0, -1.0, np.nan])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(PriceError, match="positive"):
        budget_for(ShiftedSurge([1.0]), target_utility=target)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(PriceError, match="or less"):
        budget_for(ShiftedErlang([1.0, 1.0], 0.5, 0.1), target_utility=1.1)
