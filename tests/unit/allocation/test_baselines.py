from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import (
    ShiftedSurge,
    Utility,
    allocate,
    proportional,
    smallest_threshold,
    solve_shadow_price,
    uniform,
)
from tests.unit.allocation.curves import PROPERTY, curves


@PROPERTY
@given(curves(has_floors=True, has_costs=True), st.integers(0, 3000))
def test_baselines_keep_budget_and_limits(utility: Utility, budget: int) -> None:
    payable = budget + float(np.ceil(utility.spend(utility.min_tokens_N).sum()))
    for rule in (uniform, proportional, smallest_threshold):
        allocation = rule(utility, budget_tokens=payable)
        assert allocation.spend_N.sum() <= payable
        assert np.all(allocation.tokens_N >= utility.min_tokens_N)
        assert np.all(allocation.tokens_N <= utility.max_tokens_N)
        assert allocation.utility <= allocation.dual_bound + 1e-9 * (1 + allocation.dual_bound)


def test_uniform_is_uniform_within_ceilings() -> None:
    utility = ShiftedSurge(np.full(4, 50.0), max_tokens_N=[10, 1000, 1000, 1000])
    allocation = uniform(utility, budget_tokens=311, tie_break_N=[0, 2, 1, 0])
    assert allocation.tokens_N.tolist() == [10, 100, 100, 101]


def test_proportional_follows_the_threshold() -> None:
    allocation = proportional(ShiftedSurge(np.array([100.0, 200.0, 300.0])), budget_tokens=600)
    np.testing.assert_allclose(allocation.tokens_N, [100, 200, 300], atol=1)


def test_shared_parameters_are_the_papers_own_policy() -> None:
    """Shared alpha and beta: smallest threshold first, equal headroom, beta * D * (t + D) = t at the margin."""
    threshold = np.random.default_rng(3).permutation(np.linspace(50.0, 400.0, 36))
    utility = ShiftedSurge(threshold)
    best = allocate(utility, budget_tokens=5000)
    rule = smallest_threshold(utility, budget_tokens=5000)
    order = np.argsort(threshold)
    funded = best.is_funded_N[order]
    assert not np.any(funded[1:] & ~funded[:-1])
    headroom = (best.tokens_N - threshold)[best.is_funded_N]
    assert np.ptp(headroom) <= 2.0  # whole tokens
    marginal = threshold[~best.is_funded_N].min()
    last = threshold[best.is_funded_N].max()

    def indifferent(threshold_tokens: float) -> float:
        return (-threshold_tokens + np.sqrt(threshold_tokens**2 + 4 * threshold_tokens / 0.005)) / 2

    assert indifferent(last) - 1.0 <= headroom.mean()
    assert headroom.mean() <= indifferent(marginal) + (marginal + indifferent(marginal)) / funded.sum() + 1.0
    assert rule.utility == pytest.approx(best.utility, rel=0.02)
    assert rule.utility <= best.utility + 1e-9


@pytest.mark.parametrize("marginal", [0, 7, 35])
def test_the_margin_of_the_papers_policy(marginal: int) -> None:
    """At the price where one query is indifferent, all before it have its headroom D: beta * D * (t + D) = t."""
    threshold, beta = np.linspace(50.0, 400.0, 36), 0.005
    utility = ShiftedSurge(threshold, 1.5, beta)
    price = utility.reservation_price[marginal]
    budget = float(utility.demand(price).sum()) - 1.0  # one token short of its entry
    assert solve_shadow_price(utility, budget_tokens=budget).shadow_price == price
    demand = utility.demand(price)
    headroom = demand[: marginal + 1] - threshold[: marginal + 1]
    np.testing.assert_allclose(headroom, headroom[marginal], rtol=1e-9)
    assert beta * headroom[0] * (threshold[marginal] + headroom[0]) == pytest.approx(threshold[marginal], rel=1e-9)
    assert np.all(demand[marginal + 1 :] == 0.0)


def test_smallest_threshold_beats_uniform_when_scarce() -> None:
    utility = ShiftedSurge(np.linspace(50.0, 400.0, 36))
    assert smallest_threshold(utility, budget_tokens=3600).utility > 2 * uniform(utility, budget_tokens=3600).utility
