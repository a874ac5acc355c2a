"""Runs in virtual time: with a barrier they come to what a replay does; without one they end sooner, with as many right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.overlapped import timed_run
from clear_ray.sweep.replayed import Answers, replay_run

QUERIES, BUDGET, CAP = 240, 240 * 400, 16_384


@pytest.fixture(scope="module")
def case() -> tuple[BatchOffers, Answers]:
    """Log-normal lengths; what is known of a query is its median, the spread and its chance of a right answer."""
    rng, tokens_K, ones = np.random.default_rng(0), token_grid(CAP), np.ones(QUERIES)
    center_N, chance_N = np.log(1_500) + 0.7 * rng.standard_normal(QUERIES), rng.beta(1.0, 0.6, QUERIES)
    length_N = np.rint(np.exp(center_N + 0.7 * rng.standard_normal(QUERIES))).astype(np.int64).clip(1)
    is_stopped_N = length_N <= CAP
    ended_NK = norm.cdf((np.log(tokens_K) - center_N[:, None]) / 0.7)
    curves = curves_from_incidence(chance_N[:, None] * ended_NK, survival_NK=1 - ended_NK, tokens_K=tokens_K)
    answers = Answers(length_N.clip(max=CAP), is_stopped_N, is_stopped_N & (rng.random(QUERIES) < chance_N))
    tie_break_N = np.arange(QUERIES).astype(np.uint64)
    return BatchOffers(Batch(curves, ones, np.full(QUERIES, CAP), tie_break_N, ones)), answers


def test_with_a_barrier_it_is_the_replay(case: tuple[BatchOffers, Answers]) -> None:
    offers, answers = case
    timed = timed_run(offers, answers, budget_tokens=BUDGET, slots=48, overlaps=False)
    replayed = replay_run(offers, answers, budget_tokens=BUDGET)
    assert timed.tokens_N.tolist() == replayed.spent_tokens_N.tolist()
    assert timed.is_right_N.tolist() == replayed.is_right_N.tolist()
    assert timed.clearings == replayed.clearings


@pytest.mark.parametrize("queries_a_slot", [2, 5])
def test_without_one_it_ends_in_much_less_time(case: tuple[BatchOffers, Answers], queries_a_slot: int) -> None:
    offers, answers = case
    slots = QUERIES // queries_a_slot
    barrier, overlapped = (
        timed_run(offers, answers, budget_tokens=BUDGET, slots=slots, overlaps=overlaps) for overlaps in (False, True)
    )
    assert overlapped.tokens_N.sum() <= BUDGET
    assert overlapped.steps < 0.75 * barrier.steps
    assert overlapped.is_right_N.sum() > 0.94 * barrier.is_right_N.sum()
    assert barrier.clearings <= 8 < overlapped.clearings
    assert overlapped.steps >= overlapped.least_steps


def test_a_run_of_one_clearing_has_nothing_to_overlap(case: tuple[BatchOffers, Answers]) -> None:
    offers, answers = case
    one = AllocationConfig(max_rounds=1)
    runs = [
        timed_run(offers, answers, budget_tokens=BUDGET, slots=48, overlaps=overlaps, allocation=one)
        for overlaps in (False, True)
    ]
    assert runs[0].steps == runs[1].steps
    assert runs[0].clearings == runs[1].clearings == 1
