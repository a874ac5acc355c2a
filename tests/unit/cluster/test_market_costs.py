"""Costs reach the market in pieces, none of which Ray would put into its object store, and come out as they were."""

from __future__ import annotations

import numpy as np
import pytest

from clear_ray.cluster.pieces import cost_pieces, costs_in
from clear_ray.ledger.ledger import Ledger


@pytest.mark.parametrize("queries", [0, 1, 100_000])
@pytest.mark.parametrize("distinct", [1, 5, 60_000])
def test_costs_travel_in_small_pieces_and_are_the_same(queries: int, distinct: int) -> None:
    cost_N = np.random.default_rng(0).integers(1, distinct + 1, queries) / 1_000
    pieces = cost_pieces(cost_N)
    assert all(len(piece) <= 90_000 for piece in pieces)
    assert len(pieces) <= 5
    np.testing.assert_array_equal(costs_in(pieces), cost_N)


def test_a_ledger_by_them_charges_as_one_by_the_costs() -> None:
    cost_N = np.array([0.25, 1.0, 2.5, 7.333])
    for index in range(4):
        accounts = [Ledger(1_000, 4, cost_N=costs) for costs in (cost_N, costs_in(cost_pieces(cost_N)))]
        for ledger in accounts:
            ledger.settle(index, ledger.reserve(index, 40).attempt, 33)
        assert accounts[0].available_tokens == accounts[1].available_tokens
