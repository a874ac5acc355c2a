"""A completion of several prompts over HTTP, from a tiny model in this process: the answers of a request for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.unit.engine.model_folders import save_model
from tests.unit.serve.local_server import LocalServer

PATH = "/v1/completions"
ASK: dict[str, Any] = {"model": "replay", "max_tokens": 6, "seed": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> LocalServer:
    model = save_model(tmp_path_factory.mktemp("model"))
    engine = {"kind": "transformers", "model": str(model), "threads": 1, "max_batch": 4, "temperature": 1.0}
    return LocalServer(engine, limits={"choices": 4, "concurrent_per_key": 3})


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as client:
        yield client


async def told(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json=ASK | body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-clear-ray-spent-tokens"] == str(answer.json()["usage"]["completion_tokens"])
    whole: dict[str, Any] = answer.json()
    return whole


@pytest.mark.parametrize("changes", [{}, {"n": 2, "logprobs": 1}])
async def test_the_answers_are_those_of_a_request_for_each(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    prompts: list[Any] = ["Once upon", [4, 5.0, 6], "A river"]
    alone = [await told(client, prompt=prompt, **changes) for prompt in prompts]
    together = await told(client, prompt=prompts, **changes)
    expected = [choice for body in alone for choice in body["choices"]]
    assert [choice["index"] for choice in together["choices"]] == list(range(3 * changes.get("n", 1)))
    for name in ("text", "finish_reason"):
        assert [choice[name] for choice in together["choices"]] == [choice[name] for choice in expected]
    if "logprobs" in changes:
        tokens, wanted = ([choice["logprobs"]["tokens"] for choice in some] for some in (together["choices"], expected))
        assert tokens == wanted
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(body["usage"][name] for body in alone)
    assert together["usage"]["clear_ray"]["spent_tokens"] == together["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("changes", "status", "param", "words"),
    [
        ({"prompt": ["a", "b"], "stream": True}, 400, "stream", "not with several prompts"),
        ({"prompt": ["a", 5]}, 400, "prompt", "a prompt is a text, or the token ids of one"),
        ({"prompt": ["a", []]}, 400, "prompt", "a prompt is a text, or the token ids of one"),
        ({"prompt": ["a", ""]}, 400, "prompt", "must not be empty"),
        ({"prompt": ["a", "b " * 5_000]}, 400, "prompt", "maximum context length"),
        ({"prompt": ["a", "b"], "echo": True}, 400, "echo", "echo"),
        ({"prompt": ["a", "b", "c", "d"]}, 429, None, "3 queries under way"),
    ],
)
async def test_what_is_wrong_with_one_is_the_requests(
    server: LocalServer, client: httpx.AsyncClient, changes: dict[str, Any], status: int, param: str, words: str
) -> None:
    answer = await client.post(PATH, json=ASK | changes)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    await asyncio.sleep(0.3)  # the holds of the others are settled, and their places are free again
    assert (await client.post(PATH, json=ASK | {"prompt": ["a", "b", "c"]})).status_code == 200
    assert not server.ingress._guard._under_way.total()
