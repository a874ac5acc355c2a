"""Runs in virtual time: with a barrier they come to what a replay does; without one they end sooner, with as many right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.offers import BatchOffers
from clear_ray.stages.homes import Homes
from clear_ray.sweep.overlapped import Reading, timed_run
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


def test_a_batch_that_is_priced_while_it_is_read_gives_as_many_right_whatever_its_order(
    case: tuple[BatchOffers, Answers],
) -> None:
    offers, answers = case
    order = np.argsort(-answers.length_N, kind="stable")
    sorted_offers = BatchOffers(offers.batch.take(order))
    columns = (answers.length_N, answers.is_stopped_N, answers.is_right_N)
    sorted_answers = Answers(*(column[order] for column in columns))
    rate, in_place = QUERIES / 600, np.arange(QUERIES)
    how = {"budget_tokens": BUDGET, "slots": 24, "overlaps": True}

    def right(reading: Reading) -> tuple[int, int]:
        timed = timed_run(sorted_offers, sorted_answers, **how, reading=reading)  # type: ignore[arg-type]
        assert timed.tokens_N.sum() <= BUDGET
        assert timed.reading_steps >= 600
        assert timed.first_queries == (QUERIES // 4 if reading.is_streamed else QUERIES)
        return int(timed.is_right_N.sum()), timed.first_steps

    first_right, first_steps = right(Reading(rate, in_place, is_streamed=False))
    spread_right, spread_steps = right(Reading(rate, Homes(2, 1).spread(QUERIES, seed=0)))
    stands_right, _ = right(Reading(rate, in_place))
    assert spread_steps < 0.7 * first_steps
    assert spread_right > 0.95 * first_right > stands_right, "longest first, it would have been spent on the longest"


def test_a_batch_of_which_few_curves_are_held_gives_as_many_right_and_keeps_its_budget(
    case: tuple[BatchOffers, Answers],
) -> None:
    offers, answers = case
    spread = Homes(2, 1).spread(QUERIES, seed=0)

    def played(overlaps: bool, **reading: object) -> tuple[int, int]:
        how = Reading(QUERIES / 600, spread, **reading)  # type: ignore[arg-type]
        timed = timed_run(offers, answers, budget_tokens=BUDGET, slots=12, overlaps=overlaps, reading=how)
        assert timed.tokens_N.sum() <= BUDGET
        known = [queries for queries, _ in timed.prices]
        assert len(known) == timed.clearings
        assert known == sorted(known)
        assert known[-1] == QUERIES
        return int(timed.is_right_N.sum()), timed.first_steps

    first_right, first_steps = played(False, is_streamed=False)
    held_right, held_steps = played(True, most_held=QUERIES // 4)
    assert held_steps < 0.7 * first_steps
    assert held_right > 0.95 * first_right
    assert played(True, most_held=QUERIES)[1] == played(True)[1]


def test_an_engine_that_reads_beside_its_answers_takes_as_long_for_both(case: tuple[BatchOffers, Answers]) -> None:
    offers, answers = case
    how = {"budget_tokens": BUDGET, "slots": 24, "overlaps": True}
    at_once = timed_run(offers, answers, **how)  # type: ignore[arg-type]
    read_first = timed_run(offers, answers, **how, reading=Reading(0.4, np.arange(QUERIES), is_streamed=False))  # type: ignore[arg-type]
    assert read_first.steps == at_once.steps + 600
    assert read_first.is_right_N.tolist() == at_once.is_right_N.tolist()
