"""A server that loses everything at each state of a batch, machine and all, and goes on with it when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from clear_ray.ledger.journal import read_journal
from clear_ray.serve.batches.store import Store
from clear_ray.storage import open_folder
from tests.conftest import ROLLOUTS
from tests.ray.batching import content, create, ended, recorded_ids, request, upload
from tests.ray.serving import PRICE, free_port
from tests.ray.test_batches import assert_charged_once

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240


@contextmanager
def server(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on a cluster of its own until the block ends; then everything of it is killed at once."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "clear_ray.cli", "serve", "--config", str(config)]
    with log.open("ab") as said, subprocess.Popen(command, env=env, cwd=ROOT, stdout=said, stderr=said) as process:
        try:
            yield process
        finally:
            kill_all(process.pid)


def kill_all(pid: int) -> None:
    whole = psutil.Process(pid)
    processes = [whole, *whole.children(recursive=True)]
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=30)


def until(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.02)


def answers(client: openai.OpenAI) -> bool:
    try:
        client.batches.list(limit=1)
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


def counted(run_dir: Path, operation: str) -> int:
    journal = run_dir / "journal.jsonl"
    return journal.read_bytes().count(f'"op":"{operation}"'.encode()) if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("point", ["in_progress", "before the first grant", "generating", "finalizing"])
def test_a_batch_outlives_its_server_at_every_state(tmp_path: Path, point: str) -> None:
    """It is killed right after the batch was made, and again at the point."""
    port, folder = free_port(), tmp_path / "served"
    files = {"rollouts": str(ROLLOUTS / "rollouts.parquet"), "features": str(ROLLOUTS / "features.parquet")}
    engine = {"kind": "replay", **files, "tokens_per_second": 150.0, "max_batch": 8}
    settings: dict[str, Any] = {
        "engine": engine,
        "price": PRICE,
        "model_name": "replay",
        "port": port,
        "max_tokens": 400,
    }
    run = {"dispatch": {"rows_per_file": 8}, "allocation": {"max_rounds": 3}}
    settings |= {"estimate": {"head": "prior"}, "batches": {"folder": str(folder), "run": run}}
    config, log = tmp_path / "serve.yaml", tmp_path / "log"
    config.write_text(yaml.safe_dump(settings))
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    ids = recorded_ids()[:80]

    with server(config, log):
        until(lambda: answers(client), "the server")
        file = upload(client, [request(name) for name in ids])
        made = create(client, file.id)
    store, run_dir = Store(folder), folder / "runs" / made.id

    def status() -> str:
        batch = store.batch(made.id)
        assert batch is not None
        return batch.status

    is_there = {
        "in_progress": lambda: status() == "in_progress",
        "before the first grant": (run_dir / "manifest.json").exists,
        "generating": lambda: counted(run_dir, "settle") >= 10,
        "finalizing": lambda: status() == "finalizing",
    }
    with server(config, log):
        until(is_there[point], point)
    assert status() in ("in_progress", "finalizing"), log.read_text()[-3_000:]
    with server(config, log):
        until(lambda: answers(client), "the server")
        batch = ended(client, made.id, seconds=SECONDS)
        assert batch.status == "completed", batch
        done, errors = content(client, batch.output_file_id), content(client, batch.error_file_id)
        assert [row["custom_id"] for row in done] + [row["custom_id"] for row in errors] == ids, (
            len(done),
            len(errors),
        )
        assert_charged_once(run_dir, batch.usage.output_tokens)
        records = [record for record in read_journal(open_folder(str(run_dir))) if "op" in record]
        if point == "generating":
            assert any(record["op"] == "forfeit" for record in records), "the kill met no query that was running"
        assert len({record["i"] for record in records if record["op"] == "settle"}) == len(ids)
        client.files.delete(file.id)
        assert client.batches.retrieve(made.id).status == "completed"
