"""Nothing in a price is absolute: answers k times as long cost a k-th a token, answers worth k times as much cost k times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clear_ray.allocation import DemandSketch, ShiftedErlang, SketchPrice, Tabulated, Utility, allocate
from clear_ray.errors import UtilityError
from tests.unit.allocation.curves import PROPERTY

GRID_K = np.array([2, 4, 8, 16, 32, 64])
QUERIES = 400
LONGER = st.integers(1, 10_000)
BUDGETS = st.sampled_from([3, 8, 15, 40, 200])  # tokens a query: from a few funded to more than is wanted


def tabulated(k: int = 1, *, weight: float = 1.0, is_spend_given: bool = False) -> Tabulated:
    """Return curves over a grid `k` times as long; a third of the queries are all but hopeless."""
    rng = np.random.default_rng(0)
    ended = np.sort(rng.uniform(0, 1, (QUERIES, len(GRID_K))), axis=1)
    correct = np.where(np.arange(QUERIES) % 3, rng.uniform(0.2, 1.0, QUERIES), 1e-4)
    running = np.concatenate([np.ones((QUERIES, 1)), 1.0 - ended[:, :-1]], axis=1)
    spend = np.cumsum(running * np.diff(GRID_K, prepend=0), axis=1) * k if is_spend_given else None
    return Tabulated(GRID_K * k, ended * correct[:, None], spend, weight_N=weight)


def keys() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**40, QUERIES)


def priced(utility: Utility, budget: float) -> SketchPrice:
    first = DemandSketch.first_pass(budget_tokens=budget).add(utility, tie_break_N=keys())
    return first.second_pass(budget_tokens=budget).add(utility, tie_break_N=keys()).price(budget_tokens=budget)


@PROPERTY
@given(LONGER, BUDGETS, st.booleans())
@example(10_000, 8, True)
@example(1_500, 8, False)
def test_a_batch_of_longer_answers_is_granted_as_many_times_the_tokens(
    k: int, budget: int, is_spend_given: bool
) -> None:
    short = allocate(tabulated(is_spend_given=is_spend_given), budget_tokens=budget * QUERIES, tie_break_N=keys())
    long = allocate(tabulated(k, is_spend_given=is_spend_given), budget_tokens=budget * QUERIES * k, tie_break_N=keys())
    assert long.shadow_price * k == pytest.approx(short.shadow_price, rel=1e-11)
    assert long.dual_bound == pytest.approx(short.dual_bound, rel=1e-11)
    assert np.mean(np.abs(long.tokens_N - k * short.tokens_N) > k) < 0.02  # parts of the last few steps are finer


@PROPERTY
@given(LONGER, BUDGETS, st.booleans())
@example(10_000, 8, True)
def test_a_sketched_batch_of_longer_answers_is_priced_as_many_times_lower(
    k: int, budget: int, is_spend_given: bool
) -> None:
    short = priced(tabulated(is_spend_given=is_spend_given), budget * QUERIES)
    long = priced(tabulated(k, is_spend_given=is_spend_given), budget * QUERIES * k)
    assert long.shadow_price * k == pytest.approx(short.shadow_price, rel=0.07)  # the width of its bracket
    assert long.utility == pytest.approx(short.utility, rel=0.01)
    assert long.dual_bound == pytest.approx(short.dual_bound, rel=0.01)


@pytest.mark.parametrize("weight", [1e-6, 1e-3, 1e3, 1e9, 1e12])
@pytest.mark.parametrize("budget", [3, 15, 200])
def test_a_sketch_counts_answers_of_any_worth(weight: float, budget: int) -> None:
    """Up to 1e12, the most that a row may say its answer is worth, and in answers of a million tokens."""
    once = priced(tabulated(20_000), budget * QUERIES * 20_000)
    many = priced(tabulated(20_000, weight=weight), budget * QUERIES * 20_000)
    assert many.shadow_price == pytest.approx(weight * once.shadow_price, rel=0.07)
    assert many.funded == pytest.approx(once.funded, rel=0.02)
    assert many.utility == pytest.approx(weight * once.utility, rel=0.01)
    assert many.dual_bound == pytest.approx(weight * once.dual_bound, rel=0.01)
    exact = allocate(tabulated(20_000, weight=weight), budget_tokens=budget * QUERIES * 20_000)
    assert exact.utility <= many.dual_bound


def test_one_pass_promises_nothing_of_values_that_it_does_not_count_in_full() -> None:
    first = DemandSketch.first_pass(budget_tokens=400.0).add(ShiftedErlang([10.0], 1.0, 0.1, weight_N=1e12))
    assert first.price(budget_tokens=400.0).dual_bound == np.inf


def test_unspent_tokens_raise_caps_of_any_length() -> None:
    utility = ShiftedErlang(np.full(100, 10.0), 0.5, 0.5, max_tokens_N=2.0**31 - 1)
    cleared = priced_of(utility, 100 * 2.0**30)
    assert cleared.level_tokens == 2**30


def priced_of(utility: Utility, budget: float) -> SketchPrice:
    first = DemandSketch.first_pass(budget_tokens=budget).add(utility)
    return first.second_pass(budget_tokens=budget).add(utility).price(budget_tokens=budget)


def test_answers_worth_nothing_may_be_as_long_as_any() -> None:
    utility = Tabulated([2**30], [[0.5], [0.5]], weight_N=[0.0, 1.0])
    assert allocate(utility, budget_tokens=2**30, spread_unspent=False).tokens_N.tolist() == [0, 2**30]
    assert priced_of(utility, 2**30).funded == 1


def test_the_rounding_of_a_table_is_told_from_a_fall_by_its_size() -> None:
    """Float32 knows 48,000 tokens to a few thousandths, and a budget in money may lie in millionths."""
    spend = np.array([[1_000.0, 48_000.004, 48_000.0]])
    assert Tabulated([1_000, 48_000, 50_000], [[0.1, 0.2, 0.3]], spend).spend_NK[0, 2] == 48_000.004
    with pytest.raises(UtilityError, match="non-decreasing"):
        Tabulated([1, 2], [[0.1, 0.2]], [[2e-7, 1e-7]])
