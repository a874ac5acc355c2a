"""OpenAI's responses over the real application, with OpenAI's own client before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROLLOUTS
from tests.unit.serve.local_server import LocalServer


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    found: dict[str, Any] = next(row for row in rows if row["sample"] == 0 and 20 < row["output_tokens"] < 60)
    return found


@pytest.fixture
def server() -> LocalServer:
    return LocalServer(stream_tokens=4)


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with server.client() as http:
        yield openai.AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-", max_retries=0, http_client=http)


def asked(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"model": "replay", "input": "?", "metadata": {"query_id": row["query_id"]}} | changes


async def test_a_response_says_what_a_chat_completion_says(client: openai.AsyncOpenAI, row: dict[str, Any]) -> None:
    whole = await client.responses.create(**asked(row, instructions="Be short.", max_output_tokens=400))
    assert whole.output_text == row["text"]
    assert (whole.status, whole.incomplete_details) == ("completed", None)
    messages = [{"role": "user", "content": "?"}]
    named = {"query_id": row["query_id"]}
    chat: Any = await client.chat.completions.create(model="replay", messages=messages, metadata=named)
    usage, other = whole.usage, chat.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (other.prompt_tokens, other.completion_tokens)
    assert usage.model_extra is not None
    assert usage.model_extra["clear_ray"]["spent_tokens"] == row["output_tokens"]
    cut = await client.responses.create(**asked(row, max_output_tokens=3))
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert row["text"].startswith(cut.output_text)


async def test_its_events_come_to_it(client: openai.AsyncOpenAI, server: LocalServer, row: dict[str, Any]) -> None:
    events = [event async for event in await client.responses.create(**asked(row, stream=True))]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    said = kinds.count("output_text.delta")
    assert said > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *(["output_text.delta"] * said),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == row["text"]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == row["text"]
    async with client.responses.stream(**asked(row)) as stream:
        final = await stream.get_final_response()
    assert final.output_text == row["text"]
    cut = [event async for event in await client.responses.create(**asked(row, max_output_tokens=3, stream=True))]
    assert cut[-1].type == "response.incomplete"
    await asyncio.sleep(0.3)
    account, _ = await server.price.account()
    assert account.reserved_tokens == 0


TURNS = [{"role": "user", "content": [{"type": "input_text", "text": "?"}]}]
IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"input": TURNS, "tools": [], "store": True, "include": [], "truncation": "disabled"}, 200, None),
        ({"input": [*TURNS, {"role": "assistant", "content": "a"}, *TURNS]}, 200, None),
        ({"input": IMAGE, "instructions": "one turn more"}, 400, "input[0].content[0]"),
        ({"input": None}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": " "}, 400, "input[0]"),
        ({"input": 5}, 400, "input"),
        ({"instructions": {}}, 400, "instructions"),
        ({"instructions": ["Be short."]}, 400, "instructions"),
        ({"max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"background": True}, 400, "background"),
        ({"n": 2}, 400, "n"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"model": "other"}, 404, "model"),
    ],
)
async def test_what_is_not_done_is_refused_by_name(
    server: LocalServer, row: dict[str, Any], changes: dict[str, Any], status: int, param: str | None
) -> None:
    async with server.client() as client:
        answer = await client.post("/v1/responses", json=asked(row, **changes))
    assert answer.status_code == status, answer.text
    assert answer.json()["error"] is None if status == 200 else answer.json()["error"]["param"] == param
