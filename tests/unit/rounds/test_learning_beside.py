"""A run that teaches itself goes on while its last answers are running, and counts them for what they have come to."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.rounds.beside import RunningGrants
from clear_ray.rounds.learning_beside import (
    LEARNING_CAME_BACK_SHARE,
    OverlappingLearningOffers,
    few_running_share,
    with_running,
)
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, observe
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from clear_ray.sweep.overlapped import Timed, timed_run
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers
from tests.unit.rounds.test_learning_offers import CAP, DEMO, offers, world


def overlapping(
    queries: int, average: float, *, seed: int, **changed: Any
) -> tuple[OverlappingLearningOffers, Answers]:
    x_NP, answers = world(queries, seed=seed)
    one = offers(x_NP, average, seed=seed)
    given = {field.name: getattr(one, field.name) for field in fields(one)}
    return OverlappingLearningOffers(**given | changed), answers


def played(queries: int, seed: int, *, overlaps: bool) -> Timed:
    learning, answers = overlapping(queries, 14.0, seed=seed)
    spread_N = np.exp(np.random.default_rng(seed).normal(0.0, 0.8, queries))  # most are short, and some are very long
    length_N = np.clip(np.rint(answers.length_N * spread_N), 1, CAP).astype(np.int64)
    answers = Answers(length_N, length_N < CAP, answers.is_right_N & (length_N < CAP))
    return timed_run(
        learning,
        answers,
        budget_tokens=learning.budget_tokens,
        slots=queries // 2,
        overlaps=overlaps,
        allocation=AllocationConfig(max_rounds=4 * LEARNING_ROUNDS),
    )


def test_a_run_that_learns_is_sooner_done_and_as_good() -> None:
    overlapped, waited = (played(120, 1, overlaps=overlaps) for overlaps in (True, False))
    assert max(overlapped.tokens_N.sum(), waited.tokens_N.sum()) <= 14 * 120
    assert overlapped.steps < 0.95 * waited.steps
    assert overlapped.is_right_N.sum() > 0.9 * waited.is_right_N.sum()


@pytest.mark.parametrize("order", [7])
def test_kinds_that_were_always_cut_are_followed_in_time(order: int) -> None:
    """In this order of the demo's queries they were not, while stages did not wait for what they had go on."""
    recording = read_recording(str(DEMO))
    known, place = (
        (recording.features, recording.rollouts.prompts),
        np.random.default_rng(1_000 + order).permutation(104),
    )
    x_NP = fit_coordinates(*known, sets=("text", "ngrams"))(*known)[place]
    learning, _ = overlapping(104, 1_400 / 104, seed=order, x_NP=x_NP)
    learning = replace(learning, tokens_K=token_grid(160), max_tokens_N=np.full(104, 160), budget_tokens=1_400)
    answers = Answers(recording.length_NS[place, 0], recording.is_stopped_NS[place, 0], recording.is_right_NS[place, 0])
    allocation = AllocationConfig(max_rounds=4 * LEARNING_ROUNDS)
    timed = timed_run(learning, answers, budget_tokens=1_400, slots=32, overlaps=True, allocation=allocation)
    assert timed.is_right_N.sum() > 30


def cut(states: QueryStates, lengths: dict[int, int], *, has_stopped: bool = False) -> None:
    """Note answers of so many tokens."""
    for index, tokens in lengths.items():
        states.answer_tokens_N[index], states.has_stopped_N[index] = tokens, has_stopped
        states.correct_N[index] = 1.0 if has_stopped else np.nan


@given(
    progress=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    cuts=st.dictionaries(st.integers(0, 9), st.integers(1, 9)),
)
@settings(max_examples=50, deadline=None)
def test_what_is_running_is_an_answer_that_was_cut_where_it_has_come_to(
    progress: list[int], cuts: dict[int, int]
) -> None:
    states = QueryStates(np.ones(10))
    cut(states, cuts)
    cut(states, {index: 5 for index in range(6, 10) if index not in cuts}, has_stopped=True)
    index = np.arange(len(progress))
    running = RunningGrants(index, np.full(len(index), 10), np.array(progress))
    seen = with_running(observe(states), states, running)
    assert np.all(np.diff(seen.query_M) > 0), "in order, and each query once"
    tokens = dict(zip(seen.query_M.tolist(), seen.tokens_M.tolist(), strict=True))
    for query, so_far in enumerate(progress):
        assert tokens.get(query, 0) == cuts.get(query, 0) + so_far
    ended = seen.query_M[seen.is_ended_M]
    assert set(ended.tolist()) == {index for index in range(6, 10) if index not in cuts}
    assert np.isnan(seen.right_M[~seen.is_ended_M]).all()


