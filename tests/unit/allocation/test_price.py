from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, Utility, solve_shadow_price
from clear_ray.allocation.price_grid import next_price, price_at, price_index
from clear_ray.errors import PriceError
from tests.unit.allocation.curves import PROPERTY, curves, erlangs, surges

BUDGETS = st.integers(0, 3000)


@PROPERTY
@given(curves(has_costs=True), BUDGETS)
def test_price_is_the_lowest_whose_demand_fits(utility: Utility, budget: int) -> None:
    cleared = solve_shadow_price(utility, budget_tokens=budget)
    price = cleared.shadow_price
    assert utility.demanded_spend(next_price(price)).sum() <= budget * (1 + 1e-12)
    if price > 0.0:
        tolerance = 1e-9 * (1.0 + budget)  # spend is counted in units of 2**-46 of the budget, rounded up
        assert utility.demanded_spend(price).sum() >= budget - tolerance
    else:
        assert utility.demanded_spend(next_price(0.0)).sum() <= budget * (1 + 1e-12)


@PROPERTY
@given(curves(has_costs=True), BUDGETS)
def test_certificate(utility: Utility, budget: int) -> None:
    cleared = solve_shadow_price(utility, budget_tokens=budget)
    scale = 1e-9 * (1.0 + cleared.dual_bound)
    assert cleared.utility <= cleared.dual_bound + scale
    assert cleared.gap <= cleared.shadow_price * cleared.slack + scale
    assert cleared.demanded <= budget * (1 + 1e-12)


@PROPERTY
@given(curves(has_costs=True), BUDGETS, st.randoms(use_true_random=False))
def test_price_does_not_depend_on_order(utility: Utility, budget: int, random: object) -> None:
    rows = list(range(len(utility)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    first = solve_shadow_price(utility, budget_tokens=budget)
    second = solve_shadow_price(utility.take(np.array(rows)), budget_tokens=budget)
    assert first.shadow_price == second.shadow_price


@PROPERTY
@given(st.one_of(surges(), erlangs()), st.integers(1, 3000), st.sampled_from([0.125, 3.0, 1000.0]))
def test_utility_times_k_gives_price_times_k(utility: ShiftedSurge | ShiftedErlang, budget: int, factor: float) -> None:
    columns = {"max_tokens_N": np.minimum(utility.max_tokens_N, 1e6), "weight_N": utility.weight_N * factor}
    if isinstance(utility, ShiftedSurge):
        scaled: Utility = ShiftedSurge(utility.threshold_tokens_N, utility.alpha_N, utility.beta_N, **columns)
    else:
        scaled = ShiftedErlang(utility.threshold_tokens_N, utility.solvability_N, utility.beta_N, **columns)
    one = solve_shadow_price(utility, budget_tokens=budget).shadow_price
    assert solve_shadow_price(scaled, budget_tokens=budget).shadow_price == pytest.approx(factor * one, rel=1e-9)


def test_a_tie_is_the_price_and_not_near_it() -> None:
    utility = ShiftedSurge(np.full(10, 200.0))
    cleared = solve_shadow_price(utility, budget_tokens=2400)
    assert cleared.shadow_price == utility.reservation_price[0]
    assert cleared.demanded == 0.0
    assert cleared.demanded_with_ties == pytest.approx(3236.07, abs=0.01)


def test_price_is_zero_when_the_budget_does_not_bind() -> None:
    cleared = solve_shadow_price(ShiftedSurge(np.array([100.0, 200.0])), budget_tokens=701)
    assert cleared.shadow_price == 0.0
    assert cleared.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("utility", [ShiftedErlang([0.0], 2e-309, 0.005), Tabulated([40], [[2e-309]])])
def test_what_is_worth_next_to_nothing_is_worth_nothing(utility: Utility) -> None:
    """Prices among the subnormal numbers have too few digits to divide by."""
    assert utility.reservation_price[0] == 0.0
    assert solve_shadow_price(utility, budget_tokens=30).demanded == 0.0


@pytest.mark.parametrize("count", [0, 70_000])
def test_size_does_not_matter(count: int) -> None:
    """None at all, and enough to price a sample first: the price is the lowest that fits either way."""
    rng = np.random.default_rng(1)
    utility = ShiftedErlang(rng.uniform(0, 300, count), rng.uniform(0, 1, count), rng.uniform(0.01, 0.1, count))
    budget = 40.0 * count
    price = solve_shadow_price(utility, budget_tokens=budget).shadow_price
    assert utility.demanded_spend(next_price(price)).sum() <= budget
    assert count == 0 or utility.demanded_spend(price).sum() >= budget * (1 - 1e-9)
    assert utility.take(slice(0, count)).demand(price).size == count


@pytest.mark.parametrize("budget", [-1.0, np.nan, np.inf])
def test_budgets_that_are_none_are_refused(budget: float) -> None:
    with pytest.raises(PriceError, match="finite"):
        solve_shadow_price(ShiftedSurge([1.0]), budget_tokens=budget)


def test_floors_above_the_budget_have_no_price() -> None:
    with pytest.raises(PriceError, match="at least 30"):
        solve_shadow_price(Tabulated([10, 20], [[0.1, 0.2]] * 3, min_tokens_N=10), budget_tokens=29)


@PROPERTY
@given(st.floats(0.0, 1e12))
def test_price_grid_rounds_down_by_less_than_a_step(value: float) -> None:
    index = int(price_index(value)[0])
    assert price_at(index) <= value < price_at(index + 1)
    assert value < 1e-300 or price_at(index + 1) / max(price_at(index), 1e-300) < 1 + 2e-12
