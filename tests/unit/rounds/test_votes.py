"""Votes: which answer is kept, what another one is worth, and that no verdict is ever looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.factors import Observed
from clear_ray.estimation.likeness import Likeness
from clear_ray.estimation.votes import Habits, Votes
from clear_ray.rounds.attempt_menu import AttemptStates
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.ballots import Ballot, Ballots
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LearningOffers, observe
from clear_ray.rounds.offers import Offers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.vote_menu import vote_menu
from clear_ray.sweep.replayed import Replayed, SampledAnswers, replay_run
from tests.unit.rounds.test_clearing import batch_of

PROPERTY = settings(derandomize=True, deadline=None, max_examples=20)


def sampled(seed: int, queries: int, samples: int = 5) -> SampledAnswers:
    """Draw answers, of which those right give result 1 and others one of five."""
    rng = np.random.default_rng([seed, 11])
    shape = (queries, samples)
    is_stopped = rng.random(shape) < 0.85
    is_right = is_stopped & (rng.random(shape) < 0.4)
    vote = np.where(is_right, 1, rng.integers(2, 7, shape))
    vote[rng.random(shape) < 0.05] = 0  # no result can be read
    return SampledAnswers(rng.integers(1, 33, shape), is_stopped, is_right, vote)


def play(answers: SampledAnswers, offers: Offers, budget: int, attempts: int = 4) -> Replayed:
    rule = AttemptRule("vote", np.full(len(answers.length_NS), attempts, np.int64))
    allocation = AllocationConfig(objective="vote", attempts=attempts)
    return replay_run(offers, answers, budget_tokens=budget, allocation=allocation, rule=rule)


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 900))
def test_no_verdict_is_looked_at_and_no_token_is_spent_twice(seed: int, queries: int, budget: int) -> None:
    answers, offers = sampled(seed, queries), AttemptOffers(batch_of(seed, queries))
    found = play(answers, offers, budget)
    blind = play(replace(answers, is_right_NS=np.zeros_like(answers.is_right_NS)), offers, budget)
    assert [round_.clearing.tokens_M.tolist() for round_ in found.rounds] == [
        round_.clearing.tokens_M.tolist() for round_ in blind.rounds
    ]
    assert (found.spent_tokens_N * offers.cost_N).sum() <= budget + 1e-9
    assert found.attempts_N.max(initial=0) <= 4
    for round_ in found.rounds:
        clearing = round_.clearing
        assert clearing.gap >= 0.0
        assert (clearing.expected_utility_M >= 0.0).all()


@PROPERTY
@given(st.integers(0, 10_000))
def test_ample_tokens_keep_the_most_frequent_result(seed: int) -> None:
    answers = sampled(seed, 6)
    batch = replace(batch_of(seed, 6), weight_N=np.ones(6))
    rounds = Rounds(
        AttemptOffers(batch),
        AllocationConfig(objective="vote", attempts=5),
        rule=AttemptRule("vote", np.full(6, 5, np.int64)),
    )
    states, numbers = rounds.states, np.arange(6)
    seen: dict[int, list[tuple[int, int]]] = {int(query): [] for query in numbers}
    while (granted := rounds.next(10_000)) is not None:
        begins_N = np.zeros(6, bool)
        begins_N[granted.clearing.index_M] = states.begins_M(granted.clearing)
        current = answers.of_attempt(states.attempt_N + begins_N)
        index_M, tokens_M = granted.clearing.index_M, granted.clearing.tokens_M
        before_N = np.where(begins_N, 0, states.answer_tokens_N)
        came = current.attempts(index_M, tokens_M, before_N[index_M])
        rounds.take(granted.number, [came])
        assert came.vote_M is not None
        for place in np.flatnonzero(came.has_stopped_M & (came.vote_M != 0)):
            query = int(index_M[place])
            seen[query].append((int(came.vote_M[place]), int(states.attempt_N[query])))
    for query, own in seen.items():
        if not own:
            continue
        counted = Counter(vote for vote, _ in own)
        first = next(attempt for vote, attempt in own if counted[vote] == max(counted.values()))
        assert states.chosen_attempt_N[query] == first
        assert states.chosen_has_stopped_N[query]


def standing(left: int) -> AttemptStates:
    one = np.ones(1)
    return AttemptStates(
        np.zeros(1, np.int64),
        np.array([left]),
        0 * one,
        0 * one,
        0 * one,
        np.ones((1, 1)),
        Likeness(rho=0.0, trust=np.inf),
    )


def best(votes: Votes, left: int = 6) -> float:
    batch = batch_of(3, 1)
    menu = vote_menu(
        batch, standing(left), [votes], most_tokens_N=np.array([10_000]), habits=Habits(trust=2.0, theta=8.0)
    )
    return float(menu.success_JN.max())


def test_another_vote_is_worth_less_the_more_agree() -> None:
    assert best(()) > best((1, 1)) > best((2, 1)) > best((3, 1)) >= 0.0
    assert best((2,)) < 0.2 * best((1,))
    assert best((1,), left=1) == pytest.approx(0.0, abs=1e-9), "a second vote alone changes nothing"
    assert best((1, 1), left=1) > 0.0


def test_very_many_votes_are_looked_ahead_from_no_further_than_a_few() -> None:
    """A query of hundreds of votes beside one of none: what votes may become is not unfolded without end."""
    many, batch = (9, 8, 7, 6, 5, 4, 3, 3, 2, 2, 1, 1, 1), batch_of(3, 2)
    two = replace(standing(50), started_tokens_N=np.zeros(2, np.int64), left_N=np.full(2, 50), wrong_N=np.zeros(2))
    two = replace(two, weight_ZN=np.ones((1, 2)))
    menu = vote_menu(batch, two, [many, ()], most_tokens_N=np.full(2, 10_000), habits=Habits(trust=2.0, theta=8.0))
    assert 0.0 < menu.success_JN[:, 0].max() < menu.success_JN[:, 1].max()


def test_the_first_of_the_most_frequent_is_kept() -> None:
    ballots, numbers = Ballots(), iter(range(1, 9))
    kept = [ballots.cast(4, Ballot(vote, next(numbers), 1, np.nan)).attempt for vote in (7, 8, 8, 7, 7)]
    assert kept == [1, 1, 2, 1, 1]
    assert ballots.votes_of(np.array([4, 5])) == [(3, 2), ()]
    right = ballots.is_right_P(np.array([4, 4, 4, 5]), np.array([7, 8, 0, 7]))
    assert right[0] > right[1] > 0.0
    assert np.isnan(right[2:]).all(), "no result, or no other answer to agree with"


def learning_offers(seed: int, queries: int, budget: int) -> LearningOffers:
    batch = batch_of(seed, queries)
    return LearningOffers(
        x_NP=np.random.default_rng(seed).normal(size=(queries, 3)),
        tokens_K=batch.curves.tokens_K,
        weight_N=np.ones(queries),
        max_tokens_N=batch.max_tokens_N,
        tie_break_N=batch.tie_break_N,
        cost_N=np.ones(queries),
        budget_tokens=budget,
        label="agreement",
        asks_again=True,
    )


def test_a_run_that_learns_is_taught_by_answers_that_agree() -> None:
    answers = sampled(5, 30)
    found = play(answers, learning_offers(5, 30, 900), 900)
    blind = play(replace(answers, is_right_NS=np.zeros_like(answers.is_right_NS)), learning_offers(5, 30, 900), 900)
    assert found.spent_tokens_N.tolist() == blind.spent_tokens_N.tolist()
    assert found.attempts_N.max() > 1
    assert found.is_right_N.sum() > 0
    states = Rounds(AttemptOffers(batch_of(5, 2)), AllocationConfig(), rule=AttemptRule("vote", np.full(2, 3))).states
    assert isinstance(observe(states), Observed)
