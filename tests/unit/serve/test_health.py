from __future__ import annotations

from typing import Any

import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.config.estimate import EstimateConfig
from clear_ray.errors import EngineError
from clear_ray.serve.deployments import EngineReplica, Health


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


async def test_a_replica_whose_engine_has_failed_is_not_healthy(
    replay_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = EngineReplica(ReplayConfig.model_validate(replay_settings["engine"]), EstimateConfig(), cap_tokens=320)
    await replica.check_health()

    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(replica._worker._engine, "prefill", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        await replica.read("a", "?")
    with pytest.raises(EngineError, match=r"has failed.*RuntimeError: out of memory"):
        await replica.check_health()
