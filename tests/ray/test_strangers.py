"""A batch file with bad rows and fields without effect, run whole: what is said, and what comes out in which order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import SchemaError
from tests.ray.test_run import check_account

QUERIES = 40
BAD = {
    5: {"messages": []},
    11: {"messages": [{"role": "tool", "content": "x"}]},
    12: {"tools": [1]},
    33: {"messages": []},
}


def batch_file(path: Path, source: str) -> list[dict[str, Any]]:
    rows = pq.read_table(source).to_pylist()[:QUERIES]
    lines = []
    for k, row in enumerate(rows):
        body = {"model": "gpt", "messages": [{"role": "user", "content": row["prompt"]}], "seed": k} | BAD.get(k, {})
        body |= {"max_tokens": 5_000} if k % 4 == 0 else {}
        line = {"custom_id": row["query_id"], "method": "POST", "url": "/chat/completions", "body": body}
        lines.append(line | {"gold": row["gold"], "metadata": row["metadata"]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.mark.parametrize("block_rows", [2_000, 7])
def test_a_batch_with_bad_rows_is_answered_in_order(
    replay_settings: dict[str, Any], tmp_path: Path, block_rows: int
) -> None:
    lines = batch_file(tmp_path / "batch.jsonl", replay_settings["input"]["path"])
    settings = replay_settings | {
        "input": {"path": str(tmp_path / "batch.jsonl"), "on_error": "fail_row"},
        "budget": 24 * QUERIES,
        "dispatch": {"rows_per_file": 4, "block_rows": block_rows},
    }
    with pytest.raises(SchemaError, match="the input has 4 problems"):
        run(None, RunConfig.parse(settings | {"input": {"path": str(tmp_path / "batch.jsonl")}}))
    began = time.time()
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    report = result.report
    assert report.failed == len(BAD)
    effects = (
        "ignored: seed (recordings are played as they are) in 36 rows; lowered: max_tokens of 9 rows from 5,000 to 400"
    )
    assert report.notices[0] == effects
    assert report.notices[1].startswith("failed: 4 rows of the input, 2 because a conversation is a list of messages")
    assert [(failure.reason, failure.queries) for failure in report.failures] == [
        ("a conversation is a list of messages", 2),
        ("unknown role", 1),
        ("this is not supported", 1),
    ]
    page = (Path(result.run_dir) / "report.html").read_text()
    assert effects in page
    assert "<li>2: <bdi>a conversation is a list of messages</bdi></li>" in page

    ids = [line["custom_id"] for line in lines]
    assert [row["query_id"] for row in result.rows()] == ids
    done, errors = (
        [json.loads(line) for line in (Path(result.run_dir) / name).read_text().splitlines()]
        for name in ("output.jsonl", "errors.jsonl")
    )
    for found in (done, errors):
        places = [ids.index(line["custom_id"]) for line in found]
        assert places == sorted(places)
    assert len(done) + len(errors) == QUERIES
    times = [line["response"]["body"]["created"] for line in done]
    assert times
    assert all(int(began) <= created <= time.time() for created in times)
    by_id = {line["custom_id"]: line for line in errors}
    for k in BAD:
        assert by_id[ids[k]]["response"]["status_code"] == 400
        assert by_id[ids[k]]["error"] is None
        assert f"batch.jsonl:{k + 1}, column " in by_id[ids[k]]["response"]["body"]["error"]["message"]

    planned = plan(None, RunConfig.parse(settings | {"run_dir": str(tmp_path / "planned")}))
    assert planned.notices == report.notices
