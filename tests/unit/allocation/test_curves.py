from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, Utility
from clear_ray.allocation.lambert import lambert_w0_of_e_times, minus_lambert_wm1_of_minus
from clear_ray.errors import UtilityError
from tests.unit.allocation.curves import PROPERTY, curves

PRICES = st.floats(1e-6, 10.0)


def test_lambert_branches_agree_with_scipy() -> None:
    q = np.concatenate([np.geomspace(1e-250, 1.0, 20_001), np.linspace(1e-4, 1.0, 20_001)])
    np.testing.assert_allclose(lambert_w0_of_e_times(q), lambertw(np.e * q).real, rtol=2e-15)
    q = q[q < 0.3678]  # nearer to the branch point the answer is only good to the root of the rounding error
    np.testing.assert_allclose(minus_lambert_wm1_of_minus(q), -lambertw(-q, -1).real, rtol=2e-14)
    assert minus_lambert_wm1_of_minus(np.array([np.exp(-1.0)]))[0] == pytest.approx(1.0, abs=1e-7)


def test_surge_follows_the_paper() -> None:
    surge = ShiftedSurge(np.array([200.0]), alpha=1.5, beta=0.005)
    tokens = np.array([250.0])
    assert surge.utility(tokens) == pytest.approx(1.5 * 50 * np.exp(-0.25))
    assert surge.utility(np.array([199.0])) == 0.0
    assert surge.demand(0.0) == pytest.approx(400.0)  # the peak, threshold + 1 / beta
    assert surge.utility(np.array([5000.0])) == surge.utility(np.array([400.0]))
    w = lambertw(np.e * 0.2 / 1.5).real
    assert surge.demand(0.2) == pytest.approx(200.0 + (1.0 - w) / 0.005)
    assert surge.surplus(0.2) == pytest.approx(0.2 * ((1.0 - w) ** 2 / (0.005 * w) - 200.0))


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.3, 17.0, 200.0, 1e6])
def test_surge_reservation_price_is_the_closed_form(threshold: float) -> None:
    k = 2.0 + 0.005 * threshold
    w = 2.0 / (k + np.sqrt(k * k - 4.0))
    surge = ShiftedSurge(np.array([threshold]))
    assert surge.reservation_price[0] == pytest.approx(1.5 * w * np.exp(w - 1.0), rel=1e-11)


def test_erlang_reservation_error_bound_of_the_table() -> None:
    """The price read off the table is within 1e-12 of the greatest average, from floors past the inflection to far."""
    start = np.concatenate([np.linspace(-5.0, 1.0, 301), -np.geomspace(5.0, 1e6, 200)])
    rise = ShiftedErlang._rise
    for a in start:
        low = max(a, 0.0)
        best = minimize_scalar(
            lambda y, a=a, low=low: -float(rise(np.array([y]))[0] - rise(np.array([low]))[0]) / (y - a),
            bounds=(max(1.0, low + 1e-6), 40.0),
            method="bounded",
            options={"xatol": 1e-9},
        )
        y = ShiftedErlang._tangent(np.array([a]))
        if y[0] - a > 1e-3:
            price = float(rise(y)[0] - rise(np.array([low]))[0]) / (y[0] - a)
            assert price == pytest.approx(-best.fun, rel=1e-12)
            assert y[0] == pytest.approx(best.x, abs=1e-5)


@PROPERTY
@given(curves(has_floors=True, has_costs=True), PRICES)
def test_no_other_cap_is_better_at_the_price(utility: Utility, price: float) -> None:
    """Nobody gains by another count at the price: demand beats every whole cap within the limits."""
    surplus = utility.surplus(price)
    bought = utility.demand(price)
    assert np.all((bought >= utility.min_tokens_N) & (bought <= utility.max_tokens_N))
    np.testing.assert_allclose(utility.utility(bought) - price * utility.spend(bought), surplus, rtol=1e-9, atol=1e-9)
    for tokens in range(0, 700, 7):
        cap = np.clip(tokens, utility.min_tokens_N, utility.max_tokens_N)
        other = utility.utility(cap) - price * utility.spend(cap)
        assert np.all(other <= surplus + 1e-9 * (1.0 + np.abs(other)))


