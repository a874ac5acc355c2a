"""Queries that are asked again until they are solved: whole runs, every attempt a row, the account exact."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.run import RunResult, run
from clear_ray.config.run import RunConfig
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of


def answers_of(result: RunResult) -> list[dict[str, Any]]:
    folder = open_folder(result.run_dir).child("attempts")
    rows: list[dict[str, Any]] = pq.read_table(folder.path, filesystem=folder.filesystem).to_pylist()
    return rows


def check_attempts(result: RunResult, *, most: int) -> None:
    """Check the answers of a finished run against its completions and its account."""
    answers, completions = answers_of(result), {row["index"]: row for row in completions_of(result)}
    keys = [(row["index"], row["sample"]) for row in answers]
    assert keys == sorted(set(keys)), "in order, and none twice"
    asked = Counter(row["index"] for row in answers)
    assert max(asked.values()) <= most
    tokens: Counter[int] = Counter()
    for row in answers:
        tokens[row["index"]] += row["tokens"]
        completion = completions[row["index"]]
        if row["is_chosen"]:
            assert (row["text"], row["correct"], row["sample"]) == (
                completion["text"],
                completion["correct"],
                completion["sample"],
            )
        elif row["correct"] is not None and completion["correct"] is not None:
            assert row["correct"] <= completion["correct"]
    chosen = Counter(row["index"] for row in answers if row["is_chosen"])
    for index, row in completions.items():
        assert row["attempts"] == asked[index]
        assert chosen[index] == (asked[index] > 0)
        if result.report.wasted_tokens == 0:
            assert row["spent_tokens"] == tokens[index], "an answer that was left is paid for, and no token twice"
    for index in asked:
        solved = [row["sample"] for row in answers if row["index"] == index and row["correct"] == 1.0]
        assert solved in ([], [asked[index] - 1]), "a success ends its query"


@pytest.fixture
def solved_settings(replay_settings: dict[str, Any]) -> dict[str, Any]:
    allocation = {"objective": "solved", "attempts": 4, "max_tokens": 400}
    return replay_settings | {"budget": 128 * 199, "allocation": allocation}


def test_a_run_asks_again_until_a_query_is_solved(solved_settings: dict[str, Any]) -> None:
    result = run(None, RunConfig.parse(solved_settings))
    check_account(result)
    check_attempts(result, most=4)
    recorded = {
        (row["query_id"], row["sample"]): row["text"]
        for row in pq.read_table(
            solved_settings["engine"]["rollouts"], columns=["query_id", "sample", "text"]
        ).to_pylist()
    }
    answers = answers_of(result)
    assert max(row["sample"] for row in answers) > 0
    for row in answers:
        if row["finish_reason"] == "stop":
            assert row["text"] == recorded[(row["query_id"], row["sample"])], "each attempt is an answer of its own"
    report = result.report
    assert sum(row.again for row in report.rounds) == sum(max(row["attempts"] - 1, 0) for row in completions_of(result))
    assert run(None, RunConfig.parse(solved_settings)).report == report, "a finished run is only read"
