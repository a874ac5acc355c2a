"""One whole run with the embedded model: real prompts, real tokens, real scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.report.summary import ProgressSnapshot
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


class Shown:
    """Keeps what a display is shown."""

    def __init__(self) -> None:
        self.snapshots: list[ProgressSnapshot] = []

    def update(self, snapshot: ProgressSnapshot) -> None:
        self.snapshots.append(snapshot)

    def close(self) -> None:
        pass


def test_the_embedded_model_answers_under_a_budget(settings: dict[str, Any]) -> None:
    shown = Shown()
    result = run(None, RunConfig.parse(settings), display=shown)
    loaded = {each.loaded for each in shown.snapshots if each.waiting_for == "loading the model"} - {None}
    assert loaded
    assert {each.loaded for each in shown.snapshots if each.waiting_for != "loading the model"} == {None}
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
            assert row["attempt_tokens"] == len(row["token_ids"]) <= row["answer_tokens"] <= 24


def test_a_prompt_that_leaves_less_than_its_ceiling_is_answered_in_what_is_left(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    queries = tmp_path / "queries.jsonl"
    rows = [{"query_id": f"q{count}", "prompt": "Tell a long story of a ship. " * count} for count in (1, 2, 3, 4)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"engine": settings["engine"] | {"max_context_tokens": 64}, "input": {"path": str(queries)}}
    few |= {"scoring": {}, "estimate": {"head": "prior"}}
    result = run(None, RunConfig.parse(settings | few))
    check_account(result)
    assert result.report.failed == 0
    rows = completions_of(result)
    assert [64 - row["prompt_tokens"] for row in rows] == [25, 17, 9, 1]
    for row, ceiling in zip(rows, (24, 17, 9, 1), strict=True):
        assert 0 < row["spent_tokens"] <= row["max_tokens"] <= ceiling
