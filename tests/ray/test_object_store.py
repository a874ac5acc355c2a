"""Runs whose folder and input are in an object store: moto's server, spoken to as S3."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear_ray.batch.plan import plan
from clear_ray.batch.run import RunResult, run
from clear_ray.calibrate import calibrate
from clear_ray.cluster.market import opened_market
from clear_ray.config.run import RunConfig
from clear_ray.errors import ResumeError
from clear_ray.ledger.identity import begin
from clear_ray.run_folder.status import read_progress, read_summary
from clear_ray.storage import Folder, inside, open_folder
from tests.conftest import ROLLOUTS
from tests.ray.test_run import check_account
from tests.ray.test_survival import start, write_config


@pytest.fixture
def home(bucket: str, request: pytest.FixtureRequest) -> str:
    """The URI of a folder of the test's own, which holds the recorded queries."""
    uri = inside(bucket, request.node.name)
    open_folder(uri).write("queries.parquet", (ROLLOUTS / "queries.parquet").read_bytes())
    return uri


@pytest.fixture
def settings(home: str, replay_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run that reads and writes there."""
    return replay_settings | {"run_dir": inside(home, "run"), "input": {"path": inside(home, "queries.parquet")}}


def parts_of(folder: Folder) -> set[str]:
    """Return the names of files and folders in a folder."""
    return {path.removeprefix(f"{folder.path}/").split("/")[0] for path in folder.files()}


def test_a_run_in_a_bucket_is_the_run_on_a_disk(settings: dict[str, Any], replay_settings: dict[str, Any]) -> None:
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    folder = open_folder(settings["run_dir"])
    assert read_summary(folder) == result.report
    whole = {"manifest.json", "summary.json", "report.html", "estimates.json"}
    assert parts_of(folder) == whole | {"queries", "estimates", "grants", "rounds", "journal", "completions"}
    assert run(None, RunConfig.parse(settings)).report == result.report, "a finished run is only read"

    local = run(None, RunConfig.parse(replay_settings)).report
    for name in ("spent_tokens", "correct", "completed", "shadow_price", "expected_utility"):
        assert getattr(result.report, name) == getattr(local, name), name


def test_a_cluster_has_one_market_for_a_folder_in_a_bucket(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ledger.lock._PATIENCE_SECONDS", 1.0)
    cost_N = np.ones(3)
    run_id, other = (begin(open_folder(inside(home, name)), None) for name in ("run", "other"))

    def same(name: str) -> AbstractContextManager[Any]:
        return opened_market(inside(home, name), 100, cost_N, run_id=run_id)

    with same("run") as market:
        with pytest.raises(ResumeError, match="another run"), same("run/"):
            pass
        with opened_market(inside(home, "other"), 100, cost_N, run_id=other):
            pass
        assert market.balance().spent_tokens == 0, "the first one is not disturbed"
    monkeypatch.undo()
    with same("run"):
        pass


def test_a_plan_leaves_nothing_in_a_bucket(home: str, settings: dict[str, Any]) -> None:
    assert plan(None, RunConfig.parse(settings)).funded > 0
    assert parts_of(open_folder(home)) == {"queries.parquet"}


@pytest.mark.slow
def test_a_head_is_calibrated_in_a_bucket(settings: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.parse(settings | {"budget": 400 * 199})
    assert calibrate(config, head_dir=str(tmp_path / "head"), samples=1).rollouts > 150
    assert (tmp_path / "head" / "head.json").exists()
    folder = open_folder(settings["run_dir"])
    samples = folder.child("sample-00").read("summary.json")
    fewer = RunConfig.parse(settings | {"budget": 400 * 199, "estimate": {"layers": 3}})
    again = calibrate(fewer, head_dir=str(tmp_path / "head"), samples=1)
    assert again.head.card.probe_layers == 3
    assert folder.child("sample-00").read("summary.json") == samples, "answers serve any number of layers"
    assert {"features", "features-3-layers"} <= parts_of(folder)


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["engine"] |= {"tokens_per_second": 40.0, "max_batch": 8}
    settings |= {"budget": 40 * 199, "dispatch": {"rows_per_file": 1}}
    folder, config = open_folder(settings["run_dir"]), write_config(settings, tmp_path)
    process = start(config)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and len(folder.child("rounds").files()) < 3:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = set(folder.child("rounds").files())
    estimates = set(folder.child("estimates").files())
    assert len(kept) >= 3
    assert read_progress(folder)["estimated"]

    report = run(None, RunConfig.load(str(config))).report
    check_account(RunResult(report, settings["run_dir"]))
    assert report.wasted_tokens <= 2 * 8 * 400 + 400
    assert kept <= set(folder.child("rounds").files())
    assert estimates == set(folder.child("estimates").files())
