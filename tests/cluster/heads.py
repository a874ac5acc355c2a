"""Ray heads that a test starts for itself: own ports, own folder, and an end that leaves no other Ray alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import yaml
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.core.generated.gcs_service_pb2 import CheckAliveReply, GetClusterIdReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

AUTOSCALED = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


@dataclass(frozen=True, slots=True)
class Head:
    """A running head.

    Attributes:
        address: Of its control store, for `ray.init` and `RAY_ADDRESS`.
        dashboard: URL of its dashboard and job server.
        environment: What its processes, and those that join it, have to be started with.
        folder: Its temporary folder; `session_latest/logs` is below it.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would lead to another Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    patient = {"RAY_health_check_failure_threshold": "60"}  # of a busy machine
    return kept | patient | {"RAY_USAGE_STATS_ENABLED": "0"} | more


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listened on a moment ago, no two alike."""
    with ExitStack() as open_sockets:
        found = [open_sockets.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def scaled_down(name: str, resources: Mapping[str, Mapping[str, float]], *, idle_seconds: float) -> dict[str, Any]:
    """Return a cluster file of ours with other resources, and with node types that name no machine.

    Args:
        name: The file, in the root of this repository.
        resources: Of each node type that is kept, with `max_workers` among them.
        idle_seconds: After which a node without work goes.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    types = {kind: config["available_node_types"][kind] for kind in resources}
    for kind, node in types.items():
        own = dict(resources[kind])
        node["max_workers"] = own.pop("max_workers", 0)
        node["resources"], node["node_config"] = own, {}
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    config["head_node_type"], config["available_node_types"] = FAKE_HEAD_NODE_TYPE, types
    config["max_workers"] = sum(node["max_workers"] for node in types.values())
    config["idle_timeout_minutes"] = idle_seconds / 60
    config["file_mounts"] = {}  # or Ray reads them all, every second
    return config


@contextmanager
def ray_head(
    environment: Mapping[str, str], *options: str, scaled: dict[str, Any] | None = None, started_in: Path | None = None
) -> Iterator[Head]:
    """Start a head, and end it and every process that came of it.

    Args:
        environment: See `clean_environment`.
        options: More options of `ray start`.
        scaled: A cluster's configuration: its node types are started as processes on this machine.
        started_in: Working folder of its processes, and of every worker; this process's own if not given.
    """
    for tries_left in reversed(range(3)):  # Ray gives a node 30 s to come up, which a busy machine may not have
        process, head = start_head(environment, options, scaled, started_in)
        try:
            if has_come_up(process, head):
                yield head
                return
            assert tries_left, (head.folder / "head.log").read_text()[-3_000:]
        finally:
            end_all(process, head.folder)
            shutil.rmtree(head.folder, ignore_errors=True)


def start_head(
    environment: Mapping[str, str],
    options: Sequence[str],
    scaled: dict[str, Any] | None,
    started_in: Path | None = None,
) -> tuple[subprocess.Popen[bytes], Head]:
    port, dashboard, client, agent = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets lie in it: their path may have 107 characters
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1"]
    own, address, more = dict(environment), f"{get_node_ip_address()}:{port}", list(options)
    if scaled is not None:
        own |= AUTOSCALED
        provider = {"type": "external", "module": PROVIDER, "launch_multiple": True, "gcs_address": address}
        provider["head_node_id"] = FAKE_HEAD_NODE_ID
        (folder / "cluster.yaml").write_text(yaml.safe_dump(scaled | {"provider": provider}))
        more.append(f"--autoscaling-config={folder / 'cluster.yaml'}")
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [
                RAY,
                "start",
                "--head",
                "--block",
                f"--temp-dir={folder}",
                "--object-store-memory=200000000",
                *ports,
                *more,
            ],
            env=own,
            cwd=started_in,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, Head(address, f"http://127.0.0.1:{dashboard}", dict(environment), folder)


def has_come_up(process: subprocess.Popen[bytes], head: Head) -> bool:
    """Wait until a head has started, or has failed to."""
    log, port = head.folder / "head.log", int(head.dashboard.rpartition(":")[2])
    wait_for(lambda: b"Ray runtime started" in log.read_bytes() or process.poll() is not None, "a head", 300)
    wait_for(lambda: process.poll() is not None or listens(port), f"a dashboard on port {port}", 180)
    return process.poll() is None


def end_all(head: subprocess.Popen[bytes], folder: Path) -> None:
    """End a head, its nodes and their workers: those that descend from it or name its folder."""
    ours = set(psutil.Process(head.pid).children(recursive=True)) if head.poll() is None else set()
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        head.wait(timeout=20)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder) in " ".join(process.cmdline()):
                ours.add(process)
    for process in ours:
        with suppress(psutil.Error):
            process.kill()
    with suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(is_so: Any, what: str, seconds: float) -> float:
    """Wait for something; return how long that was.

    Raises:
        AssertionError: It did not come about in time.
    """
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds, f"{what} did not come about within {seconds:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - started


@contextmanager
def head_of_another_version() -> Iterator[str]:
    """Yield the address of what answers as a head's control store of Ray 1.13 would."""

    class Answers(NodeInfoGcsServiceServicer):  # type: ignore[misc]
        def CheckAlive(self, request: Any, context: Any) -> Any:
            return CheckAliveReply(ray_version="1.13.0", raylet_alive=[])

        def GetClusterId(self, request: Any, context: Any) -> Any:
            return GetClusterIdReply(cluster_id=b"0" * 28)

    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Answers(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)
