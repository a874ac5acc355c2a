"""What a round buys where prompts are paid for, or models compete, against every choice there is on small cases."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import clear, clear_menu
from clear_ray.rounds.menu import Option, reservation_prices
from clear_ray.rounds.menu_plans import Course, plans_at, price_plans

TOKENS_K = np.array([2, 5, 11])


def batch_of(rng: np.random.Generator, queries: int, token_parts: int, read_parts: int) -> Batch:
    success = np.sort(rng.random((queries, 3)), axis=1) * rng.random((queries, 1))
    survival = (1 - success) * np.sort(rng.random((queries, 3)), axis=1)[:, ::-1]
    calls = CallCosts(
        np.full(queries, token_parts), np.full(queries, read_parts), rng.integers(1, 30, queries).astype(np.int64)
    )
    return Batch(
        curves_from_incidence(success, survival_NK=survival, tokens_K=TOKENS_K),
        weight_N=rng.choice([1.0, 3.0], queries),
        max_tokens_N=np.full(queries, 11),
        tie_break_N=np.arange(queries).astype(np.uint64),
        cost_N=np.full(queries, token_parts / COST_PARTS),
        calls=calls,
    )


def best_of_all(options: list[Option], available: int) -> float:
    """Return the most that any choice of an option and a grid point, or none, for each query can be expected to bring."""
    queries = len(options[0].batch.weight_N)
    choices = []
    for query in range(queries):
        one, none = np.array([query]), np.zeros(1, np.int64)
        own = [(0, 0.0)]
        for option in options:
            calls = option.batch.calls
            assert calls is not None
            for k, tokens in enumerate(TOKENS_K):
                cost = -(-int(calls.taken_parts(one, np.array([tokens]), none)[0]) // COST_PARTS)
                own.append((cost, float(option.batch.weight_N[query] * option.batch.curves.success_NK[query, k])))
        choices.append(own)
    return max(
        sum(worth for _, worth in chosen)
        for chosen in product(*choices)
        if sum(cost for cost, _ in chosen) <= available
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_of_models_and_ceilings_beats_the_bound_and_the_grants_are_within_the_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries = int(rng.integers(1, 4))
    weights = None
    options = []
    for token_parts, read_parts in ((600, 150), (2_500, 300), (9_000, 0))[: int(rng.integers(1, 4))]:
        batch = batch_of(rng, queries, token_parts, read_parts)
        weights = batch.weight_N if weights is None else weights
        shared = Batch(batch.curves, weights, batch.max_tokens_N, batch.tie_break_N, batch.cost_N, batch.calls)
        options.append(Option(shared, np.zeros(queries, np.int64)))
    available = int(rng.integers(1, 120))
    clearing = clear_menu(options, is_open_N=np.ones(queries, bool), available_tokens=available)
    assert clearing.parts_M(options[0].batch.cost_N).sum() <= available * COST_PARTS
    worth = float(clearing.expected_utility_M.sum())
    best = best_of_all(options, available)
    assert best <= clearing.dual_bound + 1e-9
    assert worth >= best - clearing.gap - 1e-9
    assert clearing.gap == pytest.approx(clearing.dual_bound - worth, abs=1e-9)


def test_of_two_equal_queries_the_one_with_the_shorter_prompt_is_funded() -> None:
    rng = np.random.default_rng(1)
    one = batch_of(rng, 1, 1_000, 1_000)
    both = one.take(np.array([0, 0]))
    batch = Batch(
        both.curves,
        np.ones(2),
        both.max_tokens_N,
        np.arange(2).astype(np.uint64),
        both.cost_N,
        CallCosts(np.full(2, 1_000), np.full(2, 1_000), np.array([400, 10])),
    )
    clearing = clear(batch, generated_tokens_N=np.zeros(2, np.int64), is_open_N=np.ones(2, bool), available_tokens=50)
    assert clearing.index_M.tolist() == [1]
    price = reservation_prices(batch)
    assert price[1] > price[0] > 0


def test_going_on_with_an_answer_pays_for_prompt_and_answer_again() -> None:
    batch = batch_of(np.random.default_rng(3), 1, 1_000, 500)
    assert batch.calls is not None
    prompt = int(batch.calls.prompt_tokens_N[0])
    clearing = clear(batch, generated_tokens_N=np.array([5]), is_open_N=np.ones(1, bool), available_tokens=1_000)
    (tokens,) = clearing.tokens_M.tolist()
    assert clearing.reserved_parts_M is not None
    assert clearing.reserved_parts_M.tolist() == [500 * (prompt + 5) + 1_000 * tokens]


def courses(rng: np.random.Generator, queries: int, models: int) -> list[Course]:
    made = []
    for model in range(models):
        chance = np.sort(rng.random((queries, 3)), axis=1) * rng.random((queries, 1))
        cost = np.cumsum(rng.random((queries, 3)), axis=1) * 3.0**model
        made.append(Course(model, chance.copy(), chance, cost))
    return made


def ladders_from(later: list[Course], query: int, rung: int, times: int) -> list[tuple[float, float]]:
    """Return cost and worth of all that may be asked of a query after it has been asked up to a rung, nothing included."""
    found = [(0.0, 0.0)]
    for course in later:
        if (course.model + 1) * times <= rung + 1:
            continue
        then = ladders_from(later, query, max(course.model * times, rung + 1), times)
        for p, c in zip(course.chance_MK[query], course.cost_MK[query], strict=True):
            found += [(c + (1 - p) * d, p + (1 - p) * q) for d, q in then]
    return found


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_no_ladder_of_models_beats_the_bound_of_the_plans(seed: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    first, later = courses(rng, 2, 2), courses(rng, 2, 2)
    available = float(rng.choice([0.5, 1.5, 4.0, 20.0]))
    # One query has been asked of the first model once, where each may be asked twice.
    rung_M = [np.array([model * times, model * times + (times - 1) * (model == 0)]) for model in range(2)]
    first = [replace(course, rung=rung) for course, rung in zip(first, rung_M, strict=True)]
    plans = price_plans(first, later, available=available, times=times)
    assert plans.cost_M.sum() <= available + 1e-9
    bound = plans.price * available + plans.surplus_M.sum()
    ladders = []
    for query in range(2):
        own = [(0.0, 0.0)]
        for course, rung in zip(first, rung_M, strict=True):
            then = ladders_from(later, query, int(rung[query]), times)
            for p, c in zip(course.chance_MK[query], course.cost_MK[query], strict=True):
                own += [(c + (1 - p) * d, p + (1 - p) * q) for d, q in then]
        ladders.append(own)
    best = max(a[1] + b[1] for a, b in product(*ladders) if a[0] + b[0] <= available)
    assert best <= bound + 1e-9
    np.testing.assert_allclose(plans.worth_M - plans.price * plans.cost_M, plans.surplus_M, atol=1e-9)


def test_plans_cost_less_at_a_higher_price() -> None:
    rng = np.random.default_rng(5)
    first, later = courses(rng, 20, 3), courses(rng, 20, 3)
    spent = [plans_at(price, first, later).cost_M.sum() for price in np.geomspace(1e-3, 10, 40)]
    assert (np.diff(spent) <= 1e-9).all()
    assert spent[0] > spent[-1]
