"""The slow tests of faults hook onto functions of the driver by name; a renamed one would leave them without a fault."""

from __future__ import annotations

import pytest

from tests.ray.faulty_run import AFTER_STEPS, FULL_STEPS, POINTS, module_of


@pytest.mark.parametrize("step", [*AFTER_STEPS.values(), *FULL_STEPS])
def test_every_step_at_which_a_fault_is_planned_is_a_function_of_the_driver(step: str) -> None:
    assert callable(getattr(module_of(step), step))


def test_every_step_that_a_driver_dies_after_is_a_point_of_the_fault_suite() -> None:
    assert set(AFTER_STEPS) <= set(POINTS)
