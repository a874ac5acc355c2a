"""Queries that are asked again until they are solved: whole runs, every attempt a row, the account exact."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.run import RunResult, run
from clear_ray.config.run import RunConfig
from clear_ray.report.text import summary_text
from clear_ray.storage import open_folder
from clear_ray.tasks import canonical
from tests.ray.test_run import check_account, completions_of, replayed_ledger


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


def requests_in(path: Path, settings: dict[str, Any], *, rows: int, n: int) -> str:
    """Write a batch file, of which every third request asks for several answers; return its path."""
    asked = pq.read_table(settings["input"]["path"]).to_pylist()[:rows]
    lines = []
    for k, row in enumerate(asked):
        body = {"messages": [{"role": "user", "content": row["prompt"]}]} | ({} if k % 3 else {"n": n})
        line = {"custom_id": row["query_id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line | {"gold": row["gold"], "metadata": row["metadata"]}) + "\n")
    path.write_text("".join(lines))
    return str(path)


def test_a_request_gets_all_the_answers_that_it_asks_for(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    path = requests_in(tmp_path / "batch.jsonl", replay_settings, rows=30, n=3)
    config = RunConfig.parse(replay_settings | {"input": {"path": path}, "budget": 50 * 120})
    result = run(None, config)
    report, rows = result.report, completions_of(result)
    assert report.queries == 50
    assert sum(row["spent_tokens"] for row in rows) == report.spent_tokens <= report.budget_tokens
    assert replayed_ledger(result).spent_tokens_N.tolist() == [row["spent_tokens"] for row in rows]
    recorded = {
        (row["query_id"], row["sample"]): row
        for row in pq.read_table(config.engine.model_dump()["rollouts"]).to_pylist()
    }
    whole = 0
    written = [json.loads(line) for line in (Path(result.run_dir) / "output.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in written] == list(dict.fromkeys(row["query_id"] for row in rows))
    for k, line in enumerate(written):
        body = line["response"]["body"]
        own = [row for row in rows if row["query_id"] == line["custom_id"]]
        assert [choice["index"] for choice in body["choices"]] == list(range(1 if k % 3 else 3))
        assert [choice["message"]["content"] for choice in body["choices"]] == [row["text"] or "" for row in own]
        assert body["usage"]["completion_tokens"] == sum(row["spent_tokens"] for row in own)
        for place, row in enumerate(own):
            if row["finish_reason"] == "stop":
                whole += place > 0
                assert row["sample"] == place
                assert row["text"] == recorded[line["custom_id"], place]["text"], "each choice is an answer of its own"
    assert whole >= 8
    assert run(None, config).report == report


@pytest.mark.slow
def test_a_row_bounds_how_often_it_is_asked_again(solved_settings: dict[str, Any], tmp_path: Path) -> None:
    path = requests_in(tmp_path / "batch.jsonl", solved_settings, rows=60, n=2)
    settings = solved_settings | {"input": {"path": path}, "budget": 60 * 400}
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    attempts = [row["attempts"] for row in completions_of(result)]
    assert max(attempts[::3]) == 2
    assert max(attempts) == 4


@pytest.mark.slow
def test_a_run_asks_for_a_right_answer_and_a_wrong_one(solved_settings: dict[str, Any]) -> None:
    allocation = solved_settings["allocation"] | {"objective": "groups"}
    result = run(None, RunConfig.parse(solved_settings | {"allocation": allocation}))
    check_account(result)
    verdicts: dict[int, set[bool]] = {}
    for row in answers_of(result):
        if row["finish_reason"] == "stop":
            verdicts.setdefault(row["index"], set()).add(row["correct"] == 1.0)
    mixed = [index for index, kinds in verdicts.items() if len(kinds) == 2]
    assert result.report.attempts is not None
    assert result.report.attempts.mixed == len(mixed) >= 15
    rows = {row["index"]: row for row in completions_of(result)}
    assert all(rows[index]["correct"] == 1.0 for index in mixed), "the completion holds the right one"
    assert "have a right and a wrong answer" in summary_text(result.report)


@pytest.mark.slow
def test_votes_are_counted_without_a_verifier(solved_settings: dict[str, Any]) -> None:
    allocation = solved_settings["allocation"] | {"objective": "vote"}
    settings = solved_settings | {"allocation": allocation, "budget": 160 * 199}
    result = run(None, RunConfig.parse({name: value for name, value in settings.items() if name != "scoring"}))
    check_account(result)
    report = result.report
    assert report.correct is None
    assert report.attempts is not None
    rows, answers = completions_of(result), answers_of(result)
    assert all(row["correct"] is None for row in rows)
    several = 0
    for row in rows:
        own = [answer for answer in answers if answer["index"] == row["index"] and answer["finish_reason"] == "stop"]
        counted = Counter(canonical(answer["answer"], "exact") for answer in own if answer["answer"])
        if counted:
            first = next(
                answer for answer in own if counted[canonical(answer["answer"], "exact")] == max(counted.values())
            )
            assert (row["sample"], row["text"]) == (first["sample"], first["text"])
            several += max(counted.values()) > 1
    assert report.attempts.agreed == several >= 3
    assert max(row["attempts"] for row in rows) > 1
