"""What votes say of an answer: a model of how answers agree, held to its own simulation and to recorded answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.estimation.votes import Habits, Votes, VoteWorth, learn_habits, pooled_chance, vote_worth, votes_of

PROPERTY = settings(derandomize=True, deadline=None, max_examples=30)
HABITS = st.builds(Habits, st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([0.5, 4.0, 32.0]))
CHANCE = st.floats(0.02, 0.98)
VOTES = st.lists(st.integers(1, 3), max_size=3).map(lambda counts: tuple(sorted(counts, reverse=True)))


def drawn(rng: np.random.Generator, chance: float, habits: Habits, answers: int) -> list[int]:
    """Draw the results of some answers to one query: 0 for the right one, another number for each wrong one."""
    right = rng.beta(habits.trust * chance, habits.trust * (1 - chance))
    results: list[int] = []
    for _ in range(answers):
        wrong = [result for result in results if result]
        if rng.random() < right:
            results.append(0)
        elif rng.random() < habits.theta / (habits.theta + len(wrong)):
            results.append(max(wrong, default=0) + 1)
        else:
            results.append(int(rng.choice(wrong)))
    return results


@pytest.mark.parametrize(("chance", "habits"), [(0.2, Habits(2.0, 8.0)), (0.5, Habits(1.0, 1.0))])
def test_the_worth_of_votes_is_what_is_drawn(chance: float, habits: Habits) -> None:
    rng, worth, draws = np.random.default_rng(1), VoteWorth(habits), 4_000
    results = [drawn(rng, chance, habits, 5) for _ in range(draws)]
    for number in (1, 2, 3, 5):
        is_right = []
        for own in results:
            counts = np.bincount(own[:number])
            is_right.append((counts[0] == counts.max()) / (counts == counts.max()).sum())
        error = np.std(is_right) / np.sqrt(draws)
        expected = float(worth.after((), number, np.array([chance]))[0])
        assert abs(np.mean(is_right) - expected) < 4 * error + 0.003


@PROPERTY
@given(HABITS, CHANCE, VOTES)
def test_what_is_expected_of_the_next_vote_is_what_is_believed_now(habits: Habits, chance: float, votes: Votes) -> None:
    """Of whatever the next vote may be the chances add up to one."""
    worth, at = VoteWorth(habits), np.array([chance])
    total = 0.0
    for place in range(len(votes) + 1):
        after = [*votes, 0]
        after[place] += 1
        child = tuple(sorted((count for count in after if count), reverse=True))
        total += float(np.exp(worth.log_likelihood(child, at) - worth.log_likelihood(votes, at))[0])
    assert total == pytest.approx(1.0, abs=0.02)  # between the points of the grid it is read off a line


@PROPERTY
@given(HABITS, CHANCE)
def test_an_answer_that_agrees_is_more_surely_right(habits: Habits, chance: float) -> None:
    worth, at = VoteWorth(habits), np.array([chance])
    assert float(worth.is_right((1,), at)[0]) == pytest.approx(chance, abs=0.01)
    sure = [float(worth.is_right((count,), at)[0]) for count in (1, 2, 3)]
    if habits.theta >= 4.0:  # wrong answers that agree easily say little by agreeing
        assert all(first <= second + 1e-9 for first, second in pairwise(sure))
    assert float(worth.is_right((1, 1), at)[0]) <= 0.5
    assert float(worth.after((1,), 1, at)[0]) == pytest.approx(chance, abs=0.01), "one that differs cannot win"


@pytest.mark.parametrize("habits", [Habits(1.0, 2.0), Habits(8.0, 16.0)])
def test_how_answers_agree_is_learned_from_them_alone(habits: Habits) -> None:
    rng = np.random.default_rng(3)
    chance_N = rng.uniform(0.1, 0.9, 600)
    votes_N = [votes_of(drawn(rng, float(chance), habits, 5)) for chance in chance_N]
    found = learn_habits(votes_N, chance_N)
    assert abs(np.log2(found.trust / habits.trust)) <= 1.0
    assert abs(np.log2(found.theta / habits.theta)) <= 1.0


def test_without_a_second_answer_nothing_is_learned() -> None:
    assert learn_habits([(1,), ()], np.array([0.5, 0.2])) == Habits()


def test_from_votes_alone_it_is_told_how_often_answers_are_right() -> None:
    rng = np.random.default_rng(5)
    for chance in (0.2, 0.7):
        votes_N = [votes_of(drawn(rng, chance, Habits(1.0, 8.0), 4)) for _ in range(400)]
        assert abs(pooled_chance(votes_N)[1] - chance) < 0.12
    each = vote_worth(Habits(1.0, 8.0)).each_is_right((3, 1), 0.5)
    assert each[0] > 0.8 > 0.1 > each[1]
    assert each.sum() < 1.0, "none may be right"
