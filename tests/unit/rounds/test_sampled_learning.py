"""A run that learns on a sample of its queries and prices all of them by that, through the law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clear_ray.estimation.factors import law
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import take_rows
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.sampled_learning import SampledLearningOffers
from clear_ray.sweep.held_whole import HeldWhole
from clear_ray.sweep.replayed import Replayed, SampledAnswers, replay_run
from tests.unit.rounds.test_learning_offers import CAP, ROUNDS, even, offers, world

QUERIES, SAMPLE, AVERAGE = 1_200, 300, 14.0


def head(whole: LearningOffers) -> Incidence:
    """Return beliefs of a head that tells the kinds of the world apart."""
    right_K, survival_K = law(whole.tokens_K)
    long_N = whole.x_NP[:, 1:]
    right_NK, survival_NK = right_K * (1.4 - 1.2 * long_N), survival_K * (0.3 + 0.6 * long_N)
    return Incidence(right_NK, 1.0 - right_NK - survival_NK, survival_NK)


def play(
    *, seed: int, shuffled: bool = False, queries: int = QUERIES, sample: int = SAMPLE, is_given: bool = False
) -> tuple[Replayed, set[int], float]:
    """Return what came of a run, its sample, and what equal ceilings bring."""
    x_NP, answers = world(queries, seed=seed, shuffled=shuffled)
    whole = offers(x_NP, AVERAGE, seed=seed)
    chosen = np.sort(np.random.default_rng(seed).permutation(queries)[:sample])
    if is_given:
        whole = replace(whole, given=head(whole))
    names = ("x_NP", "weight_N", "max_tokens_N", "tie_break_N", "cost_N")
    part = replace(
        whole, **{name: getattr(whole, name)[chosen] for name in names}, budget_tokens=int(AVERAGE * len(chosen))
    )
    if whole.given is not None:
        part = replace(part, given=take_rows(whole.given, chosen))
    run = replay_run(
        SampledLearningOffers(part, chosen, HeldWhole(whole)),
        answers,
        budget_tokens=whole.budget_tokens,
        allocation=ROUNDS,
    )
    return run, set(chosen.tolist()), even(answers, AVERAGE)


def test_the_sample_is_explored_and_all_are_answered_by_what_it_teaches() -> None:
    run, sample, equal = play(seed=0)
    clearings = [set(round_.clearing.index_M.tolist()) for round_ in run.rounds]
    explored = [index <= sample for index in clearings]
    rest = explored.index(False)
    assert rest > 3, "a pilot and stages come first"
    assert len(clearings[rest] - sample) > len(clearings[rest] & sample), "the rest is for all"
    taken = [sum(round_.clearing.tokens_M) for round_ in run.rounds[:rest]]
    assert sum(taken) < AVERAGE * SAMPLE, "exploring keeps to the sample's part of the budget"
    assert run.spent_tokens_N.sum() <= int(AVERAGE * QUERIES)
    assert run.is_right_N.mean() > equal + 0.1, f"{run.is_right_N.mean():.3f} for {equal:.3f}"


def test_what_a_head_says_of_a_sample_is_trusted_for_all() -> None:
    informed = play(seed=2, is_given=True)[0].is_right_N.mean()
    assert informed > play(seed=2)[0].is_right_N.mean() - 0.01
    misled = play(seed=2, shuffled=True, is_given=True)
    assert misled[0].is_right_N.mean() > misled[2] - 0.03


def test_answers_are_compared_in_the_sample_alone() -> None:
    queries, agreement = 600, Agreement()
    x_NP, once = world(queries, seed=3)
    length_NS = np.stack([once.length_N, once.length_N[::-1]], axis=1)
    is_right_NS = np.stack([once.is_right_N, once.is_right_N], axis=1)
    votes_NS = np.where(is_right_NS, 1, np.arange(2, 2 + 2 * queries).reshape(queries, 2))
    answers = SampledAnswers(length_NS, length_NS < CAP, is_right_NS & (length_NS < CAP), votes_NS)
    whole = replace(offers(x_NP, 30.0, seed=3, label="agreement"), agreement=agreement)
    chosen = np.sort(np.random.default_rng(3).permutation(queries)[:200])
    names = ("x_NP", "weight_N", "max_tokens_N", "tie_break_N", "cost_N")
    some = {name: getattr(whole, name)[chosen] for name in names}
    sampled = SampledLearningOffers(replace(whole, **some, budget_tokens=30 * 200), chosen, HeldWhole(whole))
    rule = agreement.rule(np.ones(queries, bool))
    run = replay_run(sampled, answers, budget_tokens=whole.budget_tokens, allocation=ROUNDS, rule=rule)
    again = np.flatnonzero(run.attempts_N > 1)
    assert 5 < len(again) < 60
    assert set(again.tolist()) <= set(chosen.tolist())
    assert run.attempts_N.max() == 2
    assert run.is_right_N.mean() > even(once, 30.0)


def test_coordinates_that_say_nothing_leave_about_equal_ceilings() -> None:
    run, _, equal = play(seed=1, shuffled=True)
    assert run.is_right_N.mean() > equal - 0.03


@pytest.mark.parametrize("is_given", [False, True])
def test_a_sample_of_all_explores_as_a_run_that_holds_its_curves(is_given: bool) -> None:
    seed, queries = 0, 400
    run, _, _ = play(seed=seed, queries=queries, sample=queries, is_given=is_given)
    x_NP, answers = world(queries, seed=seed)
    whole = offers(x_NP, AVERAGE, seed=seed)
    if is_given:
        whole = replace(whole, given=head(whole))
    held = replay_run(whole, answers, budget_tokens=whole.budget_tokens, allocation=ROUNDS)
    assert np.array_equal(run.spent_tokens_N, held.spent_tokens_N)
    assert np.array_equal(run.is_right_N, held.is_right_N)
