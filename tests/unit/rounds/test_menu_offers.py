"""Whole runs of a menu of two models, over the real ledger and law: a cheap one that is often wrong, and a dear one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.hazards import Incidence
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import Ledger
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.rounds.uniform_menu import UniformMenuOffers

COSTS = ("token_parts_N", "read_parts_N", "prompt_tokens_N")
QUERIES, TOKENS_K = 80, np.array([4, 8, 16, 32])


@dataclass
class Batch:
    """Queries of two kinds: of one the cheap model is mostly right, of the other never; the dear one is right of nearly all.

    Attributes:
        is_verified: Whether a wrong answer is known to be one.
        budget: In the budget's unit.
        given: Whether heads are given that know the kinds.
        service: Tokens of the minimum service.
    """

    is_verified: bool
    budget: int
    given: bool = False
    seed: int = 0
    service: int | None = None
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    rounds_seen: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.is_easy_N = np.arange(QUERIES) % 2 == 0
        self.length_JN = rng.integers(3, 17, (2, QUERIES))
        self.is_right_JN = np.stack([self.is_easy_N & (rng.random(QUERIES) < 0.95), rng.random(QUERIES) < 0.9])
        ones = np.ones(QUERIES, np.int64)
        self.calls = (CallCosts(1_000 * ones, 100 * ones, 20 * ones), CallCosts(10_000 * ones, 1_000 * ones, 20 * ones))
        self.offers = MenuOffers(
            x_NP=np.stack([self.is_easy_N, ~self.is_easy_N], axis=1) * 3.0,
            tokens_K=TOKENS_K,
            weight_N=np.ones(QUERIES),
            max_tokens_JN=np.full((2, QUERIES), 32),
            tie_break_N=rng.permutation(QUERIES).astype(np.uint64),
            calls=self.calls,
            budget_tokens=self.budget,
            objective="solved" if self.is_verified else "correct",
            given=self.heads() if self.given else (),
            learns=not self.given,
            seed=self.seed,
        )

    def heads(self) -> tuple[Incidence, ...]:
        ended_K = np.array([0.1, 0.4, 1.0, 1.0])
        chance_J = (np.where(self.is_easy_N, 0.95, 0.0), np.full(QUERIES, 0.9))
        right = [chance[:, None] * ended_K for chance in chance_J]
        survival = np.tile(1.0 - ended_K, (QUERIES, 1))
        return tuple(Incidence(one, 1.0 - one - survival, survival) for one in right)

    def play(self) -> float:
        """Return the share of queries that are right in the end."""
        least = CallCosts(*(np.minimum(*(getattr(calls, name) for calls in self.calls)) for name in COSTS))
        rounds = Rounds(
            self.offers,
            AllocationConfig(max_rounds=24, smallest_grant_tokens=1, minimum_service_tokens=self.service),
            rule=self.offers.rule,
            calls=least,
        )
        ledger, states = Ledger(self.budget, QUERIES, cost_N=self.offers.cost_N), rounds.states
        while (granted := rounds.next(ledger.available_tokens)) is not None:
            self.rounds_seen.append(granted)
            clearing = granted.clearing
            option_M = np.zeros_like(clearing.index_M) if clearing.option_M is None else clearing.option_M
            before_M = np.where(states.begins_M(clearing), 0, states.answer_tokens_N[clearing.index_M])
            length_M = self.length_JN[option_M, clearing.index_M]
            answer_M = np.minimum(length_M, before_M + clearing.tokens_M)
            parts_M = clearing.parts_M(self.offers.cost_N)
            assert parts_M.sum() <= ledger.available_tokens * COST_PARTS
            columns = (clearing.index_M, option_M, clearing.tokens_M, parts_M, answer_M - before_M, before_M)
            for index, model, tokens, parts, new, before in np.stack(columns, axis=1).tolist():
                entry = ledger.reserve(index, tokens, parts)
                assert isinstance(entry, Entry)
                taken = self.calls[model].taken_parts(np.array([index]), np.array([new]), np.array([before]))
                ledger.settle(index, entry.attempt, new, int(taken[0]))
                self.asked.append((index, model, before))
            stopped_M = np.asarray(answer_M == length_M)
            number_M = states.attempt_N[clearing.index_M] + states.begins_M(clearing)
            right_M = stopped_M & self.is_right_M(option_M, clearing.index_M, number_M)
            no = np.zeros(len(answer_M), bool)
            rounds.take(
                granted.number,
                [
                    Attempts(
                        clearing.index_M,
                        clearing.tokens_M,
                        answer_M - before_M,
                        answer_M,
                        stopped_M,
                        no,
                        no,
                        self.score_M(right_M, option_M) * stopped_M,
                    )
                ],
            )
        ledger.check()
        self.spent, self.score_N = ledger.spent_tokens, np.nan_to_num(states.chosen_score_N)
        return float((states.chosen_has_stopped_N & (states.chosen_score_N >= 1)).mean())

    def score_M(self, right_M: np.ndarray, option_M: np.ndarray) -> np.ndarray:
        """Return the score of answers."""
        del option_M
        return right_M.astype(float)

    def is_right_M(self, option_M: np.ndarray, index_M: np.ndarray, number_M: np.ndarray) -> np.ndarray:
        """Return whether an answer would be right; `number_M` says which of the query it is."""
        del number_M
        return self.is_right_JN[option_M, index_M]

    def dear_alone(self) -> int:
        """Return what it takes to ask the dear model of everything."""
        index = np.arange(QUERIES)
        return int(self.calls[1].taken_parts(index, self.length_JN[1], np.zeros(QUERIES, np.int64)).sum()) // COST_PARTS


@pytest.mark.parametrize("given", [True, False])
def test_wrong_answers_of_the_cheap_model_are_followed_by_the_dear_one(given: bool) -> None:
    batch = Batch(is_verified=True, budget=0, given=given)
    batch = Batch(is_verified=True, budget=int(0.75 * batch.dear_alone()), given=given)
    found = batch.play()
    # The dear model alone, by a mixture, would be right of three quarters of 0.9.
    assert found > 0.75
    assert batch.spent <= batch.budget
    models: dict[int, list[int]] = {}
    for index, model, before in batch.asked:
        if before == 0:
            models.setdefault(index, []).append(model)
    assert all(asked == sorted(set(asked)) for asked in models.values()), (
        "a model was asked twice, or a cheaper one later"
    )
    assert any(asked == [0, 1] for asked in models.values())
    if given:  # of the hard kind the cheap model is not worth its prompt
        assert all(models[index] == [1] for index in models if not batch.is_easy_N[index])


def test_with_heads_and_no_verdict_each_kind_goes_to_the_model_that_is_worth_it() -> None:
    batch = Batch(is_verified=False, budget=0, given=True)
    batch = Batch(is_verified=False, budget=2 * batch.dear_alone(), given=True)
    found = batch.play()
    first = {index: model for index, model, before in batch.asked if before == 0}
    assert {first[index] for index in range(QUERIES) if not batch.is_easy_N[index]} == {1}
    assert {first[index] for index in range(QUERIES) if batch.is_easy_N[index]} == {0}
    assert found > 0.85
    assert batch.spent < batch.dear_alone()


def test_what_was_granted_once_is_granted_again() -> None:
    """A resumed run asks the same of the same states."""
    once, again = (Batch(is_verified=True, budget=4_000, seed=3) for _ in range(2))
    assert once.play() == again.play()
    for a, b in zip(once.rounds_seen, again.rounds_seen, strict=True):
        np.testing.assert_array_equal(a.clearing.index_M, b.clearing.index_M)
        np.testing.assert_array_equal(a.clearing.tokens_M, b.clearing.tokens_M)


def test_of_a_budget_that_pays_for_nothing_nothing_is_granted() -> None:
    batch = Batch(is_verified=True, budget=1)
    assert batch.play() == 0.0
    assert batch.spent == 0


@pytest.mark.parametrize("is_verified", [True, False])
def test_a_budget_of_a_few_answers_is_spent_on_them(is_verified: bool) -> None:
    """A tenth of it, which the pilot may have, pays for none."""
    batch = Batch(is_verified=is_verified, budget=80)
    batch.play()
    assert len({index for index, _, _ in batch.asked}) >= 2
    assert 40 <= batch.spent <= 80


class Best(Batch):
    """Answers of the cheap model that are not right are nearly so of one half of the queries, and worthless of the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offers = replace(self.offers, objective="best_of_n")
        self.near_N = np.random.default_rng([self.seed, 6]).random(QUERIES) < 0.5

    def is_right_M(self, option_M: np.ndarray, index_M: np.ndarray, number_M: np.ndarray) -> np.ndarray:
        self.index_M = index_M
        return super().is_right_M(option_M, index_M, number_M)

    def score_M(self, right_M: np.ndarray, option_M: np.ndarray) -> np.ndarray:
        wrong_M = np.where((option_M == 0) & self.near_N[self.index_M], 0.95, 0.0)
        return np.where(right_M, 1.0, wrong_M)


