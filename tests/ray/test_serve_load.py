"""The server under more than it can do: where queries go, how many replicas there are, what is refused, what deaths cost."""

from __future__ import annotations

import asyncio
import hashlib
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.util import list_named_actors

from clear_ray.engine import Grant
from clear_ray.serve.app import application
from clear_ray.serve.routing import TokenRouter
from tests.conftest import ROLLOUTS
from tests.ray.serving import KEY, ask, client_of, free_port, settings


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    free = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()


@pytest.fixture(scope="module")
def long() -> dict[str, Any]:
    """A recorded query whose first rollout has more than a hundred tokens."""
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    return next(row for row in rows if row["sample"] == 0 and 120 <= row["output_tokens"] <= 200)


@serve.deployment(
    name="busy",
    num_replicas=2,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 0},
    request_router_config=RequestRouterConfig(request_router_class=TokenRouter),
)
class Busy:
    """Holds a grant of more than ten tokens until a file is there, others for a moment; says which replica it is."""

    async def write(self, grant: Grant, until: str) -> str:
        while grant.max_tokens > 10 and not Path(until).exists():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        return str(serve.get_replica_context().replica_id.unique_id)


def test_a_long_grant_keeps_its_replica_to_itself_while_short_ones_fit_beside_it(port: int, tmp_path: Path) -> None:
    """By counts the twenty short ones would be shared; by tokens all twenty together weigh less than the long one."""
    del port
    over = str(tmp_path / "over")
    handle = serve.run(Busy.bind(), name="routed", route_prefix="/routed")
    long = handle.write.remote(Grant("long", "", 1_000), over)
    seconds = handle.write.remote(Grant("short", "", 10), over).result()
    shorts = [handle.write.remote(Grant(f"short{i}", "", 10), over) for i in range(20)]
    assert {short.result() for short in shorts} == {seconds}
    # What is outstanding is forgotten when it ends: with the long one over, both replicas are used again.
    Path(over).touch()
    assert long.result() != seconds

    def pair() -> set[str]:
        return {answer.result() for answer in [handle.write.remote(Grant(f"{i}", "", 100), over) for i in range(2)]}

    until(lambda: pair() == {long.result(), seconds})
    serve.delete("routed")


def metric(port: int, path: str, name: str) -> float:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    text = urllib.request.urlopen(request, timeout=30).read().decode()  # noqa: S310
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " ")), 0.0)


def until(condition: Any) -> None:
    """Wait for what is bound to come; the test's timeout ends it otherwise."""
    while not condition():
        time.sleep(0.2)


def test_one_more_than_fit_the_engine_and_its_queue_is_refused(port: int, long: dict[str, Any]) -> None:
    engine = {"tokens_per_second": long["output_tokens"] / 6.0, "max_batch": 1}  # two at a time: one runs, one is next
    serve.run(application(settings(engine=engine, max_queued=1)), name="full", route_prefix="/full")
    client = client_of(port, "/full")
    with ThreadPoolExecutor(4) as threads:
        taken = []
        for number in (1, 2):  # one after the other: what is on its way to a replica counts as queued
            taken.append(threads.submit(ask, client, long))
            until(lambda n=number: metric(port, "/full", "clear_ray_granted_tokens_total") >= 400 * n)  # type: ignore[misc]
        more: list[Future[Any]] = [threads.submit(ask, client, long) for _ in range(2)]
        errors = [answer.exception() for answer in more]
    (refused,) = [error for error in errors if error is not None]
    assert isinstance(refused, openai.InternalServerError)
    assert (refused.status_code, refused.code) == (503, "unavailable")
    assert int(refused.response.headers["retry-after"]) >= 1
    assert all(answer.result().choices[0].message.content == long["text"] for answer in taken)
    serve.delete("full")


def engine_replicas(app: str) -> list[dict[str, str]]:
    return [actor for actor in list_named_actors(all_namespaces=True) if f"{app}#engine#" in actor["name"]]


def test_a_query_goes_on_after_one_death_and_fails_after_two_with_its_tokens_back(
    port: int, long: dict[str, Any]
) -> None:
    engine = {"tokens_per_second": long["output_tokens"] / 60.0}
    serve.run(application(settings(engine=engine, stream_tokens=1)), name="fatal", route_prefix="/fatal")
    said: list[str] = []
    with pytest.raises(openai.APIError, match="No engine can take"):
        said.extend(_texts(ask(client_of(port, "/fatal"), long, stream=True), deaths=2))
    assert long["text"].startswith("".join(said))
    assert len(said) >= 2  # something of each of the two replicas
    until(lambda: metric(port, "/fatal", "clear_ray_price_spent_tokens_total") > 0)
    spent = metric(port, "/fatal", "clear_ray_price_spent_tokens_total")
    assert 2 <= spent < metric(port, "/fatal", "clear_ray_granted_tokens_total")
    assert spent == metric(port, "/fatal", "clear_ray_generated_tokens_total")
    assert metric(port, "/fatal", "clear_ray_price_reserved_tokens") == 0
    serve.delete("fatal")


