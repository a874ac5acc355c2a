"""`clear-ray serve` beside another application on a cluster's Serve: where it listens, and how it stops."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROLLOUTS
from tests.e2e.test_serve_commands import ROOT, SECONDS, Head, get, head, post, until
from tests.ray.serving import PRICE, free_port

__all__ = ["head"]  # a fixture

NEIGHBOUR = """
import sys
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Neighbour:
    async def __call__(self, request):
        return "still here"

serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Neighbour.bind(), name="neighbour", route_prefix="/neighbour")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_is_told_where_it_is_and_stops_without_losing_a_query_or_its_neighbour(
    head: Head,
    tmp_path: Path,
) -> None:
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    row = next(row for row in rows if row["sample"] == 0 and 100 < row["output_tokens"] < 250)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    subprocess.run([sys.executable, "-c", NEIGHBOUR, str(port)], env=head.env, cwd=ROOT, check=True, timeout=SECONDS)
    files = {"rollouts": str(ROLLOUTS / "rollouts.parquet"), "features": str(ROLLOUTS / "features.parquet")}
    engine = {"kind": "replay", **files, "tokens_per_second": row["output_tokens"] / 4}
    # One answer's tokens every two seconds, and none kept: queries wait for their tokens one behind the other.
    price = PRICE | {"budget_tokens_per_second": row["output_tokens"] // 2, "carry_over_tokens": row["output_tokens"]}
    settings: dict[str, Any] = {"engine": engine, "price": price, "model_name": "replay", "port": free_port()}
    config, log = tmp_path / "serve.yaml", tmp_path / "log"
    config.write_text(yaml.safe_dump(settings | {"max_tokens": 400}))
    command = ["clear-ray", "serve", "--config", str(config)]
    with (
        log.open("wb") as said,
        subprocess.Popen(command, env=head.env, cwd=ROOT, stdout=said, stderr=said) as server,
        ThreadPoolExecutor(4) as threads,
    ):
        until(lambda: get(f"{url}/readyz") == b"ready\n")
        assert post(url, row, max_tokens=1)[0] == 200  # ready means that a query is answered
        until(lambda: "Serving replay" in log.read_text())
        taken = [threads.submit(post, url, row) for _ in range(3)]
        time.sleep(3.0)
        server.send_signal(signal.SIGTERM)
        until(lambda: post(url, row)[0] == 503)
        status, late = post(url, row)
        assert (status, late["error"]["code"]) == (503, "stopping")
        answers = [task.result() for task in taken]
        server.wait(timeout=SECONDS)
    assert [status for status, _ in answers] == [200, 200, 200], answers
    texts = [body["choices"][0]["message"]["content"] for _, body in answers]
    assert all(text and row["text"].startswith(text) for text in texts), texts  # the price may have cut one
    assert server.returncode == 0, log.read_text()
    lines = log.read_text()
    assert f"http://127.0.0.1:{port}/v1" in lines  # Serve's own port, not the file's
    assert "Traceback" not in lines
    assert get(f"{url}/neighbour") == b"still here"
