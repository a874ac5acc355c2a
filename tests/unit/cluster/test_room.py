"""How many GPUs an engine takes where the configuration leaves that open."""

from __future__ import annotations

from typing import Any

import pytest

from clear_ray.cluster.room import with_gpus
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError


def engine(**settings: Any) -> Any:
    return RunConfig.parse({"run_dir": "r", "budget": 1, "engine": settings}).engine


@pytest.mark.parametrize(
    ("settings", "gpus", "each"),
    [
        ({}, 0, 0),
        ({}, 8, 1),
        ({"workers": 4}, 1, 1),
        ({"device": "cuda:1"}, 2, 1),
        ({"device": "cpu"}, 2, 0),
        ({"device": "mps"}, 2, 0),
        ({"kind": "vllm"}, 0, 0),
        ({"kind": "vllm"}, 4, 1),
        ({"kind": "vllm", "tensor_parallel": 4}, 4, 4),
        ({"kind": "replay", "rollouts": "r.parquet", "features": "f.parquet"}, 4, 0),
        ({"num_gpus": 0}, 4, 0),
        ({"num_gpus": 0.5}, 4, 0.5),
        ({"num_gpus": 2}, 0, 2),
    ],
)
def test_an_engine_that_can_use_a_gpu_gets_one_of_its_own(settings: dict[str, Any], gpus: float, each: float) -> None:
    config = engine(**settings)
    found = with_gpus(config, gpus=gpus)
    assert found.num_gpus == each
    assert found.model_copy(update={"num_gpus": None}) == config.model_copy(update={"num_gpus": None})


def test_a_split_model_takes_its_gpus_or_says_what_is_wrong() -> None:
    assert engine(kind="vllm", tensor_parallel=2).num_gpus is None
    with pytest.raises(ConfigError, match="num_gpus: 2"):
        engine(kind="vllm", tensor_parallel=2, num_gpus=0)
