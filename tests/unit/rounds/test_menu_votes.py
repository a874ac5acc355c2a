"""Whole runs of two models whose votes are counted: nothing says which answer is right, and wrong ones differ."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.hazards import Incidence
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import Ledger
from clear_ray.records import COST_PARTS
from clear_ray.rounds import menu_pricing
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.menu_votes import VotingMenuOffers
from clear_ray.rounds.rounds import Rounds
from tests.unit.rounds.test_menu_offers import COSTS, QUERIES, Batch


class Votes(Batch):
    """The cheap model is right of easy queries four times in five, of the others twice; the dear one of nearly all."""

    times = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng([self.seed, 5])
        chance_JN = np.stack([np.where(self.is_easy_N, 0.8, 0.4), np.full(QUERIES, 0.9)])
        self.is_right_JNA = rng.random((2, QUERIES, 2 * self.times)) < chance_JN[:, :, None]
        self.length_JNA = rng.integers(3, 17, (2, QUERIES, 2 * self.times))
        self.wrong_JNA = rng.integers(2, 9, (2, QUERIES, 2 * self.times))
        self.offers = self.voting(self.offers)

    def voting(self, offers: MenuOffers) -> VotingMenuOffers:
        known = {each.name: getattr(offers, each.name) for each in fields(MenuOffers)}
        return VotingMenuOffers(**known | {"objective": "vote", "times": self.times, "label": "agreement"})

    def heads(self) -> tuple[Incidence, ...]:
        cheap, dear = super().heads()
        ended_NK, chance_N = 1.0 - cheap.survival_NK, np.where(self.is_easy_N, 0.8, 0.4)[:, None]
        return replace(cheap, right_NK=chance_N * ended_NK, wrong_NK=(1.0 - chance_N) * ended_NK), dear

    def play(self) -> float:
        """Return the share of queries whose most frequent result is right."""
        offers = self.offers
        least = CallCosts(*(np.minimum(*(getattr(calls, name) for calls in self.calls)) for name in COSTS))
        rounds = Rounds(offers, AllocationConfig(max_rounds=40, smallest_grant_tokens=1), rule=offers.rule, calls=least)
        ledger, states = Ledger(self.budget, QUERIES, cost_N=offers.cost_N), rounds.states
        self.bounds: list[tuple[float, float]] = []
        while (granted := rounds.next(ledger.available_tokens)) is not None:
            clearing = granted.clearing
            self.bounds.append((clearing.dual_bound, clearing.gap))
            index_M, tokens_M = clearing.index_M, clearing.tokens_M
            option_M = np.zeros_like(index_M) if clearing.option_M is None else clearing.option_M
            begins_M = states.begins_M(clearing)
            before_M = np.where(begins_M, 0, states.answer_tokens_N[index_M])
            number_M = states.attempt_N[index_M] + begins_M - 1
            length_M = self.length_JNA[option_M, index_M, number_M]
            answer_M = np.minimum(length_M, before_M + tokens_M)
            parts_M = clearing.parts_M(offers.cost_N)
            assert parts_M.sum() <= ledger.available_tokens * COST_PARTS
            for place, (index, model) in enumerate(zip(index_M.tolist(), option_M.tolist(), strict=True)):
                entry = ledger.reserve(index, int(tokens_M[place]), int(parts_M[place]))
                assert isinstance(entry, Entry)
                new, before = answer_M[[place]] - before_M[[place]], before_M[[place]]
                taken = self.calls[model].taken_parts(np.array([index]), new, before)
                ledger.settle(index, entry.attempt, int(new[0]), int(taken[0]))
                self.asked.append((index, model, int(before[0])))
            stopped_M, no = np.asarray(answer_M == length_M), np.zeros(len(index_M), bool)
            right_M = self.is_right_JNA[option_M, index_M, number_M]
            vote_M = np.where(right_M, 1, self.wrong_JNA[option_M, index_M, number_M])
            rounds.take(
                granted.number,
                [
                    Attempts(
                        index_M,
                        tokens_M,
                        answer_M - before_M,
                        answer_M,
                        stopped_M,
                        no,
                        no,
                        np.full(len(index_M), np.nan),
                        np.where(stopped_M, vote_M, 0),
                    )
                ],
            )
        ledger.check()
        self.spent, self.states = ledger.spent_tokens, states
        voted = states.ballots._of
        chosen = [
            next((ballot.vote for ballot in voted.get(query, []) if ballot.attempt == attempt), 0)
            for query, attempt in enumerate(states.chosen_attempt_N.tolist())
        ]
        return float(np.mean(np.array(chosen) == 1))


def played(share: float, seed: int, *, given: bool) -> tuple[Votes, float]:
    """Play a batch with a share of what the dear model alone would take of one answer each; return it, and what is right."""
    whole = Votes(is_verified=False, budget=0, given=given, seed=seed).dear_alone()
    batch = Votes(is_verified=False, budget=int(share * whole), given=given, seed=seed)
    return batch, batch.play()


@pytest.mark.parametrize("given", [True, False])
def test_votes_of_two_models_are_right_more_often_than_either_or_a_mixture(given: bool) -> None:
    """One answer of the cheap model each is right of .6, of the dear one of .9: a mixture at .55 of its cost of .75."""
    of_both, cheap, rights = 0, [0, 0], []
    for seed in range(4):
        batch, right = played(0.55, seed, given=given)
        assert batch.spent <= batch.budget
        rights.append(right)
        asked: dict[int, list[int]] = {}
        for index, model, before in batch.asked:
            if before == 0:
                asked.setdefault(index, []).append(model)
        assert all(models == sorted(models) for models in asked.values()), "a cheaper one was asked later"
        assert all(models.count(model) <= Votes.times for models in asked.values() for model in (0, 1))
        of_both += sum(len(set(models)) == 2 for models in asked.values())
        for index, models in asked.items():
            cheap[int(batch.is_easy_N[index])] += models.count(0)
        assert all(bound >= gap >= 0 for bound, gap in batch.bounds)
    assert np.mean(rights) >= 0.78, "one batch of 80 queries is good to .05"
    if given:
        assert cheap[1] > 3 * cheap[0], "where the kinds are known the cheap one votes on the easy ones"
    else:
        assert of_both > 10, "votes of both models are counted together"


def test_what_votes_bring_grows_with_the_budget() -> None:
    right = [played(share, 0, given=True)[1] for share in (0.15, 0.6, 2.0)]
    assert right[0] < right[1] < right[2]
    assert right[2] > 0.93, "more than one answer of the dear model each"


def test_an_answer_of_one_model_ends_no_query_before_the_last_vote() -> None:
    rule = Votes(is_verified=False, budget=1).offers.rule
    yes, no = np.ones(1, bool), np.zeros(1, bool)
    ended = Attempts(*(np.ones(1, np.int64),) * 4, yes, no, no, np.full(1, np.nan), np.ones(1, np.int64))
    failed = replace(ended, has_stopped_M=no, has_failed_M=yes)
    for last in (False, True):
        number = np.array([8 if last else 7], np.int32)
        assert [bool(rule.closes_M(each, number)[0]) for each in (ended, failed)] == [last, last]


@pytest.mark.parametrize("is_verified", [True, False])
def test_a_menu_that_is_priced_in_blocks_keeps_its_budget_and_its_bound(
    is_verified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Batch(is_verified=is_verified, budget=0).dear_alone()
    together = Batch(is_verified=is_verified, budget=whole // 2, given=True)
    solved = together.play()
    monkeypatch.setattr(menu_pricing, "PRICED_TOGETHER", 0)
    monkeypatch.setattr(menu_pricing, "_ROWS_AT_ONCE", 32)
    blocks = Batch(is_verified=is_verified, budget=whole // 2, given=True)
    assert blocks.play() > solved - 0.1
    assert blocks.spent <= blocks.budget
    first, of_all = (batch.rounds_seen[0].clearing for batch in (blocks, together))
    assert first.dual_bound >= of_all.dual_bound * (1 - 1e-9), "any price bounds, and that of all queries best"
    assert first.dual_bound < 1.1 * of_all.dual_bound
    assert first.gap >= 0
