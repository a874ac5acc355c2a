"""Dropping the plans that no price would buy changes nothing at any price, in however many blocks it is done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clear_ray.rounds import attempt_hull
from clear_ray.rounds.attempt_hull import menu_in_blocks, on_the_hull
from clear_ray.rounds.attempt_menu import Menu

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


def menu_of(seed: int, plans: int, queries: int) -> Menu:
    """Draw plans, some of them the same, some that spend more for less; the first buys nothing."""
    rng = np.random.default_rng([seed, 5])
    shape = (plans, queries)
    spend, success = rng.integers(1, 9, shape) * 1.5, rng.integers(0, 7, shape) / 7.0
    spend[0] = success[0] = 0.0
    tokens = rng.integers(1, 30, shape)
    return Menu(success, spend, tokens, success / 2, spend / 2, rng.random(shape) < 0.5, tokens.max(axis=0))


def surplus_N(menu: Menu, price: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (menu.success_JN - price * menu.spend_JN).max(axis=0)
    return found


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6), st.floats(0.0, 0.8))
def test_the_best_plan_is_kept_at_every_price(seed: int, plans: int, queries: int, price: float) -> None:
    menu = menu_of(seed, plans, queries)
    kept = on_the_hull(menu)
    assert len(kept.success_JN) <= plans
    assert surplus_N(kept, price) == pytest.approx(surplus_N(menu, price), abs=1e-12)
    for query in range(queries):
        rows = set(zip(menu.spend_JN[:, query], menu.success_JN[:, query], menu.tokens_JN[:, query], strict=True))
        assert rows >= set(
            zip(kept.spend_JN[:, query], kept.success_JN[:, query], kept.tokens_JN[:, query], strict=True)
        )
        assert (np.diff(kept.spend_JN[:, query]) >= 0).all()


def test_blocks_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    menu = menu_of(3, 9, 7)

    def rows_of(rows: NDArray[np.int64]) -> Menu:
        return Menu(*(getattr(menu, name)[..., rows] for name in Menu.__slots__))

    whole = menu_in_blocks(7, rows_of)
    monkeypatch.setattr(attempt_hull, "_ROWS_AT_ONCE", 2)
    parts = menu_in_blocks(7, rows_of)
    for name in Menu.__slots__:
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
