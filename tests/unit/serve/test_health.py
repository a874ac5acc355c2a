from __future__ import annotations

import pytest

from clear_ray.errors import EngineError
from clear_ray.serve.deployments import Health


def test_an_engine_that_works_or_rests_is_healthy() -> None:
    health = Health(stall_seconds=10.0)
    for now, pulse in ((0.0, None), (50.0, None), (51.0, 1), (60.0, 2), (69.9, 3), (75.0, 3), (79.0, None), (99.0, 3)):
        health.check(pulse, now)


def test_an_engine_that_has_work_and_stands_still_is_not() -> None:
    health = Health(stall_seconds=10.0)
    health.check(7, 100.0)
    health.check(7, 109.9)
    with pytest.raises(EngineError, match="hangs"):
        health.check(7, 110.0)
