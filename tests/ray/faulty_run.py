"""A run in a process of its own in which something dies: `python -m tests.ray.faulty_run CONFIG FAULT...`.

A fault is one of
    driver:POINT    the driver dies there, or `after N answers`; its actors outlive it for a moment
    machine:POINT   nothing of it outlives it
    kill:NAME       SIGKILL of the first actor process whose title holds NAME
    early:NAME      the same as soon as there is one
    freeze:NAME     SIGSTOP of it: it lives and does nothing
    slow:NAME       it is stopped nine tenths of the time, until it ends
    full:STEP       the disk is full before that function of `batch.run` or `batch.complete`
    gone            somebody deletes the run folder
    node            one of three nodes that hold two engines is lost
    pressure        others take nine tenths of a small object store
    held:N          nothing dies: a batch of more than N queries is one of those whose curves no process holds

Prints the report as JSON when the run survives it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import ray
from ray._private.state import available_resources_per_node

from clear_ray.batch import complete, first_stage, round_loop, size_limits
from clear_ray.batch import run as batch_run
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig

POINTS = (
    "mid-probe",
    "after probe",
    "after price",
    "after reserve",
    "after settle before commit",
    "mid-generation",
    "after an overlapping clearing",
    "amid overlapping clearings",
    "while writing output",
    "before the summary",
)
AMID_READING, AFTER_READING = "amid the reading", "after the reading"
"""Points of runs whose price is cleared while prompts are read."""
AFTER_STEPS = {
    "after probe": "probe",
    "after price": "write_grants",
    "while writing output": "write_sorted",  # all is in `completions.partial`, and not yet in its place
    "before the summary": "write_page",
}
"""Points that are the end of a function of `batch.run`, `batch.first_stage`, `batch.round_loop` or `batch.complete`."""
FULL_STEPS = ("take_in", "_open_run", "probe", "write_grants", "calls_of", "_write_completions", "write_page")
"""Functions there before which a disk is filled."""
_PATIENCE_SECONDS = 240
_STORE_BYTES = 80_000_000


def die(*, with_actors: bool) -> None:
    """End this driver and its Ray; its actors find that out by themselves, or are ended first, as on a lost machine."""
    if with_actors:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def wait_until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return False


def die_at(point: str, run_dir: Path, *, with_actors: bool) -> None:
    """Arrange for the driver to die at a point of the run."""
    end = partial(die, with_actors=with_actors)
    if point in AFTER_STEPS:
        die_after(AFTER_STEPS[point], end)
    elif point == "after an overlapping clearing":
        die_after("write_grants", lambda: overlapping(run_dir) >= 2 and end())
    elif point not in (*POINTS, AMID_READING, AFTER_READING):
        answers = int(point.removeprefix("after ").removesuffix(" answers"))
        threading.Thread(target=lambda: wait_until(lambda: written(run_dir) >= answers) and end(), daemon=True).start()
    else:
        met: dict[str, Callable[[], bool]] = {
            "mid-probe": lambda: len(list((run_dir / "estimates").rglob("*.parquet"))) >= 3,
            "after reserve": lambda: count(run_dir, b'"reserve"') >= 1,
            "after settle before commit": lambda: count(run_dir, b'"settle"') > rows_written(run_dir),
            "mid-generation": lambda: written(run_dir) >= 3,
            "amid overlapping clearings": lambda: overlapping(run_dir) >= 3,
            AMID_READING: lambda: written(run_dir) >= least_read(run_dir) and not (run_dir / "estimates.json").exists(),
            AFTER_READING: lambda: cleared_over_all(run_dir) >= 1,
        }
        threading.Thread(target=lambda: wait_until(met[point]) and end(), daemon=True).start()


def module_of(name: str) -> ModuleType:
    """Return where a step of the driver is called: in the run itself, in its rounds, or at its end."""
    return next(module for module in (batch_run, first_stage, round_loop, complete) if hasattr(module, name))


def least_read(run_dir: Path) -> int:
    """Return after how many answers a run is amid its reading: one that learns reads on while its pilot is running."""
    return 1 if (run_dir / "coordinates.map").exists() else 20


def overlapping(run_dir: Path) -> int:
    """Return how many clearings were made beside running grants."""
    kept = [pq.read_schema(path).metadata for path in run_dir.glob("grants/*.parquet")]
    return sum(metadata[b"is_beside"] == b"yes" for metadata in kept)


def cleared_over_all(run_dir: Path) -> int:
    """Return how many clearings were made once all was read."""
    kept = [pq.read_schema(path).metadata for path in run_dir.glob("grants/*.parquet")]
    return sum(metadata[b"known_queries"] == b"" for metadata in kept)


def die_after(name: str, end: Callable[[], Any]) -> None:
    module = module_of(name)
    step = getattr(module, name)

    def last_step(*arguments: Any, **settings: Any) -> None:
        step(*arguments, **settings)
        end()

    setattr(module, name, last_step)


def fill_before(name: str, disk: Path) -> None:
    """Arrange for the disk to be full from a step of the driver on."""
    module = module_of(name)
    step = getattr(module, name)

    def on_a_full_disk(*arguments: Any, **settings: Any) -> Any:
        fill(disk)
        return step(*arguments, **settings)

    setattr(module, name, on_a_full_disk)


def fill(disk: Path) -> None:
    """Leave no room on a small disk."""
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        for size in (1_000_000, 4_096):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def count(run_dir: Path, what: bytes) -> int:
    journal = run_dir / "journal.jsonl"
    return journal.read_bytes().count(what) if journal.exists() else 0


def written(run_dir: Path) -> int:
    return len(list((run_dir / "rounds").rglob("*.parquet")))


def rows_written(run_dir: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (run_dir / "rounds").rglob("*.parquet"))


def victim_of(name: str) -> psutil.Process | None:
    """Return the first process below this one whose title holds `name`."""
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def kill_actor(name: str, run_dir: Path, *, by: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to the actor whose title holds `name`, among what this process started, once answers come."""
    wait_until(lambda: count(run_dir, b'"settle"') >= 5)
    wait_until(lambda: victim_of(name) is not None)
    if found := victim_of(name):
        found.send_signal(by)
        print(json.dumps({"killed": name, "pid": found.pid}), file=sys.stderr, flush=True)


