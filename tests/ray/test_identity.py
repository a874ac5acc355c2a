"""Two projects with one relative run folder on one cluster, and a folder deleted under a market that lives on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from clear_ray.batch.run import run
from clear_ray.cluster.market import opened_market
from clear_ray.config.run import RunConfig
from clear_ray.errors import ResumeError
from clear_ray.ledger.identity import begin
from clear_ray.ledger.journal import read_journal
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of


def relative_project(folder: Path, settings: dict[str, Any], queries: slice) -> dict[str, Any]:
    """Return settings of a project whose own files are named relative to its folder."""
    folder.mkdir()
    rows = pq.read_table(settings["input"]["path"]).to_pylist()[queries]
    (folder / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("rollouts", "features"):
        shutil.copy(settings["engine"][name], folder / f"{name}.parquet")
    engine = settings["engine"] | {"rollouts": "rollouts.parquet", "features": "features.parquet"}
    changed = {"run_dir": "runs/batch", "input": {"path": "input.jsonl"}, "engine": engine, "budget": 40 * len(rows)}
    return settings | changed


def test_two_projects_with_one_relative_run_folder_keep_their_own_accounts(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {}
    for name, queries in (("a", slice(0, 12)), ("b", slice(12, 24))):
        settings = relative_project(tmp_path / name, replay_settings, queries)
        monkeypatch.chdir(tmp_path / name)
        results[name] = run(None, RunConfig.parse(settings))
        assert results[name].run_dir == str(tmp_path / name / "runs/batch")
        check_account(results[name])
        assert results[name].report.wasted_tokens == 0
        assert results[name].report.failed == 0
        manifest = json.loads((tmp_path / name / "runs/batch/manifest.json").read_text())
        first = next(iter(read_journal(open_folder(results[name].run_dir))))
        assert first == {"run": manifest["run_id"]}
    ids = {name: {row["query_id"] for row in completions_of(result)} for name, result in results.items()}
    assert not ids["a"] & ids["b"]

    shutil.rmtree("runs/batch")
    again = run(None, RunConfig.parse(settings))
    check_account(again)
    assert again.report.spent_tokens == results["b"].report.spent_tokens, "nothing of the deleted run is left"

    journal = Path("runs/batch/journal.jsonl")
    shutil.copy(tmp_path / "a/runs/batch/journal.jsonl", journal)
    Path("runs/batch/summary.json").unlink()
    with pytest.raises(ResumeError, match="the journal is another run's"):
        run(None, RunConfig.parse(settings))


def test_a_market_of_a_deleted_folder_makes_room_and_one_in_place_does_not(tmp_path: Path) -> None:
    run_dir, cost_N = str(tmp_path / "run"), np.ones(3)
    folder = open_folder(run_dir)
    first = begin(folder, None)
    with opened_market(run_dir, 100, cost_N, run_id=first) as old:
        assert ray.get(old.actor.reserve.remote(1, [(0, 60)])) == [1]
        with (
            pytest.raises(ResumeError, match="another run is writing"),
            opened_market(run_dir, 100, cost_N, run_id=first),
        ):
            raise AssertionError("two markets of one run")
        shutil.rmtree(run_dir)
        second = begin(folder, None)
        with opened_market(run_dir, 100, cost_N, run_id=second) as new:
            assert new.balance().available_tokens == 100


def test_a_run_of_an_older_version_goes_on(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    settings = replay_settings | {"budget": 8 * 199, "allocation": {"max_tokens": 400, "max_rounds": 2}}
    whole = run(None, RunConfig.parse(settings))
    run_dir = Path(whole.run_dir)
    for name in ("summary.json", "output.jsonl", "errors.jsonl"):
        (run_dir / name).unlink(missing_ok=True)
    shutil.rmtree(run_dir / "completions")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    del manifest["run_id"], manifest["config"]["input"]["on_error"]
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    first, _, rest = (run_dir / "journal.jsonl").read_bytes().partition(b"\n")
    assert b'"run"' in first
    (run_dir / "journal.jsonl").write_bytes(rest)
    again = run(None, RunConfig.parse(settings))
    check_account(again)
    assert again.report.spent_tokens == whole.report.spent_tokens
    assert again.report.completed == whole.report.completed
    assert "run_id" not in json.loads((run_dir / "manifest.json").read_text())
