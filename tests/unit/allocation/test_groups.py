from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from clear_ray.allocation import ShiftedSurge, Tabulated, Utility, allocate, allocate_groups
from clear_ray.errors import PriceError, UtilityError
from tests.unit.allocation.curves import PROPERTY, curves, tables

GROUPS = 3
OWN = st.lists(st.sampled_from([0.0, 5.0, 40.0, 300.0, np.inf]), min_size=GROUPS, max_size=GROUPS)


@PROPERTY
@given(curves(has_costs=True), OWN, st.integers(0, 2000), st.integers(0, 50), st.booleans())
def test_no_budget_is_exceeded_and_the_bound_holds(
    utility: Utility, own: list[float], budget: int, seed: int, spread: bool
) -> None:
    group = np.random.default_rng(seed).integers(0, GROUPS, len(utility))
    result = allocate_groups(utility, group, budgets_G=own, budget_tokens=budget, spread_unspent=spread)
    spend = utility.spend(result.allocation.tokens_N)
    for g in range(GROUPS):
        assert spend[group == g].sum() <= own[g] + 1e-9
        assert result.spend_G[g] == pytest.approx(spend[group == g].sum())
    assert spend.sum() <= budget + 1e-9
    assert np.all(result.shadow_price_G >= result.allocation.shadow_price)
    bound = result.allocation.dual_bound
    assert result.allocation.utility <= bound + 1e-9 * (1 + bound)
    assert np.all(result.shadow_price_G[~result.is_bound_G] == result.allocation.shadow_price)


@PROPERTY
@given(curves(has_costs=True), st.integers(0, 2000), st.integers(0, 50))
def test_without_own_budgets_it_is_allocate(utility: Utility, budget: int, seed: int) -> None:
    group = np.random.default_rng(seed).integers(0, GROUPS, len(utility))
    result = allocate_groups(utility, group, budgets_G=np.full(GROUPS, np.inf), budget_tokens=budget)
    np.testing.assert_array_equal(result.allocation.tokens_N, allocate(utility, budget_tokens=budget).tokens_N)


@PROPERTY
@given(tables(has_costs=True), OWN, st.integers(0, 300), st.integers(0, 50))
def test_dual_bound_is_the_optimum_of_the_linear_programme(
    utility: Tabulated, own: list[float], budget: int, seed: int
) -> None:
    """The dual bound is tight: HiGHS on the concave envelopes finds the same value from the other side."""
    group = np.random.default_rng(seed).integers(0, GROUPS, len(utility))
    result = allocate_groups(utility, group, budgets_G=own, budget_tokens=budget)
    price_KN, spend_KN = utility.steps.price_KN, utility.steps.spend_KN
    members = [np.broadcast_to(group == g, price_KN.shape).ravel() for g in range(GROUPS) if np.isfinite(own[g])]
    held = np.array([np.ones(price_KN.size), *members], dtype=float)
    limits = [float(budget), *(o for o in own if np.isfinite(o))]
    bounds = np.stack([np.zeros(spend_KN.size), spend_KN.ravel()], axis=1)
    answer = linprog(-price_KN.ravel(), A_ub=held, b_ub=limits, bounds=bounds, method="highs")
    assert answer.status == 0
    assert result.allocation.dual_bound == pytest.approx(-answer.fun, rel=1e-7, abs=1e-7)


def test_small_instances_against_exhaustive_search() -> None:
    rng = np.random.default_rng(6)
    caps = np.array(list(itertools.product(range(7), repeat=4)))
    group = np.array([0, 0, 1, 1])
    for _ in range(100):
        utility = Tabulated([1, 4, 6], np.sort(rng.uniform(0, 1, (4, 3)), axis=1) * rng.integers(0, 2, (4, 1)))
        own, budget = rng.integers(0, 12, 2), int(rng.integers(0, 20))
        is_allowed = (caps.sum(axis=1) <= budget) & (caps[:, :2].sum(axis=1) <= own[0])
        is_allowed &= caps[:, 2:].sum(axis=1) <= own[1]
        by_cap = np.array([utility.utility(float(cap)) for cap in range(7)]).T
        best = float(by_cap[np.arange(4), caps[is_allowed]].sum(axis=1).max())
        found = allocate_groups(utility, group, budgets_G=own, budget_tokens=budget).allocation
        assert found.utility <= best + 1e-12
        assert best <= found.dual_bound + 1e-12


def test_a_bound_group_leaves_its_share_to_the_others() -> None:
    """Two tenants with the same queries: one may spend 100 tokens, the other gets the rest of the common 900."""
    utility = ShiftedSurge(np.full(8, 30.0), max_tokens_N=200)
    result = allocate_groups(utility, [0] * 4 + [1] * 4, budgets_G=[100, np.inf], budget_tokens=900)
    assert result.is_bound_G.tolist() == [True, False]
    assert result.spend_G.tolist() == [100.0, 800.0]
    assert result.shadow_price_G[0] > result.shadow_price_G[1]


def test_a_tie_that_waits_for_its_own_budget_does_not_hold_up_the_common_price() -> None:
    """The query would clear the common token at its reservation price, but its group may spend nothing at all."""
    utility = Tabulated([40], [[0.5]])
    result = allocate_groups(utility, [0], budgets_G=[0], budget_tokens=1)
    assert result.allocation.shadow_price == 0.0
    assert result.allocation.dual_bound == pytest.approx(0.0, abs=1e-9)
    assert result.is_bound_G.tolist() == [True]


def test_own_budgets_that_add_up_to_the_common_one_in_decimals() -> None:
    """Their sum is a little more than 0.3 in float64; that is no missing budget."""
    assert 0.1 + 0.2 > 0.3
    utility = ShiftedSurge([1.0, 1.0], max_tokens_N=1000, cost_per_token_N=0.001)
    result = allocate_groups(utility, [0, 1], budgets_G=[0.1, 0.2], budget_tokens=0.3)
    assert result.is_bound_G.tolist() == [True, True]
    np.testing.assert_allclose(result.spend_G, [0.1, 0.2], atol=0.0011)


def test_a_query_without_a_group_is_refused() -> None:
    with pytest.raises(UtilityError, match="query 1"):
        allocate_groups(ShiftedSurge([1.0, 2.0]), [0, 2], budgets_G=[1, 1], budget_tokens=1)


def test_floors_above_an_own_budget_have_no_price() -> None:
    with pytest.raises(PriceError, match="floors"):
        allocate_groups(ShiftedSurge([1.0, 2.0], min_tokens_N=5), [0, 1], budgets_G=[10, 4], budget_tokens=100)
