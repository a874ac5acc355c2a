"""Handles such as Ray's over objects in this process, so that stages and market run for real without a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any


class Method:
    """One method of a handle: `.remote(...)` starts it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class LocalActor:
    """The handle of an actor whose methods are coroutines."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self.actor, name))


class LocalWorker(LocalActor):
    """The handle of an engine worker: its generator hands out references, each of which is awaited."""

    @property
    def generate(self) -> Method:
        async def references(*arguments: Any) -> AsyncIterator[Awaitable[Any]]:
            async for value in self.actor.generate(*arguments):
                yield _ready(value)

        return Method(references)


async def _ready(value: Any) -> Any:
    return value
