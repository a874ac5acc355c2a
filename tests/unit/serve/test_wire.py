"""What clients, proxies and scripts do on the wire, each kind against the real application in this process."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest
from starlette.requests import ClientDisconnect

from clear_ray.serve.ingress import api
from tests.unit.serve.local_server import LocalServer
from tests.unit.serve.test_clients import CHAT, TEXT, chat, error_of, row

__all__ = ["row"]
FILES, BATCHES = "/v1/files", "/v1/batches"
ASKED = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> LocalServer:
    return LocalServer(batches={"folder": str(tmp_path_factory.mktemp("batches"))})


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
        ({"n": 1_000}, "n", "integer_above_max_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"top_p": 0}, "top_p", "decimal_below_min_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "array_above_max_length"),
        ({"stop": "a" * 1_000}, "stop", "string_above_max_length"),
        ({"stream": "true"}, "stream", "invalid_type"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ],
)
async def test_a_mistake_has_the_code_that_openais_api_has_for_it(
    client: httpx.AsyncClient, row: dict[str, Any], changes: dict[str, Any], param: str, code: str
) -> None:
    answer = await client.post(CHAT, json=chat(row, **changes))
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert "read" not in error["message"]


async def test_an_empty_prompt_is_told_so(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    error = error_of(await client.post(TEXT, json={"model": "replay", "prompt": "", "metadata": {"query_id": "x"}}))
    assert (error["param"], error["code"], error["message"]) == ("prompt", "empty_string", "prompt must not be empty.")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"endpoint": None}, "endpoint", "missing_required_parameter"),
        ({"completion_window": 24}, "completion_window", "invalid_type"),
        ({"metadata": "a"}, "metadata", "invalid_type"),
        ({"metadata": {str(key): "a" for key in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k" * 65: "a"}}, f"metadata.{'k' * 64}", "property_name_above_max_length"),
        ({"metadata": {"k": "a" * 513}}, "metadata.k", "string_above_max_length"),
        ({"metadata": {"k": None}}, "metadata.k", "invalid_type"),
        ({"output_expires_after": "1h"}, "output_expires_after", "invalid_type"),
    ],
)
async def test_so_has_one_in_a_batch(client: httpx.AsyncClient, changes: dict[str, Any], param: str, code: str) -> None:
    answer = await client.post(BATCHES, json=ASKED | changes)
    assert (answer.status_code, error_of(answer)["param"], error_of(answer)["code"]) == (400, param, code)


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("0", "integer_below_min_value"),
        ("-1", "integer_below_min_value"),
        ("101", "integer_above_max_value"),
        ("9" * 30, "integer_above_max_value"),
        ("2.0", "invalid_type"),
        ("", "invalid_type"),
    ],
)
async def test_so_has_one_in_a_page(client: httpx.AsyncClient, limit: str, code: str) -> None:
    assert error_of(await client.get(BATCHES, params={"limit": limit}))["code"] == code


async def test_what_is_not_there_has_the_type_that_openais_has(client: httpx.AsyncClient) -> None:
    for path in (f"{FILES}/nope", f"{BATCHES}/nope", "/v1/models/nope", "/v1/embeddings"):
        answer = await client.get(path)
        assert (answer.status_code, error_of(answer)["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize(
    ("packing", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
async def test_a_packed_body_is_unpacked(
    client: httpx.AsyncClient, row: dict[str, Any], packing: str, pack: Any
) -> None:
    content = pack(json.dumps(chat(row, max_tokens=1)).encode())
    answer = await client.post(CHAT, content=content, headers=JSON | {"Content-Encoding": packing})
    assert answer.status_code == 200, answer.text
    asked = pack(json.dumps(ASKED).encode())
    assert (await client.post(BATCHES, content=asked, headers=JSON | {"Content-Encoding": packing})).status_code == 200


@pytest.mark.parametrize(
    ("content", "packing", "status", "code"),
    [
        (b"{}", "br", 415, "unsupported_content_encoding"),
        (b"{}", "gzip", 400, "invalid_body"),
        (gzip.compress(b"{}")[:-1], "gzip", 400, "invalid_body"),
        (gzip.compress(b"{}") * 2, "gzip", 400, "invalid_body"),
        (gzip.compress(bytes(50_000_000)), "gzip", 413, "too_large"),
    ],
    ids=["another", "none", "cut", "two", "a bomb"],
)
async def test_what_is_not_packed_as_it_says_is_refused(
    client: httpx.AsyncClient, content: bytes, packing: str, status: int, code: str
) -> None:
    for path in (CHAT, BATCHES):
        answer = await client.post(path, content=content, headers=JSON | {"Content-Encoding": packing})
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)


async def test_a_byte_order_mark_is_no_text(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(chat(row, max_tokens=1)).encode()
    assert (await client.post(CHAT, content=content, headers=JSON)).status_code == 200


async def test_slashes_too_many_are_none(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    for path in (f"{CHAT}/", "/v1//chat/completions"):
        assert (await client.post(path, json=chat(row, max_tokens=1))).status_code == 200
    assert (await client.get("/v1/models/")).json()["object"] == "list"
    assert (await client.get("/readyz/")).status_code == 200


async def test_options_says_what_a_route_takes(client: httpx.AsyncClient) -> None:
    for path, allowed in ((CHAT, "POST, OPTIONS"), (FILES, "GET, HEAD, POST, OPTIONS")):
        answer = await client.options(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
    refused = await client.delete(FILES)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    assert (await client.options("/v1/nope")).status_code == 404


@pytest.mark.parametrize(
    ("given", "kept", "attached"),
    [
        ('filename="b.jsonl"', "b.jsonl", 'attachment; filename="b.jsonl"'),
        ('filename="na\u00efve.jsonl"', "na\u00efve.jsonl", "attachment; filename*=utf-8''na%C3%AFve.jsonl"),
        ("filename*=utf-8''na%C3%AFve.jsonl", "na\u00efve.jsonl", "attachment; filename*=utf-8''na%C3%AFve.jsonl"),
        ('filename="a%22b.jsonl"', 'a"b.jsonl', "attachment; filename*=utf-8''a%22b.jsonl"),
        ('filename="../../etc/passwd"', "../../etc/passwd", 'attachment; filename="passwd"'),
        ('filename=""', "file", 'attachment; filename="file"'),
    ],
)
async def test_a_file_keeps_its_name_and_is_downloaded_under_it(
    client: httpx.AsyncClient, given: str, kept: str, attached: str
) -> None:
    body = (
        f'--B\r\nContent-Disposition: form-data; name="file"; {given}\r\n\r\nabc\r\n'
        '--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--B--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    made = (await client.post(FILES, content=body.encode(), headers=headers)).json()
    assert made["filename"] == kept
    content = await client.get(f"{FILES}/{made['id']}/content")
    assert (content.headers["content-disposition"], content.text) == (attached, "abc")


async def test_a_client_may_delete_what_it_lists_page_by_page(server: LocalServer) -> None:
    async with server.client() as wire:
        client = openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", http_client=_sdk(wire))
        for number in range(5):
            await client.files.create(file=(f"{number}.jsonl", b"x"), purpose="evals")
        async for file in client.files.list(purpose="evals", limit=2):
            await client.files.delete(file.id)
        assert [file async for file in client.files.list(purpose="evals")] == []
        with pytest.raises(openai.NotFoundError):
            await client.files.list(after="file-that-never-was")


def _sdk(wire: httpx.AsyncClient) -> Any:
    return openai.DefaultAsyncHttpxClient(transport=wire._transport)


async def test_a_retry_needs_no_body(client: httpx.AsyncClient) -> None:
    batch = (await client.post(BATCHES, json=ASKED)).json()["id"]
    for content, headers in ((b"", {}), (b"{}", JSON)):
        answer = await client.post(f"{BATCHES}/{batch}/retry", content=content, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (409, "batch_not_ended")
    bare = client.build_request("POST", f"{BATCHES}/{batch}/retry")
    del bare.headers["content-length"]  # as curl -X POST sends it
    assert error_of(await client.send(bare))["code"] == "batch_not_ended"


async def test_events_say_that_their_usage_is_still_to_come(client: httpx.AsyncClient, row: dict[str, Any]) -> None:
    for options, expected in (({"include_usage": True}, True), ({"include_usage": False}, False), (None, False)):
        answer = await client.post(CHAT, json=chat(row, max_tokens=3, stream=True, stream_options=options))
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert all(("usage" in event) == expected for event in events)
        told = [event["usage"] for event in events if event.get("usage")]
        assert [usage["completion_tokens"] for usage in told] == ([3] if expected else [])


async def stream_to(send: Callable[[Any], Awaitable[None]], row: dict[str, Any], **changes: Any) -> None:
    """Ask for a stream as a server does that speaks ASGI."""
    body = [
        {"type": "http.request", "body": json.dumps(chat(row, stream=True, **changes)).encode(), "more_body": False}
    ]
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1"}
    scope |= {"method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "root_path": "", "query_string": b""}
    scope |= {"scheme": "http", "headers": [(b"content-type", b"application/json")]}
    scope |= {"client": ("127.0.0.1", 5_000), "server": ("127.0.0.1", 8_000)}

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()

    await api(scope, receive, send)


async def test_a_client_that_goes_before_its_stream_begins_holds_nothing(row: dict[str, Any]) -> None:
    server = LocalServer()

    async def gone(message: Any) -> None:
        raise OSError("the client is gone")

    async with server.client():
        with pytest.raises(ClientDisconnect):
            await stream_to(gone, row)
        await asyncio.sleep(0.3)
        account, _ = await server.price.account()
        assert account.reserved_tokens == 0
        assert server.ingress._meters.under_way._value.get() == 0


async def test_the_first_events_travel_together_and_so_do_the_last(row: dict[str, Any]) -> None:
    sent = list[bytes]()

    async def keep(message: Any) -> None:
        sent.append(message.get("body", b""))

    async with LocalServer(stream_tokens=4).client():
        await stream_to(keep, row, max_tokens=8, stream_options={"include_usage": True})
    bodies = [body.decode() for body in sent if body]
    assert all(part in bodies[0] for part in ('"role": "assistant"', f'"content": {json.dumps(row["text"][:3])[:-1]}'))
    assert '"completion_tokens": 8' in bodies[-1]
    assert bodies[-1].endswith("data: [DONE]\n\n")
