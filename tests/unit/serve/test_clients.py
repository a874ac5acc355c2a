"""What real clients tripped over, each kind against the real application in this process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROLLOUTS
from tests.unit.serve.local_server import DIGEST, KEY, PRICE, LocalServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    """One recorded query whose first answer ended by itself."""
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    return next(row for row in rows if row["sample"] == 0 and row["finish_reason"] == "stop")


@pytest.fixture(scope="module")
def server() -> LocalServer:
    return LocalServer()


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


def chat(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": row["question"]}]
    return {"model": "replay", "messages": messages, "metadata": {"query_id": row["query_id"]}} | changes


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return an error, which is in OpenAI's form whatever it is about."""
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "replay", "messages": [{"role": "user", "content": "ab\\ud83d"}]}',
        b'{"model": "replay", "messages": [{"role": "user", "content": [{"type": "text", "text": "\\uDE00"}]}]}',
        b'{"model": "replay", "messages": [{"role": "user", "content": "a"}], "stop": ["\\udc00"]}',
        b'{"model": "replay", "messages": [{"role": "user", "content": "a"}], "metadata": {"\\ud800": "b"}}',
        b'{"model": "replay", "messages": [{"role": "user", "content": "\xed\xa0\xbd"}]}',
        '{"model": "replay", "messages": []}'.encode("utf-16"),
        b'{"model": "replay", "messages": [{"role": "user", "content": "a"}], "seed": NaN}',
    ],
)
async def test_bad_text_is_refused_at_the_edge(client: httpx.AsyncClient, server: LocalServer, body: bytes) -> None:
    for path in (CHAT, TEXT):
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert error_of(answer)["type"] == "invalid_request_error"
    await server.engine.check_health()


async def test_whole_emoji_pass_however_they_are_escaped(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    body = chat(row, messages=[{"role": "user", "content": "a \U0001f600"}])
    for content in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
        answer = await client.post(CHAT, content=content.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"stop": 3}, "stop", "a text or a list of texts"),
        ({"n": 0}, "n", "at least 1"),
        ({"n": "many"}, "n", "a whole number"),
        ({"max_tokens": 1.5}, "max_tokens", "a whole number"),
        ({"temperature": "warm"}, "temperature", "a number"),
        ({"stream": "perhaps"}, "stream", "true or false"),
        ({"model": 3}, "model", "a text"),
        ({"messages": []}, "messages", "not be empty"),
        ({"messages": "hello"}, "messages", "a list"),
        ({"messages": None}, "messages", "is missing"),
        ({"metadata": {"a": 1}}, "metadata.a", "a text"),
        ({"stream_options": 3}, "stream_options", "an object"),
    ],
)
async def test_messages_are_in_a_users_words(
    client: httpx.AsyncClient, row: dict[str, Any], changes: dict[str, Any], param: str, words: str
) -> None:
    error = error_of(await client.post(CHAT, json=chat(row, **changes)))
    assert error["param"] == param
    assert words in error["message"]
    assert not any(word in error["message"].lower() for word in ("tuple", "instance", "chatrequest", "dictionary"))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": None, "stream": None, "temperature": None, "tool_choice": "none", "prompt_cache_key": "a"},
        {"modalities": ["text"], "user": "u", "store": False, "parallel_tool_calls": True, "tools": []},
        {"top_k": -1, "repetition_penalty": 1, "logit_bias": {}, "response_format": {"type": "text"}},
        {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "?"}]},
    ],
)
async def test_what_asks_for_nothing_passes(
    client: httpx.AsyncClient, row: dict[str, Any], changes: dict[str, Any]
) -> None:
    answer = await client.post(CHAT, json=chat(row, max_tokens=2, **changes))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "message",
    [
        {"role": "wizard", "content": "?"},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "?", "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
    ],
)
async def test_what_would_be_lost_without_a_word_is_refused(
    client: httpx.AsyncClient, row: dict[str, Any], message: dict[str, Any]
) -> None:
    messages = [message, {"role": "user", "content": "and?"}]
    answer = await client.post(CHAT, json=chat(row, messages=messages))
    assert answer.status_code == 400
    assert error_of(answer)["param"].startswith("messages")


