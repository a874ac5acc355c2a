"""What does orchestration cost a query, and does memory stay flat in the number of queries?

Prints one JSON line. Runs `clear-ray run` with ReplayEngine, which generates in no time, over copies of the recorded
queries, each size in a process of its own with a Ray of its own, and beside it bare `map_batches` that do nothing over the
same rows in the same two stages with the same batches and actors.

    python benchmarks/orchestration.py                         1e4 and 1e5 queries: about 10 minutes on 2 cores
    python benchmarks/orchestration.py --queries 1000000 --without-bare
    python benchmarks/orchestration.py --streamed --queries 20000      the price cleared while prompts are read, and after
    python benchmarks/orchestration.py --streamed --head learn         the same of a run that learns, of which copies of a
                                                                       query teach each other: its answers say nothing

What is in the line, for each number of queries:
    cpu_us_per_query    CPU time of the run over its queries: of every process, Ray's own and their start included
    bare_cpu_us_per_query   the same of the bare stages
    cpu_us_of       the CPU time a query by process: driver, market, engine, callers of each stage, other workers, Ray's own
    us_per_query        wall time of the run from its first probe to its summary, over its queries
    bare_us_per_query   the same of the bare stages
    driver_mb, ...      most memory that was a process's own (USS), of the driver, the market, an engine worker, a caller of
                        each stage, and of any other process of Ray Data, MB

and of the largest over the smallest number: `growth` of time a query and of each memory; and between them, where the start
of Ray and of its processes cancels out, `marginal` CPU time a query and bytes a query that each process grows by.

With `--streamed` each size is run twice, one after the other, with `allocation.streamed` true and false, under a given
head, or as a run that learns, and with answers that take their time. Of both: `first_answer_seconds` and `all_read_seconds`
from the start of the command, `seconds` of the whole run, `cpu_seconds` of all processes and `driver_cpu_seconds` of the
driver, `driver_mb`, `correct` answers, `clearings`, and `clearings_amid`, those made before all was read; and the `ratio`
of the first to the second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests" / "data" / "rollouts"
TOKENS_A_QUERY = 32
CALL_ROWS = 64
"""So many answers of 32 tokens share a call."""
KINDS = {
    "EngineWorker": "engine_mb",
    "MarketActor": "market_mb",
    "MapBatches(Probe": "probe_caller_mb",
    "GenerateActor": "generate_caller_mb",
    "ray::": "other_worker_mb",
}
TOKENS_PER_SECOND = 100.0
"""Of each answer, where answers take their time."""
RAY = ("raylet/raylet", "gcs_server", "dashboard", "DashboardAgent", "RuntimeEnvAgent", "autoscaler", "log_monitor")
_LOOK_SECONDS = 0.5


def write_queries(path: Path, queries: int) -> None:
    """Write so many queries as copies of the recorded ones."""
    recorded = pq.read_table(ROLLOUTS / "queries.parquet")
    with pq.ParquetWriter(path, recorded.schema) as writer:
        for copy in range(-(-queries // len(recorded))):
            ids = pa.array([f"{name}#{copy}" for name in recorded["query_id"].to_pylist()])
            rows = recorded.set_column(recorded.schema.get_field_index("query_id"), "query_id", ids)
            writer.write_table(rows.slice(0, min(len(rows), queries - copy * len(rows))))


def settings(folder: Path, queries: int) -> dict[str, Any]:
    return {
        "run_dir": str(folder / "run"),
        "input": {"path": str(folder / "queries.parquet")},
        "budget": TOKENS_A_QUERY * queries,
        "engine": {
            "kind": "replay",
            "rollouts": str(ROLLOUTS / "rollouts.parquet"),
            "features": str(ROLLOUTS / "features.parquet"),
            "max_batch": 256,
        },
        "allocation": {"max_tokens": 400, "max_rounds": 1},
        "scoring": {"scorer": "clear_ray.tasks.recorded:score_recorded"},
    }


def streamed_settings(folder: Path, queries: int, chosen: argparse.Namespace, *, is_streamed: bool) -> dict[str, Any]:
    given = settings(folder, queries)
    allocation = {"max_tokens": 400, "streamed": is_streamed}
    engine = given["engine"] | {"tokens_per_second": TOKENS_PER_SECOND, "max_batch": chosen.slots}
    return given | {
        "engine": engine,
        "allocation": allocation,
        "estimate": {"head": chosen.head},
        "seed": chosen.seed,
    }


def streamed_at_size(queries: int, chosen: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        write_queries(Path(made) / "queries.parquet", queries)
        for name, is_streamed in (("streamed", True), ("read_first", False)):
            folder = Path(made) / name
            folder.mkdir()
            settled = streamed_settings(folder, queries, chosen, is_streamed=is_streamed)
            config = folder / "run.yaml"
            config.write_text(yaml.safe_dump(settled | {"input": {"path": f"{made}/queries.parquet"}}))
            started = time.time()
            _, cpu, memory = measured(
                [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(config), "--quiet"]
            )
            summary = json.loads((folder / "run" / "summary.json").read_text())
            first = min(path.stat().st_mtime for path in (folder / "run" / "rounds").rglob("*.parquet"))
            found[name] = {
                "first_answer_seconds": round(first - started, 2),
                "all_read_seconds": round((folder / "run" / "estimates.json").stat().st_mtime - started, 2),
                "seconds": round(summary["seconds"], 1),
                "cpu_seconds": round(sum(cpu.values()), 1),
                "driver_cpu_seconds": round(cpu["driver"], 1),
                "driver_mb": memory["driver_mb"],
                "correct": summary["correct"],
                "clearings": len(summary["rounds"]),
                "clearings_amid": sum(one["known_queries"] is not None for one in summary["rounds"]),
            }
    one, other = found["streamed"], found["read_first"]
    return found | {"ratio": {key: round(one[key] / other[key], 3) for key in one if other[key]}}


def measured(command: list[str]) -> tuple[str, dict[str, float], dict[str, float]]:
    """Run a command; return what it printed, and of each kind of process its CPU seconds and most memory, MB."""
    most: dict[str, float] = {}
    cpu: dict[int, float] = {}
    kind_of: dict[int, str] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RAY_AUTH_MODE": "disabled"}
    ) as root:
        process = psutil.Process(root.pid)
        while root.poll() is None:
            seen = {"driver_mb": own_mb(process)}
            for child in (process, *process.children(recursive=True)):
                cpu[child.pid] = max(cpu_seconds(child), cpu.get(child.pid, 0.0))
                if child == process:
                    kind_of[child.pid] = "driver"
                    continue
                try:
                    title = " ".join(child.cmdline())
                except psutil.Error:
                    continue
                if any(part in title for part in RAY):
                    kind_of.setdefault(child.pid, "ray")
                elif kind := next((kind for part, kind in KINDS.items() if part in title), None):
                    seen[kind] = max(seen.get(kind, 0.0), own_mb(child))
                    if kind_of.get(child.pid) in (
                        None,
                        "ray",
                        "other_worker",
                    ):  # a worker is idle before it is an actor
                        kind_of[child.pid] = kind.removesuffix("_mb")
            most = {kind: max(most.get(kind, 0.0), seen.get(kind, 0.0)) for kind in most | seen}
            time.sleep(_LOOK_SECONDS)
        assert root.stdout is not None
        out = root.stdout.read()
    if root.returncode:
        raise SystemExit(f"{command} ended with {root.returncode}")
    spent: dict[str, float] = {}
    for pid, seconds in cpu.items():
        kind = kind_of.get(pid, "other")
        spent[kind] = spent.get(kind, 0.0) + seconds
    return out, spent, {kind: round(value, 1) for kind, value in most.items()}


def cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def own_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.Error:
        return 0.0


def bare(config_path: str) -> None:
    """Do nothing to every row in the same two stages, and print the seconds."""
    import ray
    from ray.data import ActorPoolStrategy

    from clear_ray.cluster.joining import joined_cluster, quiet_data
    from clear_ray.config.run import RunConfig
    from clear_ray.stages.probe import call_rows

    config = RunConfig.load(config_path)
    source = config.input.path
    assert source is not None

    class Nothing:
        async def __call__(self, batch: pa.Table) -> Any:
            yield batch

    with joined_cluster(), quiet_data():
        started = time.perf_counter()
        for rows in (call_rows(config, pq.read_metadata(source).num_rows, workers=1), CALL_ROWS):
            stage = ray.data.read_parquet(source).repartition(target_num_rows_per_block=config.dispatch.block_rows)
            calls = 2 * config.engine.max_batch // CALL_ROWS
            pool = ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=calls)
            stage = stage.map_batches(Nothing, batch_size=rows, batch_format="pyarrow", num_cpus=0.1, compute=pool)
            stage.write_parquet(f"{config.run_dir}-bare")
        print(time.perf_counter() - started)


def at_size(queries: int, *, has_bare: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_queries(folder / "queries.parquet", queries)
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(settings(folder, queries)))
        nothing, bare_cpu, _ = measured([sys.executable, __file__, "--bare", str(config)]) if has_bare else ("", {}, {})
        run = [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(config), "--quiet"]
        _, cpu, memory = measured(run)
        summary = json.loads((folder / "run" / "summary.json").read_text())
        journal = (folder / "run" / "journal.jsonl").stat().st_size
    assert summary["completed"] + summary["abandoned"] == queries
    beside: dict[str, Any] = {}
    if has_bare:
        beside["bare_cpu_us_per_query"] = round(1e6 * sum(bare_cpu.values()) / queries, 1)
        beside["bare_us_per_query"] = round(1e6 * float(nothing) / queries, 1)
    return beside | {
        "cpu_us_per_query": round(1e6 * sum(cpu.values()) / queries, 1),
        "cpu_us_of": {kind: round(1e6 * seconds / queries, 1) for kind, seconds in sorted(cpu.items())},
        "us_per_query": round(1e6 * summary["seconds"] / queries, 1),
        "seconds": round(summary["seconds"], 1),
        "journal_bytes_per_query": round(journal / queries, 1),
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--without-bare", action="store_true", help="leave the bare stages out, which take as long again"
    )
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help="compare runs that are priced while they are read")
    parser.add_argument("--head", default="prior", help="with --streamed: prior, or learn")
    parser.add_argument("--seed", type=int, default=0, help="with --streamed: of the run, such as of a pilot's queries")
    parser.add_argument("--slots", type=int, default=256, help="with --streamed: answers that the engine runs at once")
    chosen = parser.parse_args()
    if chosen.bare:
        return bare(chosen.bare)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    said = {"benchmark": "orchestration", "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": " ".join(sys.argv)}
    if chosen.streamed:
        print(
            json.dumps(
                said
                | {
                    "sizes": {n: streamed_at_size(n, chosen) for n in chosen.queries},
                    "machine": machine,
                }
            )
        )
        return None
    sizes = {queries: at_size(queries, has_bare=not chosen.without_bare) for queries in sorted(chosen.queries)}
    first, last = sizes[min(sizes)], sizes[max(sizes)]
    growth = {
        name: round(last[name] / first[name], 2)
        for name in first
        if isinstance(first[name], float) and first[name] and name in last
    }
    said |= {"sizes": sizes, "growth": growth, "marginal": marginal(sizes), "machine": machine}
    print(json.dumps(said))
    return None


def marginal(sizes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what each further query costs, in CPU microseconds and in bytes, between the least and the most of them."""
    less, more = min(sizes), max(sizes)
    if less == more:
        return {}

    def grown(name: str, unit: float) -> float:
        return round(unit * (sizes[more][name] - sizes[less][name]) / (more - less), 1)

    micros = {
        name: round((more * sizes[more][name] - less * sizes[less][name]) / (more - less), 1)
        for name in ("cpu_us_per_query", "bare_cpu_us_per_query")
        if name in sizes[less]
    }
    of = {
        kind: round((more * sizes[more]["cpu_us_of"][kind] - less * sizes[less]["cpu_us_of"][kind]) / (more - less), 1)
        for kind in sizes[less]["cpu_us_of"]
    }
    bytes_each = {name.replace("_mb", "_bytes"): grown(name, 1e6) for name in sizes[less] if name.endswith("_mb")}
    return micros | {"cpu_us_of": of} | bytes_each


if __name__ == "__main__":
    main()
