"""What the market is started with fits its start, which Ray repeats when it dies."""

from __future__ import annotations

import numpy as np

from clear_ray.cluster.market import one_or_all
from clear_ray.ledger.ledger import Ledger


def test_one_cost_of_all_queries_is_a_number_and_the_same_account() -> None:
    assert one_or_all(np.full(100_000, 2.5)) == 2.5
    costs_N = np.array([1.0, 2.0, 1.0])
    assert one_or_all(costs_N) is costs_N
    for cost in (one_or_all(np.full(3, 2.5)), np.full(3, 2.5)):
        entry = Ledger(100, 3, cost_N=cost).admit(1, 8, None)
        assert getattr(entry, "parts", None) == getattr(
            Ledger(100, 3, cost_N=np.full(3, 2.5)).admit(1, 8, None), "parts", None
        )