async def test_models_and_routes_are_as_clients_look_for_them(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/replay")).json() == (await client.get("/v1/models")).json()["data"][0]
    assert error_of(await client.get("/v1/models/gpt-4"))["code"] == "model_not_found"
    unknown = await client.post("/v1/embeddings", json={})
    assert unknown.status_code == 404
    assert "POST /v1/chat/completions" in error_of(unknown)["message"]
    wrong = await client.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["message"]
    for path in ("/healthz", "/v1/models", "/", "/readyz"):
        head, whole = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
    page = (await client.get("/")).text
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in page
    assert 'href="/docs"' in page


async def test_completions_write_bare_text(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    body = {"model": "replay", "prompt": row["question"], "metadata": {"query_id": row["query_id"]}}
    whole = (await client.post(TEXT, json=body)).json()
    assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", row["text"])
    assert whole["usage"]["completion_tokens"] == row["output_tokens"]
    async with client.stream("POST", TEXT, json=body | {"stream": True}) as answer:
        lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    assert {event["object"] for event in events} == {"text_completion"}
    assert "".join(event["choices"][0]["text"] for event in events) == row["text"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    for prompt in ([row["question"]], [1, 2, 3], [[1, 2, 3]]):
        assert (await client.post(TEXT, json=body | {"prompt": prompt, "max_tokens": 2})).status_code == 200
    for changes in ({"echo": True}, {"suffix": "s"}, {"logprobs": 1}, {"best_of": 2}):
        refused = await client.post(TEXT, json=body | changes)
        assert (refused.status_code, error_of(refused)["param"]) == (400, next(iter(changes)))


async def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(row: dict[str, Any]) -> None:
    server = LocalServer(limits={"prompt_tokens": 1})
    async with server.client() as client:
        answer = await client.post(CHAT, json=chat(row))
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert "maximum context length" in error_of(answer)["message"]


async def test_long_prompts_are_under_a_limit_a_key(row: dict[str, Any]) -> None:
    """A prompt is paid for after it was read, so the next one waits, and of this key alone."""
    other = "sk-other"
    keys = [DIGEST, hashlib.sha256(other.encode()).hexdigest()]
    server = LocalServer(api_key_sha256=keys, limits={"prompt_tokens_per_second": 1})
    async with server.client() as client:
        mine, others = ({"Authorization": f"Bearer {key}"} for key in (KEY, other))
        assert (await client.post(CHAT, json=chat(row, max_tokens=1), headers=mine)).status_code == 200
        second = await client.post(CHAT, json=chat(row, max_tokens=1), headers=mine)
        assert (second.status_code, error_of(second)["code"]) == (429, "prompt_tokens")
        assert row["prompt_tokens"] - 1 <= int(second.headers["retry-after"]) <= row["prompt_tokens"]
        assert (await client.post(CHAT, json=chat(row, max_tokens=1), headers=others)).status_code == 200


async def test_a_wrong_key_is_told_how_to_come() -> None:
    server = LocalServer(api_key_sha256=[DIGEST], cors_origins=["https://chat.example"])
    async with server.client() as client:
        answer = await client.get("/v1/models")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        # With a key, any name and page may come; pages of configured origins may read.
        headers = {"Authorization": f"Bearer {KEY}", "Host": "api.example", "Origin": "https://chat.example"}
        shared = await client.get("/v1/models", headers=headers)
        assert shared.headers["access-control-allow-origin"] == "https://chat.example"
        foreign = await client.get("/v1/models", headers=headers | {"Origin": "https://evil.example"})
        assert foreign.status_code == 200
        assert "access-control-allow-origin" not in foreign.headers
        wanted = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
        preflight = await client.options(CHAT, headers=wanted | {"Access-Control-Request-Headers": "authorization"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Host": "clear.localhost"}, 200),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
async def test_without_keys_no_web_page_is_answered(
    client: httpx.AsyncClient, row: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    content = json.dumps(chat(row, max_tokens=1)).encode()
    answer = await client.post(CHAT, content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == status
    if status == 200:
        assert "access-control-allow-origin" not in answer.headers
    else:
        error_of(answer)


async def test_no_web_page_steers_a_batch(tmp_path: Path) -> None:
    server = LocalServer(batches={"folder": str(tmp_path)})
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    async with server.client() as client:
        batch = (await client.post("/v1/batches", json=asked)).json()["id"]
        evil = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        for route, body in (("", asked), (f"/{batch}/cancel", {}), (f"/{batch}/budget", {"budget": "+1"})):
            answer = await client.post(f"/v1/batches{route}", content=json.dumps(body), headers=evil)
            assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")
        plain = {"Content-Type": "text/plain"}  # what a page may send anywhere without asking first
        answer = await client.post(f"/v1/batches/{batch}/budget", content='{"budget": "+1"}', headers=plain)
        assert answer.status_code == 415
        assert (await client.get(f"/v1/batches/{batch}")).json()["status"] == "validating"


async def test_what_no_text_can_hold_gets_into_no_batch(tmp_path: Path) -> None:
    """It would stay: a list of batches with such a text in one of them could never be written."""
    asked = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    half = {"metadata": {"a": "\ud83d"}}, {"metadata": {"\ud83d": "a"}}, {"input_file_id": "\ud83d"}
    async with LocalServer(batches={"folder": str(tmp_path)}).client() as client:
        for wrong in (*half, {"idempotency_key": "\udc00"}, {"metadata": {"budget": float("nan")}}):
            content = json.dumps(asked | wrong)
            answer = await client.post("/v1/batches", content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
        assert (await client.get("/v1/batches")).json()["data"] == []
        made = await client.post("/v1/batches", json=asked | {"metadata": {"whole": "\U0001f600"}})
        assert (await client.get("/v1/batches")).json()["data"] == [made.json()]


async def test_ready_means_that_a_query_is_answered(server: LocalServer, row: dict[str, Any]) -> None:
    async with server.client() as client:
        assert (await client.get("/readyz")).status_code == 200
        server.engine._worker.failure = RuntimeError("broken")
        server.ingress._engine_seen_at = dict.fromkeys(server.engines, 0.0)
        unready = await client.get("/readyz")
        assert (unready.status_code, error_of(unready)["code"]) == (503, "not_ready")
        assert (await client.get("/healthz")).status_code == 200  # alive all the same
        server.engine._worker.failure = None
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post(CHAT, json=chat(row, max_tokens=1))).status_code == 200


async def test_a_server_that_stops_ends_what_it_has_taken(row: dict[str, Any]) -> None:
    """One query runs and one waits for its tokens when the order to stop comes."""
    rate = row["output_tokens"] / 1.0
    price = PRICE | {"budget_tokens_per_second": 2 * row["output_tokens"], "carry_over_tokens": row["output_tokens"]}
    server = LocalServer({"tokens_per_second": rate}, price=price)
    async with server.client(timeout=30) as client:
        await asyncio.sleep(0.6)
        taken = [asyncio.create_task(client.post(CHAT, json=chat(row))) for _ in range(3)]
        await asyncio.sleep(0.3)
        await server.price.stop_selling()
        assert not any(task.done() for task in taken)
        late = await client.post(CHAT, json=chat(row))
        assert (late.status_code, error_of(late)["code"]) == (503, "stopping")
        assert int(late.headers["retry-after"]) >= 1
        assert (await client.get("/readyz")).status_code == 503
        assert {answer.status_code for answer in await asyncio.gather(*taken)} == {200}
        await asyncio.sleep(0.5)
        account, waiting = await server.price.account()
    assert (account.reserved_tokens, waiting) == (0, 0)


async def test_a_slow_sender_is_sent_away_and_holds_no_other_up(row: dict[str, Any]) -> None:
    limits = {"body_seconds": 0.2, "concurrent_per_key": 1}
    server = LocalServer(limits=limits)

    async def half() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.sleep(5)

    async with server.client() as client:
        headers = {"Content-Type": "application/json"}
        slow = [asyncio.create_task(client.post(CHAT, content=half(), headers=headers)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (await client.post(CHAT, json=chat(row, max_tokens=1))).status_code == 200
        for answer in await asyncio.gather(*slow):
            assert (answer.status_code, error_of(answer)["code"]) == (408, "slow_body")


async def test_metrics_are_named_and_typed_by_convention(row: dict[str, Any]) -> None:
    async with LocalServer().client() as client:
        await client.post(CHAT, json=chat(row, max_tokens=3))
        await client.post(CHAT, json=chat(row, stop=3))
        await asyncio.sleep(0.2)
        text = (await client.get("/metrics")).text
    kinds = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    counted = {"spent_tokens", "earned_tokens", "lost_tokens", "clearings"}
    assert all(kinds[f"clear_ray_price_{name}_total"] == "counter" for name in counted)
    assert {name for name, kind in kinds.items() if kind == "counter"} == {n for n in kinds if n.endswith("_total")}
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(found["clear_ray_price_spent_tokens_total"]) == 3
    assert float(found['clear_ray_refusals_total{reason="invalid_type"}']) == 1
    assert float(found["clear_ray_first_token_seconds_count"]) == 1
    assert float(found["clear_ray_queries_under_way"]) == 0
    assert 'clear_ray_query_seconds_bucket{le="300.0"}' in found


async def test_several_recorded_answers_differ_and_are_sold(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    answer = await client.post(CHAT, json=chat(row, n=2))
    assert answer.status_code == 200, answer.text
    assert len({choice["message"]["content"] for choice in answer.json()["choices"]}) == 2


async def test_the_page_runs_and_loads_nothing_but_its_own(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    policy, text = answer.headers["content-security-policy"], answer.text
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert not re.search(r'\b(src|onclick|style)="', text)
    assert "What is 3 + 4?" in text


async def test_logs_have_numbers_and_no_text(
    client: httpx.AsyncClient, row: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ray.serve")
    answer = await client.post(CHAT, json=chat(row, max_tokens=3))
    assert (await client.post(CHAT, json=chat(row, tools=[{"type": "function"}]))).status_code == 400
    events = {record.getMessage(): record.clear_ray for record in caplog.records}  # type: ignore[attr-defined]
    assert events["refused"] == {"status": 400, "code": "unsupported_parameter"}
    assert events["answered"]["completion_tokens"] == 3
    assert events["answered"]["clear_ray"]["outcome"] == "granted"
    said = json.dumps(events)
    for text in (row["question"], answer.json()["choices"][0]["message"]["content"].strip()):
        assert text not in said
