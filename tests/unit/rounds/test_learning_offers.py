"""A run that teaches itself, through the law: budget, determinism, resume, the guard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Label, Observed
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import Evidence, learn
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers, observe
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.stage_grants import random_part
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates
from clear_ray.sweep.estimates import untaught
from clear_ray.sweep.policies import Contest
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers, SampledAnswers, replay_run

CAP = 200
DEMO = Path(__file__).resolve().parents[2] / "data" / "demo" / "rollouts.parquet"
ROUNDS = AllocationConfig(max_rounds=LEARNING_ROUNDS)


def world(queries: int, *, seed: int = 0, shuffled: bool = False) -> tuple[NDArray[np.float64], Answers]:
    """Two kinds of query: short and mostly right, long and mostly wrong; coordinates say which, unless shuffled."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, queries)
    length = np.minimum(5 + rng.gamma(3.0, np.where(kind == 0, 6.0, 45.0)).astype(np.int64), CAP)
    is_right = rng.random(queries) < np.where(kind == 0, 0.8, 0.1)
    seen = rng.permutation(kind) if shuffled else kind
    return np.eye(2)[seen], Answers(length, length < CAP, is_right & (length < CAP))


def offers(x_NP: NDArray[np.float64], average: float, *, seed: int = 0, label: Label = "verdict") -> LearningOffers:
    queries = len(x_NP)
    return LearningOffers(
        x_NP=x_NP,
        tokens_K=token_grid(CAP, points=12),
        weight_N=np.ones(queries),
        max_tokens_N=np.full(queries, CAP),
        tie_break_N=np.random.default_rng(seed).permutation(queries).astype(np.uint64),
        cost_N=np.ones(queries),
        budget_tokens=int(average * queries),
        label=label,
        seed=seed,
    )


def accuracy(
    x_NP: NDArray[np.float64], answers: Answers, average: float, *, seed: int, label: Label = "verdict"
) -> float:
    learning = offers(x_NP, average, seed=seed, label=label)
    run = replay_run(learning, answers, budget_tokens=learning.budget_tokens, allocation=ROUNDS)
    assert run.spent_tokens_N.sum() <= learning.budget_tokens
    return float(run.is_right_N.mean())


def even(answers: Answers, average: float) -> float:
    """Return what the equal ceiling brings that spends the budget."""
    ceilings = np.arange(CAP + 1)
    spent = np.minimum(answers.length_N[:, None], ceilings).mean(axis=0)
    right = (answers.is_right_N[:, None] & (answers.length_N[:, None] <= ceilings)).mean(axis=0)
    return float(np.interp(average, spent, right))


def test_a_run_that_knows_nothing_learns_which_queries_are_worth_it() -> None:
    gains = []
    for seed in range(2):
        x_NP, answers = world(120, seed=seed)
        gains.append(accuracy(x_NP, answers, 14.0, seed=seed) - even(answers, 14.0))
    assert min(gains) > 0.05


def test_without_gold_it_finishes_more_answers() -> None:
    x_NP, answers = world(100, seed=1)
    everything = replace(answers, is_right_N=answers.is_stopped_N)
    assert accuracy(x_NP, everything, 14.0, seed=1, label="ended") > even(everything, 14.0) + 0.1


def test_without_gold_it_learns_from_answers_that_agree_what_endings_do_not_say() -> None:
    """Answers of both kinds end alike; those of one are right, and agree."""
    rng, queries, right = np.random.default_rng(5), 240, []
    kind = rng.integers(0, 2, queries)
    length_NS = 5 + rng.gamma(3.0, 5.0, (queries, 3)).astype(np.int64)
    is_right_NS = rng.random((queries, 3)) < np.where(kind == 0, 0.95, 0.05)[:, None]
    votes_NS = np.where(is_right_NS, 1, rng.integers(2, 99, (queries, 3)))
    answers = SampledAnswers(length_NS, np.ones_like(is_right_NS), is_right_NS, votes_NS)
    for agreement in (None, Agreement()):
        label: Label = "ended" if agreement is None else "agreement"
        learning = replace(offers(np.eye(2)[kind], 13.0, label=label), agreement=agreement)
        rule = None if agreement is None else agreement.rule(np.ones(queries, bool))
        run = replay_run(learning, answers, budget_tokens=learning.budget_tokens, allocation=ROUNDS, rule=rule)
        assert run.spent_tokens_N.sum() <= learning.budget_tokens
        assert (run.attempts_N > 1).any() == (agreement is not None)
        assert (run.attempts_N > 1).mean() < 0.2
        right.append(run.is_right_N.mean())
    assert right[1] > right[0] + 0.05


