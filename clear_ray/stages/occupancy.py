"""How much of an engine's batch stands empty, over time."""

from __future__ import annotations

import time
from collections.abc import Callable


class Occupancy:
    """Places of one engine: how many are taken, and which share was idle on average since that was last asked.

    Args:
        places: Queries that the engine runs at the same time.
        clock: Seconds that never run backwards.
    """

    def __init__(self, places: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._places, self._clock = places, clock
        self._asked_at = self._changed_at = clock()
        self._idle_seconds = 0.0
        self.queries = 0
        self.tokens = 0

    def enter(self, queries: int) -> None:
        """Note queries that begin."""
        self._let_pass()
        self.queries += queries

    def leave(self, tokens: int, *, queries: int = 1) -> None:
        """Note queries that have ended, and what they have generated."""
        self._let_pass()
        self.queries -= queries
        self.tokens += tokens

    def idle_share(self) -> float:
        """Return the mean share of empty places since the last call, 0 to 1."""
        self._let_pass()
        seconds, idle = self._changed_at - self._asked_at, self._idle_seconds
        self._asked_at, self._idle_seconds = self._changed_at, 0.0
        return min(1.0, idle / seconds) if seconds > 0 else self._empty

    @property
    def _empty(self) -> float:
        return max(0.0, 1 - self.queries / self._places)

    def _let_pass(self) -> None:
        now = self._clock()
        self._idle_seconds += self._empty * (now - self._changed_at)
        self._changed_at = now
