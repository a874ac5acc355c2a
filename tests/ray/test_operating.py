"""A run that is operated by its folder while it goes on, from another process: watched, raised, cut, ended, asked again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clear_ray.batch.run import RunResult, run
from clear_ray.config.run import RunConfig
from clear_ray.ledger.journal import read_journal
from clear_ray.storage import open_folder


def command(*words: str) -> str:
    """Run a command of ours in a process of its own and return what it printed."""
    ended = subprocess.run([sys.executable, "-m", "clear_ray.cli", *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def begin(threads: ThreadPoolExecutor, settings: dict[str, Any], answers: int) -> Any:
    """Start a run and return when so many of its queries are answered."""
    settings["engine"] |= {"tokens_per_second": 20.0, "max_batch": 8}
    running = threads.submit(run, None, RunConfig.parse(settings))
    journal = Path(settings["run_dir"]) / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b'"op":"settle"') < answers:
        assert not running.done(), running.result()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return running


@pytest.mark.slow
def test_a_budget_is_raised_and_cut_while_a_run_goes_on(replay_settings: dict[str, Any]) -> None:
    run_dir = replay_settings["run_dir"]
    with ThreadPoolExecutor(2) as threads:
        running = begin(threads, replay_settings | {"budget": 6_000}, answers=5)
        watched = threads.submit(command, "watch", run_dir, "--json", "--every", "0.2")
        assert json.loads(command("budget", run_dir, "+2k", "--json"))["budget_tokens"] == 8_000
        assert json.loads(command("budget", run_dir, "-1k", "--json"))["budget_tokens"] == 7_000
        result: RunResult = running.result(timeout=240)
        events = [json.loads(line) for line in watched.result(timeout=60).splitlines()]
    report = result.report
    assert report.budget_tokens == 7_000
    assert 6_000 < report.spent_tokens <= 7_000
    assert len(report.rounds) > 1, "a new price was cleared"
    records = list(read_journal(open_folder(run_dir)))
    assert [record["budget"] for record in records if "budget" in record][-1] == 7_000
    assert events[-1]["event"] == "summary"
    assert {event["budget_tokens"] for event in events} >= {7_000}
    spent = [event["spent_tokens"] for event in events]
    assert spent == sorted(spent)


@pytest.mark.slow
def test_a_run_that_is_cancelled_keeps_what_was_answered(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    run_dir = replay_settings["run_dir"]
    with ThreadPoolExecutor(1) as threads:
        running = begin(threads, replay_settings, answers=10)
        command("cancel", run_dir)
        result: RunResult = running.result(timeout=240)
    report = result.report
    left = RunConfig.parse(replay_settings).budget_tokens - report.spent_tokens
    assert report.stopped_early == f"it was cancelled, with {left:,} tokens of its budget not spent"
    assert report.completed >= 10
    assert report.abandoned > 0
    assert report.spent_tokens == report.budget_tokens, "nothing is promised any more"
    command("export", run_dir, "--to", str(tmp_path / "all.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(report.queries))
    left = sum(row["status"] == "abandoned" for row in rows)
    again = RunConfig.parse(replay_settings | {"run_dir": str(tmp_path / "again")})
    source = {"retry_of": run_dir, "retry": "unanswered"}
    settings = again.model_dump(mode="json") | {"input": source, "budget": 1_000_000}
    settings["engine"]["tokens_per_second"] = None
    second = run(None, RunConfig.parse(settings)).report
    assert (second.queries, second.completed) == (left, left)
