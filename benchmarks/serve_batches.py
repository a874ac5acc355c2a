"""What does a batch over HTTP cost beside `clear-ray run` on the same file, and how much memory does it take?

One machine, recorded rollouts played at once (no model, so that everything else shows). The file is uploaded with OpenAI's
client to a server that has started, made a batch and waited for; then `clear-ray run` answers the same file under the same
settings. Both begin cold: of the batch its driver is a new process that sets Ray Data up, of the command everything is. Both
are timed from the moment in which the file is there to that in which both outputs are; `worked` is of that what reading,
pricing, answering and writing took, without the starts. Memory is the peak of what each process has to itself (USS) in each
stage, looked at once a second. How many queries travel in a call is each side's own: the server's, and the default of a run.
Prints one JSON line.

    python benchmarks/serve_batches.py [--rows 50000] [--row-bytes 4000] [--alone | --take-in]

With `--alone` nothing is compared: what the batch takes is all there is to see. With `--take-in` the batch is cancelled once
every line was looked at: what uploading and reading alone cost.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pyarrow.parquet as pq
from ray import serve

from clear_ray.cluster.joining import joined_cluster
from clear_ray.config.run import RunConfig
from clear_ray.serve.app import application
from clear_ray.serve.batches.store import Store
from clear_ray.serve.settings import ServeConfig

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests/data/rollouts"
CLIENT_SECONDS = 2.0  # between two times that a client asks how far it is
WORK = ("read", "probe", "price", "generate", "write")
ENDED = ("completed", "failed", "expired", "cancelled")
WATCHED = {"ProxyActor": "proxy", ":ingress": "ingress", ":batches": "dispatcher", "BatchDriver": "driver"}
WATCHED |= {":engine": "engine", "MarketActor": "market", ":price": "price", "ServeController": "controller"}
WATCHED |= {"GenerateActor": "caller", "MapWorker": "prober"}


class Memory:
    """The memory of each kind of process at its peak in each stage, MiB."""

    def __init__(self) -> None:
        self.stage = "before"
        self.peak: dict[str, dict[str, float]] = defaultdict(dict)
        self._kinds: dict[psutil.Process, str] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if not self._kinds.get(process):
                        self._kinds[process] = _kind(" ".join(process.cmdline()))
                    if kind := self._kinds[process]:
                        used = round(process.memory_full_info().uss / 2**20, 1)
                        self.peak[kind][self.stage] = max(self.peak[kind].get(self.stage, 0.0), used)


def _kind(title: str) -> str:
    return next((name for mark, name in WATCHED.items() if title.startswith("ray::") and mark in title), "")


def write_file(path: Path, rows: int, row_bytes: int) -> int:
    names = pq.read_table(ROLLOUTS / "queries.parquet", columns=["query_id"])["query_id"].to_pylist()
    with path.open("w") as file:
        for number in range(rows):
            custom_id = f"{names[number % len(names)]}#{number}"
            content = f"Question {number}: ".ljust(max(row_bytes - 200, 20), "x")
            body = {"model": "replay", "messages": [{"role": "user", "content": content}], "max_tokens": 400}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path.stat().st_size


def settings(folder: Path, rows: int) -> ServeConfig:
    engine = {
        "kind": "replay",
        "rollouts": str(ROLLOUTS / "rollouts.parquet"),
        "features": str(ROLLOUTS / "features.parquet"),
        "max_batch": 64,
    }
    batches = {"folder": str(folder), "max_requests": max(rows, 50_000), "run": {"allocation": {"max_rounds": 3}}}
    base = {"model_name": "replay", "max_tokens": 400, "engine": engine, "estimate": {"head": "prior"}}
    return ServeConfig.parse(base | {"batches": batches})


class Stages:
    """How long each stage took."""

    def __init__(self) -> None:
        self._stage, self._since = "start", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def note(self, stage: str) -> None:
        """Note which stage it is in now."""
        now = time.perf_counter()
        self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 2)
        self._stage, self._since = stage, now


def over_http(
    client: openai.OpenAI, store: Store, path: Path, budget: int, memory: Memory, *, takes_in: bool
) -> tuple[dict[str, Any], Any]:
    started, memory.stage = time.perf_counter(), "upload"
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    there = time.perf_counter()
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"budget": str(budget)},
    )
    stages, asked_at = Stages(), there
    while (found := store.batch(batch.id)) is not None and found.status not in ENDED:
        memory.stage = (found.body.get("clear_ray") or {}).get("stage") or found.status
        stages.note(memory.stage)
        if takes_in and found.status == "in_progress":
            return {"upload": there - started, "look": time.perf_counter() - there}, client.batches.cancel(batch.id)
        if time.perf_counter() - asked_at > CLIENT_SECONDS:
            asked_at = time.perf_counter()
            client.batches.retrieve(batch.id)
        time.sleep(0.1)
    done = time.perf_counter()
    stages.note("end")
    batch, memory.stage = client.batches.retrieve(batch.id), "download"
    read = 0
    for name in filter(None, (batch.output_file_id, batch.error_file_id)):
        with client.files.with_streaming_response.content(name) as response:
            read += sum(len(piece) for piece in response.iter_bytes(1 << 20))
    assert batch.status == "completed", batch
    seconds = {"upload": there - started, "batch": done - there, "download": time.perf_counter() - done}
    return seconds | {"download_mb": read / 1e6, "stages": stages.seconds}, batch


def by_command(config: RunConfig, file: Path) -> tuple[float, Stages, dict[str, Any]]:
    """Run `clear-ray run` in a process and a cluster of its own; return the seconds to its outputs, and its summary."""
    file.write_text(config.model_dump_json())  # JSON is YAML
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(file), "--json"]
    started, stages, last = time.perf_counter(), Stages(), {}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=_note, args=(process.stderr, stages), daemon=True).start()
        for line in process.stdout:
            seconds, last = time.perf_counter() - started, json.loads(line)
            stages.note(last.get("stage", "end"))
    assert process.returncode == 0, last
    return seconds, stages, last


def _note(lines: Any, stages: Stages) -> None:
    for line in lines:
        with suppress(ValueError, AttributeError, KeyError):
            stages.note(json.loads(line)["stage"])


def worked(seconds: dict[str, float]) -> float:
    """Return what a run took without the starts."""
    return round(sum(seconds.get(stage, 0.0) for stage in WORK), 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--row-bytes", type=int, default=4_000, help="length of a line; 4000 is 200 MB at 50,000 rows")
    parser.add_argument("--take-in", action="store_true", help="cancel it once it was looked at")
    parser.add_argument("--alone", action="store_true", help="leave `clear-ray run` out")
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        print(json.dumps(measured(Path(name), port, arguments)), flush=True)


def measured(folder: Path, port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    path, rows = folder / "input.jsonl", arguments.rows
    result = {"rows": rows, "file_mb": round(write_file(path, rows, arguments.row_bytes) / 1e6, 1)}
    with joined_cluster():
        load = {"load_before": os.getloadavg()}
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(settings(folder / "served", rows)), name="bench", route_prefix="/")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
        store = Store(folder / "served")
        with Memory() as memory:
            time.sleep(3)  # what they have before the file comes
            seconds, batch = over_http(client, store, path, 20 * rows, memory, takes_in=arguments.take_in)
        serve.shutdown()
    result |= {"seconds": seconds, "peak_mib": memory.peak} | load | {"load_between": os.getloadavg()}
    if arguments.take_in:
        return result
    result["rows_per_second"] = round(rows / seconds["batch"], 1)
    if arguments.alone:
        return result
    found = store.batch(batch.id)
    assert found is not None
    same = RunConfig.parse(found.work["config"] | {"run_dir": str(folder / "run"), "dispatch": {}})
    run_seconds, stages, report = by_command(same, folder / "run.yaml")
    outputs = [(folder / "served/runs" / batch.id / each).stat().st_size for each in ("output.jsonl", "errors.jsonl")]
    return result | {
        "run_seconds": round(run_seconds, 2),
        "run_stages": stages.seconds,
        "run_rows_per_second": round(rows / run_seconds, 1),
        "overhead": round(seconds["batch"] / run_seconds - 1, 3),
        "worked": [worked(seconds["stages"]), worked(stages.seconds)],
        "completed": [batch.request_counts.completed, report["completed"]],
        "output_mb": [round(each / 1e6, 1) for each in outputs],
        "load": os.getloadavg(),
    }


if __name__ == "__main__":
    main()
