"""A plan's interval against what replayed batches spend, in money, from sampled answers for a hundredth of the budget."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.samples import ask_within, read_again
from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.money import COST_PARTS
from clear_ray.config.prices import Prices
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factors import law
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import Ledger
from clear_ray.report.interval import Interval, menu_interval, spending_interval
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from tests.conftest import ROLLOUTS
from tests.unit.rounds.test_menu_offers import Batch as Menu

PRICES = Prices.model_validate({"input": "0.15", "output": "0.60"})
BATCHES, QUERIES, CAP = 20, 1_000, 400


def recorded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = ["prompt_tokens", "output_tokens", "finish_reason"]
    table = pq.read_table(ROLLOUTS / "rollouts.parquet", columns=columns).to_pydict()
    stopped = np.array([reason == "stop" for reason in table["finish_reason"]])
    return np.array(table["prompt_tokens"], np.int64), np.array(table["output_tokens"], np.int64), stopped


def spent_by_a_run(calls: CallCosts, length_N: np.ndarray, stopped_N: np.ndarray, budget: int) -> int:
    """Replay a whole run under the uninformed law, round after round, and return what its ledger charged."""
    tokens_K = token_grid(CAP, points=16)
    right_K, survival_K = law(tokens_K)
    curves = curves_from_incidence(
        np.tile(right_K, (QUERIES, 1)), survival_NK=np.tile(survival_K, (QUERIES, 1)), tokens_K=tokens_K
    )
    batch = Batch(
        curves,
        np.ones(QUERIES),
        np.full(QUERIES, CAP),
        np.arange(QUERIES).astype(np.uint64),
        calls.token_parts_N / COST_PARTS,
        calls,
    )
    ledger = Ledger(budget, QUERIES, cost_N=batch.cost_N)
    rounds = Rounds(BatchOffers(batch), AllocationConfig(), calls=calls)
    while (granted := rounds.next(ledger.available_tokens)) is not None:
        clearing, before_N = granted.clearing, rounds.states.answer_tokens_N.copy()
        answer_M = np.minimum(length_N[clearing.index_M], before_N[clearing.index_M] + clearing.tokens_M)
        new_M, is_whole_M = answer_M - before_N[clearing.index_M], answer_M == length_N[clearing.index_M]
        parts_M = clearing.parts_M(batch.cost_N)
        taken_M = calls.taken_parts(clearing.index_M, new_M, before_N[clearing.index_M])
        columns = (clearing.index_M, clearing.tokens_M, parts_M, new_M, taken_M)
        for index, tokens, parts, new, taken in np.stack(columns, axis=1).tolist():
            entry = ledger.reserve(index, tokens, parts)
            assert isinstance(entry, Entry)
            ledger.settle(index, entry.attempt, new, taken)
        over_M, no = stopped_N[clearing.index_M] & is_whole_M, np.zeros(len(new_M), bool)
        rounds.take(
            granted.number,
            [
                Attempts(
                    clearing.index_M, clearing.tokens_M, new_M, answer_M, over_M, no, is_whole_M & ~over_M, over_M * 1.0
                )
            ],
        )
    ledger.check()
    return ledger.spent_tokens


def test_the_interval_holds_what_eighteen_of_twenty_replayed_batches_spend() -> None:
    prompt_R, length_R, stopped_R = recorded()
    covered, widths = 0, []
    for number in range(BATCHES):
        rng = np.random.default_rng(number)
        rows = rng.choice(len(prompt_R), QUERIES, replace=False)
        ones = np.ones(QUERIES, np.int64)
        calls = CallCosts(PRICES.token_parts * ones, PRICES.read_parts * ones, prompt_R[rows])
        index, none = np.arange(QUERIES), np.zeros(QUERIES, np.int64)
        whole = calls.taken_parts(index, length_R[rows], none) / COST_PARTS
        budget = int(whole.sum() * (0.4, 0.8, 1.5, 3.0)[number % 4])
        worst = calls.taken_parts(index, np.full(QUERIES, CAP), none)
        order = rng.permutation(QUERIES)
        sampled = ask_within(
            order.tolist(),
            worst[order].tolist(),
            lambda asked, whole=whole: [int(whole[i] * COST_PARTS) for i in asked],  # type: ignore[misc]
            allowed_parts=budget * COST_PARTS // 100,
        )
        assert 0 < sum(sampled) <= 0.01 * budget * COST_PARTS
        found = spending_interval(
            [parts / COST_PARTS for parts in sampled],
            queries=QUERIES,
            budget=budget,
            worst=float(worst.sum()) / COST_PARTS,
            again=read_again(calls, float(np.mean(sampled)) / COST_PARTS),
        )
        spent = spent_by_a_run(calls, length_R[rows], stopped_R[rows], budget)
        covered += found.low <= spent <= found.high
        widths.append(found.high / found.low)
    assert covered >= 18, covered
    assert np.median(widths) < 3, "an interval that holds anything says nothing"


@pytest.mark.parametrize(("sampled", "budget"), [([5.0], 100.0), ([5.0, 5.0, 9.0], 10_000.0), ([1e-9], 3.0)])
def test_low_expected_and_high_are_in_order_and_within_the_budget(sampled: list[float], budget: float) -> None:
    found = spending_interval(sampled, queries=50, budget=budget, worst=50 * 20.0)
    assert 0 < found.low <= found.expected <= found.high <= budget


def test_more_answers_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    widths = [
        (lambda found: found.high / found.low)(
            spending_interval(rng.exponential(1.0, count).tolist(), queries=10_000, budget=1e9, worst=1e9)
        )
        for count in (3, 30, 300)
    ]
    assert widths[0] > widths[1] > widths[2] > 1


@pytest.mark.parametrize("budget_share", [0.15, 0.6, 3.0])
def test_the_interval_of_a_menu_holds_what_eighteen_of_twenty_menus_spend(budget_share: float) -> None:
    """Four answers of each model are sampled, and nothing else is known of what the menu's plans will ask."""
    held = 0
    for seed in range(BATCHES):
        known = Menu(is_verified=True, budget=0, given=True, seed=seed)
        budget = int(budget_share * known.dear_alone())
        menu = Menu(is_verified=True, budget=budget, given=True, seed=seed)
        menu.play()
        asked = np.random.default_rng([seed, 9]).permutation(len(menu.is_easy_N))[:4]
        alone, wrong = [], []
        for calls, length_N, right_N in zip(menu.calls, menu.length_JN, menu.is_right_JN, strict=True):
            whole = calls.taken_parts(asked, length_N[asked], np.zeros_like(asked)) / COST_PARTS
            worst = float(calls.taken_parts(np.arange(80), np.full(80, 32), np.zeros(80, np.int64)).sum()) / COST_PARTS
            again = read_again(calls, float(whole.mean()))
            alone.append(spending_interval(whole.tolist(), queries=80, budget=budget, worst=worst, again=again))
            wrong.append((float((~right_N[asked]).sum()) + 0.5) / 5)
        found = menu_interval(alone, wrong, budget=budget, is_followed=True)
        held += found.low <= menu.spent <= found.high
    assert held >= 18


def test_of_an_engine_of_which_nothing_is_known_all_of_the_budget_may_be_spent() -> None:
    known = Interval(low=10.0, expected=20.0, high=30.0)
    found = menu_interval([known, None], [0.5, 0.5], budget=1_000.0, is_followed=False)
    assert found == Interval(low=10.0, expected=1_000.0, high=1_000.0)
    dear = Interval(low=100.0, expected=200.0, high=300.0)
    followed = menu_interval([known, dear], [0.5, 0.5], budget=1_000.0, is_followed=True)
    assert followed == Interval(low=10.0, expected=120.0, high=330.0)
