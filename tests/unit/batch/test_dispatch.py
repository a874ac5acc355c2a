"""In which order grants leave the driver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clear_ray.batch import generate
from clear_ray.batch.generate import in_calls, reading_order
from clear_ray.config.run import RunConfig
from clear_ray.rounds.clearing import Clearing


def test_what_was_probed_last_is_asked_first_among_grants_of_about_one_length() -> None:
    tokens_M = np.array([9, 9, 8, 5, 5, 1, 7])
    order = reading_order(np.array([0, 4, 6, 3, 1, 2, 5]), tokens_M)
    assert order.tolist() == [2, 1, 0, 3, 4, 5, 6], (
        "8 tokens are about 9, and 7 come after what can be reserved at once"
    )


def test_a_larger_round_reads_its_files_a_few_times() -> None:
    rng = np.random.default_rng(0)
    index_M, tokens_M = rng.permutation(5_000), np.sort(rng.integers(1, 400, 5_000))[::-1]
    tokens_M[4_000:] = rng.permutation(tokens_M[4_000:])  # what cannot be reserved at once comes by its worth
    order = reading_order(index_M, tokens_M)
    assert sorted(order.tolist()) == list(range(5_000))
    ranked, waits = tokens_M[order], int(np.flatnonzero(np.diff(tokens_M) > 0)[0]) + 1
    assert (order[waits:] == np.arange(waits, 5_000)).all()
    assert (ranked[1:waits] <= 1.19 * ranked[: waits - 1]).all(), "none comes before one that is much longer"
    turns = (np.diff(index_M[order[:waits]]) > 0).sum()
    assert turns < 4 * 9, "no more passes over the files than there are lengths"


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1_000.0, 1), (512.0, 1), (256.0, 2), (128.0, 8), (64.0, 32), (32.0, 128), (1.0, 128)]
)
def test_short_answers_share_a_call_and_long_ones_have_one_each(tokens: float, rows: int) -> None:
    expected_M = np.full(300, tokens)
    parts = list(in_calls(expected_M, most_rows=200, most_tokens=256))
    assert [part.stop - part.start for part in parts][:2] == [rows, rows]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(300))


def test_the_queries_of_a_call_are_at_home_with_one_worker_and_calls_keep_their_order(
    replay_settings: dict[str, Any],
) -> None:
    settings = replay_settings | {"estimate": {"head": "prior", "batch_rows": 10}}
    config = RunConfig.parse(settings | {"engine": replay_settings["engine"] | {"workers": 3}})
    index_M, tokens_M = np.arange(100), np.repeat([400, 200, 40, 10], 25)
    clearing = Clearing(index_M, tokens_M, tokens_M.astype(float), np.zeros(100), np.zeros(0), 0.0, 0.0, 0.0)
    is_due_M = index_M % 7 > 0
    calls = generate.places_of_calls(config, config.engine, clearing, np.flatnonzero(is_due_M), queries=100)
    assert sorted(int(i) for _, places in calls for i in places) == np.flatnonzero(is_due_M).tolist()
    for home, places in calls:
        assert set((index_M[places] // 10 % 3).tolist()) == {home}
    longest = [int(tokens_M[places].max()) for _, places in calls]
    assert longest == sorted(longest, reverse=True)
    assert len({home for home, _ in calls[:9]}) == 3, "no worker waits for those before it"