def asked(learning: OverlappingLearningOffers, states: QueryStates, running: int, available_tokens: int) -> int:
    """Return how many grants are made beside so many running ones of the last queries."""
    queries = len(states.cost_N)
    index = np.arange(queries - running, queries)
    is_free_N = states.is_open_N & ~states.has_stopped_N
    is_free_N[index] = False
    grants = RunningGrants(index, np.full(running, 40), np.full(running, 8))
    return len(
        learning.clear_beside(states, is_free_N=is_free_N, running=grants, available_tokens=available_tokens).index_M
    )


def test_it_waits_for_the_pilot_and_while_much_is_unknown() -> None:
    learning, _ = overlapping(60, 14.0, seed=0)
    states = QueryStates(np.ones(60))
    assert asked(learning, states, 2, 500) == 0
    cut(states, {index: 5 + index % 24 for index in range(40)}, has_stopped=True)
    most = int(few_running_share(60) * 40)
    assert asked(learning, states, most, 700) > 0
    assert asked(learning, states, most + 1, 700) == 0
    cut(states, {59: 9})
    assert asked(learning, states, 1, 700) == 0, "the next stage begins once it is seen whether that goes on to an end"


def test_of_a_larger_batch_more_answers_may_be_missing() -> None:
    shares = [few_running_share(queries) for queries in (1, 250, 500, 1_000, 10**6)]
    assert shares == [1 / 32, 1 / 32, 1 / 16, 1 / 8, 1 / 8]


def test_the_rest_waits_for_a_good_part_of_it_to_come_back() -> None:
    """However much is running, and whether it goes on or not: no stage is left."""
    learning, _ = overlapping(60, 14.0, seed=0)
    states = QueryStates(np.ones(60))
    cut(states, {index: 5 + index % 24 for index in range(40)}, has_stopped=True)
    cut(states, {59: 9})
    promised_tokens = 3 * 40
    enough = int(LEARNING_CAME_BACK_SHARE / (1 - LEARNING_CAME_BACK_SHARE) * promised_tokens) + 1
    assert asked(learning, states, 3, enough) > 0
    assert asked(learning, states, 3, enough - 2) == 0


def test_what_it_cannot_price_beside_others_waits() -> None:
    states = QueryStates(np.ones(60))
    cut(states, {index: 5 + index for index in range(24)}, has_stopped=True)
    for changed in ({"asks_again": True}, {"basis": "expected"}):
        learning, _ = overlapping(60, 14.0, seed=0, **changed)
        assert asked(learning, states, 1, 500) == 0


@pytest.mark.parametrize("available_tokens", [1, 30, 700])
def test_no_more_is_granted_than_is_there(available_tokens: int) -> None:
    learning, _ = overlapping(60, 14.0, seed=1)
    states = QueryStates(np.ones(60))
    cut(states, {index: 5 + index for index in range(24)}, has_stopped=True)
    is_free_N = np.arange(60) < 58
    running = RunningGrants(np.array([58, 59]), np.array([40, 30]), np.array([9, 0]))
    clearing = learning.clear_beside(
        states, is_free_N=is_free_N & ~states.has_stopped_N, running=running, available_tokens=available_tokens
    )
    assert clearing.tokens_M.sum() <= available_tokens
    assert not np.isin(clearing.index_M, [58, 59]).any()


def test_clearings_beside_others_count_only_where_rounds_are_given() -> None:
    learning, answers = overlapping(60, 14.0, seed=0)
    rounds = Rounds(learning, AllocationConfig(), most_alone=2)
    for number in (1, 2):
        granted = rounds.next(840 if number == 1 else 700)
        assert granted is not None
        tokens_M = granted.clearing.tokens_M
        rounds.take(number, [answers.attempts(granted.clearing.index_M, tokens_M, np.zeros_like(tokens_M))])
    assert not rounds.may_clear(500)
    assert Rounds(replace(learning), AllocationConfig(max_rounds=5), most_alone=2).may_clear(840)
