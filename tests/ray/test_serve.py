"""The server on real Ray Serve: recorded rollouts behind it, OpenAI's own client before it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray import serve
from ray.util import list_named_actors

from clear_ray.errors import ConfigError
from clear_ray.serve import build_app
from clear_ray.serve.app import application
from clear_ray.serve.edge import OPEN_PATHS
from clear_ray.serve.ingress import api
from clear_ray.serve.page import routes_of
from clear_ray.serve.settings import LimitSettings, PriceSettings, ServeConfig
from tests.conftest import ROLLOUTS
from tests.ray.serving import KEY, PRICE, ask, client_of, free_port, settings

ROOT = Path(__file__).resolve().parents[2]
_FILE, _BATCH = "/v1/files/{file_id}", "/v1/batches/{batch_id}"
BATCH_PATHS = ("/v1/files", _FILE, f"{_FILE}/content", "/v1/batches", _BATCH, f"{_BATCH}/cancel", f"{_BATCH}/budget")
BATCH_PATHS += (f"{_BATCH}/retry", f"{_BATCH}/export")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    free = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()


@pytest.fixture(scope="module")
def client(port: int) -> openai.OpenAI:
    serve.run(application(settings()), name="open", route_prefix="/open")
    return client_of(port, "/open")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """One recorded query with its first rollout, that ended by itself."""
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    return next(row for row in rows if row["sample"] == 0 and row["finish_reason"] == "stop" and "\n" in row["text"])


def test_an_answer_comes_whole_with_its_account(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    answer = ask(client, recorded)
    assert answer.choices[0].message.content == recorded["text"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == recorded["output_tokens"]
    assert answer.usage.prompt_tokens == recorded["prompt_tokens"]
    account = answer.usage.model_extra["clear_ray"]
    assert account["spent_tokens"] == recorded["output_tokens"] <= account["budget_tokens"] <= 400
    assert account["outcome"] == "granted"


def test_headers_say_what_the_usage_block_says(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "?"}]
    raw = client.chat.completions.with_raw_response.create(
        model="replay",
        messages=messages,  # type: ignore[arg-type]
        metadata={"query_id": recorded["query_id"]},
        max_tokens=7,
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert raw.headers["x-clear-ray-budget-tokens"] == raw.headers["x-clear-ray-spent-tokens"] == "7"
    account = answer.usage.model_extra["clear_ray"]  # type: ignore[index]
    assert float(raw.headers["x-clear-ray-shadow-price"]) == pytest.approx(account["shadow_price"])


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    chunks = list(ask(client, recorded, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == recorded["text"]
    assert len([text for text in texts if text]) >= recorded["output_tokens"] // 16
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == recorded["output_tokens"]
    assert chunks[-1].usage.model_extra["clear_ray"]["spent_tokens"] == recorded["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, recorded: dict[str, Any], stream: bool) -> None:
    answer = ask(client, recorded, stop=["\n"], stream=stream)
    before = recorded["text"].split("\n")[0]
    if stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) == before
    else:
        assert answer.choices[0].message.content == before
        assert answer.usage.completion_tokens < recorded["output_tokens"]


def test_choices_are_independent_answers(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    answer = ask(client, recorded, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    streamed = ["", "", ""]
    for chunk in ask(client, recorded, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [choice.message.content for choice in answer.choices]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"n": 5}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": "x" * 65}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"metadata": {"query_id": "nobody asked this"}}, "messages"),
        ({"metadata": {}}, "metadata"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, recorded: dict[str, Any], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, recorded, **changes)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_limits_hold_at_their_boundary(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    assert ask(client, recorded, n=4, max_tokens=1).usage.completion_tokens == 4
    assert ask(client, recorded, stop=["\x01", "\x02", "\x03", "x" * 64], max_tokens=1).choices
    for content, most in (("x" * 500, 20_000), ("x" * 600, 20_000)):
        body: dict[str, Any] = {"model": "replay", "max_tokens": 1, "metadata": {"query_id": recorded["query_id"]}}
        body["messages"] = [{"role": "user", "content": content}]
        missing = most - len(json.dumps(body))
        body["messages"][0]["content"] += "x" * missing
        assert _post(client, json.dumps(body).encode()) == 200  # exactly as long as it may be
        assert _post(client, json.dumps(body).encode() + b" ") == 413
    with pytest.raises(openai.NotFoundError):
        ask(client, recorded, model="another")


def test_every_route_is_guarded(client: openai.OpenAI, port: int) -> None:
    routes = {tuple(route.split(" ")) for route in routes_of(api)}
    answering = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}
    guarded = {"/metrics", "/v1/models", "/v1/models/{name:path}"} | answering
    assert {path for _, path in routes} == guarded | OPEN_PATHS | set(BATCH_PATHS)
    for method, path in routes:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/open{path}", method=method, data=None)
        status = _status(request)
        assert status == (200 if path in OPEN_PATHS else 401), path
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()
    assert [model.id for model in client.models.list()] == ["replay"]


def test_metrics_count_queries_and_tokens(client: openai.OpenAI, recorded: dict[str, Any], port: int) -> None:
    ask(client, recorded, max_tokens=3)
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/open/metrics", headers=headers)
    text = urllib.request.urlopen(request, timeout=30).read().decode()  # noqa: S310
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(found['clear_ray_queries_total{outcome="granted"}']) >= 1
    assert float(found["clear_ray_price_spent_tokens_total"]) >= 3
    assert recorded["question"] not in text


@pytest.mark.slow
def test_without_surplus_by_configuration(port: int, recorded: dict[str, Any]) -> None:
    """Sixty queries at once want far more than ten tokens a second pay for."""
    scarce = PRICE | {"budget_tokens_per_second": 10, "carry_over_tokens": 60, "deadline_seconds": 1.0}
    refusals: dict[str, set[str]] = {}
    for policy in ("reject", "queue", "answer"):
        price = scarce | {"without_surplus": policy, "direct_answer_tokens": 2}
        serve.run(application(settings(price=price)), name="scarce", route_prefix="/scarce")
        client = client_of(port, "/scarce")
        started = time.monotonic()
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda _, c=client: _outcome(c, recorded), range(24)))  # type: ignore[misc]
        seconds = time.monotonic() - started
        spent = sum(answer for answer in answers if isinstance(answer, int))
        assert spent <= 60 + 10 * (seconds + 30)  # the account has run since the replica started
        refusals[policy] = {answer for answer in answers if isinstance(answer, str)}
    assert refusals["reject"] & {"no_surplus", "no_tokens"}
    assert refusals["queue"] <= {"deadline", "queue_full"}
    assert refusals["queue"]
    serve.delete("scarce")


def _post(client: openai.OpenAI, body: bytes) -> int:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return _status(urllib.request.Request(f"{client.base_url}chat/completions", body, headers))  # noqa: S310


def _outcome(client: openai.OpenAI, row: dict[str, Any]) -> int | str:
    """Return the tokens of an answer, or the code with which it was refused."""
    try:
        return int(ask(client, row).usage.completion_tokens)
    except openai.RateLimitError as error:
        refusal = error
    assert int(refusal.response.headers["retry-after"]) >= 1
    assert refusal.type == "rate_limit_error"
    return str(refusal.code)


def _status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        refusal = error
    assert set(json.loads(refusal.read())["error"]) == {"message", "type", "param", "code"}
    return int(refusal.code)


def test_no_prompt_reaches_a_log(client: openai.OpenAI, recorded: dict[str, Any]) -> None:
    mark = "a-prompt-that-must-not-be-logged"
    ask(client, recorded, messages=[{"role": "user", "content": mark}], max_tokens=2)
    for changes in ({"temperature": 1.5}, {"metadata": {"query_id": "unknown"}}, {"n": 77}):
        with pytest.raises(openai.BadRequestError):
            ask(client, recorded, messages=[{"role": "user", "content": mark}], **changes)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [path for path in (logs / "serve").glob("*.log") if path.stat().st_size]
    assert any("POST /open/v1/chat/completions" in path.read_text() for path in files)
    assert [path.name for path in logs.rglob("*") if path.is_file() and mark.encode() in path.read_bytes()] == []


def test_a_dead_replica_costs_no_query_and_a_stop_drains(port: int, recorded: dict[str, Any]) -> None:
    seconds = 4.0
    engine = settings().engine.model_dump() | {"tokens_per_second": recorded["output_tokens"] / seconds, "workers": 2}
    serve.run(application(settings(engine=engine, drain_seconds=20.0)), name="slow", route_prefix="/slow")
    client = client_of(port, "/slow")
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, client, recorded) for _ in range(6)]
        time.sleep(seconds / 2)
        engines = [actor for actor in list_named_actors(all_namespaces=True) if "slow#engine#" in actor["name"]]
        assert len(engines) == 2
        ray.kill(ray.get_actor(engines[0]["name"], namespace=engines[0]["namespace"]), no_restart=False)
        assert [answer.result().choices[0].message.content for answer in answers] == [recorded["text"]] * 6
        assert all(answer.result().usage.completion_tokens == recorded["output_tokens"] for answer in answers)
        # Half of every answer was there when the replica died: it goes on from there, under the same hold.
        assert all(answer.result().usage.model_extra["clear_ray"]["budget_tokens"] <= 400 for answer in answers)
        last = threads.submit(ask, client, recorded)
        time.sleep(seconds / 4)
        serve.delete("slow")
        assert last.result().choices[0].message.content == recorded["text"]
        with pytest.raises(openai.APIStatusError):
            ask(client, recorded)


def test_the_deploy_file_and_the_builder_agree() -> None:
    deploy = yaml.safe_load((ROOT / "jobs/serve/deploy.yaml").read_text())
    (app,) = deploy["applications"]
    assert app["import_path"] == "clear_ray.serve:build_app"
    config = ServeConfig.load(ROOT / app["args"]["config"])
    changes = {deployment["name"]: deployment["user_config"] for deployment in app["deployments"]}
    assert PriceSettings.model_validate(changes["price"]) == config.price
    assert LimitSettings.model_validate(changes["ingress"]["limits"]) == config.limits
    built = build_app({"config": str(ROOT / app["args"]["config"])})
    assert built is not None
    with pytest.raises(ConfigError, match="cannot be read"):
        build_app({"config": str(ROOT / "jobs/serve/absent.yaml")})


@pytest.mark.slow
def test_the_embedded_model_answers_over_http(port: int) -> None:
    model = {"kind": "transformers", "model": "smollm2-135m-instruct", "max_batch": 4}
    price = PRICE | {"budget_tokens_per_second": 200, "carry_over_tokens": 400}
    config = settings(
        engine=model, estimate={"head": "demo"}, model_name="smollm2", max_tokens=32, price=price, stream_tokens=2
    )
    serve.run(application(config), name="real", route_prefix="/real")
    client = client_of(port, "/real")
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="smollm2", messages=messages)
    assert "Paris" in (answer.choices[0].message.content or "")
    chunks = list(client.chat.completions.create(model="smollm2", messages=messages, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == answer.choices[0].message.content
    assert len(chunks) > 3
    serve.delete("real")
