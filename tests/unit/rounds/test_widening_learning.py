"""A run that teaches itself while its prompts are read: the law of what is known, and of the batch once all is."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import law
from clear_ray.estimation.hazards import Incidence
from clear_ray.rounds.beside import RunningGrants
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.stages.homes import Homes
from clear_ray.sweep.overlapped import Reading, timed_run
from clear_ray.sweep.replayed import Answers, replay_run
from tests.unit.rounds.test_learning_beside import overlapping
from tests.unit.rounds.test_learning_offers import even

LEAST = AllocationConfig(smallest_grant_tokens=2)


def widening(
    whole: OverlappingLearningOffers, is_known_N: np.ndarray, *, is_streamed: bool = True
) -> WideningLearningOffers:
    law_of = replace(whole, is_streamed=is_streamed).some
    return WideningLearningOffers(law_of, is_known_N, whole.cost_N, whole.max_tokens_N)


def seen(states: QueryStates, answers: Answers, index: np.ndarray, ceiling: int) -> None:
    """Note answers to some queries, cut at a ceiling."""
    states.answer_tokens_N[index] = states.written_tokens_N[index] = np.minimum(answers.length_N[index], ceiling)
    states.has_stopped_N[index] = answers.is_stopped_N[index] & (answers.length_N[index] <= ceiling)
    states.correct_N[index] = np.where(states.has_stopped_N[index], answers.is_right_N[index], np.nan)
    states.is_open_N[index] &= ~states.has_stopped_N[index]
    states.attempt_N[index], states.rounds_N[index], states.last_round_N[index] = 1, 1, 1
    states.may_go_on_N[index] = ~states.has_stopped_N[index]


def equal(one: Clearing, other: Clearing) -> None:
    for name in (field.name for field in fields(Clearing)):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def cleared(
    law_: OverlappingLearningOffers | WideningLearningOffers, states: QueryStates, available_tokens: int, running: int
) -> Clearing:
    """Return a clearing, beside some running grants of the first queries if there are any."""
    none_N, is_free_N = np.zeros(len(states.cost_N), np.int64), states.is_open_N.copy()
    if not running:
        return law_.clear(states, is_free_N=is_free_N, available_tokens=available_tokens, owed_tokens_N=none_N)
    index = np.flatnonzero(states.is_open_N & (states.answer_tokens_N == 0))[:running]
    is_free_N[index] = False
    grants = RunningGrants(index, np.full(running, 30), np.full(running, 4))
    return law_.clear_beside(states, is_free_N=is_free_N, running=grants, available_tokens=available_tokens)


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize(("answered", "share"), [(0, 1.0), (40, 0.9), (90, 0.3)])
def test_once_all_is_known_it_is_the_law_of_the_batch(running: int, answered: int, share: float) -> None:
    whole, answers = overlapping(160, 14.0, seed=1)
    states, index = QueryStates(whole.cost_N), np.random.default_rng(0).permutation(160)[:answered]
    seen(states, answers, index, 40)
    available = int(whole.budget_tokens * share)
    told, old = (cleared(one, states, available, running) for one in (widening(whole, np.ones(160, bool)), whole))
    equal(told, old)
    assert len(old.index_M) or (running and answered < 32), (
        "what is running is waited for by stages of few answers alone"
    )


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize(("answered", "share"), [(0, 1.0), (12, 0.8), (40, 0.7)])
def test_of_a_part_it_is_the_law_of_a_batch_of_so_many(running: int, answered: int, share: float) -> None:
    """Pilot, stages, guard and what may be missing are those of K queries with K/N of the budget."""
    whole, answers = overlapping(240, 14.0, seed=2)
    rng = np.random.default_rng(3)
    known = np.sort(rng.permutation(240)[:80])
    is_known_N = np.zeros(240, bool)
    is_known_N[known] = True
    alone = replace(
        whole,
        **{name: getattr(whole, name)[known] for name in ("x_NP", "weight_N", "tie_break_N", "cost_N", "max_tokens_N")},
        budget_tokens=whole.budget_tokens // 3,
        part_of=240,
        is_streamed=True,
    )
    states, index = QueryStates(whole.cost_N), rng.permutation(known)[:answered]
    seen(states, answers, index, 10)
    states.is_open_N &= is_known_N  # the helper takes running ones from those that are open
    part = cleared(widening(whole, is_known_N), states, int(alone.budget_tokens * share), running)
    own = cleared(alone, states.some(known), int(alone.budget_tokens * share), running)
    np.testing.assert_array_equal(part.index_M, known[own.index_M])
    equal(replace(part, index_M=own.index_M, surplus_N=part.surplus_N[known]), own)
    assert not part.surplus_N[~is_known_N].any()
    assert len(own.index_M) or (running and answered < 32)


@pytest.mark.parametrize("unknown", [[3], [239], [101, 199]])
def test_what_runs_of_queries_that_are_not_known_any_more_is_none_of_the_part(unknown: list[int]) -> None:
    """A start before knew them, and granted them; a file of theirs was lost since."""
    whole, answers = overlapping(240, 14.0, seed=2)
    known = np.arange(0, 200, 2)
    is_known_N = np.isin(np.arange(240), known)
    states = QueryStates(whole.cost_N)
    seen(states, answers, np.random.default_rng(3).permutation(known)[:80], 10)
    states.is_open_N &= is_known_N
    index = np.flatnonzero(states.is_open_N & (states.answer_tokens_N == 0))[:1]
    is_free_N = states.is_open_N.copy()
    is_free_N[index] = False
    found = []
    for beside in ([], unknown):
        index_M = np.sort(np.concatenate([index, beside])).astype(np.int64)
        running = RunningGrants(
            index_M, np.where(np.isin(index_M, index), 30, 99), np.where(np.isin(index_M, index), 4, 9)
        )
        available = whole.budget_tokens // 3
        law_ = widening(whole, is_known_N)
        found.append(law_.clear_beside(states, is_free_N=is_free_N, running=running, available_tokens=available))
    assert len(found[0].index_M)
    equal(*found)


def test_stages_of_a_part_lead_to_half_of_what_it_has_and_the_rest_waits_for_the_batch() -> None:
    whole, answers = overlapping(240, 14.0, seed=6)
    is_known_N = np.arange(240) % 3 == 0
    law_, budget = widening(whole, is_known_N), whole.budget_tokens // 3
    states = QueryStates(whole.cost_N)
    seen(states, answers, np.flatnonzero(is_known_N)[::2], 5)
    for running in (0, 1):
        stages = [cleared(law_, states, int(share * budget), running) for share in (0.8, 0.7, 0.55, 0.49, 0.3)]
        tokens = [int(stage.tokens_M.sum()) for stage in stages]
        assert min(tokens[:3]) > 0
        assert max(tokens[1] - 0.2 * budget, tokens[2] - 0.05 * budget) <= 0.1 * tokens[1] + 40, (
            "beside them some go on"
        )
        assert tokens[3:] == [0, 0]
    is_known_N[:] = True
    assert len(cleared(law_, states, whole.budget_tokens // 3, 0).index_M), "all of it is for sale then"


def test_a_streamed_stage_follows_what_was_spent_and_no_count_of_clearings() -> None:
    stages, budget, count = Stages(), 100_000.0, 0
    how = {"queries": 8_192, "budget_tokens": budget, "pilot": stages.pilot_size(8_192)}
    first = stages.part_tokens(**how, spent_tokens=0.0)  # type: ignore[arg-type]
    spent = 0.5 * stages.pilot_size(8_192) * stages.pilot_ceiling_tokens(8_192, budget_tokens=budget)
    assert first == stages.part_tokens(**how, spent_tokens=spent), "the pilot took less"  # type: ignore[arg-type]
    numbered = spent
    while spent < 0.49 * budget:
        numbered += stages.stage_tokens(8_192, budget_tokens=budget, spent_tokens=numbered, round_number=count + 1)
        spent, count = spent + stages.part_tokens(**how, spent_tokens=spent), count + 1  # type: ignore[arg-type]
        assert spent == pytest.approx(numbered), "where answers take all that they were granted"
    assert count == stages.most_stages
    assert spent == pytest.approx(budget / 2)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_answers_far_shorter_than_their_ceilings_are_all_asked_for_in_a_few_rounds(is_streamed: bool) -> None:
    """What a stage spends is a twentieth of what it grants here, and stages that follow what was spent hardly grow."""
    queries, rng, cap = 600, np.random.default_rng(0), 4_096
    length_N = np.clip(np.exp(rng.normal(3.0, 0.5, queries)).astype(np.int64), 1, cap)
    answers = Answers(length_N, length_N < cap, rng.random(queries) < 0.5)
    whole, _ = overlapping(queries, 400.0, seed=0, tokens_K=token_grid(cap, points=24))
    whole = replace(whole, max_tokens_N=np.full(queries, cap), is_streamed=is_streamed)
    run = replay_run(
        whole, answers, budget_tokens=whole.budget_tokens, allocation=AllocationConfig(max_rounds=LEARNING_ROUNDS)
    )
    assert (run.spent_tokens_N > 0).all()
    assert len(run.rounds) < 0.75 * LEARNING_ROUNDS


def test_nothing_is_looked_at_of_a_query_that_is_not_known() -> None:
    whole, answers = overlapping(120, 14.0, seed=4)
    is_known_N = np.arange(120) < 60
    blank = replace(whole, x_NP=np.where(is_known_N[:, None], whole.x_NP, np.nan))
    states = QueryStates(whole.cost_N)
    seen(states, answers, np.arange(0, 60, 4), 40)
    for running in (0, 1):
        equal(*(cleared(widening(one, is_known_N), states, 600, running) for one in (whole, blank)))
    nothing = widening(whole, np.zeros(120, bool))
    assert nothing.part is None
    for running in (0, 1):
        assert not len(cleared(nothing, states, 600, running).index_M)
    assert not len(nothing.serve(np.ones(120, np.int64), available_tokens=9, shadow_price=0.0).index_M)


def test_a_law_of_some_has_their_part_of_all_that_is_of_queries() -> None:
    whole, _ = overlapping(30, 14.0, seed=5)
    right_K, survival_K = law(whole.tokens_K)
    right_NK, survival_NK = (np.linspace(0.5, 1.0, 30)[:, None] * row for row in (right_K, survival_K))
    whole = replace(whole, given=Incidence(right_NK, 1 - right_NK - survival_NK, survival_NK), fold_N=np.arange(30) % 5)
    some = whole.some(np.array([3, 17, 18]))
    assert some.given is not None
    assert whole.given is not None
    assert some.fold_N is not None
    np.testing.assert_array_equal(some.given.right_NK, whole.given.right_NK[[3, 17, 18]])
    assert some.fold_N.tolist() == [3, 2, 3]
    assert some.budget_tokens == 3 * 14
    assert type(some) is OverlappingLearningOffers


@given(
    seed=st.integers(0, 10_000),
    growth=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    overlaps=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_whatever_is_read_when_only_what_is_known_is_granted_and_no_more_than_its_share(
    seed: int, growth: list[int], overlaps: bool
) -> None:
    queries = 90
    whole, answers = overlapping(queries, 12.0, seed=seed % 7)
    order, is_known_N = Homes(2, 1).spread(queries, seed=seed), np.zeros(queries, bool)
    rounds = Rounds(widening(whole, is_known_N), LEAST, most_alone=LEARNING_ROUNDS)
    rounds.widen(0)
    assert rounds.next(0) is None
    known, spent, running, rng = 0, 0, dict[int, np.ndarray](), np.random.default_rng(seed)

    def end(number: int) -> int:
        """End what is left of a round; return what it spent."""
        index_M = running.pop(number)
        clearing = granted_of[number].clearing
        tokens_M = dict(zip(clearing.index_M.tolist(), clearing.tokens_M.tolist(), strict=True))
        grants = np.array([tokens_M[index] for index in index_M.tolist()])
        came = answers.attempts(index_M, grants, rounds.states.answer_tokens_N[index_M])
        rounds.take(number, [came])
        return int(came.attempt_tokens_M.sum())

    granted_of = {}
    for step in [*growth, queries, *[0] * 4]:
        known = min(known + step, queries)
        is_known_N[order[:known]] = True
        rounds.widen(None if known == queries else known)
        share = whole.budget_tokens * known // queries
        granted = rounds.next(share - spent)
        if granted is not None:
            assert is_known_N[granted.clearing.index_M].all()
            assert rounds.promised_tokens <= share - spent
            granted_of[granted.number], running[granted.number] = granted, granted.clearing.index_M
        for number in list(running):
            if not overlaps or rng.random() < 0.5:
                spent += end(number)
        assert spent <= share
    assert rounds.number > 0


def test_a_batch_that_is_streamed_is_answered_sooner_and_as_well() -> None:
    queries, average, slots = 480, 14.0, 24
    rate, first, right = queries / 60, [], []
    for seed in range(4):
        whole, answers = overlapping(queries, average, seed=seed)
        order = np.argsort(answers.length_N, kind="stable")[::-1]  # the longest come first in the input
        whole, answers = (
            whole.some(order),
            Answers(answers.length_N[order], answers.is_stopped_N[order], answers.is_right_N[order]),
        )
        how = {"budget_tokens": whole.budget_tokens, "slots": slots, "overlaps": True}
        allocation = AllocationConfig(max_rounds=100)
        pair = [
            timed_run(whole, answers, **how, allocation=allocation, reading=reading)  # type: ignore[arg-type]
            for reading in (
                Reading(rate, np.arange(queries), is_streamed=False),
                Reading(rate, Homes(2, 1).spread(queries, seed=seed)),
            )
        ]
        assert max(timed.tokens_N.sum() for timed in pair) <= whole.budget_tokens
        assert [timed.first_queries for timed in pair] == [queries, queries // 4]
        first.append(pair[1].first_steps / pair[0].first_steps)
        right.append([timed.is_right_N.sum() for timed in pair])
        assert right[-1][1] > queries * even(answers, average), "as much as equal ceilings bring"
    assert np.mean(first) < 0.6
    read_first, streamed = np.mean(right, axis=0)
    assert streamed > 0.95 * read_first
