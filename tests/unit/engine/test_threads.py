"""How many threads an engine on CPU takes."""

from __future__ import annotations

import pytest
import torch

from clear_ray.engine.shallow import first_layers
from clear_ray.engine.threads import pass_seconds, threads_worth_having
from tests.unit.engine.tiny import tiny_model


@pytest.mark.parametrize(
    ("cores", "seconds_of", "expected"),
    [
        (1, {1: 1.0}, 1),
        (2, {2: 0.55, 1: 1.0}, 2),
        (2, {2: 0.80, 1: 1.0}, 1),  # two halves of one core
        (8, {8: 0.40, 4: 0.42, 2: 0.55, 1: 1.0}, 2),  # memory is the limit
        (6, {6: 0.20, 3: 0.39, 1: 1.0}, 6),
        (64, {64: 9.0, 32: 4.0, 16: 1.0, 8: 0.3, 4: 0.31, 2: 0.6}, 4),  # a container of four cores on a large machine
    ],
)
def test_threads_are_taken_while_doubling_them_pays(cores: int, seconds_of: dict[int, float], expected: int) -> None:
    assert threads_worth_having(cores, seconds_of.__getitem__) == expected


def test_a_pass_is_timed_with_the_threads_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        seconds_of = pass_seconds(tiny_model(), rows=3)
        assert seconds_of(2) > 0
        assert torch.get_num_threads() == 2
        assert seconds_of(1) > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_some_layers_of_a_model_are_timed_as_all_of_them_are() -> None:
    before, model = torch.get_num_threads(), tiny_model()
    try:
        assert pass_seconds(first_layers(model, 1), rows=3)(1) > 0
        assert pass_seconds(first_layers(model, 1), rows=3, way="own_caches")(1) > 0
        assert pass_seconds(model, rows=3)(1) > 0
    finally:
        torch.set_num_threads(before)
