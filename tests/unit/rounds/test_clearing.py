"""One round of the market: where tokens differ in cost, where floors are owed, and in which order grants start."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.allocation import Tabulated
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.rounds.batch import Batch, taken_tokens, uniform_ceiling
from clear_ray.rounds.clearing import Clearing, clear, dispatch_order
from clear_ray.rounds.minimum_service import minimum_service, owed_tokens

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


def cleared(batch: Batch, available_tokens: int, owed_tokens_N: np.ndarray | None = None) -> Clearing:
    queries = len(batch.weight_N)
    return clear(
        batch,
        generated_tokens_N=np.zeros(queries, np.int64),
        is_open_N=np.ones(queries, bool),
        available_tokens=available_tokens,
        owed_tokens_N=owed_tokens_N,
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


def test_grants_that_fit_at_once_start_longest_first_and_the_rest_follow_by_what_their_tokens_are_worth() -> None:
    tokens, worth = np.array([5, 0, 9, 7, 9, 4]), np.array([0.5, 0.9, 0.3, 0.7, 0.9, 0.1])
    order = dispatch_order(tokens, tokens.astype(float), worth, available_tokens=100)
    assert order.tolist() == [4, 2, 3, 0, 5], "the longest first, of equals the one that is worth more; no grant of 0"
    # By worth a token: 0 and 3, then 4, 2 and 5. What 0, 3 and 4 take fits 21 tokens; the rest waits for refunds.
    order = dispatch_order(tokens, tokens.astype(float), worth, available_tokens=21)
    assert order.tolist() == [4, 3, 0, 2, 5]
    # Query 4 at three times the cost is worth the least: then 2 fits in its place.
    taken = tokens * np.array([1.0, 1.0, 1.0, 1.0, 3.0, 1.0])
    assert dispatch_order(tokens, taken, worth, available_tokens=21).tolist() == [2, 3, 0, 4, 5]


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 400))
def test_a_clearing_of_ceilings_starts_its_longest_grant_first(seed: int, queries: int, available_tokens: int) -> None:
    tokens = cleared(batch_of(seed, queries), available_tokens).tokens_M
    np.testing.assert_array_equal(tokens, np.sort(tokens)[::-1])


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 8), st.integers(0, 40))
def test_no_sharing_beats_the_bound_of_a_clearing_with_floors(seed: int, queries: int, floor: int, extra: int) -> None:
    """Whatever is sold beside the floors that are kept back, within what they leave."""
    batch, rng = batch_of(seed, queries), np.random.default_rng(seed)
    owed_N = owed_tokens(rng.random(queries) < 0.7, batch.max_tokens_N, floor)
    available_tokens = taken_tokens(owed_N, batch.cost_N) + extra
    clearing = cleared(batch, available_tokens, owed_N)
    utility = float(clearing.expected_utility_M.sum())
    assert clearing.gap == pytest.approx(clearing.dual_bound - utility, abs=1e-9)
    is_granted_N = np.isin(np.arange(queries), clearing.index_M)
    is_kept_N = (owed_N > 0) & ~is_granted_N
    assert clearing.kept_tokens == taken_tokens(owed_N[is_kept_N], batch.cost_N[is_kept_N])
    tokens_NT = [
        [0] if is_kept else sorted({int(owed), *(t for t in (0, 2, 4, 8, 16, 32, int(most)) if owed <= t <= most)})
        for is_kept, owed, most in zip(is_kept_N, owed_N, batch.max_tokens_N, strict=True)
    ]
    utility_of = Tabulated(batch.curves.tokens_K, batch.curves.success_NK, weight_N=batch.weight_N).utility
    best = max(
        float(utility_of(np.array(tokens)).sum())
        for tokens in product(*tokens_NT)
        if taken_tokens(np.array(tokens), batch.cost_N) + clearing.kept_tokens <= available_tokens
    )
    assert best <= clearing.dual_bound + 1e-9


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.integers(0, 100))
def test_a_minimum_service_is_its_own_bound(seed: int, queries: int, floor: int, available_tokens: int) -> None:
    batch = batch_of(seed, queries)
    owed_N = owed_tokens(np.random.default_rng(seed).random(queries) < 0.7, batch.max_tokens_N, floor)
    service = minimum_service(batch, owed_tokens_N=owed_N, available_tokens=available_tokens, shadow_price=0.25)
    utility_of = Tabulated(batch.curves.tokens_K, batch.curves.success_NK, weight_N=batch.weight_N).utility
    paid_N = np.where(np.isin(np.arange(queries), service.index_M), owed_N, 0)
    np.testing.assert_array_equal(service.tokens_M, owed_N[service.index_M])
    assert taken_tokens(paid_N, batch.cost_N) <= available_tokens
    # There is no choice in it: what it grants is the most that it can be worth.
    assert service.dual_bound == pytest.approx(float(utility_of(paid_N).sum()), abs=1e-12)
    assert service.expected_utility_M.sum() == pytest.approx(service.dual_bound, abs=1e-12)
    assert (service.gap, service.shadow_price, service.is_service) == (0.0, 0.25, True)
    order = np.argsort(batch.tie_break_N)
    due = [index for index in order if owed_N[index]]
    assert service.index_M.tolist() == due[: len(service.index_M)], "in the order in which ties are broken"
    if len(service.index_M) < len(due):
        paid_N[due[len(service.index_M)]] = owed_N[due[len(service.index_M)]]
        assert taken_tokens(paid_N, batch.cost_N) > available_tokens, "the next would not fit"
