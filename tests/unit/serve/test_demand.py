"""What one query demands is the same whether it is looked at alone or among others."""

from __future__ import annotations

import numpy as np
import pytest

from clear_ray.allocation import Tabulated
from clear_ray.serve.law import Ask, Curve, PriceLaw
from clear_ray.serve.price import OnlinePrice


@pytest.mark.parametrize("seed", range(8))
def test_one_curve_demands_what_a_table_of_it_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        points = int(rng.integers(1, 14))
        tokens_K = np.cumsum(rng.integers(1, 60, points))
        gains = rng.random(points) * (rng.random(points) < 0.7)
        success_K = np.cumsum(gains) / max(gains.sum(), 1e-9) * rng.random()
        if rng.random() < 0.2:
            success_K[:] = 0.0
        curve = Curve(tokens_K, success_K.astype(np.float32), (1 - success_K).astype(np.float32))
        weight, most = float(rng.choice([0.0, 0.3, 1.0, 5.0])), int(rng.integers(1, tokens_K[-1] + 20))
        table = Tabulated(tokens_K, curve.success_K[None], weight_N=[weight], max_tokens_N=[most])
        for price in (0.0, *10.0 ** rng.uniform(-6, 1, 6), 1e200):
            expected = table.demanded_off_grid(float(price)).spend_N[0]
            assert curve.demanded_tokens(float(price), weight=weight, max_tokens=most) == expected, (curve, price, most)


def test_one_that_comes_alone_is_offered_what_it_is_among_others() -> None:
    rng = np.random.default_rng(0)
    law = PriceLaw(budget_tokens_per_second=300, carry_over_tokens=600, clearing_seconds=1.0, window_seconds=5.0)
    price, seen = OnlinePrice(law, now_seconds=0.0), set[int]()
    tokens_K = np.array([4, 8, 16, 32, 64, 128, 256])
    for step in range(300):
        ended = 1 - np.exp(-tokens_K / rng.uniform(5, 200))
        curve = Curve(tokens_K, (rng.random() * ended).astype(np.float32), (1 - ended).astype(np.float32))
        asks = [Ask(curve, int(rng.integers(1, 300)), step, int(rng.integers(1, 3)))] * 2
        offered = price.ask(asks[0], now_seconds=step / 30)
        assert price.offers(asks) == [offered] * 2
        seen.add(offered)
        if offered:
            price.take(offered, now_seconds=step / 30)
    assert len(seen) > 10, "the price moved"
