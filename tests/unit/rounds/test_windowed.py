"""Offers to the newest queries of a batch that is being read: who is offered what, and that all are offered it at the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.window import Window
from clear_ray.rounds.batch import Batch, taken_tokens
from clear_ray.rounds.beside import RunningGrants, Standing, clear_beside
from clear_ray.rounds.clearing import Clearing, clear
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.widening import Widening
from clear_ray.rounds.windowed import WindowedOffers
from clear_ray.sweep.replayed import Answers
from tests.unit.rounds.test_beside import PROPERTY, batch_of, random_batch

QUERIES, HELD, NEWEST = 40, 10, 8
NONE = np.zeros(0, np.int64)


def offers_of(batch: Batch, known: int, held: int = HELD) -> WindowedOffers:
    """Return offers of a batch whose first queries are known, in that order."""
    is_known_N, window = np.arange(len(batch.weight_N)) < known, Window(len(batch.weight_N), held)
    window.take_in(np.arange(known))
    so_far = replace(batch, max_tokens_N=np.where(is_known_N, batch.max_tokens_N, 0))
    return WindowedOffers(so_far, is_known_N, window, BatchOffers(so_far))


def same(found: Clearing, expected: Clearing, index: np.ndarray) -> None:
    """Check a clearing of a batch against one of some of its queries."""
    assert found.index_M.tolist() == index[expected.index_M].tolist()
    assert found.tokens_M.tolist() == expected.tokens_M.tolist()
    for name in ("shadow_price", "dual_bound", "gap"):
        assert getattr(found, name) == getattr(expected, name), name


@given(seed=st.integers(0, 10_000), known=st.integers(1, NEWEST) | st.just(QUERIES), available=st.integers(1, 500))
@PROPERTY
def test_it_is_a_clearing_of_what_is_known_while_all_of_that_is_held_and_once_all_is_read(
    seed: int, known: int, available: int
) -> None:
    rng, batch = np.random.default_rng(seed), random_batch(seed, QUERIES)
    offers, states = offers_of(batch, known), QueryStates(batch.cost_N)
    states.answer_tokens_N[:] = rng.choice([0, 0, 10, 80], QUERIES)
    is_free_N = rng.random(QUERIES) < 0.7
    nothing_N = np.zeros(QUERIES, np.int64)
    found = offers.clear(states, is_free_N=is_free_N, available_tokens=available, owed_tokens_N=nothing_N)
    expected = clear(
        batch.take(np.arange(known)),
        generated_tokens_N=states.answer_tokens_N[:known],
        is_open_N=is_free_N[:known],
        available_tokens=available,
    )
    same(found, expected, np.arange(known))
    assert found.over_queries is None


@given(seed=st.integers(0, 10_000), known=st.integers(NEWEST + 1, QUERIES - 1), available=st.integers(1, 900))
@PROPERTY
def test_those_before_the_newest_are_granted_nothing_and_the_rest_within_what_is_there(
    seed: int, known: int, available: int
) -> None:
    rng, batch = np.random.default_rng(seed), random_batch(seed, QUERIES)
    offers, states = offers_of(batch, known), QueryStates(batch.cost_N)
    window = offers.window
    assert window is not None
    newest, sample = np.flatnonzero(window.is_newest_N), np.flatnonzero(window.is_sample_N)
    assert newest.tolist() == list(range(known - NEWEST, known))
    assert len(sample) * window.each == pytest.approx(known - NEWEST)
    state_N = rng.choice(3, QUERIES)  # free, running, over
    index_M = np.flatnonzero((state_N == 1) & (np.arange(QUERIES) < known))
    tokens_M = rng.integers(1, 81, len(index_M))
    running = RunningGrants(index_M, tokens_M, tokens_M // 2)
    found = offers.clear_beside(states, is_free_N=state_N == 0, running=running, available_tokens=available)
    assert set(found.index_M) <= set(newest[state_N[newest] == 0])
    assert found.over_queries in (None, len(newest) + len(sample))
    assert taken_tokens(found.tokens_M, batch.cost_N[found.index_M]) <= available
    assert found.gap >= 0.0


def test_what_those_before_would_buy_is_held_back_for_them() -> None:
    """A newest query is worth .005 a token; one before it, which stands for 30, wants 20 tokens each for .04 a token."""
    right_NK = np.array([[0.0, 0.8, 0.8, 0.8], [0.05, 0.1, 0.2, 0.4]])
    survival_NK = np.array([[1.0, 0.0, 0.0, 0.0], [0.9, 0.8, 0.6, 0.4]])
    batch, running = batch_of(right_NK, survival_NK), RunningGrants(NONE, NONE, NONE)

    def granted(available: int, each: float) -> list[int]:
        found = clear_beside(
            batch,
            generated_tokens_N=np.zeros(2, np.int64),
            is_free_N=np.ones(2, bool),
            running=running,
            available_tokens=available,
            standing=Standing(np.array([0]), each),
        )
        assert found.kept_tokens == available - int(found.tokens_M.sum())
        assert 0 not in found.index_M
        return found.tokens_M.tolist()

    assert granted(600, 30.0) == []
    assert granted(640, 30.0) == [40]
    assert granted(640, 31.0) == [20]
    assert granted(60, 2.0) == [20]


def test_what_comes_back_of_a_running_query_comes_back_of_all_that_it_stands_for() -> None:
    """Query 0 runs and is expected to give some 70 tokens back; query 2 wants 10 for .04 each; each stands for ten.

    Query 1 is free and wants 10 tokens for .05 each, and 10 more for .03.
    """
    right_NK = np.array([[0.9, 0.9, 0.9, 0.9], [0.5, 0.8, 0.8, 0.8], [0.4, 0.4, 0.4, 0.4]])
    survival_NK = np.array([[0.1, 0.05, 0.0, 0.0], [0.4, 0.1, 0.0, 0.0], [0.5, 0.2, 0.0, 0.0]])

    def granted(*running: int) -> list[int]:
        index_M = np.array(running, np.int64)
        found = clear_beside(
            batch_of(right_NK, survival_NK),
            generated_tokens_N=np.zeros(3, np.int64),
            is_free_N=np.array([False, True, True]),
            running=RunningGrants(index_M, np.full(len(index_M), 80), np.zeros(len(index_M), np.int64)),
            available_tokens=110,
            standing=Standing(np.array([0, 2]), 10.0),
        )
        assert set(found.index_M) <= {1}
        return found.tokens_M.tolist()  # type: ignore[no-any-return]

    assert granted() == [10]
    assert granted(0)[0] >= 20


def test_once_all_are_known_it_waits_for_what_is_running() -> None:
    batch = random_batch(0, QUERIES)
    offers, running = offers_of(batch, QUERIES), RunningGrants(NONE, NONE, NONE)
    free_N = np.ones(QUERIES, bool)
    found = offers.clear_beside(QueryStates(batch.cost_N), is_free_N=free_N, running=running, available_tokens=900)
    assert not len(found.index_M)


def test_the_newest_are_granted_while_prompts_are_read_and_at_the_end_all() -> None:
    assert sum(played(seed) for seed in range(6)), "queries that had left are offered what is left at the end"


def played(seed: int) -> int:
    """Play a run to its end; return to how many queries that had left the window it granted anything.

    No part of the budget is overspent, and none of them is granted anything before the end.
    """
    batch, rng = random_batch(seed, 60), np.random.default_rng(seed)
    ceilings = batch.max_tokens_N.copy()
    offers, widening, budget = offers_of(batch, 0), Widening(60, 1, HELD), 60 * 14
    window = offers.window
    assert window is not None
    answers = Answers(rng.integers(3, 90, 60), np.ones(60, bool), np.ones(60, bool))
    rounds, spent, left_by = Rounds(offers, AllocationConfig(smallest_grant_tokens=2)), 0, list[int]()
    rounds.widen(0)
    while True:
        if not widening.is_whole:
            window.take_in(np.arange(widening.known, widening.wanted))
            widening.known = widening.wanted
            offers.is_known_N[: widening.known] = True
            offers.max_tokens_N[: widening.known] = ceilings[: widening.known]
            rounds.widen(None if widening.is_whole else widening.known)
        share = widening.share_of(budget)
        granted = rounds.next(share - spent)
        widening.note_clearing()
        if granted is None and rounds.known_queries is None:
            break
        if granted is None:
            continue
        index_M, tokens_M = granted.clearing.index_M, granted.clearing.tokens_M
        if granted.known_queries is not None:
            assert granted.known_queries - NEWEST <= index_M.min() <= index_M.max() < granted.known_queries
        else:
            left_by += index_M[index_M < 60 - NEWEST].tolist()
        before_M = rounds.states.answer_tokens_N[index_M]
        report = rounds.take(granted.number, [answers.attempts(index_M, tokens_M, before_M)])
        assert report.over_queries == granted.clearing.over_queries
        spent = taken_tokens(rounds.states.written_tokens_N, batch.cost_N)
        assert spent <= share
    assert spent > 0.9 * budget or not (rounds.states.is_open_N & (rounds.states.answer_tokens_N < ceilings)).any()
    return len(left_by)
