"""What the tests of the engine over HTTP share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.base import Generation, Grant, check_generation
from clear_ray.engine.endpoint.engine import OpenAIEngine
from tests.endpoint_server import MODEL, Endpoint

LOOP = asyncio.Runner()
"""An actor has one event loop for all its life, too."""


def config_of(served: Endpoint, **settings: Any) -> OpenAIConfig:
    return OpenAIConfig.model_validate({"kind": "openai", "base_url": served.base_url, "model": MODEL} | settings)


def engine_of(served: Endpoint, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine(config_of(served, **{"continuation": "none"} | settings))


def answers(engine: OpenAIEngine, grants: Sequence[Grant]) -> dict[str, Generation]:
    """Run grants; return what came of each, checked as a worker checks it."""
    grant_of = {grant.query_id: grant for grant in grants}

    async def run() -> dict[str, Generation]:
        return {
            each.query_id: check_generation(grant_of[each.query_id], each) async for each in engine.generate(grants)
        }

    return LOOP.run(run())


def ask(engine: OpenAIEngine, prompt: Any = "write 5", tokens: int = 20, **fields: Any) -> Generation:
    (generation,) = answers(engine, [Grant("q", prompt, tokens, **fields)]).values()
    return generation
