"""A batch on a cluster that grows from no worker and shrinks to none again, however the batch ends.

Ray's own autoscaler decides; its nodes are processes on this machine, of the types of cluster.yaml with fewer GPUs.
`python -m pytest -m slow tests/cluster/test_autoscaling.py -s` prints the figures of docs/cluster.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util.state import list_actors, list_nodes, list_tasks
from ray.util.state.common import ActorState

from clear_ray.batch.run import RunResult
from clear_ray.report.summary import RunReport
from tests.cluster.heads import Head, clean_environment, ray_head, scaled_down, wait_for
from tests.ray.test_run import check_account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]

TYPES = {
    "head": {"CPU": 4, "GPU": 0},
    "gpu_small": {"CPU": 1, "GPU": 1, "max_workers": 2},
    "gpu_large": {"CPU": 2, "GPU": 2, "max_workers": 1},
}
MOST = 4
"""GPUs of all these nodes."""
SLOW_SECONDS = 300.0


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    cluster = scaled_down("cluster.yaml", TYPES, idle_seconds=6)
    with ray_head(clean_environment(RAY_AUTH_MODE="disabled"), "--num-cpus=4", "--num-gpus=0", scaled=cluster) as head:
        wait_for(lambda: len(nodes(head)) == 1, "the head in its own list of nodes", SLOW_SECONDS)
        yield head


def nodes(head: Head) -> dict[str, int]:
    """Return node id -> GPUs of the nodes that are alive."""
    found = list_nodes(address=head.dashboard, timeout=60)  # filtered by Ray, what is left out counts as missing
    return {node.node_id: int(node.resources_total.get("GPU", 0)) for node in found if node.state == "ALIVE"}


def actors(head: Head) -> list[ActorState]:
    """Return the actors that are not dead."""
    found = list_actors(address=head.dashboard, limit=10_000, timeout=60)
    return [actor for actor in found if actor.state != "DEAD"]


def engines(head: Head) -> Counter[str]:
    """Return node id -> engine workers that run there."""
    found = (actor for actor in actors(head) if (actor.class_name, actor.state) == ("BatchEngineWorker", "ALIVE"))
    return Counter(actor.node_id for actor in found if actor.node_id)


def gpus(head: Head) -> int:
    return sum(nodes(head).values())


def are_all_in_use(head: Head, at_least: int) -> bool:
    """Whether so many engines run, and every GPU of every node has one."""
    found = {node: count for node, count in nodes(head).items() if count}
    return sum(found.values()) >= at_least and dict(engines(head)) == found


@pytest.fixture
def settings(replay_settings: dict[str, Any]) -> dict[str, Any]:
    """Four answers at once at 20 tokens a second: about four minutes of one engine."""
    settings = replay_settings | {"budget": 96 * 199, "dispatch": {"rows_per_file": 16, "batch_rows": 2}}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 20.0, "max_batch": 4, "num_gpus": 1}
    settings["scaling"] = {"max_workers": MOST, "deadline": "1m", "tokens_per_second": 80.0}
    return settings


@contextmanager
def batch(settings: dict[str, Any], head: Head) -> Iterator[subprocess.Popen[str]]:
    """Run `clear-ray run` on the cluster, in a process group of its own."""
    path = Path(settings["run_dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=head.environment | {"RAY_ADDRESS": head.address},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def check_that_nothing_is_left(head: Head) -> float:
    """Wait until there is no worker and none is asked for; return how long the nodes were there."""
    seconds = wait_for(lambda: gpus(head) == 0, "a cluster without workers", SLOW_SECONDS)
    ray_data = {"_AutoscalingCoordinatorActor", "_StatsActor", "ActorLocationTracker"}  # of the cluster, not of a job
    wait_for(lambda: {actor.class_name for actor in actors(head)} <= ray_data, "an end of all actors", SLOW_SECONDS)
    return seconds


def test_a_batch_has_the_gpus_that_its_work_calls_for_and_gives_them_back(settings: dict[str, Any], head: Head) -> None:
    settings["scaling"] |= {"tokens_per_second": None}  # to be measured
    assert gpus(head) == 0
    started = time.monotonic()
    grown: dict[int, int] = {}
    with batch(settings, head) as process:
        while process.poll() is None:
            running = sum(engines(head).values())
            grown.setdefault(running, round(time.monotonic() - started))
            if running == MOST:
                break
            time.sleep(0.5)
        assert are_all_in_use(head, at_least=MOST), (grown, process.poll())
        node_of_engine = engines(head)
        out, err = process.communicate(timeout=SLOW_SECONDS)
    assert process.returncode in (0, 3), err
    report = RunReport.model_validate({k: v for k, v in json.loads(out.splitlines()[-1]).items() if k != "event"})
    check_account(RunResult(report, settings["run_dir"]))
    assert report.wasted_tokens == 0
    assert report.workers == MOST
    assert report.worker_tokens_per_second == pytest.approx(4 * 20, rel=0.5)
    calls = list_tasks(
        address=head.dashboard,
        filters=[("func_or_class_name", "=", "BatchEngineWorker.generate")],
        limit=10_000,
        timeout=60,
    )
    answered = Counter(call.node_id for call in calls)
    assert all(answered[node] for node in node_of_engine), (answered, node_of_engine)
    gone = check_that_nothing_is_left(head)
    figures = {"engines_after_s": grown, "run_s": round(report.seconds), "no_worker_after_s": round(gone)}
    print(json.dumps(figures | {"tokens_per_second": report.worker_tokens_per_second}))


@pytest.mark.parametrize("way", ["error", "SIGINT", "SIGTERM", "SIGKILL"])
def test_gpus_are_given_back_however_a_batch_ends(way: str, settings: dict[str, Any], head: Head) -> None:
    rounds = Path(settings["run_dir"]) / "rounds"
    with batch(settings, head) as process:
        wait_for(lambda: process.poll() is not None or list(rounds.rglob("*.parquet")), "an answer", SLOW_SECONDS)
        wait_for(lambda: process.poll() is not None or are_all_in_use(head, at_least=2), "two engines", SLOW_SECONDS)
        assert process.poll() is None, process.communicate()
        if way == "error":
            shutil.rmtree(rounds / "r01")
            (rounds / "r01").write_text("no folder")  # its disk is broken
        else:
            process.send_signal(getattr(signal, way))
        _, err = process.communicate(timeout=SLOW_SECONDS)
    assert process.returncode == {"error": 1, "SIGINT": 130, "SIGTERM": 130, "SIGKILL": -9}[way], err
    print(json.dumps({"way": way, "no_worker_after_s": round(check_that_nothing_is_left(head))}))


def test_a_batch_that_is_killed_while_it_waits_for_its_nodes_holds_none(settings: dict[str, Any], head: Head) -> None:
    settings["engine"] |= {"workers": MOST}
    with batch(settings, head) as process:
        wait_for(lambda: process.poll() is not None or gpus(head) > 0, "a worker", SLOW_SECONDS)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    print(json.dumps({"way": "SIGKILL, waiting", "no_worker_after_s": round(check_that_nothing_is_left(head))}))
