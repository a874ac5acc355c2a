"""The online price by simulation: what its module docstring states, on a clock that the tests turn."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.allocation import Tabulated, allocate
from clear_ray.errors import BudgetError, ConfigError
from clear_ray.serve.law import Ask, Curve, Hold, PriceLaw
from clear_ray.serve.price import OnlinePrice
from clear_ray.serve.settings import ServeConfig

GRID_K = np.unique(np.rint(np.geomspace(4, 400, 12)).astype(np.int64))
LAW = PriceLaw(budget_tokens_per_second=400, carry_over_tokens=2_000)


def curve(rng: np.random.Generator) -> Curve:
    """Draw a shifted Erlang curve: solvability, threshold and rate spread widely."""
    threshold, solvability, beta = rng.uniform(20, 200), rng.uniform(0.05, 0.95), rng.uniform(0.02, 0.1)
    beyond = np.maximum(GRID_K - threshold, 0.0)
    ended = 1 - (1 + beta * beyond) * np.exp(-beta * beyond)
    return Curve(GRID_K, (solvability * ended).astype(np.float32), (1 - ended).astype(np.float32))


def certain(tokens: int, success: float) -> Curve:
    """Return the curve of an answer that is as long as `tokens`, no more and no less."""
    has_ended = tokens <= GRID_K
    return Curve(GRID_K, np.where(has_ended, success, 0).astype(np.float32), 1 - has_ended.astype(np.float32))


@dataclass
class Trace:
    """What a simulation saw: sales as (second, tokens less refunds), and the price after each query."""

    sold: list[tuple[float, int]] = field(default_factory=list)
    prices: list[tuple[float, float]] = field(default_factory=list)
    earned_tokens: int = 0

    def sold_per_second(self, start: float, end: float) -> float:
        return sum(tokens for second, tokens in self.sold if start <= second < end) / (end - start)

    def price(self, start: float, end: float) -> float:
        return float(np.median([price for second, price in self.prices if start <= second < end]))


def simulate(
    steps: list[tuple[float, float]], *, law: PriceLaw = LAW, seed: int = 0, spent_share: float = 1.0
) -> Trace:
    """Let queries arrive (Poisson) at each rate until its second; a grant is settled two seconds after it was taken."""
    rng, price, trace = np.random.default_rng(seed), OnlinePrice(law, now_seconds=0.0), Trace()
    now, running = 0.0, list[tuple[float, Hold]]()
    for until, per_second in steps:
        while now < until:
            now += rng.exponential(1 / per_second)
            while running and running[0][0] <= now:
                second, hold = running.pop(0)
                refund = price.settle(hold, int(hold.tokens * spent_share), now_seconds=second)
                trace.sold.append((second, -refund))
            ask = Ask(curve(rng), 400, int(rng.integers(1 << 62)))
            tokens = price.ask(ask, now_seconds=now)
            hold = price.take(tokens, now_seconds=now) if tokens else None
            if hold is not None:
                trace.sold.append((now, tokens))
                running.append((now + 2.0, hold))
            trace.prices.append((now, price.price))
    trace.earned_tokens = price.account.earned_tokens
    return trace


def static_price(per_second: float, *, seconds: float = 300.0, seed: int = 1) -> float:
    """Return the price of one batch of the same traffic, under the tokens that it would have been served with."""
    rng = np.random.default_rng(seed)
    curves = [curve(rng) for _ in range(int(per_second * seconds))]
    utility = Tabulated(
        GRID_K, np.stack([c.success_K for c in curves]), survival_NK=np.stack([c.survival_K for c in curves])
    )
    return float(allocate(utility, budget_tokens=int(LAW.budget_tokens_per_second * seconds)).shadow_price)


def test_the_price_of_stationary_traffic_is_that_of_a_batch() -> None:
    trace = simulate([(120.0, 8.0)])
    assert trace.price(40, 120) == pytest.approx(static_price(8.0), rel=0.1)
    assert trace.sold_per_second(40, 120) == pytest.approx(LAW.budget_tokens_per_second, rel=0.05)


@pytest.mark.parametrize(("before", "after"), [(6.0, 12.0), (12.0, 6.0)])
def test_the_price_follows_a_step_in_load_within_two_windows(before: float, after: float) -> None:
    trace, window = simulate([(40.0, before), (140.0, after)]), LAW.window_seconds
    settled = 40.0 + 2 * window
    assert trace.sold_per_second(settled, settled + 60) == pytest.approx(LAW.budget_tokens_per_second, rel=0.1)
    for start in (settled, settled + window, settled + 2 * window):
        assert trace.sold_per_second(start, start + window) == pytest.approx(LAW.budget_tokens_per_second, rel=0.3)
        assert trace.price(start, start + window) == pytest.approx(static_price(after), rel=0.25)
    assert static_price(6.0) < 0.9 * static_price(12.0)  # otherwise there is nothing to follow


def test_what_comes_back_is_sold_again() -> None:
    trace = simulate([(120.0, 12.0)], spent_share=0.5)
    assert trace.sold_per_second(40, 120) == pytest.approx(LAW.budget_tokens_per_second, rel=0.05)
    assert trace.price(40, 120) < 0.95 * static_price(12.0)


@given(
    seed=st.integers(0, 1_000),
    rates=st.lists(st.sampled_from([0.5, 3.0, 20.0]), min_size=1, max_size=3),
    carry_over=st.sampled_from([1, 90, 2_000]),
    spent_share=st.sampled_from([0.0, 0.4, 1.0]),
)
@settings(max_examples=12, deadline=None)
def test_no_window_is_ever_sold_more_than_its_budget(
    seed: int, rates: list[float], carry_over: int, spent_share: float
) -> None:
    law = PriceLaw(budget_tokens_per_second=50, carry_over_tokens=carry_over, clearing_seconds=2.0)
    steps = [(4.0 * (number + 1), rate) for number, rate in enumerate(rates)]
    sold = simulate(steps, law=law, seed=seed, spent_share=spent_share).sold
    seconds = np.array([second for second, _ in sold])
    total = np.concatenate([[0], np.cumsum([tokens for _, tokens in sold])])
    for first in range(len(sold)):
        spans = seconds[first:] - seconds[first]
        assert (total[first + 1 :] - total[first] <= 50 * spans + carry_over + 1e-6).all()


def test_the_same_calls_give_the_same_answers() -> None:
    assert simulate([(8.0, 10.0)], seed=3).sold == simulate([(8.0, 10.0)], seed=3).sold
    assert simulate([(8.0, 10.0)], seed=3).sold != simulate([(8.0, 10.0)], seed=4).sold


def test_equal_queries_are_told_apart_by_their_ties() -> None:
    price, funded, asked = OnlinePrice(LAW, now_seconds=0.0), 0, 0
    rng, same = np.random.default_rng(0), certain(100, 0.5)
    for number in range(1_200):  # ten a second want 100 tokens each: 1,000 a second of 400
        now = number / 10
        tokens = price.ask(Ask(same, 400, int(rng.integers(1 << 62))), now_seconds=now)
        hold = price.take(tokens, now_seconds=now) if tokens else None
        funded, asked = funded + (hold is not None and now > 40), asked + (now > 40)
        if hold is not None:
            assert hold.tokens <= 150 or now < 20  # the ceiling at which it has surely ended
            price.settle(hold, hold.tokens, now_seconds=now)
    mean_tokens = min(int(k) for k in GRID_K if k >= 100)
    assert funded / asked == pytest.approx(40 / mean_tokens, rel=0.15)


def test_without_scarcity_no_query_is_abandoned() -> None:
    law, hopeless = PriceLaw(10_000, 50_000), certain(400, 0.0)
    price = OnlinePrice(law, now_seconds=0.0)
    price.advance(5.0)
    for number in range(30):
        assert price.ask(Ask(hopeless, 300, number), now_seconds=5 + number / 2) == 300
    assert price.price == 0.0


def test_a_price_moves_by_one_step_a_clearing_at_most() -> None:
    law = PriceLaw(100, 1_000, clearing_seconds=1.0, step_octaves=1.0)
    price, prices = OnlinePrice(law, now_seconds=0.0), []
    for number in range(300):
        price.ask(Ask(certain(20, 0.9), 400, number), now_seconds=number / 50)
        prices.append(price.price)
    steps = [now / before for before, now in itertools.pairwise(prices) if now != before and before]
    assert steps
    assert max(steps) <= 2.0 and min(steps) >= 0.5  # noqa: PT018
    dearest = 0.9 / min(int(k) for k in GRID_K if k >= 20)
    # From 0 it starts ten octaves below what the dearest query would pay, one step up.
    assert next(price for price in prices if price) == pytest.approx(dearest * 2.0**-9, rel=1e-6)


def test_direct_answers_leave_less_to_sell() -> None:
    def price_with(direct_tokens: int) -> float:
        price, rng = OnlinePrice(LAW, now_seconds=0.0), np.random.default_rng(0)
        for number in range(480):
            now = number / 8
            price.ask(Ask(curve(rng), 400, number), now_seconds=now)
            hold = price.take(direct_tokens, now_seconds=now, is_priced=False) if direct_tokens else None
            if hold:
                price.settle(hold, direct_tokens, now_seconds=now)
        return price.price

    # Nothing else is bought here, so without direct answers the stock is full and the price low.
    assert price_with(40) > price_with(0)


def test_a_hold_that_is_never_settled_is_charged_when_its_lease_ends() -> None:
    price = OnlinePrice(PriceLaw(10, 100, lease_seconds=30.0), now_seconds=0.0)
    hold = price.take(40, now_seconds=4.0)
    assert hold is not None
    price.advance(33.9)
    assert price.account.reserved_tokens == 40
    price.advance(34.0)
    assert (price.account.reserved_tokens, price.account.spent_tokens) == (0, 40)
    assert price.settle(hold, 1, now_seconds=35.0) == 0
    assert price.account.spent_tokens == 40


def test_a_settlement_told_twice_changes_nothing_even_if_its_slot_has_a_new_holder() -> None:
    price = OnlinePrice(PriceLaw(10, 100, most_open=1), now_seconds=0.0)
    first = price.take(40, now_seconds=10.0)
    assert first is not None
    assert price.take(1, now_seconds=10.0) is None  # one hold at a time
    assert price.settle(first, 10, now_seconds=11.0) == 30
    second = price.take(20, now_seconds=11.0)
    assert second is not None
    assert price.settle(first, 40, now_seconds=12.0) == 0
    assert price.account.reserved_tokens == 20
    with pytest.raises(BudgetError, match="20 tokens are reserved"):
        price.settle(second, 21, now_seconds=12.0)


@pytest.mark.parametrize("spent_tokens", [20, 300])
def test_a_hold_of_a_price_that_is_gone_settles_no_other(spent_tokens: int) -> None:
    before = OnlinePrice(PriceLaw(100, 2_000), now_seconds=0.0)
    lost = before.take(500, now_seconds=20.0)
    after = OnlinePrice(PriceLaw(100, 2_000), now_seconds=25.0)
    held = after.take(100, now_seconds=30.0)
    assert lost is not None and held is not None  # noqa: PT018
    assert (lost.slot, lost.attempt) == (held.slot, held.attempt)
    account = after.account
    assert after.settle(lost, spent_tokens, now_seconds=30.0) == 0
    assert after.account == account
    assert after.settle(held, 60, now_seconds=30.0) == 40
    assert (after.account.reserved_tokens, after.account.spent_tokens, after.account.earned_tokens) == (0, 60, 500)


def test_a_start_has_nothing_to_sell_and_waits_as_long_as_it_says() -> None:
    price = OnlinePrice(PriceLaw(50, 1_000), now_seconds=100.0)
    assert price.take(100, now_seconds=100.0) is None
    assert price.seconds_until(100) == 2.0
    assert price.take(100, now_seconds=101.9) is None
    assert price.take(100, now_seconds=102.0) is not None
    assert price.next_clearing_seconds() == 104.0


def test_a_start_sells_while_its_stock_is_still_small() -> None:
    """Half the income at least is for sale, however empty the account: no sale waits until it is full."""
    law = PriceLaw(budget_tokens_per_second=400, carry_over_tokens=8_000)
    trace = simulate([(20.0, 8.0)], law=law)
    assert trace.sold_per_second(0, 20) > 0.5 * law.budget_tokens_per_second
    assert trace.sold_per_second(2, 6) > 0


def test_waiting_queries_are_promised_no_more_than_a_clearing_sells() -> None:
    price = OnlinePrice(LAW, now_seconds=0.0)
    queue = [Ask(certain(100, 0.5), 400, number) for number in range(100)]
    price.waiting.update(dict.fromkeys(queue))
    for clearing in range(1, 30):  # no other query comes, so the demand of arrivals would let the price fall to 0
        price.advance(2.0 * clearing)
        promised = sum(price.offers(queue))
        if clearing > 10:  # the price has risen by then, two octaves at a time
            assert 0 < promised <= 2 * (LAW.budget_tokens_per_second + LAW.carry_over_tokens / LAW.window_seconds) + 150


def test_one_query_that_waits_is_served_though_it_wants_more_than_a_clearing_sells() -> None:
    price = OnlinePrice(PriceLaw(10, 400, clearing_seconds=2.0), now_seconds=0.0)
    ask = Ask(certain(400, 0.0), 400)
    price.waiting[ask] = None
    price.advance(100.0)
    assert price.price == 0.0
    assert price.offers([ask]) == [400]


def test_time_does_not_run_backwards() -> None:
    price = OnlinePrice(LAW, now_seconds=10.0)
    with pytest.raises(BudgetError, match="backwards"):
        price.advance(9.0)


def test_new_settings_keep_what_is_held() -> None:
    price = OnlinePrice(PriceLaw(10, 100), now_seconds=0.0)
    hold = price.take(30, now_seconds=10.0)
    assert hold is not None
    price.change(PriceLaw(20, 50), now_seconds=10.0)
    assert (price.account.available_tokens, price.account.reserved_tokens) == (50, 30)
    price.advance(20.0)
    assert price.account.available_tokens == 50
    with pytest.raises(ConfigError, match="most_open"):
        price.change(PriceLaw(20, 50, most_open=3), now_seconds=20.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_tokens_per_second": 0},
        {"carry_over_tokens": 0},
        {"clearing_seconds": 0.0},
        {"clearing_seconds": math.inf},
        {"window_seconds": 1.5},
        {"window_seconds": math.nan},
        {"step_octaves": 0.0},
    ],
)
def test_a_price_out_of_range_is_refused(changes: dict[str, float]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=name):
        ServeConfig.parse({"engine": {"model": "m"}, "price": changes})
