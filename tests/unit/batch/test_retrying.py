"""What another run left is asked again: as it was taken in there, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.retrying import check_something_left, retry_config, take_in_again
from clear_ray.config.input import InputConfig
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError, SchemaError
from clear_ray.ingest import IntakeRules, ReadingRules, ingest, read_digest, read_input
from clear_ray.records import COMPLETION_SCHEMA, QUERY_SCHEMA
from clear_ray.run_folder.manifest import MANIFEST, SUMMARY
from clear_ray.storage import Folder, open_folder
from tests.conftest import ROLLOUTS
from tests.unit.report.samples import run_report

ENDINGS = [
    ("completed", None),
    ("failed", "engine_failed"),
    ("failed", "invalid_request"),
    ("abandoned", "abandoned_by_price"),
    ("failed", "scorer_failed"),
    ("abandoned", "batch_expired"),
    ("failed", "batch_expired"),
    ("failed", "context_length_exceeded"),
]


def body(index: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Frage {index} é"}, {"role": "assistant", "content": "So"}]
    return {"model": "m", "messages": messages, "max_tokens": 5 + index, "temperature": 0.5, "stop": ["\n"]}


def done(path: Path, *, budget: int = 100, spent: int = 40) -> Folder:
    """Return a run that is done, of a batch file."""
    folder = open_folder(str(path / "run"))
    rows = [{"custom_id": f"q{k}", "method": "POST", "url": "/v1/chat/completions", "body": body(k)} for k in range(8)]
    (path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = InputConfig(path=str(path / "in.jsonl"))
    ingest(read_input(given), queries=folder.child("queries"), rules=IntakeRules(reading=ReadingRules(max_tokens=100)))
    completions = []
    for index, (status, code) in enumerate(ENDINGS):
        row: dict[str, Any] = {field.name: None if field.nullable else 0 for field in COMPLETION_SCHEMA}
        row |= {"index": index, "query_id": f"q{index}", "status": status, "error_code": code, "reason": "r"}
        completions.append(row)
    folder.child("completions").make()
    pq.write_table(pa.Table.from_pylist(completions, COMPLETION_SCHEMA), f"{folder.path}/completions/a.parquet")
    engine = {"kind": "replay", "rollouts": str(ROLLOUTS / "rollouts.parquet")}
    config = RunConfig.parse(
        {"run_dir": folder.path, "input": given.model_dump(), "budget": budget, "engine": engine, "seed": 7}
    )
    manifest = {"config": json.loads(config.model_dump_json()), "input": {"rows": 8}, "budget_tokens": budget}
    folder.write(MANIFEST, json.dumps(manifest).encode())
    folder.write(SUMMARY, run_report(budget_tokens=budget, spent_tokens=spent).model_dump_json().encode())
    return folder


@pytest.mark.parametrize(("is_unanswered", "left"), [(False, [1, 4, 6]), (True, [1, 3, 4, 5, 6])])
def test_what_is_left_is_taken_in_as_it_was(tmp_path: Path, is_unanswered: bool, left: list[int]) -> None:
    before = done(tmp_path)
    config = retry_config(before.path, str(tmp_path / "again"), budget=None, is_unanswered=is_unanswered)
    assert (config.budget_tokens, config.seed, config.input.path) == (60, 7, None)
    (tmp_path / "in.jsonl").unlink()
    digest = take_in_again(config, folder := open_folder(config.run_dir), None)
    assert read_digest(folder.child("queries")) == digest
    assert (digest.rows, digest.openai_url) == (len(left), "/v1/chat/completions")
    assert "2 that failed of what they are, are not" in digest.notices[0]
    found, kept = (pq.read_table(each.child("queries").path).to_pylist() for each in (folder, before))
    assert [row.pop("index") for row in found] == list(range(len(left)))
    assert found == [{name: kept[index][name] for name in QUERY_SCHEMA.names[1:]} for index in left]
    assert take_in_again(config, folder, None) == digest, "a resume takes in the same"
    with pytest.raises(ResumeError, match=r"input\.rows"):
        take_in_again(config, folder, {"input": {"rows": 8, "sha256": digest.sha256, "openai_url": digest.openai_url}})


def test_a_budget_may_be_given_in_any_unit(tmp_path: Path) -> None:
    before = done(tmp_path, spent=100)
    with pytest.raises(ConfigError, match="nothing is left"):
        retry_config(before.path, "x", budget=None, is_unanswered=False)
    assert retry_config(before.path, "x", budget="2k", is_unanswered=False).budget_tokens == 2_000
    with pytest.raises(ConfigError, match="needs a rate"):
        retry_config(before.path, "x", budget="$1", is_unanswered=False)


def test_only_a_run_that_is_done_and_left_something_is_asked_again(tmp_path: Path) -> None:
    before = done(tmp_path)
    with pytest.raises(ConfigError, match="no run in this folder"):
        retry_config(str(tmp_path / "none"), "x", budget=None, is_unanswered=False)
    config = retry_config(before.path, str(tmp_path / "again"), budget=None, is_unanswered=False)
    check_something_left(config)
    table = pq.read_table(f"{before.path}/completions/a.parquet")
    status = pa.array(["completed"] * 2 + ["failed"] + ["completed"] * 5)
    pq.write_table(table.set_column(2, "status", status), f"{before.path}/completions/a.parquet")
    with pytest.raises(SchemaError, match="1 failed of what they are"):
        take_in_again(config, open_folder(config.run_dir), None)
    with pytest.raises(SchemaError, match=r"1 failed of what they are\. With `--unanswered`"):
        check_something_left(config)
    status = pa.array(["completed"] * 8)
    pq.write_table(table.set_column(2, "status", status), f"{before.path}/completions/a.parquet")
    with pytest.raises(SchemaError, match="none has failed"):
        check_something_left(config)
    assert not (tmp_path / "again").exists()
    before.filesystem.delete_file(f"{before.path}/{SUMMARY}")
    for ask in (
        lambda: retry_config(before.path, "x", budget=None, is_unanswered=False),
        lambda: take_in_again(config, open_folder(config.run_dir), None),
    ):
        with pytest.raises(ResumeError, match="not done"):
            ask()


def test_what_is_left_of_money_is_money(tmp_path: Path) -> None:
    before = done(tmp_path, budget=5_000_000_000, spent=3_250_000_001)
    kept = json.loads(before.read(MANIFEST))
    kept["config"] |= {"budget": "$5", "prices": {"input": 1.0, "output": 2.0}}
    before.write(MANIFEST, json.dumps(kept).encode())
    config = retry_config(before.path, "x", budget=None, is_unanswered=False)
    assert (config.unit, config.budget_tokens) == ("USD", 1_749_999_999)
    assert retry_config(before.path, "x", budget="$2", is_unanswered=False).budget_tokens == 2_000_000_000
    with pytest.raises(ConfigError, match="prices belong to a budget in money"):
        retry_config(before.path, "x", budget="2k", is_unanswered=False)
