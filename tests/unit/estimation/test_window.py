"""Which queries of a very large batch are held while they come: the last ones, and an even sample of those before."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.estimation.window import SAMPLE_SHARE, Window


@given(
    queries=st.integers(3, 400),
    share=st.floats(0.01, 0.99),
    parts=st.lists(st.integers(0, 60), max_size=30),
    seed=st.integers(0, 100),
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_the_newest_are_held_and_an_even_sample_of_those_before_each_in_a_row_of_its_own(
    queries: int, share: float, parts: list[int], seed: int
) -> None:
    rows = min(max(int(share * queries), 2), queries - 1)
    window, order = Window(queries, rows), np.random.default_rng(seed).permutation(queries)
    newest, known = rows - max(int(SAMPLE_SHARE * rows), 1), 0
    for part in [*parts, queries]:
        come = order[known : known + part]
        row_B = window.take_in(come)
        known += len(come)
        np.testing.assert_array_equal(row_B, window.row_N[come])
        before, last = order[: max(known - newest, 0)], order[max(known - newest, 0) : known]
        assert set(np.flatnonzero(window.is_newest_N)) == set(last.tolist())
        sample = np.flatnonzero(window.is_sample_N)
        assert set(sample) <= set(before.tolist())
        held = np.flatnonzero(window.row_N >= 0)
        assert set(held) == set(last.tolist()) | set(sample.tolist())
        assert len(np.unique(window.row_N[held])) == len(held)
        assert window.row_N[held].max(initial=0) < rows
        if len(before):
            stride = -(-queries // (rows - newest))
            assert len(sample) == -(-len(before) // stride), "one in so many"
            assert abs(window.each * len(sample) - len(before)) < 1e-9
        else:
            assert window.each == 0.0


def test_the_sample_lies_evenly_in_what_came() -> None:
    window = Window(1_000, 50)
    window.take_in(np.arange(1_000))
    assert np.flatnonzero(window.is_sample_N).tolist() == list(range(0, 960, 100))
    assert np.flatnonzero(window.is_newest_N).tolist() == list(range(960, 1_000))
    assert window.each == 96.0
