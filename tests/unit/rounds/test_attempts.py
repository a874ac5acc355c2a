"""Several attempts at one query: what closes it, what its plans are worth and cost, and that nothing is spent twice."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig, Objective
from clear_ray.errors import BudgetError
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.likeness import Likeness
from clear_ray.rounds.attempt_menu import AttemptStates, menu_of
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.attempt_price import buy
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.rounds.states import QueryStates
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers, Replayed, SampledAnswers, replay_run
from tests.unit.rounds.test_clearing import batch_of

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
RECORDED = Path(__file__).parents[2] / "data" / "rollouts" / "rollouts.parquet"


def sampled(seed: int, queries: int, samples: int = 4) -> SampledAnswers:
    rng = np.random.default_rng([seed, 7])
    shape = (queries, samples)
    is_stopped = rng.random(shape) < 0.8
    return SampledAnswers(rng.integers(1, 33, shape), is_stopped, is_stopped & (rng.random(shape) < 0.3))


def rule_of(queries: int, attempts: int = 3) -> AttemptRule:
    return AttemptRule("solved", np.full(queries, attempts, np.int64))


def play(seed: int, queries: int, budget: int, *, attempts: int = 3) -> Replayed:
    allocation = AllocationConfig(objective="solved", attempts=attempts)
    offers = AttemptOffers(batch_of(seed, queries))
    answers, rule = sampled(seed, queries), rule_of(queries, attempts)
    return replay_run(offers, answers, budget_tokens=budget, allocation=allocation, rule=rule)


def outcome(
    index: int, *, granted: int, spent: int, answer: int, stopped: bool, score: float, failed: bool = False
) -> Attempts:
    """What came of one grant."""
    kinds = {"index": index, "granted": granted, "spent": spent, "answer": answer}
    index_M, granted_M, spent_M, answer_M = (np.array([value], np.int64) for value in kinds.values())
    flags = [np.array([value]) for value in (stopped, failed, False)]
    return Attempts(index_M, granted_M, spent_M, answer_M, *flags, np.array([score]))


@pytest.mark.parametrize(
    ("score", "stopped", "closes"),
    [(1.0, True, True), (0.0, True, False), (0.5, True, False), (np.nan, True, True), (np.nan, False, False)],
)
@pytest.mark.parametrize("objective", ["solved", "best_of_n"])
def test_an_answer_that_nothing_can_judge_is_not_followed_by_another(
    objective: Objective, score: float, *, stopped: bool, closes: bool
) -> None:
    ended = outcome(0, granted=9, spent=5, answer=5, stopped=stopped, score=score)
    rule = AttemptRule(objective, np.full(1, 3, np.int64))
    assert rule.closes_M(ended, np.ones(1, np.int32)).tolist() == [closes]


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 900), st.integers(1, 4))
def test_a_run_of_several_attempts_keeps_its_budget_and_its_limits(
    seed: int, queries: int, budget: int, attempts: int
) -> None:
    played, batch = play(seed, queries, budget, attempts=attempts), batch_of(seed, queries)
    assert np.rint(played.spent_tokens_N @ batch.cost_N * 1_000) <= budget * 1_000
    assert (played.attempts_N <= attempts).all()
    answers = sampled(seed, queries)
    assert not (played.is_right_N & ~answers.is_right_NS[:, :attempts].any(axis=1)).any()
    for granted in played.rounds:
        clearing = granted.clearing
        assert clearing.tokens_M @ batch.cost_N[clearing.index_M] <= granted.available_tokens + 1e-9
        promised = clearing.expected_utility_M.sum() + clearing.later_utility
        assert clearing.gap >= 0
        assert promised + clearing.gap == pytest.approx(clearing.dual_bound, abs=1e-9)


@PROPERTY
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(20, 600))
def test_a_resumed_run_goes_on_with_the_same_attempts(seed: int, queries: int, budget: int) -> None:
    played = play(seed, queries, budget)
    offers, answers = AttemptOffers(batch_of(seed, queries)), sampled(seed, queries)
    settings_ = AllocationConfig(objective="solved", attempts=3)
    rounds, again = (Rounds(offers, settings_, rule=rule_of(queries)) for _ in range(2))
    unspent = budget
    for granted in played.rounds:
        new = rounds.next(unspent)
        assert new is not None
        kept = Round(granted.number, granted.available_tokens, replace(granted.clearing, surplus_N=np.zeros(0)))
        again.replay(kept)
        for law in (rounds, again):
            states, clearing = law.states, granted.clearing
            begins_N = np.zeros(queries, bool)
            begins_N[clearing.index_M] = states.begins_M(clearing)
            before_N = np.where(begins_N, 0, states.answer_tokens_N)
            current = answers.of_attempt(states.attempt_N + begins_N)
            law.take(
                granted.number, [current.attempts(clearing.index_M, clearing.tokens_M, before_N[clearing.index_M])]
            )
        cost_parts = np.rint(offers.cost_N * 1_000).astype(int)
        unspent = budget - -(-int(rounds.states.written_tokens_N @ cost_parts) // 1_000)
        assert (rounds.states.attempt_N == again.states.attempt_N).all()
        assert (rounds.states.chosen_round_N == again.states.chosen_round_N).all()
        assert len(rounds.states.past) == len(again.states.past)
    assert rounds.next(unspent) is None
    assert again.next(unspent) is None


@PROPERTY
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(5, 400))
def test_the_order_of_the_queries_decides_nothing(seed: int, queries: int, available: int) -> None:
    batch, order = batch_of(seed, queries), np.random.default_rng(seed).permutation(queries)

    def cleared(part: Batch) -> Clearing:
        states = QueryStates(part.cost_N, rule=rule_of(queries))
        owed = np.zeros(queries, np.int64)
        is_free = np.ones(queries, bool)
        return AttemptOffers(part).clear(states, is_free_N=is_free, available_tokens=available, owed_tokens_N=owed)

    one, other = cleared(batch), cleared(batch.take(order))
    assert one.shadow_price == other.shadow_price
    assert dict(zip(one.index_M, one.tokens_M, strict=True)) == dict(
        zip(order[other.index_M], other.tokens_M, strict=True)
    )


def standing(
    queries: int, *, left: int = 3, trust: float = np.inf, started: int = 0, wrong: float = 0.0, right: float = 0.0
) -> AttemptStates:
    likeness = Likeness(rho=0.0, trust=trust)
    counts = (np.full(queries, wrong), np.full(queries, right), np.zeros(queries))
    return AttemptStates(np.full(queries, started), np.full(queries, left), *counts, np.ones((1, queries)), likeness)


def two_outcomes(success: float, survival: float) -> Batch:
    """One query, of which an answer of up to 2 tokens is right, wrong or goes on, and after that nothing more is right."""
    tokens_K = np.array([2, 4, 8, 16, 32])
    curves = curves_from_incidence(np.full((1, 5), success), survival_NK=np.full((1, 5), survival), tokens_K=tokens_K)
    one = np.ones(1)
    return Batch(curves, one, np.full(1, 32), np.zeros(1, np.uint64), one)


def test_a_plan_of_attempts_is_worth_what_independent_attempts_bring() -> None:
    batch = two_outcomes(0.3, 0.2)
    menu = menu_of(batch, standing(1, left=3), most_tokens_N=np.full(1, 100))
    spend_K = batch.curves.spend_NK[0].astype(float)
    for number, place in product(range(3), range(5)):
        row = 1 + number * 5 + place
        assert menu.success_JN[row, 0] == pytest.approx(1 - 0.7 ** (number + 1), rel=1e-5)
        assert menu.spend_JN[row, 0] == pytest.approx(spend_K[place] * sum(0.7**j for j in range(number + 1)), rel=1e-5)
        assert menu.first_success_JN[row, 0] == pytest.approx(0.3, rel=1e-5)
        assert menu.tokens_JN[row, 0] == batch.curves.tokens_K[place]


def test_where_prompts_are_paid_for_each_attempt_of_a_plan_pays_for_its_own() -> None:
    calls = CallCosts(np.array([4_000]), np.array([1_000]), np.array([6]))
    free, batch = two_outcomes(0.3, 0.2), replace(two_outcomes(0.3, 0.2), cost_N=np.array([4.0]), calls=calls)
    plain, paid = (menu_of(some, standing(1, left=3), most_tokens_N=np.full(1, 100)) for some in (free, batch))
    for number, place in product(range(3), range(5)):
        row = 1 + number * 5 + place
        begun = sum(0.7**j for j in range(number + 1))
        assert paid.spend_JN[row, 0] == pytest.approx(4 * plain.spend_JN[row, 0] + 6 * begun, rel=1e-5)
    assert (paid.first_spend_JN == plain.first_spend_JN).all()
    gone_on = menu_of(batch, standing(1, left=0, started=2), most_tokens_N=np.full(1, 100))
    none = menu_of(free, standing(1, left=0, started=2), most_tokens_N=np.full(1, 100))
    bought = gone_on.tokens_JN[:, 0] > 0
    assert gone_on.spend_JN[bought, 0] == pytest.approx(4 * none.spend_JN[bought, 0] + 6 + 2, rel=1e-5)


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 900), st.integers(0, 60), st.integers(0, 6))
def test_grants_of_attempts_fit_with_their_prompts_and_what_is_owed(
    seed: int, queries: int, available: int, prompt: int, owed: int
) -> None:
    batch = batch_of(seed, queries)
    parts_N = np.rint(batch.cost_N * 1_000).astype(np.int64)
    calls = CallCosts(parts_N, np.full(queries, 250), np.arange(queries) + prompt)
    batch, index = replace(batch, calls=calls), np.arange(queries)
    states = QueryStates(batch.cost_N, rule=rule_of(queries))
    owed_N = np.minimum(np.full(queries, owed), batch.max_tokens_N)
    clearing = AttemptOffers(batch).clear(
        states, is_free_N=np.ones(queries, bool), available_tokens=available, owed_tokens_N=owed_N
    )
    taken_M = calls.taken_parts(clearing.index_M, clearing.tokens_M, np.zeros_like(clearing.index_M))
    if len(clearing.index_M):
        assert clearing.reserved_parts_M is not None
        assert (clearing.reserved_parts_M == taken_M).all()
    kept_N = np.where(np.isin(index, clearing.index_M), 0, owed_N)
    if len(clearing.index_M):
        kept_parts = int(calls.taken_parts(index, kept_N, np.zeros_like(index)).sum())
        assert int(taken_M.sum()) + kept_parts <= available * 1_000
        assert clearing.kept_tokens == -(-kept_parts // 1_000)


def test_wrong_answers_lower_what_is_believed_of_the_next_attempt_as_a_beta_distribution_has_it() -> None:
    menu = menu_of(two_outcomes(0.3, 0.2), standing(1, trust=4.0, wrong=2.0), most_tokens_N=np.full(1, 100))
    assert menu.first_success_JN[1, 0] == pytest.approx(0.3 * 4 / 6, rel=1e-5)
    # An attempt that is not right speaks against the next one, whether it ended or was cut and left.
    again = 0.3 * 4 / 7
    assert menu.success_JN[6, 0] == pytest.approx(1 - (1 - 0.3 * 4 / 6) * (1 - again), rel=1e-5)


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([0.5, 4.0, np.inf]), st.floats(0.0, 3.0))
def test_no_plan_solves_more_for_leaving_an_answer_that_it_could_go_on_with(
    seed: int, started: int, trust: float, wrong: float
) -> None:
    batch, left = batch_of(seed, 1), 3
    where = standing(1, left=left, trust=trust, started=started, wrong=wrong)
    menu = menu_of(batch, where, most_tokens_N=np.full(1, 100))
    success_JN, ceilings = menu.success_JN[1:, 0], len(batch.curves.tokens_K)
    fresh, ongoing = success_JN[: left * ceilings], success_JN[left * ceilings :]
    goes_on = menu.tokens_JN[1 + left * ceilings :, 0] > 0
    # Going on up to a ceiling, and then as many fresh attempts under it.
    assert (ongoing[ceilings:] >= fresh - 1e-9)[goes_on[ceilings:]].all()


def test_going_on_is_offered_beside_a_fresh_attempt_and_never_past_the_ceiling() -> None:
    batch = batch_of(5, 1)
    menu = menu_of(batch, standing(1, left=0, started=3), most_tokens_N=np.full(1, 100))
    bought = menu.tokens_JN > 0
    assert not menu.is_fresh_JN[bought].any()
    assert menu.tokens_JN.max(initial=0) <= max(int(batch.max_tokens_N[0]) - 3, 0)


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 120))
def test_no_choice_of_plans_within_what_is_available_is_worth_more_than_the_bound(
    seed: int, queries: int, available: int
) -> None:
    batch = batch_of(seed, queries)
    menu = menu_of(batch, standing(queries, left=2, trust=8.0), most_tokens_N=np.full(queries, 100))
    bought = buy(menu, available_tokens=available, tie_break_N=batch.tie_break_N)
    rows = np.arange(queries)
    worth = float(menu.success_JN[bought.plan_N, rows].sum())
    assert float(menu.spend_JN[bought.plan_N, rows].sum()) <= available + queries / 2_000
    best = 0.0
    for plans in product(range(len(menu.success_JN)), repeat=queries):
        if menu.spend_JN[list(plans), rows].sum() <= available:
            best = max(best, float(menu.success_JN[list(plans), rows].sum()))
    assert worth <= best + 1e-3
    assert best <= bought.dual_bound + 1e-3


def test_a_success_closes_a_query_and_a_failure_leaves_it_open_until_its_attempts_are_used_up() -> None:
    rounds = Rounds(AttemptOffers(two_outcomes(0.3, 0.2)), AllocationConfig(objective="solved"), rule=rule_of(1, 2))
    first = rounds.next(100)
    assert first is not None
    tokens = int(first.clearing.tokens_M[0])
    rounds.take(1, [outcome(0, granted=tokens, spent=2, answer=2, stopped=True, score=0.0)])
    assert rounds.states.is_open_N[0]
    assert not rounds.states.may_go_on_N[0]
    second = rounds.next(98)
    assert second is not None
    assert second.clearing.is_fresh_M is not None
    assert second.clearing.is_fresh_M.all()
    rounds.take(2, [outcome(0, granted=int(second.clearing.tokens_M[0]), spent=2, answer=2, stopped=True, score=0.0)])
    assert not rounds.states.is_open_N[0]
    assert rounds.states.attempt_N[0] == 2
    assert rounds.states.past.tokens_P.tolist() == [2]
    assert rounds.next(96) is None


def test_the_answer_of_a_query_is_its_best_one_and_a_later_error_does_not_take_it_away() -> None:
    rounds = Rounds(
        AttemptOffers(two_outcomes(0.3, 0.2)),
        AllocationConfig(objective="best_of_n"),
        rule=AttemptRule("best_of_n", np.full(1, 3, np.int64)),
    )
    seen = [(0.25, False), (0.75, False), (np.nan, True)]
    for number, (score, failed) in enumerate(seen, start=1):
        granted = rounds.next(100)
        assert granted is not None
        tokens = int(granted.clearing.tokens_M[0])
        ended = outcome(0, granted=tokens, spent=2, answer=2, stopped=not failed, score=score, failed=failed)
        rounds.take(number, [ended])
    states = rounds.states
    assert (states.chosen_attempt_N[0], states.chosen_round_N[0], states.chosen_score_N[0]) == (2, 2, 0.75)
    assert not states.has_failed_N[0]
    assert not states.is_open_N[0]


def test_more_attempts_than_a_query_may_begin_are_refused() -> None:
    batch = two_outcomes(0.3, 0.2)
    rounds = Rounds(BatchOffers(batch), AllocationConfig(objective="solved"), rule=rule_of(1, 1))
    one = Clearing(
        np.zeros(1, np.int64), np.full(1, 2), np.ones(1), np.ones(1), np.zeros(1), 0.1, 1.0, 0.0,
        is_fresh_M=np.ones(1, bool),
    )  # fmt: skip
    rounds.replay(Round(1, 10, one))
    rounds.take(1, [outcome(0, granted=2, spent=2, answer=2, stopped=False, score=0.0)])
    with pytest.raises(BudgetError, match="an attempt too many"):
        rounds.replay(Round(2, 8, one))


def test_without_attempts_every_grant_is_what_it_was_before_there_were_any() -> None:
    """The digest was taken from the law before a query could be asked twice."""
    recording = read_recording(str(RECORDED))
    tokens_K = token_grid(recording.cap_tokens)
    curves = recording.empirical_curves(tokens_K, np.arange(1, recording.samples), pseudo_samples=2.0)
    one = np.ones(len(recording))
    batch = Batch(curves, one, np.full(len(one), recording.cap_tokens), np.arange(len(one)).astype(np.uint64), one)
    answers = Answers(recording.length_NS[:, 0], recording.is_stopped_NS[:, 0], recording.is_right_NS[:, 0])
    digest = hashlib.sha256()
    for average in (24, 96):
        for granted in replay_run(BatchOffers(batch), answers, budget_tokens=average * len(one)).rounds:
            digest.update(granted.clearing.index_M.astype("<i8").tobytes())
            digest.update(granted.clearing.tokens_M.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "fa5981b7c5084ea8"


def test_asking_again_solves_more_than_asking_once() -> None:
    """Recorded answers, curves drawn by the other half of each query's samples."""
    recording = read_recording(str(RECORDED))
    curves = recording.empirical_curves(token_grid(recording.cap_tokens), np.arange(4, 8), pseudo_samples=2.0)
    one = np.ones(len(recording))
    batch = Batch(curves, one, np.full(len(one), recording.cap_tokens), np.arange(len(one)).astype(np.uint64), one)
    answers = SampledAnswers(recording.length_NS[:, :4], recording.is_stopped_NS[:, :4], recording.is_right_NS[:, :4])
    solved = [
        float(
            replay_run(
                AttemptOffers(batch),
                answers,
                budget_tokens=128 * len(one),
                allocation=AllocationConfig(objective="solved", attempts=attempts),
                rule=rule_of(len(one), attempts),
            ).is_right_N.mean()
        )
        for attempts in (1, 4)
    ]
    assert solved[1] > solved[0] + 0.03


