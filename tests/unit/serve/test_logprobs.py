"""Log-probabilities over HTTP, from a tiny model in this process: whole answers and streams, chats and bare texts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import accumulate
from typing import Any

import httpx2 as httpx
import pytest

from tests.unit.engine.model_folders import ALTERNATING, save_model
from tests.unit.serve.local_server import LocalServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "replay", "max_tokens": 12, "seed": 3, "temperature": 1.0}
MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> LocalServer:
    model = save_model(tmp_path_factory.mktemp("model"), template=ALTERNATING)
    engine = {"kind": "transformers", "model": str(model), "threads": 1, "max_batch": 4, "temperature": 1.0}
    return LocalServer(engine, limits={"choices": 4}, stream_tokens=2)


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def streamed(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with client.stream("POST", path, json=body | {"stream": True}) as answer:
        lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def joined(entries: list[dict[str, Any]]) -> str:
    return b"".join(bytes(entry["bytes"]) for entry in entries).decode()


@pytest.mark.parametrize("changes", [{}, {"stop": "a"}, {"repetition_penalty": 1.3}, {"n": 2, "seed": 4}])
async def test_chats(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    body = ASK | {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3} | changes
    choices = (await client.post(CHAT, json=body)).json()["choices"]
    events = await streamed(client, CHAT, body)
    for choice in choices:
        entries = choice["logprobs"]["content"]
        assert entries
        assert joined(entries) == choice["message"]["content"]
        for entry in entries:
            assert entry["logprob"] <= 0
            values = [top["logprob"] for top in entry["top_logprobs"]]
            assert (len(values), values) == (3, sorted(values, reverse=True))
            assert entry["logprob"] <= values[0]
        parts = [event["logprobs"] for event in events if event["index"] == choice["index"]]
        told = [entry for part in parts if part for entry in part["content"]]
        assert [entry["token"] for entry in told] == [entry["token"] for entry in entries]
        assert [entry["logprob"] for entry in told] == pytest.approx([e["logprob"] for e in entries], abs=1e-3)
        assert sum(bool(part) for part in parts) > 1 or len(entries) < 3
    without = (await client.post(CHAT, json=body | {"logprobs": False, "top_logprobs": None})).json()["choices"]
    assert [choice["message"] for choice in without] == [choice["message"] for choice in choices]
    assert all(choice["logprobs"] is None for choice in without)


async def test_bare_texts(client: httpx.AsyncClient) -> None:
    body = ASK | {"prompt": "Once upon", "logprobs": 2}
    (choice,) = (await client.post(TEXT, json=body)).json()["choices"]
    told, text = choice["logprobs"], choice["text"]
    assert "".join(told["tokens"]) == text
    assert told["text_offset"] == [0, *accumulate(map(len, told["tokens"]))][:-1]
    for token, value, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == value
        assert len(top) in (2, 3) or "" in top  # ids beyond the tokenizer have one name
    events = await streamed(client, TEXT, body)
    for name in ("tokens", "text_offset"):
        assert [part for event in events if event["logprobs"] for part in event["logprobs"][name]] == told[name]
