"""Whatever dies and whenever: no overspending, no lost row, no double charge (docs/reliability.md)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clear_ray.batch.run import RunResult
from clear_ray.report.summary import RunReport
from clear_ray.run_folder.estimates import estimated_already
from clear_ray.storage import open_folder
from tests.ray.faulty_run import FULL_STEPS, POINTS
from tests.ray.test_run import check_account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


@pytest.fixture
def config(replay_settings: dict[str, Any], tmp_path: Path) -> Path:
    settings = replay_settings | {"budget": 48 * 199, "dispatch": {"rows_per_file": 1}}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 100.0, "max_batch": 8}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(config: Path, *faults: str) -> subprocess.CompletedProcess[str]:
    """Run with faults in a process group of its own, and leave nothing of it behind."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray.faulty_run", str(config), *faults],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=500)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def checked(ended: subprocess.CompletedProcess[str], config: Path) -> RunReport:
    assert ended.returncode == 0, ended.stderr[-3_000:]
    said = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # raylets talk on the same stream
    report = RunReport.model_validate_json(said[-1])
    check_account(RunResult(report, yaml.safe_load(config.read_text())["run_dir"]))
    print(json.dumps({"spent": report.spent_tokens, "wasted": report.wasted_tokens, "seconds": report.seconds}))
    return report


@pytest.mark.parametrize("point", POINTS)
def test_a_driver_may_die_anywhere(config: Path, point: str) -> None:
    if point == "after settle before commit":  # a file of its own for every answer would leave it no time to die
        settings = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump(settings | {"dispatch": {"rows_per_file": 64}}))
    if "overlapping" in point:
        settings = yaml.safe_load(config.read_text())
        settings["allocation"] |= {"max_rounds": None, "overlap": True}
        config.write_text(yaml.safe_dump(settings))
    if point == "mid-probe":
        settings = yaml.safe_load(config.read_text())
        settings["estimate"] = settings.get("estimate", {}) | {"batch_rows": 2}
        config.write_text(yaml.safe_dump(settings))
    assert start(config, f"driver:{point}").returncode == -signal.SIGKILL, "it was to die"
    run_dir = Path(yaml.safe_load(config.read_text())["run_dir"])
    prices = {path.name: path.read_bytes() for path in run_dir.glob("grants/*.parquet")}
    estimated = estimated_already(open_folder(str(run_dir)), 199)
    report = checked(start(config), config)
    assert all((run_dir / "grants" / name).read_bytes() == grants for name, grants in prices.items())
    assert set(estimated[1]) <= set(map(str, run_dir.glob("estimates/*/*.parquet"))), "no prompt is read twice"
    if point == "mid-probe":
        assert 30 <= estimated[0].sum() < 199
    if point in ("mid-probe", "after probe", "after price", "while writing output", "before the summary"):
        assert report.wasted_tokens == 0, "nothing was running"


@pytest.mark.parametrize("point", ["after reserve", "after settle before commit", "mid-generation"])
def test_a_machine_may_be_lost_with_all_that_was_running(config: Path, point: str) -> None:
    settings = yaml.safe_load(config.read_text())
    if point == "after settle before commit":  # answers wait for company on their way to the disk
        config.write_text(yaml.safe_dump(settings | {"dispatch": {"rows_per_file": 64}}))
    assert start(config, f"machine:{point}").returncode == -signal.SIGKILL, "it was to die"
    report = checked(start(config), config)
    assert 0 < report.wasted_tokens < report.budget_tokens / 2, (
        "what was reserved or not yet written is charged, no more"
    )


@pytest.mark.parametrize(
    "faults",
    [
        ("kill:EngineWorker",),
        ("kill:Generate",),
        ("kill:MarketActor",),
        ("kill:EngineWorker", "kill:Generate"),
        ("kill:MarketActor", "kill:EngineWorker"),
    ],
    ids="+".join,
)
def test_an_actor_may_be_killed(config: Path, faults: tuple[str, ...]) -> None:
    ended = start(config, *faults)
    report = checked(ended, config)
    assert ended.stderr.count('"killed"') == len(faults)
    assert report.failed == 0


def test_the_caller_of_the_probe_may_be_killed_and_ray_says_nothing_of_it(config: Path) -> None:
    ended = start(config, "early:MapBatches(Probe")
    report = checked(ended, config)
    assert ended.stderr.count('"killed"') == 1
    assert (report.wasted_tokens, report.failed) == (0, 0)
    assert "core_worker.cc" not in ended.stderr


def test_an_engine_may_hang(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["engine"]["stall_seconds"] = 8.0
    config.write_text(yaml.safe_dump(settings))
    ended = start(config, "freeze:EngineWorker")
    report = checked(ended, config)
    assert '"killed"' in ended.stderr
    assert report.wasted_tokens > 0
    assert report.failed == 0


def test_a_slow_worker_holds_up_no_other_and_loses_nothing(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["engine"] |= {"workers": 2}
    config.write_text(yaml.safe_dump(settings))
    ended = start(config, "slow:EngineWorker")
    report = checked(ended, config)
    assert '"slowed"' in ended.stderr
    assert (report.wasted_tokens, report.failed) == (0, 0)


def test_a_crowded_object_store_loses_nothing(config: Path) -> None:
    report = checked(start(config, "pressure"), config)
    assert (report.wasted_tokens, report.failed) == (0, 0)


@pytest.fixture
def disk(config: Path, tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for the run folder."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("this machine allows no mount of a small disk")
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"run_dir": str(path / "run")}))
    yield path
    subprocess.run(["umount", path], check=True)


def ends_for_want_of_room(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 1
    assert "StorageError" in ended.stderr, ended.stderr[-3000:]
    assert "No space left on device" in ended.stderr


def test_a_full_disk_ends_the_run_and_keeps_what_was_settled(config: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=220k", disk], check=True)
    ends_for_want_of_room(start(config))
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    checked(start(config), config)


@pytest.mark.parametrize("step", FULL_STEPS)
def test_a_disk_may_be_full_at_any_step(config: Path, disk: Path, step: str) -> None:
    ends_for_want_of_room(start(config, f"full:{step}"))
    (disk / "filler").unlink()
    report = checked(start(config), config)
    if step != "calls_of":
        assert report.wasted_tokens == 0, "nothing was running"


def test_a_run_whose_folder_is_deleted_stops_spending(config: Path) -> None:
    ended = start(config, "gone")
    assert ended.returncode == 1
    assert "StorageError" in ended.stderr, ended.stderr[-3000:]
    assert "the run folder was deleted or moved" in ended.stderr
    run_dir = Path(yaml.safe_load(config.read_text())["run_dir"])
    assert len(list(run_dir.rglob("*.parquet"))) < 100, "it was to stop long before its 199 answers"


def test_a_node_may_be_lost(config: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["engine"] |= {"workers": 2, "num_gpus": 1}
    config.write_text(yaml.safe_dump(settings))
    ended = start(config, "node")
    report = checked(ended, config)
    assert '"killed"' in ended.stderr
    assert report.wasted_tokens > 0
    assert report.failed == 0
