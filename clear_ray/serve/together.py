"""Calls that come while one is on its way travel together in the next: one alone waits for nothing, many cost little more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_MOST = 256


class Together(Generic[_Item, _Answer]):
    """One call for all that came meanwhile.

    Args:
        call: Takes items and returns an answer for each, in their order.
        give_back: Told of an item and its answer that nothing waits for any more.
        linger_seconds: How long the first item waits for others, for what is in no hurry.
    """

    def __init__(
        self,
        call: Callable[[Sequence[_Item]], Awaitable[Sequence[_Answer]]],
        give_back: Callable[[_Item, _Answer], object] | None = None,
        linger_seconds: float = 0.0,
    ) -> None:
        self._call, self._give_back, self._linger_seconds = call, give_back, linger_seconds
        self._waiting: list[tuple[_Item, asyncio.Future[_Answer]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def __call__(self, item: _Item) -> _Answer:
        """Return the answer to an item; what the call raises, each of its items raises."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._runner is None or self._runner.done():
            # In no request's context: Serve cancels the calls of a request whose client has gone, and this one is of many.
            self._runner = asyncio.create_task(self._run(), context=Context())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            if self._linger_seconds:
                await asyncio.sleep(self._linger_seconds)
            some, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                answers = await self._call([item for item, _ in some])
            except Exception as error:
                for _, waiting in some:
                    if not waiting.done():
                        waiting.set_exception(error)
                continue
            for (item, waiting), answer in zip(some, answers, strict=True):
                if not waiting.done():
                    waiting.set_result(answer)
                elif self._give_back is not None:
                    self._give_back(item, answer)
