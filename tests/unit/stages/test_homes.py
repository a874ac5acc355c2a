"""Calls are cut where queries have another home, and none is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.stages.homes import Homes, spread_order


@given(
    index=st.lists(st.integers(0, 500), unique=True).map(sorted),
    stretch=st.integers(1, 40),
    workers=st.integers(1, 5),
)
def test_every_part_has_one_home_and_all_are_in_order(index: list[int], stretch: int, workers: int) -> None:
    homes, index_M = Homes(stretch, workers), np.array(index, np.int64)
    parts = homes.parts(index_M)
    assert [int(i) for part in parts for i in index_M[part]] == index
    for part in parts:
        assert 1 <= len(index_M[part]) <= stretch
        assert len(set(homes.of(index_M[part]).tolist())) == 1
    assert set(homes.of(np.arange(stretch * workers)).tolist()) == set(range(workers))


@given(count=st.integers(1, 700), seed=st.integers(0, 5))
def test_every_beginning_of_a_spread_lies_evenly(count: int, seed: int) -> None:
    order = spread_order(count, seed=seed)
    assert sorted(order.tolist()) == list(range(count))
    for first in {1, count // 7, count // 3, count // 2, count} - {0}:
        at = (np.sort(order[:first]) + 0.5) / count
        evenly = (np.arange(first) + 0.5) / first
        assert np.abs(at - evenly).max() <= (2 + np.log2(first)) / first, f"the first {first}"


def test_a_spread_is_of_its_seed_and_meets_no_period() -> None:
    assert spread_order(64, seed=1).tolist() != spread_order(64, seed=2).tolist()
    parts = [np.bincount(spread_order(4_096, seed=seed)[:256] % 16, minlength=16) for seed in range(20)]
    assert np.abs(np.mean(parts, axis=0) - 16).max() < 3, "queries of a list that repeats itself come alike"


@given(queries=st.integers(1, 500), stretch=st.integers(1, 40), workers=st.integers(1, 3))
def test_a_spread_keeps_stretches_whole(queries: int, stretch: int, workers: int) -> None:
    homes = Homes(stretch, workers)
    index = homes.spread(queries, seed=3)
    assert sorted(index.tolist()) == list(range(queries))
    parts = [index[part] for part in homes.parts(index)]
    assert len(parts) == -(-queries // stretch)
    assert all(np.diff(part).tolist() == [1] * (len(part) - 1) for part in parts)