@pytest.mark.parametrize("average", [8.0, 30.0, 80.0])
def test_where_coordinates_say_nothing_a_run_stays_near_equal_ceilings(average: float) -> None:
    """What it may lose is what exploring costs: equal ceilings on the rest of the budget are the floor."""
    gains = []
    for seed in range(3):
        x_NP, answers = world(100, seed=seed, shuffled=True)
        floor = even(answers, average * (1.0 - Stages().explored_share))
        gains.append(accuracy(x_NP, answers, average, seed=seed) - floor)
    assert np.mean(gains) > -0.02


def misled_gain(case: str, average: float, *, queries: int, seed: int) -> float:
    """Return the gain over equal ceilings, in standard errors, of a run whose scorer or head says nothing true."""
    x_NP, answers = world(queries, seed=seed, shuffled=case == "random scorer")
    rng = np.random.default_rng(100 + seed)
    learning, said = offers(x_NP, average, seed=seed), answers
    if case == "random scorer":
        said = replace(answers, is_right_N=answers.is_stopped_N & (rng.random(queries) < 0.45))
    else:
        right = np.where(answers.is_stopped_N, answers.is_right_N.astype(float), np.nan)
        observed = Observed(np.arange(queries), answers.length_N, answers.is_stopped_N, right)
        true = learn(x_NP, observed, tokens_K=learning.tokens_K).factors[0]
        # The head of a model that is good where this one is bad.
        learning = replace(learning, given=true.incidence(x_NP[:, ::-1], tokens_K=learning.tokens_K))
    run = replay_run(learning, said, budget_tokens=learning.budget_tokens, allocation=ROUNDS)
    found = (answers.is_right_N & (run.spent_tokens_N >= answers.length_N)).mean()
    equal = even(answers, average)
    return float((found - equal) / np.sqrt(equal * (1.0 - equal) / queries))


@pytest.mark.parametrize("case", ["random scorer", "head of another model"])
@pytest.mark.parametrize("queries", [20, 60])
def test_a_run_that_is_misled_is_not_half_a_standard_error_below_equal_ceilings(case: str, queries: int) -> None:
    gains = [misled_gain(case, average, queries=queries, seed=seed) for average in (16.0, 40.0) for seed in range(2)]
    assert np.mean(gains) > -0.5


@given(st.integers(1, 30), st.floats(0.1, 150.0), st.integers(0, 50))
@settings(max_examples=8, deadline=None)
def test_any_batch_keeps_its_budget_and_ends(queries: int, average: float, seed: int) -> None:
    x_NP, answers = world(queries, seed=seed)
    accuracy(x_NP, answers, average, seed=seed)


@pytest.mark.parametrize("queries", [10, 50])
def test_an_ample_budget_ends_every_answer(queries: int) -> None:
    """Stages must not be so small that rounds run out before the budget does."""
    x_NP, answers = world(queries, seed=4, shuffled=True)
    assert accuracy(x_NP, answers, 1.2 * CAP, seed=4) == answers.is_right_N.mean()


def test_a_resumed_run_goes_on_with_the_same_grants() -> None:
    """What is believed follows from where the queries stand, so nothing of it has to be remembered."""
    x_NP, answers = world(80, seed=2)
    learning = offers(x_NP, 20.0)
    straight = replay_run(learning, answers, budget_tokens=learning.budget_tokens, allocation=ROUNDS)
    rounds, left = Rounds(offers(x_NP, 20.0), ROUNDS), learning.budget_tokens
    for kept in straight.rounds[:4]:
        before_N = rounds.states.answer_tokens_N.copy()
        rounds.replay(kept)
        index_M, tokens_M = kept.clearing.index_M, kept.clearing.tokens_M
        attempts = answers.attempts(index_M, tokens_M, before_N[index_M])
        left -= int(attempts.attempt_tokens_M.sum())
        rounds.take(kept.number, [attempts])
    fifth = rounds.next(left)
    assert fifth is not None
    assert np.array_equal(fifth.clearing.index_M, straight.rounds[4].clearing.index_M)
    assert np.array_equal(fifth.clearing.tokens_M, straight.rounds[4].clearing.tokens_M)


