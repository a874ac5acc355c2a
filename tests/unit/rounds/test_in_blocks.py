"""What a round grants does not depend on how many queries are looked at at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest

from clear_ray.allocation import in_blocks
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.curves_on_disk import CurvesOnDisk
from clear_ray.rounds import menu
from clear_ray.rounds.batch import Batch, uniform_ceiling
from clear_ray.rounds.beside import RunningGrants, clear_beside
from clear_ray.rounds.clearing import Clearing, clear, clear_menu
from clear_ray.rounds.menu import Option, reservation_prices
from tests.unit.rounds.test_beside import random_batch
from tests.unit.rounds.test_menu import batch_of

QUERIES, BLOCK = 60, 7


@contextmanager
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (in_blocks, menu):
            patch.setattr(module, "ROWS_OF_BLOCK", BLOCK)
        yield


def on_disk(batch: Batch) -> Batch:
    """Return a batch whose curves were written in odd pieces, out of order."""
    pieces = np.array_split(np.random.default_rng(0).permutation(len(batch.weight_N)), 5)
    curves = CurvesOnDisk.of(((piece, batch.curves.take(piece)) for piece in pieces), len(batch.weight_N))
    return replace(batch, curves=curves)


def assert_equal(found: Clearing, expected: Clearing) -> None:
    assert len(expected.index_M), "nothing was granted, so nothing is compared"
    for field in fields(Clearing):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.mark.parametrize("seed", range(6))
def test_a_clearing_and_one_beside_running_grants(seed: int) -> None:
    rng, batch = np.random.default_rng(seed), random_batch(seed, QUERIES)
    generated_N, free_N = rng.choice([0, 0, 10, 25], QUERIES), rng.random(QUERIES) < 0.7
    owed_N = np.where(free_N & (generated_N == 0), rng.choice([0, 0, 3], QUERIES), 0)
    index = np.flatnonzero(~free_N)
    running = RunningGrants(index, rng.integers(1, 80 - generated_N[index]), np.zeros_like(index))
    given = {"generated_tokens_N": generated_N, "available_tokens": 700}

    def cleared(batch: Batch) -> list[Clearing]:
        return [
            clear(batch, is_open_N=free_N, **given),
            clear(batch, is_open_N=free_N, owed_tokens_N=owed_N, **given),
            clear(batch, is_open_N=free_N, basis="expected_spend", **given),
            clear(batch, is_open_N=free_N, policy="uniform", **given),
            clear_beside(batch, is_free_N=free_N, running=running, **given),
        ]

    expected, at_once = cleared(batch), reservation_prices(batch)
    with small_blocks():
        for found, one in zip(cleared(on_disk(batch)), expected, strict=True):
            assert_equal(found, one)
        np.testing.assert_array_equal(reservation_prices(on_disk(batch)), at_once)
        assert uniform_ceiling(on_disk(batch), 900.0) == pytest.approx(uniform_ceiling(batch, 900.0))


@pytest.mark.parametrize("models", [1, 2])
def test_a_clearing_where_prompts_are_paid_for(models: int) -> None:
    rng = np.random.default_rng(models)
    options = [
        Option(batch_of(rng, QUERIES, 500 * (1 + model), 30), rng.choice([0, 0, 3], QUERIES), rng.random(QUERIES) < 0.9)
        for model in range(models)
    ]
    given = {"is_open_N": rng.random(QUERIES) < 0.8, "available_tokens": 90}
    owed_N = np.where(given["is_open_N"] & (options[0].generated_tokens_N == 0), 1, 0)
    wanted = [clear_menu(options, **given), clear_menu(options, **given | {"owed_tokens_N": owed_N})]
    with small_blocks():
        kept = [replace(option, batch=on_disk(option.batch)) for option in options]
        assert_equal(clear_menu(kept, **given), wanted[0])
        assert_equal(clear_menu(kept, **given | {"owed_tokens_N": owed_N}), wanted[1])


def test_curves_on_disk_are_those_that_were_written() -> None:
    curves = random_batch(1, QUERIES).curves
    kept = on_disk(random_batch(1, QUERIES)).curves
    assert isinstance(kept, CurvesOnDisk)
    assert len(kept) == QUERIES
    wanted = np.array([3, 59, 0, 3])
    for field in fields(Curves):
        np.testing.assert_array_equal(getattr(kept, field.name), getattr(curves, field.name))
        np.testing.assert_array_equal(getattr(kept.take(wanted), field.name), getattr(curves.take(wanted), field.name))
