"""One round of the market, where tokens differ in cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.rounds.batch import Batch, uniform_ceiling
from clear_ray.rounds.clearing import Clearing, clear

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


def batch_of(seed: int, queries: int) -> Batch:
    rng = np.random.default_rng(seed)
    tokens_K = np.array([2, 4, 8, 16, 32])
    success = np.sort(rng.random((queries, 5)), axis=1) * rng.random((queries, 1))
    survival = (1 - success) * np.sort(rng.random((queries, 5)), axis=1)[:, ::-1]
    return Batch(
        curves=curves_from_incidence(success, survival_NK=survival, tokens_K=tokens_K),
        weight_N=rng.choice([0.5, 1.0, 2.0], queries),
        max_tokens_N=rng.integers(1, 33, queries),
        tie_break_N=rng.permutation(queries).astype(np.uint64),
        cost_N=rng.choice([0.125, 0.5, 1.0, 2.5, 7.333], queries),
    )


def cleared(batch: Batch, available_tokens: int) -> Clearing:
    queries = len(batch.weight_N)
    return clear(
        batch,
        generated_tokens_N=np.zeros(queries, np.int64),
        is_open_N=np.ones(queries, bool),
        available_tokens=available_tokens,
    )


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 400))
def test_grants_cost_no_more_than_is_available(seed: int, queries: int, available_tokens: int) -> None:
    batch = batch_of(seed, queries)
    clearing = cleared(batch, available_tokens)
    assert clearing.tokens_M @ batch.cost_N[clearing.index_M] <= available_tokens
    assert (clearing.tokens_M <= batch.max_tokens_N[clearing.index_M]).all()
    assert clearing.expected_utility_M.sum() <= clearing.dual_bound + 1e-9


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 400))
def test_twice_the_cost_and_twice_the_budget_buy_the_same_at_half_the_price(
    seed: int, queries: int, budget: int
) -> None:
    batch = batch_of(seed, queries)
    once, twice = cleared(batch, budget), cleared(replace(batch, cost_N=2 * batch.cost_N), 2 * budget)
    np.testing.assert_array_equal(once.index_M, twice.index_M)
    np.testing.assert_array_equal(once.tokens_M, twice.tokens_M)
    assert twice.shadow_price == pytest.approx(once.shadow_price / 2, rel=1e-9)


def test_of_two_equal_queries_the_cheaper_is_funded() -> None:
    one = batch_of(3, 1)
    both = one.take(np.array([0, 0]))
    both = replace(both, cost_N=np.array([2.0, 1.0]), max_tokens_N=np.array([32, 32]))
    clearing = cleared(both, 16)
    assert clearing.index_M[0] == 1
    assert clearing.tokens_M[clearing.index_M == 1].sum() > clearing.tokens_M[clearing.index_M == 0].sum()


def test_a_uniform_ceiling_spends_the_budget_at_the_costs_of_the_queries() -> None:
    batch = batch_of(5, 6)
    ceiling, utility = uniform_ceiling(batch, 60.0)
    dearer, less = uniform_ceiling(replace(batch, cost_N=2 * batch.cost_N), 60.0)
    assert dearer < ceiling
    assert less < utility
    assert uniform_ceiling(replace(batch, cost_N=2 * batch.cost_N), 120.0) == (ceiling, pytest.approx(utility))