def test_another_seed_asks_other_queries_first() -> None:
    x_NP, answers = world(80, seed=2)
    first = []
    for seed in (0, 1):
        learning = offers(x_NP, 20.0, seed=seed)
        first.append(
            set(
                replay_run(learning, answers, budget_tokens=1_600, allocation=ROUNDS)
                .rounds[0]
                .clearing.index_M.tolist()
            )
        )
    assert first[0] != first[1]


def test_stages_follow_a_budget_that_was_raised_on_the_way() -> None:
    x_NP, answers = world(200, seed=3)
    small, large = offers(x_NP, 10.0), offers(x_NP, 80.0)
    rounds = Rounds(small, ROUNDS)
    for _ in range(4):
        granted = rounds.next(small.budget_tokens - int(rounds.states.written_tokens_N.sum()))
        assert granted is not None
        index_M = granted.clearing.index_M
        before_M = rounds.states.answer_tokens_N[index_M]
        rounds.take(granted.number, [answers.attempts(index_M, granted.clearing.tokens_M, before_M)])
    states, nothing_N = rounds.states, np.zeros(200, np.int64)
    given = {"is_free_N": states.is_open_N, "owed_tokens_N": nothing_N}
    left_tokens = large.budget_tokens - int(states.written_tokens_N.sum())
    raised, begun_so = (each.clear(states, available_tokens=left_tokens, **given) for each in (small, large))
    assert raised.index_M.tolist() == begun_so.index_M.tolist()
    assert raised.tokens_M.tolist() == begun_so.tokens_M.tolist()
    assert 0 < len(raised.index_M) < int(states.is_open_N.sum())


def test_the_minimum_service_is_not_sold_to_the_pilot() -> None:
    x_NP, answers = world(40, seed=3)
    service = AllocationConfig(max_rounds=LEARNING_ROUNDS, minimum_service_tokens=4)
    run = replay_run(offers(x_NP, 10.0), answers, budget_tokens=400, allocation=service)
    assert (run.spent_tokens_N >= np.minimum(answers.length_N, 4)).all()
    tight = replay_run(offers(x_NP, 4.0), answers, budget_tokens=160, allocation=service)
    assert (tight.spent_tokens_N >= np.minimum(answers.length_N, 4)).all()


def evidence_of(*, shuffled: bool) -> list[float]:
    found = []
    for seed in range(4):
        x_NP, answers = world(60, seed=seed, shuffled=shuffled)
        right = np.where(answers.is_stopped_N, answers.is_right_N.astype(float), np.nan)
        observed = Observed(np.arange(60), answers.length_N, answers.is_stopped_N, right)
        found.append(learn(x_NP, observed, tokens_K=token_grid(CAP, points=12)).evidence.learned_nats)
    return found


def test_evidence_tells_what_says_something_from_what_does_not() -> None:
    assert min(evidence_of(shuffled=False)) > 5.0
    assert np.mean(evidence_of(shuffled=True)) < 1.0


def test_shares_follow_the_evidence() -> None:
    assert Evidence(50, 30.0).shares()[0] > 0.99
    assert Evidence(50, -30.0).shares()[0] < 1e-6
    learned, prior = Evidence(50, 0.0, 40.0).shares()
    assert learned < 1e-6
    assert prior > 0.99
    assert Evidence(50, 0.0).shares()[1] == 0.0


def test_given_beliefs_are_weighed_like_what_was_learned() -> None:
    """True beliefs of an earlier run are taken over after a few answers, wrong ones are dropped."""
    x_NP, answers = world(60, seed=5)
    tokens_K = token_grid(CAP, points=12)
    right = np.where(answers.is_stopped_N, answers.is_right_N.astype(float), np.nan)
    observed = Observed(np.arange(60), answers.length_N, answers.is_stopped_N, right)
    true = learn(x_NP, observed, tokens_K=tokens_K).factors[0].incidence(x_NP, tokens_K=tokens_K)
    wrong = Incidence(
        true.right_NK[::-1] * 0.01, 1 - true.right_NK[::-1] * 0.01 - true.survival_NK[::-1], true.survival_NK[::-1]
    )
    few = observed.take(np.arange(12))
    assert learn(x_NP, few, tokens_K=tokens_K, given=true).evidence.shares()[1] > 0.5
    assert learn(x_NP, few, tokens_K=tokens_K, given=wrong).evidence.shares()[1] < 0.2