def _texts(stream: Any, *, deaths: int) -> Iterator[str]:
    """Yield the texts of a stream; after each of the first ones, kill the replica that it came from."""
    for chunk in stream:
        if not (text := chunk.choices[0].delta.content):
            continue
        yield text
        if deaths:
            (actor,) = engine_replicas("fatal")
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)
            deaths -= 1
            until(lambda dead=actor: engine_replicas("fatal") not in ([], [dead]))  # type: ignore[misc]


def test_a_client_that_goes_away_frees_its_place_and_pays_for_what_came(port: int, long: dict[str, Any]) -> None:
    """The engine has one place, and the answer that is given up would have held it for ten minutes."""
    engine = {"tokens_per_second": long["output_tokens"] / 600.0, "max_batch": 1}
    serve.run(application(settings(engine=engine, stream_tokens=1)), name="left", route_prefix="/left")
    client = client_of(port, "/left")
    with ask(client, long, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
    assert ask(client, long, max_tokens=1).usage.completion_tokens == 1
    until(lambda: metric(port, "/left", "clear_ray_price_reserved_tokens") == 0)
    assert 2 <= metric(port, "/left", "clear_ray_price_spent_tokens_total") <= long["output_tokens"] / 2
    serve.delete("left")


@pytest.mark.slow
def test_replicas_follow_the_tokens_outstanding(port: int, long: dict[str, Any]) -> None:
    engine = {"tokens_per_second": 100.0, "max_batch": 2, "workers": 1}
    scaling = {"max_workers": 2, "target_seconds": 2.0, "up_seconds": 0.0, "down_seconds": 1.0}
    serve.run(application(settings(engine=engine, scaling=scaling)), name="elastic", route_prefix="/elastic")
    client = client_of(port, "/elastic")
    assert running("elastic") == 1
    with ThreadPoolExecutor(64) as threads:
        answers = [threads.submit(ask, client, long) for _ in range(48)]
        until(lambda: running("elastic") == 2)
        assert not all(answer.done() for answer in answers)  # it grew while there was work, and for that work
        assert {answer.result().choices[0].message.content for answer in answers} == {long["text"]}
    until(lambda: running("elastic") == 1)
    assert ask(client, long).choices[0].message.content == long["text"]
    serve.delete("elastic")


def running(app: str) -> int:
    deployment = serve.status().applications[app].deployments["engine"]
    return sum(number for state, number in deployment.replica_states.items() if str(state).endswith("RUNNING"))


@pytest.mark.slow
def test_a_flood_of_one_tenant_leaves_the_other_its_share(port: int, long: dict[str, Any]) -> None:
    """One sends as much as it can for twenty seconds, the other a query every half second; both have the same weight."""
    names = ("loud", "quiet")
    tenants = {name: {"api_key_sha256": [hashlib.sha256(name.encode()).hexdigest()]} for name in names}
    # What is sold is a tenth of what the engine could generate: the price is what there is too little of.
    price = {
        "budget_tokens_per_second": 400,
        "carry_over_tokens": 4_000,
        "clearing_seconds": 1.0,
        "window_seconds": 5.0,
    }
    config = settings(engine={"tokens_per_second": 200.0}, price=price | {"deadline_seconds": 5.0}, tenants=tenants)
    serve.run(application(config), name="tenants", route_prefix="/tenants")
    tokens, waited, end = dict.fromkeys(names, 0), list[float](), time.monotonic() + 20
    clients = {name: client_of(port, "/tenants").with_options(api_key=name) for name in names}

    def one(name: str) -> None:
        try:
            usage = ask(clients[name], long, max_tokens=80).usage
        except openai.RateLimitError:
            return
        tokens[name] += usage.completion_tokens
        if name == "quiet":
            waited.append(usage.clear_ray["waited_seconds"])

    def flood() -> None:
        while time.monotonic() < end:
            one("loud")

    with ThreadPoolExecutor(64) as threads:
        floods = [threads.submit(flood) for _ in range(40)]
        asked = 0
        while time.monotonic() < end:
            threads.submit(one, "quiet")
            asked += 1
            time.sleep(0.5)
        for each in floods:
            each.result()
    # It asks for 160 tokens a second of the 200 that are its own: every query is answered, whole, and hardly one waits.
    assert len(waited) == asked
    assert tokens["quiet"] >= 0.95 * asked * 80
    assert sorted(waited)[int(0.8 * asked)] == 0.0  # sold its tokens as it came
    assert tokens["loud"] <= 400 * 25 + 4_000 - tokens["quiet"]
    until(lambda: metric(port, "/tenants", "clear_ray_price_reserved_tokens") == 0)
    serve.delete("tenants")
