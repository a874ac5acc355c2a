"""Queries that are asked until they have a right answer and a wrong one: plans, what ends them, and whole runs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import token_grid
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.group_menu import group_menu
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.rounds import Rounds
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import SampledAnswers, replay_run
from tests.unit.rounds.test_attempts import RECORDED, outcome, standing, two_outcomes


def chance_of_both(right: float, wrong: float, answers: int, has: str = "") -> float:
    """Return the chance that so many independent answers have both kinds, one of which may be there already."""
    total = 0.0
    for kinds in product("rwc", repeat=answers):
        if {"r", "w"} <= set(kinds) | set(has):
            total += float(np.prod([{"r": right, "w": wrong, "c": 1.0 - right - wrong}[kind] for kind in kinds]))
    return total


@pytest.mark.parametrize(("has", "right", "wrong"), [("", 0, 0), ("r", 1, 0), ("w", 0, 1)])
def test_a_plan_is_worth_the_chance_that_independent_answers_are_of_both_kinds(
    has: str, right: int, wrong: int
) -> None:
    batch = two_outcomes(0.3, 0.2)
    menu = group_menu(batch, standing(1, left=3, right=right, wrong=wrong), most_tokens_N=np.full(1, 100))
    of_each = menu.success_JN[1:, 0].reshape(3, 5)
    spend = menu.spend_JN[1:, 0].reshape(3, 5)
    known = [chance_of_both(0.3, 0.5, answers, has) for answers in (1, 2, 3)]
    assert of_each[:, 0] == pytest.approx(known)
    one = float(batch.curves.spend_NK[0, 0])
    assert spend[:, 0] == pytest.approx(one * np.cumsum([1.0, 1.0 - known[0], 1.0 - known[1]]))
    assert (menu.first_success_JN <= menu.success_JN + 1e-12).all()


def test_the_more_answers_are_alike_the_less_a_further_one_is_worth() -> None:
    batch = two_outcomes(0.5, 0.0)

    def worth(right: int, wrong: int) -> float:
        where = standing(1, left=1, trust=1.0, right=right, wrong=wrong)
        return float(group_menu(batch, where, most_tokens_N=np.full(1, 100)).success_JN.max())

    assert worth(1, 0) > worth(3, 0) > worth(6, 0) > 0
    assert worth(0, 1) > worth(0, 3) > worth(0, 6) > 0
    assert worth(2, 0) == pytest.approx(worth(0, 2))


@pytest.mark.parametrize(
    ("scores", "closes"),
    [((1.0, 1.0), False), ((0.0, 0.5), False), ((1.0, 0.5), True), ((0.0, 1.0), True), ((1.0, 1.0, 1.0), True)],
)
def test_a_query_is_over_with_both_kinds_or_its_last_answer_and_keeps_the_right_one(
    scores: tuple[float, ...], closes: bool
) -> None:
    rule = AttemptRule("groups", np.full(1, 3, np.int64))
    rounds = Rounds(AttemptOffers(two_outcomes(0.3, 0.2)), AllocationConfig(objective="groups"), rule=rule)
    for number, score in enumerate(scores, start=1):
        granted = rounds.next(100)
        assert granted is not None
        tokens = int(granted.clearing.tokens_M[0])
        rounds.take(number, [outcome(0, granted=tokens, spent=2, answer=2, stopped=True, score=score)])
    assert bool(rounds.states.is_open_N[0]) != closes
    assert rounds.states.chosen_score_N[0] == max(scores)
    assert rounds.states.is_mixed_N[0] == (min(scores) < 1.0 <= max(scores))


def test_an_answer_of_which_nothing_says_whether_it_is_right_ends_its_query() -> None:
    rule = AttemptRule("groups", np.full(1, 3, np.int64))
    rounds = Rounds(AttemptOffers(two_outcomes(0.3, 0.2)), AllocationConfig(objective="groups"), rule=rule)
    granted = rounds.next(100)
    assert granted is not None
    tokens = int(granted.clearing.tokens_M[0])
    rounds.take(1, [outcome(0, granted=tokens, spent=2, answer=2, stopped=True, score=np.nan)])
    assert not rounds.states.is_open_N[0]
    assert not rounds.states.is_mixed_N[0]


def test_more_recorded_queries_have_both_kinds_than_where_all_are_asked_as_often() -> None:
    """Curves by half of each query's recorded answers, the others are drawn; equal counts as far as the budget goes."""
    recording = read_recording(str(RECORDED))
    curves = recording.empirical_curves(token_grid(recording.cap_tokens), np.arange(4, 8), pseudo_samples=2.0)
    one, queries = np.ones(len(recording)), len(recording)
    batch = Batch(curves, one, np.full(queries, recording.cap_tokens), np.arange(queries).astype(np.uint64), one)
    length, stopped, right = (
        column[:, :4] for column in (recording.length_NS, recording.is_stopped_NS, recording.is_right_NS)
    )
    ends_wrong = stopped & ~right
    budget = int(length.sum()) // 4
    played = replay_run(
        AttemptOffers(batch),
        SampledAnswers(length, stopped, right),
        budget_tokens=budget,
        allocation=AllocationConfig(objective="groups", attempts=4),
        rule=AttemptRule("groups", np.full(queries, 4, np.int64)),
    )
    begun = np.arange(4) < played.attempts_N[:, None]
    mixed = int(((right & stopped & begun).any(axis=1) & (ends_wrong & begun).any(axis=1)).sum())
    asked = np.cumsum(length.sum(axis=1)) <= budget
    equal = int((asked & (right & stopped).any(axis=1) & ends_wrong.any(axis=1)).sum())
    assert played.spent_tokens_N.sum() <= budget
    assert mixed > 1.3 * equal > 0
