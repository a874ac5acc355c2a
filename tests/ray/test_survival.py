"""Runs as a user starts them: a process of their own, killed on the way, started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.batch.run import RunResult
from clear_ray.config.run import RunConfig
from clear_ray.ledger.journal import read_journal, wait_until_unused
from clear_ray.report.summary import RunReport
from clear_ray.run_folder.status import read_progress
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account


def write_config(settings: dict[str, Any], folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def start(config: Path, *more: str) -> subprocess.Popen[str]:
    """Start `clear-ray run` with a local cluster of its own, in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(config), "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        start_new_session=True,
    )


def wait_for_answers(run_dir: Path, process: subprocess.Popen[str], *, at_least: int) -> None:
    """Wait until some answers are in files while others are still running."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if len(list((run_dir / "rounds").rglob("*.parquet"))) >= at_least:
            return
        time.sleep(0.05)
    raise AssertionError(f"the run did not get that far: {process.communicate()}")


def lost_tokens(run_dir: Path) -> int:
    """Return what a dead run's journal still reserves or has settled, and no file holds."""
    charged: dict[int, int] = {}
    held: dict[int, int] = {}
    for record in read_journal(open_folder(str(run_dir))):
        match record.get("op"):
            case "reserve":
                held[record["i"]] = record["t"]
            case "settle":
                del held[record["i"]]
                charged[record["i"]] = charged.get(record["i"], 0) + record["t"]
    written = sum(
        sum(pq.read_table(path, columns=["attempt_tokens"])["attempt_tokens"].to_pylist())
        for path in (run_dir / "rounds").rglob("*.parquet")
    )
    return sum(charged.values()) - written + sum(held.values())


def test_a_run_whose_driver_was_killed_goes_on_and_keeps_its_budget(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = replay_settings | {"budget": 60 * 199}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 40.0, "max_batch": 8}
    settings["dispatch"] = {"rows_per_file": 1}
    config, run_dir = write_config(settings, tmp_path), Path(settings["run_dir"])
    process = start(config)
    wait_for_answers(run_dir, process, at_least=3)
    beside = start(config)
    _, err = beside.communicate(timeout=120)
    assert beside.returncode == 2, err
    assert "another run is writing" in err
    assert process.poll() is None, "the first run was to be still running"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until_unused(open_folder(str(run_dir)))  # its actors may outlive it for a moment, and settle
    kept = {path: path.stat().st_mtime_ns for path in (run_dir / "rounds").rglob("*.parquet")}
    lost = lost_tokens(run_dir)

    second = start(config)
    out, err = second.communicate(timeout=250)
    assert second.returncode in (0, 3), err
    summary = json.loads(out.splitlines()[-1])
    assert summary.pop("event") == "summary"
    report = RunReport.model_validate(summary)
    check_account(RunResult(report, settings["run_dir"]))
    assert report.wasted_tokens == lost, "what was running when the driver died is charged, and nothing else"
    assert report.spent_tokens <= report.budget_tokens
    assert len(kept) >= 3, "answers that were on disk are kept"
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda stop: stop.name
)
def test_a_run_that_is_told_to_stop_says_how_to_go_on(
    replay_settings: dict[str, Any], tmp_path: Path, stop: signal.Signals
) -> None:
    settings = replay_settings | {"budget": 60 * 199, "dispatch": {"rows_per_file": 1}}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 20.0, "max_batch": 8}
    process = start(write_config(settings, tmp_path))
    run_dir = Path(settings["run_dir"])
    wait_for_answers(run_dir, process, at_least=2)
    process.send_signal(stop)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert "SIGTERM received" not in err, "Ray's own account of a signal is a stack of C++"
    folder = open_folder(str(run_dir))
    wait_until_unused(folder)
    facts = read_progress(folder)
    assert facts["spent_tokens"] + facts["reserved_tokens"] <= settings["budget"]
    assert not (run_dir / "summary.json").exists()


def test_refusals_are_one_line_and_exit_code_2(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query_id": "a", "prompt": "1 + 1"}\n{"query_id": "a", "prompt": "2 + 2"}\n')
    config = write_config(replay_settings | {"input": {"path": str(bad)}}, tmp_path)
    process = start(config)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Refused:" in err
    assert "bad.jsonl" in err
    assert "Traceback" not in err
    assert not Path(replay_settings["run_dir"]).exists()


def test_ray_job_submit_runs_a_batch_and_keeps_its_exit_code(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    from ray.job_submission import JobStatus

    settings = replay_settings | {"budget": 2_000, "allocation": {"max_tokens": 400, "max_rounds": 1}}
    RunConfig.parse(settings)
    write_config(settings, tmp_path)
    root = Path(__file__).parents[2]
    port, dashboard = 26379, 28265
    # Ray's sockets lie in its temporary folder, and a socket's path may have 107 characters.
    temporary = tempfile.mkdtemp(prefix="ray")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "test-" + "0" * 40}
    head = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"),
            *("start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", "--object-store-memory=300000000"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *("--ray-client-server-port=26380", "--dashboard-agent-listen-port=26381", f"--temp-dir={temporary}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        client = connect(f"http://127.0.0.1:{dashboard}", environment)
        job = submit(client, f"{sys.executable} {root}/jobs/run_batch.py --config {tmp_path}/run.yaml --quiet")
        deadline = time.monotonic() + 200
        while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        logs = client.get_job_logs(job)
        assert status in (JobStatus.SUCCEEDED, JobStatus.FAILED), logs
        assert client.get_job_info(job).driver_exit_code in (0, 3), logs
        report = RunReport.model_validate_json(Path(settings["run_dir"], "summary.json").read_bytes())
        check_account(RunResult(report, settings["run_dir"]))
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def connect(address: str, environment: dict[str, str]) -> Any:
    from ray.job_submission import JobSubmissionClient

    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    deadline = time.monotonic() + 90
    while True:
        try:
            return JobSubmissionClient(address, headers=headers)
        except (ConnectionError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def submit(client: Any, entrypoint: str) -> str:
    """Submit; just after a head has started its job agent may not be there yet."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, entrypoint_num_cpus=0.1))
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
