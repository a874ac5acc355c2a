"""The three ways of docs/serving.md to start a server, typed into a shell against a head with ports of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROLLOUTS
from tests.ray.serving import PRICE, free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SECONDS = 240  # a busy machine; the test's own timeout is above


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started by `ray start`."""

    env: dict[str, str]
    dashboard: str
    temp_dir: str

    def processes(self, title: str) -> set[int]:
        """Return the ids of this cluster's workers whose title begins so."""
        found = set()
        for process in psutil.process_iter(["cmdline", "ppid"]):
            line = " ".join(process.info["cmdline"] or ())
            if line.startswith(title):
                parent = " ".join(psutil.Process(process.info["ppid"]).cmdline())
                found |= {process.pid} if self.temp_dir in parent else set()
        return found


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    temp_dir = f"/tmp/cr{os.getpid()}"  # noqa: S108 - sockets need a short path
    port, dashboard = free_port(), free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env = env | {"PATH": f"{BIN}:{env['PATH']}"}
    ports = ["--port", str(port), "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(free_port())]
    ports += ["--ray-client-server-port", str(free_port()), "--metrics-export-port", str(free_port())]
    arguments = ["ray", "start", "--head", "--block", "--num-cpus", "4", "--temp-dir", temp_dir, *ports]
    log = (tmp_path_factory.mktemp("head") / "log").open("w")
    with subprocess.Popen(arguments, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True) as process:
        url = f"http://127.0.0.1:{dashboard}"
        try:
            until(lambda: get(f"{url}/api/version") is not None)
            yield Head(env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, url, temp_dir)
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            for child in started:  # what Ray has left over of them
                if child.is_running():
                    child.kill()


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.5)


def get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            body: bytes = response.read()
            return body
    except OSError:
        return None


def post(url: str, row: dict[str, Any], **changes: Any) -> tuple[int, dict[str, Any]]:
    """Ask a recorded query and return status and body."""
    body = {
        "model": "replay",
        "messages": [{"role": "user", "content": "?"}],
        "metadata": {"query_id": row["query_id"]},
    }
    data, headers = json.dumps(body | changes).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def running(head: Head, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, and press Ctrl-C; what it says goes into a file."""
    with log.open("wb") as said, subprocess.Popen(command, env=head.env, cwd=ROOT, stdout=said, stderr=said) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=SECONDS)
    assert process.returncode == 0, log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_starts_from_a_shell_in_each_of_the_three_ways(head: Head, tmp_path: Path) -> None:
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    row = next(row for row in rows if row["sample"] == 0 and row["output_tokens"] > 20)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    files = {"rollouts": str(ROLLOUTS / "rollouts.parquet"), "features": str(ROLLOUTS / "features.parquet")}
    settings = {"engine": {"kind": "replay", **files}, "price": PRICE, "model_name": "replay", "port": port}
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(settings | {"max_tokens": 400}))

    log = tmp_path / "log"
    with running(head, log, "clear-ray", "serve", "--config", str(config)):
        until(lambda: get(f"{url}/healthz") == b"ok\n")
        assert_answers(url, row)
        until(lambda: "Serving replay" in log.read_text())  # before that, Ctrl-C ends the start, with status 130
    assert get(f"{url}/healthz") is None

    started = ["serve", "start", "--http-host", "127.0.0.1", "--http-port", str(port)]
    subprocess.run(started, env=head.env, cwd=ROOT, check=True, timeout=SECONDS)
    with running(head, log, "serve", "run", "clear_ray.serve:build_app", f"config={config}"):
        until(lambda: get(f"{url}/healthz") == b"ok\n")
        assert_answers(url, row)

    deploy = yaml.safe_load((ROOT / "jobs/serve/deploy.yaml").read_text())
    deploy["http_options"]["port"] = port
    (app,) = deploy["applications"]
    app["args"]["config"] = str(config)
    of = {deployment["name"]: deployment for deployment in app["deployments"]}
    of["price"]["user_config"] = PRICE
    push(head, tmp_path, deploy)
    until(lambda: get(f"{url}/healthz") == b"ok\n")
    assert_answers(url, row)
    before = head.processes("ray::ServeReplica:clear_ray:")
    assert len(before) == 3

    of["price"]["user_config"] = PRICE | {"carry_over_tokens": 5}  # no query can be granted more
    of["ingress"]["user_config"] = {"limits": {"choices": 1}}
    push(head, tmp_path, deploy)
    until(lambda: post(url, row, n=2)[0] == 400)
    until(lambda: post(url, row)[1].get("usage", {}).get("completion_tokens") == 5)
    assert head.processes("ray::ServeReplica:clear_ray:") == before  # nothing was loaded again


def assert_answers(url: str, row: dict[str, Any]) -> None:
    status, body = post(url, row)
    assert (status, body["choices"][0]["message"]["content"]) == (200, row["text"])
    assert post(url, row, n=2)[0] == 200


def push(head: Head, folder: Path, deploy: dict[str, Any]) -> None:
    file = folder / "deploy.yaml"
    file.write_text(yaml.safe_dump(deploy))
    subprocess.run(["serve", "deploy", str(file), "-a", head.dashboard], env=head.env, check=True, timeout=SECONDS)
