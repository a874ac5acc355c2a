"""One whole run on real Ray with vLLM in the engine actor, and the head that was fitted with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.run import run
from clear_ray.config.engine import TransformersConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine import TransformersEngine
from clear_ray.engine.fingerprint import model_fingerprint
from clear_ray.engine.smollm2 import embedded_model_folder
from clear_ray.errors import ConfigError
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.head import save_head
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def head_read_with_transformers(folder: Path) -> str:
    """Fit a head on what the transformers engine reads of some sums, all layers; their rollouts are made up."""
    engine = TransformersEngine(TransformersConfig(device="cpu", threads=1))
    names, prompts = [f"q{n}" for n in range(12)], [f"Calculate {n} + {2 * n}." for n in range(12)]
    try:
        features = engine.prefill(names, prompts)
        fingerprint = engine.card.fingerprint
    finally:
        engine.close()
    rollouts = pa.table(
        {
            "query_id": names,
            "prompt": prompts,
            "output_tokens": [2 + n % 5 for n in range(12)],
            "finish_reason": ["stop"] * 12,
            "correct": [n % 3 > 0 for n in range(12)],
            "max_tokens": [24] * 12,
        }
    )
    save_head(fit_head(rollouts, features, model_fingerprint=fingerprint, diagnostic_folds=0), folder)
    return str(folder)


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
        "estimate": {"head": head_read_with_transformers(tmp_path / "head")},
        "allocation": {"max_tokens": 24, "max_rounds": 3},
        "scoring": {"scorer": "reasoning_gym"},
    }


def test_a_head_of_fewer_layers_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="vLLM runs all layers"):
        run(None, RunConfig.parse(settings | {"estimate": {"head": "demo"}}))


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
            assert row["attempt_tokens"] == len(row["token_ids"]) <= row["answer_tokens"] <= 24
