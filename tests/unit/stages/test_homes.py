"""Calls are cut where queries have another home, and none is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.stages.homes import Homes


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
