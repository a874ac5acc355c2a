"""Recordings and models that the engine tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clear_ray.config.engine import ReplayConfig
from clear_ray.engine import Engine, Generation, Grant, ReplayEngine


def replay_engine(rollouts: Path, features: Path | None = None, **settings: Any) -> ReplayEngine:
    return ReplayEngine(ReplayConfig(rollouts=str(rollouts), features=features and str(features), **settings))


def run_grants(engine: Engine, grants: Sequence[Grant]) -> dict[tuple[str, int], Generation]:
    """Run the grants to their end in an event loop of their own."""

    async def collect() -> dict[tuple[str, int], Generation]:
        return {(answer.query_id, answer.sample): answer async for answer in engine.generate(grants)}

    return asyncio.run(collect())
