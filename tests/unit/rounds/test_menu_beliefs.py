"""What is believed of the models of a menu: of one that is dearer, and of many answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import Observed
from clear_ray.rounds import menu_beliefs
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.menu_beliefs import MenuBeliefs
from clear_ray.rounds.menu_courses import Seen
from clear_ray.rounds.menu_pilot import stretch_J, supposed_parts

QUERIES, TOKENS_K = 400, token_grid(4_000, points=32)


def calls_at(*parts: int) -> list[CallCosts]:
    ones = np.ones(QUERIES, np.int64)
    return [CallCosts(token_parts * ones, 0 * ones, 0 * ones) for token_parts in parts]


def seen_of(models: list[int], median_tokens: list[float], *, cut_at: int = 4_000) -> Seen:
    rng = np.random.default_rng(0)
    model_M = np.array(models)
    length_M = (
        np.exp(np.log(np.array(median_tokens)[model_M]) + 0.5 * rng.normal(size=len(models))).astype(np.int64) + 1
    )
    is_ended_M, right_M = length_M <= cut_at, np.where(length_M <= cut_at, 1.0, np.nan)
    answers = Observed(np.arange(len(models)) % QUERIES, np.minimum(length_M, cut_at), is_ended_M, right_M)
    return Seen(answers, model_M, np.zeros(len(models), np.int64))


def mean_tokens(seen: Seen, calls: list[CallCosts]) -> list[float]:
    beliefs = MenuBeliefs(np.zeros((QUERIES, 0)), TOKENS_K, stretch_J(calls))
    return [float(curves.spend_NK[:, -1].mean()) for curves in beliefs.after(seen).fresh]


def test_a_model_that_was_not_seen_is_taken_to_cost_twice_the_one_before_it() -> None:
    equal, dear = calls_at(1_000, 1_000), calls_at(1_000, 10_000)
    assert stretch_J(equal).tolist() == [1.0, 2.0]
    assert stretch_J(dear).tolist() == [1.0, 1.0]
    assert stretch_J(calls_at(1_000, 1_500, 1_500, 9_000)) == pytest.approx([1.0, 4 / 3, 8 / 3, 8 / 3])
    seen = seen_of([0] * 60, [200.0, 200.0])
    cheap, other = mean_tokens(seen, equal)
    assert 1.6 <= other / cheap <= 2.2
    cheap, other = mean_tokens(seen, dear)
    assert other / cheap == pytest.approx(1.0, abs=0.05)
    assert supposed_parts(equal, [200.0, None]) == [200_000.0, 400_000.0]
    assert supposed_parts(dear, [200.0, None]) == [200_000.0, 2_000_000.0]
    assert supposed_parts(equal, [None, 300.0]) == [300_000.0, 300_000.0]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 6.0])
def test_its_answers_say_otherwise_soon(ratio: float) -> None:
    seen = seen_of([0] * 60 + [1] * 60, [200.0, 200.0 * ratio])
    cheap, other = mean_tokens(seen, calls_at(1_000, 1_000))
    assert other / cheap == pytest.approx(ratio, rel=0.35)


def test_an_answer_that_follows_a_failure_is_worth_less_until_such_answers_say_otherwise() -> None:
    beliefs = MenuBeliefs(np.zeros((QUERIES, 0)), TOKENS_K, np.ones(2))
    share = []
    for failures in (0, 20, 380):
        seen = seen_of([0, 1] * 200, [200.0, 200.0])
        seen = replace(seen, failures_M=(np.arange(400) < failures).astype(int))
        found = beliefs.after(seen)
        share.append(float((found.after[1].success_NK[:, -1] / found.fresh[1].success_NK[:, -1]).mean()))
    assert share[0] == pytest.approx(0.7, abs=0.02)
    assert share[0] < share[1] < share[2], "all answers here are right, those too that followed"
    assert share[2] > 0.95


def test_a_second_failure_counts_as_the_first_until_answers_follow_two() -> None:
    """Answers that followed one failure were as right as any; of those that follow two nothing is known, or as much."""
    beliefs = MenuBeliefs(np.zeros((QUERIES, 0)), TOKENS_K, np.ones(3), most_failures=2)
    share = []
    for most in (1, 2):
        seen = replace(seen_of([1] * 400, [200.0] * 3), failures_M=np.arange(400) % (most + 1))
        right = [float(curves[2].success_NK[:, -1].mean()) for curves in beliefs.after(seen).by_failures]
        assert right[0] >= right[1] >= right[2] > 0
        share.append(right[2] / right[1])
    assert share[0] == pytest.approx(0.7, abs=0.02)
    assert share[1] > 0.9


def test_of_many_answers_some_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clearing after a hundred thousand answers takes no longer than one after ten thousand."""
    monkeypatch.setattr(menu_beliefs, "MOST_ANSWERS", 300)
    seen = seen_of([0, 1] * 600, [200.0, 800.0])
    beliefs = MenuBeliefs(np.zeros((QUERIES, 0)), TOKENS_K, np.ones(2))
    found, again = beliefs.after(seen), beliefs.after(seen)
    assert found.evidence is not None
    assert found.evidence.answers == 300
    np.testing.assert_array_equal(found.fresh[1].spend_NK, again.fresh[1].spend_NK)
    few = beliefs.after(
        replace(seen, answers=seen.answers.take(np.arange(2)), model_M=seen.model_M[:2], failures_M=seen.failures_M[:2])
    )
    assert few.evidence is not None
    assert few.evidence.answers == 2