def test_what_later_attempts_will_take_is_not_shared_out_before() -> None:
    """Half of the queries are known to be hopeless. They get what is left over, and not what the others still need."""
    tokens_K, queries = token_grid(32), 40
    survival_K = np.exp(-tokens_K / 12.0)
    can_N = np.arange(queries) < 20
    success_NK = 0.35 * can_N[:, None] * (1.0 - survival_K)
    curves = curves_from_incidence(success_NK, survival_NK=np.tile(survival_K, (queries, 1)), tokens_K=tokens_K)
    one_N = np.ones(queries)
    batch = Batch(curves, one_N, np.full(queries, 32), np.arange(queries).astype(np.uint64), one_N)
    rng = np.random.default_rng(1)
    length_NS = np.minimum(np.ceil(rng.exponential(12.0, (queries, 8))), 32).astype(np.int64)
    is_stopped_NS = length_NS < 32
    answers = SampledAnswers(
        length_NS, is_stopped_NS, is_stopped_NS & can_N[:, None] & (rng.random((queries, 8)) < 0.35)
    )
    allocation = AllocationConfig(objective="solved", attempts=8)
    solved = [
        int(
            replay_run(
                AttemptOffers(batch, Likeness(rho=0.0, trust=np.inf)),
                answers,
                budget_tokens=budget,
                allocation=allocation,
                rule=rule_of(queries, 8),
            ).is_right_N.sum()
        )
        for budget in (500, 900, 1_400)
    ]
    assert solved[0] < solved[1] <= solved[2]
    assert solved[1] >= 0.9 * (answers.is_right_NS & can_N[:, None]).any(axis=1).sum()