def kill_early(name: str) -> None:
    """Kill the actor whose title holds `name` as soon as it is there."""
    wait_until(lambda: victim_of(name) is not None)
    if found := victim_of(name):
        found.kill()
        print(json.dumps({"killed": name, "pid": found.pid}), file=sys.stderr, flush=True)


def slow_down(name: str, run_dir: Path) -> None:
    """Stop an actor's process again and again, as an overloaded node would."""
    wait_until(lambda: count(run_dir, b'"settle"') >= 5)
    with suppress(psutil.Error):
        process = victim_of(name)
        assert process is not None
        print(json.dumps({"slowed": name, "pid": process.pid}), file=sys.stderr, flush=True)
        while process.is_running():
            process.suspend()
            time.sleep(0.45)
            process.resume()
            time.sleep(0.05)


def lose_node(cluster: Any, nodes: list[Any], run_dir: Path) -> None:
    """Lose a node whose GPU an engine has."""
    wait_until(lambda: count(run_dir, b'"settle"') >= 5)
    left = available_resources_per_node()
    node = next(node for node in nodes if not left[node.node_id].get("GPU"))
    cluster.remove_node(node, allow_graceful=False)
    print(json.dumps({"killed": "node"}), file=sys.stderr, flush=True)


def delete_folder(run_dir: Path) -> None:
    """Delete a run folder under the run, once answers come; callers that write meanwhile may leave files behind."""
    wait_until(lambda: written(run_dir) >= 3)
    shutil.rmtree(run_dir, ignore_errors=True)


def main(config_path: str, *faults: str) -> None:
    config = RunConfig.load(config_path)
    run_dir = Path(config.run_dir)
    if "node" in faults:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(3)]  # one more than there are workers
        ray.init(address=cluster.address, log_to_driver=False)
        threading.Thread(target=lose_node, args=(cluster, nodes, run_dir), daemon=True).start()
    if "pressure" in faults:
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=_STORE_BYTES)
        held = [ray.put(np.zeros(_STORE_BYTES // 10, np.uint8)) for _ in range(9)]
    for fault in faults:
        kind, _, what = fault.partition(":")
        if kind in ("driver", "machine"):
            die_at(what, run_dir, with_actors=kind == "machine")
        elif kind in ("kill", "freeze"):
            by = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
            threading.Thread(target=kill_actor, args=(what, run_dir), kwargs={"by": by}, daemon=True).start()
        elif kind == "early":
            threading.Thread(target=kill_early, args=(what,), daemon=True).start()
        elif kind == "full":
            fill_before(what, run_dir.parent)
        elif kind == "gone":
            threading.Thread(target=delete_folder, args=(run_dir,), daemon=True).start()
        elif kind == "held":
            size_limits.SKETCH_ABOVE_QUERIES = int(what)
        elif kind == "slow":
            threading.Thread(target=slow_down, args=(what, run_dir), daemon=True).start()
    report = run(None, config).report
    if "pressure" in faults:
        assert len(ray.get(held)) == 9, "what others hold was to stay"
    print(report.model_dump_json())
    ray.shutdown()
    if "node" in faults:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
