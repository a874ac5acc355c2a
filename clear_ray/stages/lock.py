"""A lock that many hold together or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ReadWriteLock:
    """Shared and exclusive entry for the calls of one event loop; a call that wants to be alone holds back those after it."""

    def __init__(self) -> None:
        self._inside = 0
        self._wanting_alone = 0
        self._is_taken = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Enter with others."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_taken and not self._wanting_alone)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            await self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Enter once all others have left, and keep them out."""
        self._wanting_alone += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._is_taken and not self._inside)
                self._is_taken = True
        finally:
            self._wanting_alone -= 1
        try:
            yield
        finally:
            self._is_taken = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
