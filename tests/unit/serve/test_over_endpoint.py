"""A server whose engine is behind an endpoint: the real HTTP application, price and engine, over a real server beneath."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest

from tests.endpoint_server import KEY, MODEL, endpoint
from tests.unit.serve.local_server import LocalServer

ROUTE = "/v1/chat/completions"


def asking(words: int, **changes: Any) -> dict[str, Any]:
    return {"model": "replay", "messages": [{"role": "user", "content": f"Write {words}"}], **changes}


async def test_a_server_sells_the_answers_of_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with endpoint(key=KEY) as beneath:
        engine = {"kind": "openai", "base_url": beneath.base_url, "model": MODEL, "key_env": "MY_KEY"}
        server = LocalServer(engine, max_tokens=24, estimate={"head": "prior"})
        async with server.client() as client:
            whole = (await client.post(ROUTE, json=asking(3))).json()
            (choice,) = whole["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("w1 w2 w3", "stop")
            assert whole["usage"]["completion_tokens"] == 4
            cut = (await client.post(ROUTE, json=asking(30, max_tokens=5))).json()
            (choice,) = cut["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("w1 w2 w3 w4 w5", "length")
            stopped = (await client.post(ROUTE, json=asking(9, stop=["w4"]))).json()
            assert stopped["choices"][0]["message"]["content"].rstrip() == "w1 w2 w3"
            streamed = await client.post(ROUTE, json=asking(4, stream=True))
            events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: {")]
            pieces = [
                choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"]
            ]
            assert "".join(pieces) == "w1 w2 w3 w4"
            beneath.behaviour.faults = deque(["429", "400"])
            failed = await client.post(ROUTE, json=asking(2))
            assert failed.status_code >= 400
            assert KEY not in failed.text
            assert (await client.post(ROUTE, json=asking(2))).json()["choices"][0]["message"]["content"] == "w1 w2"
