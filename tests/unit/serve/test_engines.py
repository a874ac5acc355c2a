"""A server with several engines: their settings, and that each answers the queries that name it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.serve.openapi import describe
from clear_ray.serve.settings import ServeConfig
from tests.conftest import ROLLOUTS
from tests.unit.serve.local_server import REPLAY, LocalServer

SMALL, LARGE = {"input": "0.015", "output": "0.045"}, {"input": "0.16", "output": "0.48"}
ENGINES = {"small": {**REPLAY, "prices": SMALL}, "large": {**REPLAY, "max_batch": 4, "prices": LARGE}}
BATCHES = {"folder": "x"}


def config(**changes: Any) -> ServeConfig:
    return ServeConfig.parse({"engines": ENGINES, "batches": BATCHES, "model_name": "any"} | changes)


def run_of(settings: ServeConfig, model: str) -> RunConfig:
    return RunConfig.parse({"run_dir": "x", "budget": "$1"} | settings.run_of(model))


def test_a_batch_runs_on_the_engines_that_its_model_stands_for() -> None:
    settings = config(engines={**ENGINES, "large": {**ENGINES["large"], "head": "prior"}})
    assert settings.models == ("small", "large", "any")
    both = run_of(settings, "any")
    assert [named.name for named in both.named_engines] == ["small", "large"]
    assert [named.head for named in both.named_engines] == [None, "prior"]
    assert [named.prices and str(named.prices.output) for named in both.named_engines] == ["0.045", "0.48"]
    alone = run_of(settings, "large")
    assert alone.engines is None
    assert alone.engine.max_batch == 4
    assert alone.estimate.head == "prior"
    assert alone.model_prices is not None
    assert str(alone.model_prices.output) == "0.48"
    # What the replicas are told is read as the file was.
    assert ServeConfig.parse(settings.model_dump(mode="json")) == settings


def test_a_server_without_batches_has_its_engines_alone() -> None:
    bare = {name: {key: value for key, value in engine.items() if key != "prices"} for name, engine in ENGINES.items()}
    assert config(engines=bare, batches=None).models == ("small", "large")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": None}, "name batches.folder, or leave them out"),
        ({"batches": {"folder": "x", "run": {"prices": SMALL}}}, "put them all into one of the two"),
        ({"engine": {**REPLAY, "max_batch": 3}}, "either engine or engines"),
        ({"model_name": "large"}, "the name of all engines together"),
        ({"estimate": {"heads": {"huge": "prior"}}}, "huge, which is none of small, large"),
        ({"engines": dict.fromkeys(ENGINES, REPLAY)}, "give each its prices"),
        ({"engines": {"small": REPLAY, "large": ENGINES["large"]}}, "has none for the model"),
        ({"batches": {"folder": "x", "run": {"engines": ENGINES}}}, "name `engines` beside `batches`"),
        ({"batches": {"folder": "x", "run": {"allocation": {"sketched": True}}}}, "allocation.sketched"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**changes)


def test_the_description_has_all_models_and_what_their_batches_may_ask_for() -> None:
    schemas = describe(config())["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["model"]["enum"] == ["small", "large"]
    metadata = next(iter(find_all(schemas["BatchRequest"], "objective")))
    assert "correct" in metadata["enum"]
    alone = ServeConfig.parse({"engine": REPLAY, "batches": {"folder": "x", "run": {"prices": SMALL}}})
    (objective,) = find_all(describe(alone)["components"]["schemas"]["BatchRequest"], "objective")
    assert "correct" in objective["enum"]


def find_all(schema: Any, name: str) -> Iterator[Any]:
    """Yield every value of a key, wherever it is."""
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if key == name:
            yield value
        yield from find_all(value, name)
    for value in schema if isinstance(schema, list) else ():
        yield from find_all(value, name)


def test_heads_of_one_engine_are_its_own() -> None:
    with pytest.raises(ConfigError, match="heads are those of several engines"):
        ServeConfig.parse({"engine": REPLAY, "estimate": {"heads": {"small": "prior"}}})


async def test_each_engine_answers_the_queries_that_name_it(tmp_path: Any) -> None:
    """The other one's recording lacks the query: so which of them was asked shows in what comes of it."""
    table = pq.read_table(ROLLOUTS / "rollouts.parquet")
    first = table["query_id"][0].as_py()
    pq.write_table(table.filter([name.as_py() != first for name in table["query_id"]]), tmp_path / "others.parquet")
    few = {**REPLAY, "rollouts": str(tmp_path / "others.parquet")}
    server = LocalServer(engines={"whole": REPLAY, "few": few}, model_name="any", estimate={"head": "prior"})

    async def ask(client: httpx.AsyncClient, model: str, **changes: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "?"}], "metadata": {"query_id": first}}
        return await client.post("/v1/chat/completions", json=body | changes)

    async with server.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["whole", "few"]
        assert (await client.get("/v1/models/few")).json()["id"] == "few"
        answered = await ask(client, "whole")
        assert (answered.status_code, answered.json()["model"]) == (200, "whole")
        assert '"model": "whole"' in (await ask(client, "whole", stream=True)).text
        refused = await ask(client, "few")
        assert refused.status_code == 400
        for unknown in ("any", "none"):
            told = (await ask(client, unknown)).json()["error"]
            assert (told["code"], told["message"]) == ("model_not_found", "The models that answer here are whole, few.")
        assert (await client.get("/readyz")).status_code == 200


def test_the_settings_in_the_guide_are_settings() -> None:
    text = Path(__file__).parents[3].joinpath("docs/serving.md").read_text()
    (block,) = (part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "engines:" in part)
    settings = ServeConfig.parse(yaml.safe_load(block))
    assert settings.models == ("small", "large", "any")
    assert [one.kind for one in settings.each.values()] == ["transformers", "openai"]
