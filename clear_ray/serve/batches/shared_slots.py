"""Who may run in an engine's batch: interactive queries at once, batches in the places that these leave, each its share.

    places of batches = max(1, places - interactive queries under way - places kept free for the next ones)

So an interactive query finds a place while a batch runs, and a batch never waits for ever. Of several batches that wait, the
next place goes to the one that has had the fewest tokens for its weight; one that comes later begins where those that
are there stand, and catches up with nothing. What runs is not interrupted.

Pure asyncio: one event loop, no cluster.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from clear_ray.engine.base import Generation, Grant

Generate = Callable[[Sequence[Grant], bool], AsyncIterator[list[Generation]]]
_KEPT_SHARE = 8


class SharedSlots:
    """The places of one engine.

    Args:
        slots: Queries that it runs at the same time.
        kept: Places that batches leave free; an eighth if not given.
    """

    def __init__(self, slots: int, *, kept: int | None = None) -> None:
        self._slots = slots
        self._kept = max(1, slots // _KEPT_SHARE) if kept is None else kept
        self._interactive = self._batch = 0
        self._tokens: dict[str, float] = {}  # had by each batch, over its weight
        self._calls: dict[str, int] = {}
        self._now = 0.0
        self._line: list[tuple[float, int, str, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @property
    def places(self) -> int:
        """How many places batches may have now."""
        return max(1, self._slots - self._interactive - self._kept)

    def enter(self) -> None:
        """Note that an interactive query begins."""
        self._interactive += 1

    def leave(self) -> None:
        """Note that an interactive query has ended."""
        self._interactive -= 1
        self._admit()

    async def run(
        self, batch: str, weight: float, grants: Sequence[Grant], generate: Generate, *, is_alone: bool
    ) -> AsyncGenerator[list[Generation]]:
        """Generate for a batch, as many of its grants at a time as it has places; yield what has ended.

        Args:
            batch: Name of the batch.
            weight: Its share.
            grants: What to run.
            generate: Runs grants, as `EngineWorker.generate` does.
            is_alone: Whether nothing else may run there meanwhile.
        """
        ended: asyncio.Queue[list[Generation] | None] = asyncio.Queue()
        self._calls[batch] = self._calls.get(batch, 0) + 1
        self._tokens.setdefault(batch, self._now)
        feeder = asyncio.ensure_future(self._feed(batch, weight, grants, generate, is_alone, ended))
        try:
            is_over = False
            while not is_over:
                found = [await ended.get()]
                while not ended.empty():
                    found.append(ended.get_nowait())
                is_over = found[-1] is None
                if some := [each for generations in found if generations is not None for each in generations]:
                    yield some
            await feeder
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
            self._calls[batch] -= 1
            if not self._calls[batch]:
                del self._calls[batch], self._tokens[batch]

    async def _feed(
        self,
        batch: str,
        weight: float,
        grants: Sequence[Grant],
        generate: Generate,
        is_alone: bool,
        ended: asyncio.Queue[list[Generation] | None],
    ) -> None:
        try:
            async with asyncio.TaskGroup() as running:
                left = list(grants)
                while left:
                    await self._take_one(batch)
                    some = [left.pop(0)]
                    while left and self._batch < self.places and not self._line:
                        self._batch += 1
                        some.append(left.pop(0))
                    self._charge(batch, sum(grant.max_tokens for grant in some) / weight)
                    held = {(grant.query_id, grant.sample) for grant in some}
                    task = running.create_task(self._run(some, held, generate, is_alone, ended))
                    # Not in the task: one that is cancelled before its first step would keep its places.
                    task.add_done_callback(lambda _, held=held: self._free(len(held)))  # type: ignore[misc]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            ended.put_nowait(None)

    async def _run(
        self,
        grants: Sequence[Grant],
        held: set[tuple[str, int]],
        generate: Generate,
        is_alone: bool,
        ended: asyncio.Queue[list[Generation] | None],
    ) -> None:
        async for generations in generate(grants, is_alone):
            held.difference_update((each.query_id, each.sample) for each in generations)
            self._free(len(generations))
            ended.put_nowait(generations)

    async def _take_one(self, batch: str) -> None:
        """Wait for a place."""
        if self._batch < self.places and not self._line:
            self._batch += 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (self._tokens[batch], next(self._numbers), batch, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free(1)
            raise

    def _charge(self, batch: str, tokens: float) -> None:
        self._now = max(self._now, self._tokens[batch])
        self._tokens[batch] += tokens

    def _free(self, places: int) -> None:
        self._batch -= places
        self._admit()

    def _admit(self) -> None:
        """Give free places to those that wait; a batch that has had more meanwhile than when it came stands further back."""
        while self._line and self._batch < self.places:
            had, number, batch, turn = heapq.heappop(self._line)
            if turn.done():
                continue
            now = self._tokens.get(batch, had)
            if now > had and self._line:
                heapq.heappush(self._line, (now, number, batch, turn))
                continue
            self._batch += 1
            turn.set_result(None)
