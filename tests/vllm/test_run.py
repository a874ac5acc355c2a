"""One whole run on real Ray with vLLM in the engine actor, and the head that was fitted with transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.config import RunConfig
from clear_ray.engine.fingerprint import model_fingerprint
from clear_ray.engine.smollm2 import embedded_model_folder
from clear_ray.pipeline import run
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    sums = {
        "name": "sum2-direct",
        "task": "basic_arithmetic",
        "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "operators": ["+"]},
        "count": 10,
        "seed": 7,
        "examples": 4,
    }
    return {
        "run_dir": str(tmp_path / "run"),
        "input": {"tasks": [sums]},
        "budget": 90,
        "engine": {
            "kind": "vllm",
            "model": "smollm2-135m-instruct",
            "dtype": "float32",
            "max_batch": 8,
            "max_context_tokens": 1024,
            "enforce_eager": True,
            "cpu_cache_gib": 1,
            "fingerprint": model_fingerprint(embedded_model_folder()),
        },
        "estimate": {"head": "demo"},
        "allocation": {"max_tokens": 24, "max_rounds": 3},
        "scoring": {"scorer": "reasoning_gym"},
    }


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000)
    yield
    ray.shutdown()


def test_vllm_answers_under_a_budget(settings: dict[str, Any]) -> None:
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    report = result.report
    assert report.completed > 0
    assert report.failed == 0
    assert 0 < report.spent_tokens <= 90
    assert report.correct is not None
    assert all(isinstance(row["text"], str) for row in completions_of(result) if row["status"] == "completed")
    for path in open_folder(result.run_dir).child("rounds").files(".parquet"):
        for row in pq.read_table(path).to_pylist():
            assert 0 < row["attempt_tokens"] <= row["granted_tokens"]
            assert row["attempt_tokens"] <= len(row["token_ids"]) <= 24
