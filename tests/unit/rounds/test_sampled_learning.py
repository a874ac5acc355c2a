"""A run that learns on a sample of its queries and prices all of them by that, through the law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clear_ray.rounds.sampled_learning import SampledLearningOffers
from clear_ray.sweep.held_whole import HeldWhole
from clear_ray.sweep.replayed import Replayed, replay_run
from tests.unit.rounds.test_learning_offers import ROUNDS, even, offers, world

QUERIES, SAMPLE, AVERAGE = 1_200, 300, 14.0


def play(*, seed: int, shuffled: bool = False, sample: int = SAMPLE) -> tuple[Replayed, set[int], float]:
    """Return what came of a run, its sample, and what equal ceilings bring."""
    x_NP, answers = world(QUERIES, seed=seed, shuffled=shuffled)
    whole = offers(x_NP, AVERAGE, seed=seed)
    chosen = np.sort(np.random.default_rng(seed).permutation(QUERIES)[:sample])
    names = ("x_NP", "weight_N", "max_tokens_N", "tie_break_N", "cost_N")
    part = replace(
        whole, **{name: getattr(whole, name)[chosen] for name in names}, budget_tokens=int(AVERAGE * len(chosen))
    )
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


def test_coordinates_that_say_nothing_leave_about_equal_ceilings() -> None:
    run, _, equal = play(seed=1, shuffled=True)
    assert run.is_right_N.mean() > equal - 0.03


def test_a_sample_of_all_explores_as_a_run_that_holds_its_curves() -> None:
    seed = 0
    run, _, _ = play(seed=seed, sample=QUERIES)
    x_NP, answers = world(QUERIES, seed=seed)
    whole = offers(x_NP, AVERAGE, seed=seed)
    held = replay_run(whole, answers, budget_tokens=whole.budget_tokens, allocation=ROUNDS)
    assert np.array_equal(run.spent_tokens_N, held.spent_tokens_N)
    assert np.array_equal(run.is_right_N, held.is_right_N)
