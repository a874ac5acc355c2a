"""The online price knows no length by heart: answers k times as long are sold k times the tokens at a k-th of the price."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from clear_ray.serve.law import Ask, Curve, PriceLaw
from clear_ray.serve.price import OnlinePrice

GRID_K = np.array([4, 8, 16, 24, 32, 48, 64])


def curve(k: int, *, solvability: float, end: int) -> Curve:
    """Return the curve of answers that end one by one up to `k * end` tokens, that share of them correct."""
    ended = np.minimum(GRID_K / end, 1.0)
    return Curve(GRID_K * k, (solvability * ended).astype(np.float32), (1.0 - ended).astype(np.float32))


@dataclass
class Served:
    """What a minute of traffic was sold once the price had settled."""

    prices: list[float]
    good_tokens: list[int]
    hopeless_tokens: list[int]


@cache
def serve(k: int, *, seconds: float = 60.0) -> Served:
    """Let good and hopeless queries take turns, eight a second, under a third of the tokens that the good ones want."""
    law = PriceLaw(budget_tokens_per_second=50 * k, carry_over_tokens=400 * k)
    price, rng, served = OnlinePrice(law, now_seconds=0.0), np.random.default_rng(0), Served([], [], [])
    for number in range(int(8 * seconds)):
        now, is_good = number / 8, number % 2 == 0
        solvability = rng.uniform(0.5, 0.9) if is_good else rng.uniform(0.001, 0.01)
        ask = Ask(curve(k, solvability=solvability, end=int(rng.integers(16, 48))), 64 * k, int(rng.integers(1 << 62)))
        tokens = price.ask(ask, now_seconds=now)
        hold = price.take(tokens, now_seconds=now) if tokens else None
        if hold is not None:
            price.settle(hold, tokens, now_seconds=now)
        if now >= seconds / 3:
            served.prices.append(price.price)
            (served.good_tokens if is_good else served.hopeless_tokens).append(tokens if hold else 0)
    return served


@pytest.mark.parametrize("k", [7, 1_500, 10_000])
def test_longer_answers_are_sold_as_many_times_the_tokens_at_a_price_that_is_as_many_times_lower(k: int) -> None:
    short, long = serve(1), serve(k)
    assert np.mean(long.prices) * k == pytest.approx(np.mean(short.prices), rel=0.02)
    assert np.mean(long.good_tokens) / k == pytest.approx(np.mean(short.good_tokens), rel=0.03)
    assert np.mean(long.hopeless_tokens) / k == pytest.approx(np.mean(short.hopeless_tokens), abs=0.2)
    assert np.mean(short.good_tokens) > 10 * np.mean(short.hopeless_tokens)


def test_a_price_far_below_that_of_the_dearest_query_stands() -> None:
    """A few tiny answers are worth thousands of times as much a token; the long ones still have a price among them."""
    law = PriceLaw(budget_tokens_per_second=80_000, carry_over_tokens=1_600_000)
    price, rng = OnlinePrice(law, now_seconds=0.0), np.random.default_rng(0)
    good, hopeless = list[int](), list[int]()
    for number in range(640):
        now = number / 8
        if number % 8 == 0:
            ask = Ask(Curve(np.array([4]), np.array([0.9], np.float32), np.array([0.0], np.float32)), 4)
        else:
            made = curve(4_000, solvability=0.9 if number % 2 else 1e-4, end=32)
            ask = Ask(made, 256_000, int(rng.integers(1 << 62)))
        tokens = price.ask(ask, now_seconds=now)
        hold = price.take(tokens, now_seconds=now) if tokens else None
        if hold is not None:
            price.settle(hold, tokens, now_seconds=now)
        if now >= 40.0 and number % 8:
            (good if number % 2 else hopeless).append(tokens)
    assert 0.0 < price.price < 0.9 / 4 / 4_000
    assert np.mean(hopeless) < 0.01 * np.mean(good)
