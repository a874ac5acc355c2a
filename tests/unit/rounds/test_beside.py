"""A clearing beside running grants: what it may grant, and that nothing is sold below what running queries will want."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch, cost_parts, survival_at, taken_tokens
from clear_ray.rounds.beside import RunningGrants, clear_beside
from clear_ray.rounds.clearing import clear
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.pace import ClearingPace
from clear_ray.rounds.rounds import Rounds

GRID = np.array([10, 20, 40, 80])
PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)
NONE = np.zeros(0, np.int64)


def batch_of(right_NK: np.ndarray, survival_NK: np.ndarray, cost_N: np.ndarray | None = None) -> Batch:
    queries = len(right_NK)
    return Batch(
        curves_from_incidence(right_NK, survival_NK=survival_NK, tokens_K=GRID),
        np.ones(queries),
        np.full(queries, 80),
        np.arange(queries).astype(np.uint64),
        np.ones(queries) if cost_N is None else cost_N,
    )


def random_batch(seed: int, queries: int) -> Batch:
    rng = np.random.default_rng(seed)
    survival_NK = np.sort(rng.random((queries, 4)), axis=1)[:, ::-1]
    right_NK = np.maximum.accumulate((1 - survival_NK) * rng.random((queries, 1)), axis=1)
    return batch_of(right_NK, survival_NK, rng.choice([0.25, 1.0, 2.5], queries))


@given(seed=st.integers(0, 10_000), available=st.integers(1, 400))
@PROPERTY
def test_free_queries_alone_are_granted_and_no_more_than_is_there(seed: int, available: int) -> None:
    rng, batch = np.random.default_rng(seed), random_batch(seed, 12)
    generated_N = rng.choice([0, 0, 10, 80], 12)
    state_N = rng.choice(3, 12)  # free, running, over
    index = np.flatnonzero((state_N == 1) & (generated_N < 80))
    tokens = rng.integers(1, 81 - generated_N[index]) if len(index) else NONE
    running = RunningGrants(index, tokens, rng.integers(0, tokens + 1) if len(index) else NONE)
    found = clear_beside(
        batch, generated_tokens_N=generated_N, is_free_N=state_N == 0, running=running, available_tokens=available
    )
    assert (state_N[found.index_M] == 0).all()
    assert (found.tokens_M >= 1).all()
    assert (generated_N[found.index_M] + found.tokens_M <= 80).all()
    assert taken_tokens(found.tokens_M, batch.cost_N[found.index_M]) <= available
    assert found.gap >= 0.0


@given(seed=st.integers(0, 10_000), available=st.integers(1, 400))
@PROPERTY
def test_without_running_queries_it_is_a_clearing(seed: int, available: int) -> None:
    batch, free_N = random_batch(seed, 12), np.random.default_rng(seed).random(12) < 0.7
    none = RunningGrants(NONE, NONE, NONE)
    given = {"generated_tokens_N": np.zeros(12, np.int64), "available_tokens": available}
    found = clear_beside(batch, is_free_N=free_N, running=none, **given)
    expected = clear(batch, is_open_N=free_N, **given)
    assert found.index_M.tolist() == expected.index_M.tolist()
    assert found.tokens_M.tolist() == expected.tokens_M.tolist()
    assert found.shadow_price == expected.shadow_price


def test_what_a_running_query_will_want_is_not_sold_for_less() -> None:
    """Query 1 runs to its 20 tokens for sure and is then worth .04 a token; query 0 is free and worth .005."""
    right_NK = np.array([[0.05, 0.1, 0.2, 0.4], [0.0, 0.0, 0.8, 0.8]])
    survival_NK = np.array([[0.9, 0.8, 0.6, 0.4], [1.0, 1.0, 0.0, 0.0]])
    batch, running = batch_of(right_NK, survival_NK), RunningGrants(np.array([1]), np.array([20]), np.array([5]))

    def granted(available: int) -> list[int]:
        found = clear_beside(
            batch,
            generated_tokens_N=np.zeros(2, np.int64),
            is_free_N=np.array([True, False]),
            running=running,
            available_tokens=available,
        )
        assert found.kept_tokens == available - int(found.tokens_M.sum())
        return list(zip(found.index_M.tolist(), found.tokens_M.tolist(), strict=True))  # type: ignore[arg-type]

    assert granted(20) == [], "all of it is held back"
    assert granted(50) == [(0, 30)]


def test_one_that_has_come_far_is_the_more_likely_to_want_more() -> None:
    """Half of the answers end by 20 tokens; of one that is at its 19th most do not."""
    batch = batch_of(np.array([[0.2, 0.3, 0.5, 0.6]]), np.array([[0.6, 0.5, 0.2, 0.1]]))
    assert np.allclose(survival_at(batch.curves, np.array([0])), 1.0)
    assert np.allclose(survival_at(batch.curves.take([0, 0, 0, 0]), np.array([5, 10, 30, 200])), [0.8, 0.6, 0.35, 0.1])


@given(seed=st.integers(0, 10_000), budget=st.integers(60, 600), service=st.integers(1, 30))
@PROPERTY
def test_beside_others_no_query_is_granted_less_than_it_is_owed(seed: int, budget: int, service: int) -> None:
    rng, batch = np.random.default_rng(seed), random_batch(seed, 12)
    rounds = Rounds(BatchOffers(batch), AllocationConfig(minimum_service_tokens=service))
    spent_parts, cost_N = 0, cost_parts(batch.cost_N)
    while (granted := rounds.next(budget - -(-spent_parts // COST_PARTS))) is not None:
        clearing, owed_N = granted.clearing, np.where(rounds.states.rounds_N == 0, service, 0)
        assert (clearing.tokens_M >= owed_N[clearing.index_M]).all()
        back = rng.permutation(len(clearing.index_M))[: rng.integers(1, 3)]
        index_M, tokens_M = clearing.index_M[back], rng.integers(0, clearing.tokens_M[back]) + 1
        spent_parts += int(tokens_M @ cost_N[index_M])
        is_over_M = tokens_M < clearing.tokens_M[back]
        falses_M, answer_M = np.zeros(len(back), bool), rounds.states.answer_tokens_N[index_M] + tokens_M
        rounds.note(
            granted.number,
            Attempts(
                index_M, clearing.tokens_M[back], tokens_M, answer_M, is_over_M, falses_M, falses_M, np.zeros(len(back))
            ),
        )


def test_a_clearing_beside_others_waits_for_slots_and_tokens() -> None:
    pace = ClearingPace(slots=64)
    many = {"available_tokens": 1_000, "promised_tokens": 1_000}
    assert pace.is_due(waiting=0, running=60, **many)
    assert not pace.is_due(waiting=1, running=60, **many), "what was granted starts first"
    assert not pace.is_due(waiting=0, running=61, **many), "too few slots are idle"
    assert not pace.is_due(waiting=0, running=32, available_tokens=15, promised_tokens=1_000), "too little came back"
    pace.note(was_granted=False, running=60, available_tokens=1_000)
    assert not pace.is_due(waiting=0, running=60, **many), "nothing has changed"
    assert pace.is_due(waiting=0, running=56, **many)
    assert pace.is_due(waiting=0, running=60, available_tokens=1_100, promised_tokens=900)
    pace.note(was_granted=True, running=60, available_tokens=1_000)
    assert pace.is_due(waiting=0, running=60, **many)