@PROPERTY
@given(curves(has_floors=True, has_costs=True), PRICES, PRICES)
def test_demand_never_rises_with_the_price(utility: Utility, first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert np.all(utility.demand(high) <= utility.demand(low) * (1 + 1e-12) + 1e-9)
    assert np.all(utility.demanded_spend(high) <= utility.demanded_spend(low) * (1 + 1e-12) + 1e-9)


@PROPERTY
@given(curves(has_floors=True, has_costs=True))
def test_reservation_price_is_where_the_query_leaves(utility: Utility) -> None:
    price = utility.reservation_price
    buys = price > 0.0
    assert np.all(utility.demand(price)[buys] >= utility.min_tokens_N[buys])
    above = np.nextafter(price, np.inf)
    np.testing.assert_array_equal(utility.demand(above), utility.min_tokens_N)
    floor_worth = utility.utility(utility.min_tokens_N) - price * utility.spend(utility.min_tokens_N)
    bought = utility.demand(price)
    gain = utility.utility(bought) - price * utility.spend(bought) - floor_worth
    np.testing.assert_allclose(
        gain[buys], 0.0, atol=1e-9 * (1.0 + utility.utility(utility.demand(0.0))[buys].max(initial=0))
    )


@PROPERTY
@given(curves(has_floors=True, has_costs=True), st.floats(1.0, 600.0))
def test_marginal_utility_is_the_derivative(utility: Utility, tokens: float) -> None:
    here = np.full(len(utility), tokens)
    step = 1e-5
    rise = (utility.utility(here + step) - utility.utility(here)) / step
    scale = 1.0 + utility.utility(utility.demand(0.0)) * 10.0
    assert np.all(np.abs(rise - utility.marginal_utility(here)) <= 1e-3 * scale)


@PROPERTY
@given(curves(has_floors=True, has_costs=True), PRICES)
def test_taken_rows_keep_their_curves(utility: Utility, price: float) -> None:
    rows = np.arange(len(utility))[::-1]
    utility.demand(price)  # fills what is computed once, which must be taken along
    np.testing.assert_array_equal(utility.take(rows).demand(price), utility.demand(price)[rows])
    again = pickle.loads(pickle.dumps(utility))  # noqa: S301
    np.testing.assert_array_equal(again.surplus(price), utility.surplus(price))


@PROPERTY
@given(curves(has_costs=True), st.integers(0, 600))
def test_affordable_tokens_is_the_largest_cap_within_a_spend(utility: Utility, tokens: int) -> None:
    spend = utility.spend(np.minimum(tokens, utility.max_tokens_N))
    affordable = utility.affordable_tokens(spend)
    assert np.all(utility.spend(affordable) <= spend)
    is_open = affordable < utility.max_tokens_N
    assert np.all(utility.spend(affordable + 2)[is_open] >= spend[is_open] - 1e-9)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"threshold_tokens_N": [1.0, np.nan]}, "query 1"),
        ({"threshold_tokens_N": [1.0, -2.0]}, "query 1"),
        ({"alpha": [1.0, np.inf]}, "query 1"),
        ({"beta": 0.0}, "every query"),
        ({"beta": [0.1, 0.1, 0.1]}, "beta"),
        ({"weight_N": [-1.0, 1.0]}, "query 0"),
        ({"max_tokens_N": [10.5, 10]}, "query 0"),
        ({"max_tokens_N": [10, 10], "min_tokens_N": [10, 11]}, "query 1"),
        ({"cost_per_token_N": [1.0, 0.0]}, "query 1"),
    ],
)
def test_parameters_that_are_no_curve_are_refused(parameters: dict[str, Any], named: str) -> None:
    given_ = {"threshold_tokens_N": [1.0, 2.0], **parameters}
    with pytest.raises(UtilityError, match=named):
        ShiftedSurge(given_.pop("threshold_tokens_N"), **given_)


def test_solvability_above_one_is_refused() -> None:
    with pytest.raises(UtilityError, match="query 1"):
        ShiftedErlang([1.0, 2.0], [0.5, 1.5], 0.1)


@pytest.mark.parametrize(
    ("grid", "success", "spend", "named"),
    [
        ([1, 1], [[0.1, 0.2]], None, "grid point 1"),
        ([0, 1], [[0.1, 0.2]], None, "grid point 0"),
        ([1, 2], [[0.1, 0.2], [0.3, 0.2]], None, "query 1"),
        ([1, 2], [[0.1, np.nan]], None, "query 0, grid point 1"),
        ([1, 2], [[0.1, 1.2]], None, "query 0, grid point 1"),
        ([1, 2], [[0.1, 0.2]], [[1.0, 0.5]], "query 0"),
        ([1, 2], [[0.1, 0.2]], [[0.0, 0.5]], "query 0, grid point 0"),
        ([1, 2], [[0.1, 0.2]], [[1.0]], "spend_NK"),
        ([1, 2], [0.1, 0.2], None, "success_NK"),
    ],
)
def test_tables_that_are_no_curve_are_refused(grid: Any, success: Any, spend: Any, named: str) -> None:
    with pytest.raises(UtilityError, match=named):
        Tabulated(grid, success, spend)


def test_curves_cannot_be_changed_and_do_not_change_their_input() -> None:
    threshold = np.array([3.0, 1.0])
    surge = ShiftedSurge(threshold)
    with pytest.raises(AttributeError, match="immutable"):
        surge.alpha_N = threshold  # type: ignore[assignment]
    with pytest.raises(ValueError, match="read-only"):
        surge.threshold_tokens_N[0] = 1.0
    surge.demand(0.1)
    np.testing.assert_array_equal(threshold, [3.0, 1.0])
    threshold[0] = 4.0  # the caller's array stays writable
