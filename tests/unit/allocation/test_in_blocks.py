"""Curves that are made a block at a time answer what the same curves answer that are held at once, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import Tabulated, allocate, in_blocks, uniform
from clear_ray.allocation.in_blocks import TabulatedInBlocks, curves_of
from clear_ray.allocation.price_grid import next_price
from clear_ray.errors import UtilityError
from tests.unit.allocation.curves import PROPERTY, tables

EXACT = ("tokens_N", "spend_N", "utility_N", "surplus_N", "reservation_price_N", "shadow_price", "dual_bound", "gap")


def in_blocks_of(curves: Tabulated, rows: int) -> TabulatedInBlocks:
    """Put curves together of blocks of so many rows; those taken from them must still be looked at as blocks of so many."""
    made = TabulatedInBlocks.made_by(curves.take, np.arange(len(curves)))
    assert rows == in_blocks.ROWS_OF_BLOCK
    return made


@PROPERTY
@given(tables(has_floors=True, has_costs=True), st.integers(0, 12), st.integers(1, 3))
def test_every_answer_is_that_of_the_curves_held_at_once(curves: Tabulated, start: int, rows: int) -> None:
    whole = curves.continued(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_blocks, "ROWS_OF_BLOCK", rows)
        parts = in_blocks_of(whole, rows)
        assert len(parts) == len(whole)
        prices = np.unique(whole.breakpoints)
        np.testing.assert_array_equal(np.unique(parts.breakpoints), prices[prices > 0.0])
        for price in (0.0, 0.01, *prices[prices > 0.0], *map(next_price, prices[prices > 0.0])):
            for name in ("demand", "demanded_spend"):
                np.testing.assert_array_equal(getattr(parts, name)(price), getattr(whole, name)(price))
            np.testing.assert_array_equal(parts.demanded(price).utility_N, whole.demanded(price).utility_N)
            np.testing.assert_array_equal(parts.surplus(price), whole.surplus(price))
            if price > 0.0:
                np.testing.assert_array_equal(parts.rows_indifferent_at(price), whole.rows_indifferent_at(price))
        for tokens in (0, 1, 2, 7, 39, 40, 60):
            for name in ("utility", "spend", "marginal_utility", "next_step_price", "affordable_tokens"):
                np.testing.assert_array_equal(getattr(parts, name)(tokens), getattr(whole, name)(tokens))
        for name in ("reservation_price", "threshold_tokens_N", "weight_N", "cost_per_token_N", "max_tokens_N"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@PROPERTY
@given(tables(has_floors=True, has_costs=True), st.integers(1, 3), st.floats(0.0, 1.0), st.booleans())
def test_grants_and_certificate_are_those_of_the_curves_held_at_once(
    curves: Tabulated, rows: int, share: float, is_uniform: bool
) -> None:
    solve = uniform if is_uniform else allocate
    lowest, most = (float(curves.spend(limit).sum()) for limit in (curves.min_tokens_N, curves.max_tokens_N))
    budget = lowest + share * (most - lowest) * 1.1
    tie_break_N = np.arange(len(curves))[::-1]
    whole = solve(curves, budget_tokens=budget, tie_break_N=tie_break_N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_blocks, "ROWS_OF_BLOCK", rows)
        parts = solve(in_blocks_of(curves, rows), budget_tokens=budget, tie_break_N=tie_break_N)
    for name in EXACT:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)


def test_queries_with_equal_curves_are_funded_in_the_order_of_their_keys() -> None:
    """Hundreds of ties over many blocks: no column of the curves tells them apart, their keys do."""
    queries = 3 * in_blocks.ROWS_OF_BLOCK // 2
    keys_N = np.random.default_rng(0).permutation(queries)
    parts = curves_of(lambda places: Tabulated([10, 20], np.tile([0.2, 0.3], (len(places), 1))), queries)
    assert isinstance(parts, TabulatedInBlocks)
    funded = allocate(parts, budget_tokens=10 * 500, tie_break_N=keys_N).tokens_N > 0
    assert sorted(keys_N[funded].tolist()) == list(range(500))


def test_few_curves_are_tables_and_what_is_wrong_with_them_is_told() -> None:
    def made(places: np.ndarray) -> Tabulated:
        return Tabulated([10, 20], np.tile([0.4, 0.3], (len(places), 1)))

    with pytest.raises(UtilityError, match="non-decreasing"):
        curves_of(made, in_blocks.ROWS_OF_BLOCK + 1)
    with pytest.raises(UtilityError, match="non-decreasing"):
        curves_of(made, 3)
