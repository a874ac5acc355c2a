"""What does a batch over HTTP cost beside `clear-ray run` on the same file, and how much memory does it take?

One machine, recorded rollouts played at once (no model, so that everything else shows). The file is uploaded with OpenAI's
client, made a batch and waited for; then `run` answers the same file under the same settings on engines of its own. Both
are timed from the moment in which the file is there to that in which both outputs are. Memory is the peak of what each
process has to itself (USS), looked at four times a second. Prints one JSON line.

    python benchmarks/serve_batches.py [--rows 50000] [--row-bytes 4000] [--take-in]

With `--take-in` the batch is cancelled once every line was looked at: what uploading and reading alone cost.
"""

import argparse
import json
import os
import socket
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

from clear_ray.batch.run import run
from clear_ray.cluster.joining import joined_cluster
from clear_ray.config.run import RunConfig
from clear_ray.report.summary import ProgressSnapshot
from clear_ray.serve.app import application
from clear_ray.serve.batches.store import Store
from clear_ray.serve.settings import ServeConfig

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests/data/rollouts"
ENDED = ("completed", "failed", "expired", "cancelled")
WATCHED = {"ProxyActor": "proxy", ":ingress": "ingress", ":batches": "dispatcher", "BatchDriver": "driver"}
WATCHED |= {":engine": "engine", "MarketActor": "market"}


class Memory:
    """The memory of each kind of process when it is first looked at and at its peak, MiB."""

    def __init__(self) -> None:
        self.peak: dict[str, float] = defaultdict(float)
        self.first: dict[str, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.25):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    title = " ".join(process.cmdline())
                    for mark, name in WATCHED.items():
                        if title.startswith("ray::") and mark in title:
                            used = round(process.memory_full_info().uss / 2**20, 1)
                            self.first.setdefault(name, used)
                            self.peak[name] = max(self.peak[name], used)


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
    """How long each stage took, as far as it was told."""

    def __init__(self) -> None:
        self._stage, self._since = "start", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def note(self, stage: str) -> None:
        """Note which stage it is in now."""
        now = time.perf_counter()
        self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 2)
        self._stage, self._since = stage, now

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Note the stage of a run that this is the display of."""
        self.note(snapshot.stage)

    def close(self) -> None:
        """Note the end of the last one."""
        self.note("end")


def over_http(client: openai.OpenAI, path: Path, budget: int, *, takes_in: bool) -> tuple[dict[str, Any], Any]:
    started = time.perf_counter()
    with path.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    there = time.perf_counter()
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"budget": str(budget)},
    )
    stages = Stages()
    while batch.status not in ENDED:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
        live = (batch.model_extra or {}).get("clear_ray") or {}
        stages.note(live.get("stage") or batch.status)
        if takes_in and batch.status == "in_progress":
            return {"upload": there - started, "look": time.perf_counter() - there}, client.batches.cancel(batch.id)
    done = time.perf_counter()
    read = 0
    for name in filter(None, (batch.output_file_id, batch.error_file_id)):
        with client.files.with_streaming_response.content(name) as response:
            read += sum(len(piece) for piece in response.iter_bytes(1 << 20))
    assert batch.status == "completed", batch
    seconds = {"upload": there - started, "batch": done - there, "download": time.perf_counter() - done}
    return seconds | {"download_mb": read / 1e6, "stages": stages.seconds}, batch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--row-bytes", type=int, default=4_000, help="length of a line; 4000 is 200 MB at 50,000 rows")
    parser.add_argument("--take-in", action="store_true", help="cancel it once it was looked at")
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name, joined_cluster():
        folder = Path(name)
        file_bytes = write_file(folder / "input.jsonl", arguments.rows, arguments.row_bytes)
        config = settings(folder / "served", arguments.rows)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(config), name="bench", route_prefix="/")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
        with Memory() as memory:
            time.sleep(2)  # what they have before the file comes
            path, budget = folder / "input.jsonl", 20 * arguments.rows
            seconds, batch = over_http(client, path, budget, takes_in=arguments.take_in)
        serve.shutdown()
        if arguments.take_in:
            kept = {"rows": arguments.rows, "file_mb": round(file_bytes / 1e6, 1), "seconds": seconds}
            print(json.dumps(kept | {"first_mib": memory.first, "peak_mib": memory.peak, "load": os.getloadavg()}))
            return
        found = Store(folder / "served").batch(batch.id)
        assert found is not None
        same = RunConfig.parse(found.work["config"] | {"run_dir": str(folder / "run")})
        started, stages = time.perf_counter(), Stages()
        report = run(None, same, display=stages).report
        run_seconds = time.perf_counter() - started
        outputs = [(folder / "served/runs" / batch.id / each).read_bytes() for each in ("output.jsonl", "errors.jsonl")]
    result = {
        "rows": arguments.rows,
        "file_mb": round(file_bytes / 1e6, 1),
        "seconds": {key: value if key == "stages" else round(value, 2) for key, value in seconds.items()},
        "run_stages": stages.seconds,
        "rows_per_second": round(arguments.rows / seconds["batch"], 1),
        "run_seconds": round(run_seconds, 2),
        "run_rows_per_second": round(arguments.rows / run_seconds, 1),
        "overhead": round(seconds["batch"] / run_seconds - 1, 3),
        "first_mib": memory.first,
        "peak_mib": memory.peak,
        "completed": [batch.request_counts.completed, report.completed],
        "output_mb": [round(len(each) / 1e6, 1) for each in outputs],
        "load": os.getloadavg(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
