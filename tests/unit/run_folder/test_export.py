"""Completions in a file as others read it, in the order of the input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clear_ray.cli import app
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.run_folder.export import export
from clear_ray.run_folder.manifest import SUMMARY
from clear_ray.storage import Folder, open_folder

TEXTS = ["one", 'two\n"quoted", and more', "drei é 🦆", "", None, "=1+1"]


def done(path: Path) -> Folder:
    """Return a run that is done: its files are not in the order of their names."""
    folder = open_folder(str(path))
    rows: list[dict[str, Any]] = []
    for index, text in enumerate(TEXTS):
        row: dict[str, Any] = {field.name: None if field.nullable else 0 for field in COMPLETION_SCHEMA}
        row |= {
            "index": index,
            "query_id": f"q{index}",
            "status": "completed",
            "reason": "r",
            "text": text,
            "price": 0.1 * index,
        }
        rows.append(row)
    folder.child("completions").make()
    for name, some in (("b", rows[:2]), ("a", rows[2:])):
        pq.write_table(pa.Table.from_pylist(some, COMPLETION_SCHEMA), f"{folder.path}/completions/{name}.parquet")
    folder.write(SUMMARY, b"{}")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [dict(row) for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_every_format_holds_all_rows_in_order(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"out{ending}"
    target.write_text("older")
    assert export(done(tmp_path / "run"), target) == len(TEXTS)
    rows = read(target) if ending != ".CSV" else list(csv.DictReader(target.open(newline="")))
    assert [row["query_id"] for row in rows] == [f"q{k}" for k in range(len(TEXTS))]
    assert [row["text"] or None for row in rows] == [text or None for text in TEXTS]
    assert [float(row["price"]) for row in rows] == [0.1 * k for k in range(len(TEXTS))]
    assert list(rows[0]) == COMPLETION_SCHEMA.names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", target.name])


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_run_of_before_a_column_was_there_is_exported(tmp_path: Path, ending: str) -> None:
    folder, target = done(tmp_path / "run"), tmp_path / f"out{ending}"
    for path in (tmp_path / "run" / "completions").iterdir():
        older = pq.read_table(path).drop_columns(["n", "engine"])
        pq.write_table(older, path)
    assert export(folder, target) == len(TEXTS)
    rows = read(target)
    assert list(rows[0]) == COMPLETION_SCHEMA.names
    assert {row["n"] or None for row in rows} == {row["engine"] or None for row in rows} == {None}
    assert [row["query_id"] for row in rows] == [f"q{k}" for k in range(len(TEXTS))]


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the name says no format"):
        export(done(tmp_path / "run"), tmp_path / "out.xlsx")
    with pytest.raises(ConfigError, match="there is no run in this folder"):
        export(open_folder(str(tmp_path / "none")), tmp_path / "out.csv")
    begun = open_folder(str(tmp_path / "begun"))
    begun.write("manifest.json", json.dumps({"config": {}, "input": {"rows": 1}, "budget_tokens": 1}).encode())
    with pytest.raises(ResumeError, match="the run is not done"):
        export(begun, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "run"]


def test_the_command_prints_json_lines_without_a_file(tmp_path: Path) -> None:
    done(tmp_path / "run")
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    assert [json.loads(line)["text"] for line in shown.stdout.splitlines()] == TEXTS
    written = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--to", str(tmp_path / "o.csv")])
    assert written.exit_code == 0
    assert len(read(tmp_path / "o.csv")) == len(TEXTS)


@pytest.mark.parametrize("amount", ["+200k", "-50k", "2M tokens"])
def test_a_budget_may_begin_with_either_sign(tmp_path: Path, amount: str) -> None:
    folder = open_folder(str(tmp_path / "run"))
    folder.write("manifest.json", json.dumps({"config": {}, "input": {"rows": 1}, "budget_tokens": 100_000}).encode())
    shown = CliRunner().invoke(app, ["budget", folder.path, amount, "--json"])
    assert shown.exit_code == 0, shown.output
    expected = {"+200k": 300_000, "-50k": 50_000, "2M tokens": 2_000_000}
    assert json.loads(shown.stdout) == {"budget_tokens": expected[amount], "unit": "tokens"}
