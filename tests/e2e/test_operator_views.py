"""What an operator looks at while a server and its batches run: the dashboard's panels, and the page in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray import serve

from clear_ray.serve.app import application
from tests.conftest import ROLLOUTS
from tests.e2e.browser import browsed
from tests.ray.batching import batch_settings, create, ended, recorded_ids, request, upload
from tests.ray.serving import KEY, ask, client_of, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def metrics_port() -> Iterator[int]:
    port = free_port()
    ray.init(num_cpus=2, include_dashboard=False, _metrics_export_port=port)
    yield port
    ray.shutdown()


@pytest.fixture(scope="module")
def port(metrics_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server whose engine is so slow that a batch can be looked at."""
    free, folder = free_port(), tmp_path_factory.mktemp("batches")
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    engine = {"tokens_per_second": 25.0, "max_batch": 8}
    serve.run(application(batch_settings(folder, engine=engine)), name="views", route_prefix="/")
    yield free
    serve.shutdown()


@pytest.fixture(scope="module")
def client(port: int) -> openai.OpenAI:
    return client_of(port, "")


def long_batch(client: openai.OpenAI) -> Any:
    file = upload(client, [request(name) for name in recorded_ids()[:100]])
    return create(client, file.id, metadata={"budget": "9000 tokens"})


@contextmanager
def prometheus(folder: Path, metrics_port: int, port: int) -> Iterator[str]:
    """A real Prometheus that scrapes the cluster and the server as deploy/prometheus.yml has it, but for the addresses."""
    found = shutil.which("prometheus")
    assert found, "this test needs Prometheus, such as Debian's package"
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    config["scrape_configs"][0] |= {"static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}
    del config["scrape_configs"][0]["file_sd_configs"]
    config["scrape_configs"][1] |= {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config["scrape_configs"][1] |= {"authorization": {"credentials": KEY}}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    own = free_port()
    command = [found, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{own}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            process.terminate()


def found_by(where: str, expression: str) -> list[Any]:
    """Return what Prometheus finds for the expression of a panel, as Grafana asks it."""
    asked = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", "1m")})
    try:
        answer = urllib.request.urlopen(f"{where}/api/v1/query?{asked}", timeout=30)  # noqa: S310
    except urllib.error.URLError:
        return []  # it starts
    result: list[Any] = json.loads(answer.read())["data"]["result"]
    return [each for each in result if each["value"][1] != "NaN"]


def test_every_panel_of_the_dashboard_has_data_while_a_server_and_a_batch_run(
    client: openai.OpenAI, port: int, metrics_port: int, tmp_path: Path
) -> None:
    panels = json.loads((ROOT / "deploy/grafana/clear_ray.json").read_text())["panels"]
    wanted = {(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]}
    row = next(row for row in pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist() if row["sample"] == 0)
    batch, is_over, kinds = long_batch(client), threading.Event(), set[str]()

    def keep_asking() -> None:
        while not is_over.wait(0.2):
            ask(client, row, max_tokens=3, stream=False)
            with pytest.raises(openai.BadRequestError):  # of which there is a panel, too
                ask(client, row, max_tokens=3, tools=[{"type": "function"}])

    asker = threading.Thread(target=keep_asking)
    asker.start()
    try:
        with prometheus(tmp_path, metrics_port, port) as where:
            end, missing = time.monotonic() + 240, wanted
            while missing and time.monotonic() < end:
                time.sleep(2)
                missing = {(title, expression) for title, expression in missing if not found_by(where, expression)}
            kinds |= {each["metric"].get("source", "") for each in found_by(where, "ray_clear_ray_tokens_spent_total")}
            names = {each["metric"]["__name__"] for each in found_by(where, '{__name__=~"(ray_)?clear_ray_.*"}')}
    finally:
        is_over.set()
        asker.join()
    client.batches.cancel(batch.id)
    assert not missing
    assert kinds == {"batch", "server"}
    assert not {name for name in names if name.startswith("ray_") and name.removeprefix("ray_") in names}
    ended(client, batch.id)


def test_a_batch_is_watched_and_steered_from_the_page(client: openai.OpenAI, port: int, tmp_path: Path) -> None:
    batch = long_batch(client)
    card = f"document.getElementById('{batch.id}')"
    with browsed(tmp_path / "profile") as page:
        page.resize(*DESK)
        page.open(f"http://127.0.0.1:{port}/")
        page.until("document.getElementById('state').textContent.includes('API key')")
        assert page.value("document.getElementById('batches').children.length") == 0
        page.value(
            f"document.querySelector('#key input').value = '{KEY}'; document.querySelector('#key button').click()"
        )
        page.until(f"{card} && {card}.querySelector('progress').value > 0")
        text = page.value(f"{card}.innerText")
        assert "in progress" in text
        assert "9,000 tokens" in text
        for name, (width, height) in {"desk": DESK, "phone": PHONE}.items():
            page.resize(width, height)
            assert page.value("document.documentElement.scrollWidth") == width
            page.shoot(tmp_path / f"{name}.png")
        page.value(f"{card}.querySelector('input').value = 'much'; {card}.querySelector('.main').click()")
        page.until(f"{card}.querySelector('.said.bad')?.textContent.includes('much')")
        page.value(f"{card}.querySelector('input').value = '+500'; {card}.querySelector('.main').click()")
        page.until(f"{card}.innerText.includes('9,500 tokens') && !{card}.querySelector('.said.bad')")
        page.until(f"{card}.querySelector('dl').innerText.includes('9,500 tokens')")  # the run has heard it
        page.value(f"setTimeout(() => {card}.querySelector('[type=button]').click())")
        page.until(f"/cancel/.test({card}.querySelector('.status').textContent)")
        assert ended(client, batch.id).status == "cancelled"
        page.until(f"{card}.querySelector('.status').textContent === 'cancelled'")
        page.until(f"getComputedStyle({card}.querySelector('form')).display === 'none'")
        page.shoot(tmp_path / "ended.png")


def test_replicas_log_json_without_prompts(client: openai.OpenAI, metrics_port: int) -> None:
    del metrics_port
    row = next(row for row in pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist() if row["sample"] == 0)
    ask(client, row, max_tokens=3)
    folder = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs/serve"
    events, end = list[dict[str, Any]](), time.monotonic() + 30
    while not events and time.monotonic() < end:
        time.sleep(0.5)
        lines = [line for path in folder.glob("replica_views_*.log") for line in path.read_text().splitlines()]
        events = [told for told in map(json.loads, lines) if told.get("message") == "answered"]
    assert events[-1]["clear_ray"]["completion_tokens"] == 3
    assert row["question"][:40] not in "".join(lines)