def test_where_the_best_of_several_counts_a_dear_answer_goes_where_it_may_add_most() -> None:
    whole = Best(is_verified=True, budget=0).dear_alone()
    batch = Best(is_verified=True, budget=whole // 2)
    batch.play()
    assert batch.spent <= batch.budget
    asked: dict[int, list[int]] = {}
    for index, model, before in batch.asked:
        if before == 0:
            asked.setdefault(index, []).append(model)
    again = [index for index, models in asked.items() if models == [0, 1]]
    assert len(again) > 5
    assert np.mean(batch.near_N[again]) < 0.3, "an answer that is nearly right is worth no dear one"
    assert batch.score_N.mean() > 0.6
    assert ((batch.score_N > 0) & (batch.score_N < 1)).any(), "and it is kept"


@pytest.mark.parametrize("service", [None, 2])
def test_equal_shares_ask_each_query_of_one_model_and_as_many_of_each(service: int | None) -> None:
    batch = Batch(is_verified=False, budget=8_000, given=True, service=service)
    names = [f.name for f in fields(MenuOffers)]
    most_JN = np.full((2, QUERIES), 32)
    most_JN[1, :4] = 0  # prompts that the dear one cannot read
    batch.offers = UniformMenuOffers(
        **{name: getattr(batch.offers, name) for name in names} | {"max_tokens_JN": most_JN}
    )
    assert batch.play() > 0.3
    asked: dict[int, set[int]] = {}
    for index, model, _ in batch.asked:
        asked.setdefault(index, set()).add(model)
    assert len(asked) == QUERIES
    assert all(len(models) == 1 for models in asked.values())
    assert sum(models == {0} for models in asked.values()) == 4 + (QUERIES - 4) // 2
    assert all(asked[index] == {0} for index in range(4))
    first = batch.rounds_seen[0].clearing
    assert first.option_M is not None
    assert len(first.option_M) == QUERIES
    for model, ceiling in ((0, 32), (1, 15)):  # what the cheap one leaves over goes to the others
        (tokens,) = set(first.tokens_M[first.option_M == model].tolist())
        assert tokens == ceiling
    assert batch.spent > 0.4 * batch.budget


class Efforts(Batch):
    """Two efforts of one model: a token costs the same of both, and answers of the second are five times as long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng([self.seed, 1])
        self.length_JN = np.stack([rng.integers(2, 6, QUERIES), rng.integers(12, 28, QUERIES)])
        self.calls = (self.calls[0], self.calls[0])
        self.offers = replace(self.offers, x_NP=np.zeros((QUERIES, 0)), calls=self.calls)


class Again(Batch):
    """Each answer of the cheap model to an easy query is right once in three times, whatever the others were."""

    times = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offers = replace(self.offers, times=self.times)

    def is_right_M(self, option_M: np.ndarray, index_M: np.ndarray, number_M: np.ndarray) -> np.ndarray:
        drawn_NT = np.random.default_rng([self.seed, 5]).random((QUERIES, 2 * self.times + 1))
        right_M = self.is_easy_N[index_M] & (drawn_NT[index_M, number_M] < 1 / 3)
        return np.where(option_M == 0, right_M, self.is_right_JN[1, index_M])


class Once(Again):
    times = 1


@pytest.mark.parametrize("given", [True, False])
def test_a_cheap_model_is_asked_again_before_a_dear_one_where_that_may_be(given: bool) -> None:
    dear = Again(is_verified=True, budget=0).dear_alone()
    again, once = (kind(is_verified=True, budget=dear // 4, given=given, seed=2) for kind in (Again, Once))
    solved, solved_once = again.play(), once.play()
    asked: dict[int, list[int]] = {}
    for index, model, before in again.asked:
        if before == 0:
            asked.setdefault(index, []).append(model)
    assert all(models == sorted(models) for models in asked.values()), "a cheaper one was asked later"
    assert all(models.count(model) <= Again.times for models in asked.values() for model in (0, 1))
    assert any(models.count(0) > 1 for models in asked.values())
    assert again.spent <= again.budget
    assert solved > solved_once + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_dear_model_is_not_tried_where_all_money_is_spent_better_on_the_cheap_one(seed: int) -> None:
    """The cheap one is right of half for a fifth of the money, and the budget pays for asking it of half the queries."""
    batch = Efforts(is_verified=True, budget=220, seed=seed)
    found = batch.play()
    assert {model for _, model, _ in batch.asked} == {0}
    assert found > 0.13, "what it was right of, for every answer that could be paid"


@pytest.mark.parametrize("seed", range(4))
def test_a_dear_model_is_tried_first_on_what_the_cheap_one_got_wrong(seed: int) -> None:
    batch = Efforts(is_verified=True, budget=1_100, seed=seed)
    found = batch.play()
    wrong: set[int] = set()
    for granted in batch.rounds_seen:
        clearing = granted.clearing
        assert clearing.option_M is not None
        tried = set(clearing.index_M[clearing.option_M == 1].tolist())
        if tried:
            assert wrong
            assert tried <= wrong
            break
        wrong |= {index for index in clearing.index_M.tolist() if not batch.is_right_JN[0, index]}
    else:
        pytest.fail("the dear model was never tried")
    assert found > 0.65, "less than half are right by the cheap one alone, and that takes two fifths of the budget"


@pytest.mark.parametrize("is_true", [True, False])
def test_what_earlier_runs_say_is_believed_at_once_and_dropped_where_it_is_not_so(is_true: bool) -> None:
    batch = Batch(is_verified=True, budget=0)
    batch = Batch(is_verified=True, budget=int(0.5 * batch.dear_alone()))
    told = batch.heads()
    if not is_true:  # the kinds are taken for each other, and answers for long ones
        wrong = np.where(batch.is_easy_N, 0.0, 0.95)[:, None] * np.array([0.0, 0.0, 0.1, 1.0])
        survival = np.tile(np.array([1.0, 1.0, 0.9, 0.0]), (QUERIES, 1))
        told = (Incidence(wrong, 1.0 - wrong - survival, survival), told[1])
    batch.offers = replace(batch.offers, earlier=told, learns=True)
    found = batch.play()
    assert batch.rounds_seen[0].clearing.shadow_price > 0, "no pilot"
    assert found > 0.6


@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("beside", [0, 60, 900])
def test_every_query_is_served_by_the_cheapest_model_that_can(is_verified: bool, given: bool, beside: int) -> None:
    """A service of 3 tokens takes 5 of the budget by the cheap model, and 50 by the dear one, which one query needs."""
    batch = Batch(is_verified=is_verified, budget=QUERIES * 5 + 45 + beside, given=given, service=3)
    limits = batch.offers.max_tokens_JN.copy()
    limits[0, 7] = 0
    batch.offers = replace(batch.offers, max_tokens_JN=limits)
    batch.play()
    assert batch.spent <= batch.budget
    assert {index for index, _, _ in batch.asked} == set(range(QUERIES))
    first_tokens: dict[int, int] = {}
    for granted in batch.rounds_seen:
        clearing = granted.clearing
        for index, tokens in zip(clearing.index_M.tolist(), clearing.tokens_M.tolist(), strict=True):
            first_tokens.setdefault(index, tokens)
    assert min(first_tokens.values()) >= 3
    served = batch.rounds_seen[-1].clearing
    assert served.is_service or beside == 900, "at the most money every query buys more than it is owed"
    if served.is_service:
        assert served.option_M is not None
        assert set(served.option_M[served.index_M != 7].tolist()) <= {0}
        assert set(served.tokens_M.tolist()) == {3}
    assert batch.rounds_seen[0].clearing.is_service == (not beside)


def test_of_two_models_the_one_without_a_head_is_learned() -> None:
    batch = Batch(is_verified=True, budget=0, given=True)
    batch = Batch(is_verified=True, budget=int(0.75 * batch.dear_alone()), given=True)
    batch.offers = replace(batch.offers, given=(batch.offers.given[0], None), learns=True)
    found = batch.play()
    models = [model for _, model, _ in batch.asked]
    assert 0 < models.index(1) < 45, "it is tried once the other one is worth no more, which its head knows"
    assert len(batch.rounds_seen[0].clearing.index_M) >= 2, "a head that is there is used from the start"
    assert found > 0.85


def test_a_query_that_a_model_cannot_read_goes_to_the_other() -> None:
    batch = Batch(is_verified=True, budget=10_000)
    limits = batch.offers.max_tokens_JN.copy()
    limits[0, ::2] = 0
    batch.offers = replace(batch.offers, max_tokens_JN=limits)
    batch.play()
    assert {model for index, model, _ in batch.asked if index % 2 == 0} == {1}
    assert {model for index, model, _ in batch.asked if index % 2} == {0, 1}
