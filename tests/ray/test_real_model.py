"""One whole run with the embedded model: real prompts, real tokens, real scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.config import RunConfig
from clear_ray.pipeline import run
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of


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
        "engine": {"kind": "transformers", "model": "smollm2-135m-instruct", "max_batch": 8},
        "allocation": {"max_tokens": 24, "max_rounds": 3},
        "scoring": {"scorer": "reasoning_gym"},
    }


def test_the_embedded_model_answers_under_a_budget(settings: dict[str, Any]) -> None:
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    report = result.report
    assert report.completed > 0
    assert report.failed == 0
    assert 0 < report.spent_tokens <= 90
    assert report.correct is not None
    texts = {row["index"]: row["text"] for row in completions_of(result) if row["status"] == "completed"}
    assert all(isinstance(text, str) for text in texts.values())
    for path in open_folder(result.run_dir).child("rounds").files(".parquet"):
        for row in pq.read_table(path).to_pylist():
            assert 0 < row["attempt_tokens"] <= row["granted_tokens"]
            assert row["attempt_tokens"] <= len(row["token_ids"]) <= 24
