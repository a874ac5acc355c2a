"""What may run in an engine's batch: interactive queries at once, batches in the places that these leave, each its share.

    places of batches = max(1, places - interactive queries under way - places kept free for the next ones)

So an interactive query finds a place while a batch runs, and a batch never waits for ever. Of several batches that wait, the
next place goes to the one that has had the fewest tokens for its weight; one that comes later begins where those that
are there stand, and catches up with nothing. A call that has its turn takes as many of the free places as it can use, until
another batch is owed more: so it runs in few pieces, each of which costs a message. What runs is not interrupted.

Pure asyncio: one event loop, no cluster.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from clear_ray.engine.base import Generation, Grant

Generate = Callable[[Sequence[Grant], bool], AsyncIterator[list[Generation]]]
_KEPT_SHARE = 8
_GATHER_SECONDS = 0.02  # in which what has ended waits for others of its call, with which it then travels


class _Turn(asyncio.Future[int]):
    """A call that waits for places: how many it was given.

    Args:
        wanted: What each of its grants counts for.
    """

    def __init__(self, wanted: Sequence[float]) -> None:
        super().__init__()
        self.wanted = wanted


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
        self._is_due = False
        self._line: dict[str, deque[_Turn]] = {}  # of each batch that waits

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
        self._admit_soon()

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
            is_over, left = False, len(grants)
            while not is_over:
                found = [await ended.get()]
                if found[0] is not None and len(found[0]) < left:
                    await asyncio.sleep(_GATHER_SECONDS)
                while not ended.empty():
                    found.append(ended.get_nowait())
                is_over = found[-1] is None
                if some := [each for generations in found if generations is not None for each in generations]:
                    left -= len(some)
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
                    count = await self._take(batch, [grant.max_tokens / weight for grant in left])
                    some, left = left[:count], left[count:]
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

    async def _take(self, batch: str, wanted: Sequence[float]) -> int:
        """Wait for places, and return how many were taken; each is charged what its grant counts for."""
        if self._batch < self.places and not self._line:
            return self._seize(batch, wanted)
        turn = _Turn(wanted)
        self._line.setdefault(batch, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free(turn.result())
            self._leave_line(batch, turn)
            raise

    def _leave_line(self, batch: str, turn: _Turn) -> None:
        line = self._line.get(batch, deque())
        if turn in line:
            line.remove(turn)
            if not line:
                del self._line[batch]

    def _seize(self, batch: str, wanted: Sequence[float]) -> int:
        """Take one free place, and more as long as no other batch is owed more; return how many."""
        taken = 0
        for tokens in wanted:
            if taken and (self._batch >= self.places or self._tokens[batch] > self._owed_most()):
                break
            self._batch += 1
            self._now = max(self._now, self._tokens[batch])
            self._tokens[batch] += tokens
            taken += 1
        return taken

    def _owed_most(self) -> float:
        return min((self._tokens[batch] for batch in self._line), default=math.inf)

    def _free(self, places: int) -> None:
        self._batch -= places
        self._admit_soon()

    def _admit_soon(self) -> None:
        """Give free places to those that wait, once what ends in this moment has given back its own."""
        if self._line and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        self._is_due = False
        while self._line and self._batch < self.places:
            batch = min(self._line, key=self._tokens.__getitem__)
            turn = self._line[batch][0]
            self._leave_line(batch, turn)
            if not turn.done():
                turn.set_result(self._seize(batch, turn.wanted))
