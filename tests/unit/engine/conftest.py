"""Recordings and models that the engine tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from clear_ray.engine import Engine, Generation, Grant


def run_grants(engine: Engine, grants: Sequence[Grant]) -> dict[tuple[str, int], Generation]:
    """Run the grants to their end in an event loop of their own."""

    async def collect() -> dict[tuple[str, int], Generation]:
        return {(answer.query_id, answer.sample): answer async for answer in engine.generate(grants)}

    return asyncio.run(collect())