def test_answers_that_failed_teach_nothing() -> None:
    states = QueryStates(np.ones(3))
    states.answer_tokens_N[:] = (5, 7, 0)
    states.has_stopped_N[:2] = True
    states.has_failed_N[1] = True
    states.correct_N[0] = 1.0
    seen = observe(states)
    assert seen.query_M.tolist() == [0]
    assert seen.right_M.tolist() == [1.0]
    assert np.isnan(observe(states, label="ended").right_M).all()


def test_a_part_of_the_grants_keeps_within_its_tokens_and_the_order() -> None:
    tokens = np.array([50, 40, 30, 20, 10])
    whole = Clearing(np.arange(5), tokens, tokens * 0.5, tokens * 0.01, np.zeros(5), 0.01, 2.0, 0.1)
    for seed in range(5):
        part = random_part(whole, 70, cost_N=np.ones(5), rng=np.random.default_rng(seed))
        assert 0 < part.tokens_M.sum() <= 70
        assert (np.diff(part.index_M) > 0).all()
    smallest = random_part(whole, 1, cost_N=np.ones(5), rng=np.random.default_rng(0))
    assert smallest.index_M.tolist() == [4]


@pytest.mark.parametrize("seed", [2, 7])
def test_a_pilot_of_short_answers_does_not_leave_the_stages_small(seed: int) -> None:
    """Recorded answers of the demo: the pilot may meet short ones alone, and the worthwhile kinds still have to be found."""
    recording = read_recording(str(DEMO))
    known = recording.features, recording.rollouts.prompts
    x_NP = fit_coordinates(*known, sets=("text", "ngrams"))(*known)
    contest = Contest(recording, untaught(recording), seed=seed, x_NP=x_NP)
    found, equal = (contest.play(policy, 1_400 / 104).right_N.sum() for policy in ("learning", "uniform"))
    assert equal == pytest.approx(22.9, abs=0.1)
    assert found > 33


@pytest.mark.parametrize("seed", range(6))
def test_kinds_whose_answers_were_all_cut_off_are_followed_until_one_ends(seed: int) -> None:
    """The demo in other orders: without that a third of them ended as equal ceilings do."""
    recording = read_recording(str(DEMO))
    known = recording.features, recording.rollouts.prompts
    order = np.random.default_rng(1_000 + seed).permutation(len(recording))
    x_NP = fit_coordinates(*known, sets=("text", "ngrams"))(*known)[order]
    answers = Answers(recording.length_NS[order, 0], recording.is_stopped_NS[order, 0], recording.is_right_NS[order, 0])
    learning = replace(offers(x_NP, 1_400 / 104, seed=seed), tokens_K=token_grid(160), max_tokens_N=np.full(104, 160))
    run = replay_run(learning, answers, budget_tokens=1_400, allocation=ROUNDS)
    assert run.is_right_N.sum() > 30


def test_sizes_follow_from_budget_and_batch() -> None:
    stages = Stages()
    assert [stages.pilot_size(queries) for queries in (1, 20, 100, 400, 1_000, 100_000)] == [1, 1, 4, 16, 16, 160]
    assert stages.pilot_ceiling_tokens(100, budget_tokens=3_200) == 128
    pilot = 0.5 * 4 * 128
    assert stages.stage_tokens(100, budget_tokens=3_200, spent_tokens=0.0, round_number=1) == pytest.approx(
        pilot * max(stages.growth, (1_600 / pilot) ** (1 / stages.most_stages) - 1)
    )
    spent = 0.5 * stages.pilot_size(1_000_000) * 128
    for number in range(1, stages.most_stages + 1):
        spent += stages.stage_tokens(1_000_000, budget_tokens=32e6, spent_tokens=spent, round_number=number)
    assert spent == pytest.approx(16e6, rel=0.01)


def test_stages_catch_up_with_answers_that_were_shorter_than_their_ceilings() -> None:
    stages, spent = Stages(), 1_000.0
    for number in range(1, stages.most_stages + 1):
        spent += 0.3 * stages.stage_tokens(1_000, budget_tokens=100_000, spent_tokens=spent, round_number=number)
    assert spent > 15_000
