"""A prompt is read once in the server: the answer begins with what the probe has read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import httpx2 as httpx
import pytest

from tests.unit.engine.model_folders import ALTERNATING, save_model
from tests.unit.serve.local_server import LocalServer

ASK: dict[str, Any] = {"model": "replay", "max_tokens": 9, "temperature": 0}
LONG = [{"role": "user", "content": "Say something of these: " + "words and more words, " * 9}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> LocalServer:
    model = save_model(tmp_path_factory.mktemp("model"), template=ALTERNATING)
    engine = {"kind": "transformers", "model": str(model), "threads": 1, "max_batch": 4}
    return LocalServer(engine, limits={"choices": 4, "concurrent_per_key": 8})


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def read_for(server: LocalServer, asked: Awaitable[httpx.Response]) -> tuple[httpx.Response, int]:
    """Return an answer, and the positions that passed through the model for it."""
    read: list[int] = []
    embeddings = server.engine._worker._engine._model.get_input_embeddings()  # type: ignore[attr-defined]
    hook = embeddings.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    try:
        answer = await asked
        return answer, sum(read)
    finally:
        hook.remove()


@pytest.mark.parametrize("changes", [{}, {"n": 3, "temperature": 1.0, "seed": 5}, {"max_tokens": 1}])
async def test_a_prompt_is_read_once(client: httpx.AsyncClient, server: LocalServer, changes: dict[str, Any]) -> None:
    answer, read = await read_for(server, client.post("/v1/chat/completions", json=ASK | {"messages": LONG} | changes))
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] > 150
    assert read == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_what_was_read_is_given_up_where_room_is_needed_and_changes_no_token(
    client: httpx.AsyncClient, server: LocalServer
) -> None:
    body = ASK | {"messages": LONG}
    once, _ = await read_for(server, client.post("/v1/chat/completions", json=body))
    engine = server.engine._worker._engine
    engine._kept.leave(0)  # type: ignore[attr-defined]
    engine._prefixes.leave(0)  # type: ignore[attr-defined]
    again, read = await read_for(server, client.post("/v1/chat/completions", json=body))
    usage = again.json()["usage"]
    assert read == 2 * usage["prompt_tokens"] - 1 + usage["completion_tokens"]
    assert again.json()["choices"] == once.json()["choices"]
