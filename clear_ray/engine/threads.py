"""How many threads of torch a pass on CPU gets: passes are timed while the engine works.

Decoding waits for memory, and its passes are hundreds of small operations at whose ends all threads wait for the slowest. How
many pay depends on the model, on what the system calls a core, and on what else runs there: one answer more or another run
beside it changes that within a second. No table of machines tells, nor a trial while everything around the engine starts.

So every few dozen passes two are made with half the threads, or with twice as many, in turn with two that have as many as
before. The larger number is kept where its passes are shorter by a tenth.

Threads that wait have to sleep, which OpenMP is told before torch is imported. Those that spin, as they do by themselves,
take the cores from whatever shares them: beside one busy process a pass with two threads on two cores took ten times as long
as one with a single thread, and with sleeping threads no longer.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORTH_DOUBLING = 1.1
"""How many times faster a pass has to be for twice the threads; 2 would be perfect."""
_POLICY, _SLEEPS, _FIRST_THREADS = "OMP_WAIT_POLICY", "PASSIVE", 4
_BETWEEN_PASSES, _MOST_BETWEEN_PASSES = 32, 4_096
_ROWS_APART = 1 / 8


class PassThreads:
    """Chooses the threads of each decoding pass of one thread's.

    Args:
        most: Most threads that there may be.
        first: Threads of the first passes.
        reading: Threads, at least, of passes that read prompts, which are work for many.
        set_threads: Sets how many the next pass has.
        clock: Seconds that never run backwards.

    Attributes:
        threads: As many as pay by now.
    """

    def __init__(
        self,
        most: int,
        *,
        first: int,
        reading: int = 1,
        set_threads: Callable[[int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads = first
        self._most, self._reading, self._set_threads, self._clock = most, reading, set_threads, clock
        self._grows = False
        self._wait = 0 if first > 1 else _BETWEEN_PASSES
        self._other = 0  # that is tried beside `threads`; 0 while none is
        self._seconds: list[float] = []
        self._rows = self._set_to = 0

    def set_for_reading(self) -> None:
        """Set the threads of passes that read prompts, in a thread that makes no others."""
        self._set_threads(max(self.threads, self._reading))

    @contextmanager
    def timed(self, rows: int) -> Iterator[None]:
        """Set the threads of a pass over so many rows, and time it."""
        self._begin_trial(rows)
        is_other = self._other and len(self._seconds) % 2 == 0
        wanted = self._other if is_other else self.threads
        if wanted != self._set_to:  # torch drops what it keeps for a number
            self._set_to = wanted
            self._set_threads(wanted)
        started = self._clock()
        yield
        if self._other:
            self._seconds.append(self._clock() - started)
            self._judge()

    def _begin_trial(self, rows: int) -> None:
        """Begin to try another number if it is time to; begin anew where passes are of another size than those timed."""
        if self._other:
            if abs(rows - self._rows) > _ROWS_APART * self._rows:
                self._rows, self._seconds = rows, []
            return
        self._wait -= 1
        if self._wait > 0 or self._most == 1:
            return
        doubled, halved = min(2 * self.threads, self._most), max(self.threads // 2, 1)
        self._other = doubled if self._grows else halved
        if self._other == self.threads:
            self._other = halved if self._grows else doubled
        self._rows, self._seconds = rows, []

    def _judge(self) -> None:
        """Keep the better of two numbers once each has had two passes."""
        if len(self._seconds) < 4:
            return
        other, own = min(self._seconds[::2]), min(self._seconds[1::2])
        is_more = self._other > self.threads
        takes_other = WORTH_DOUBLING * other <= own if is_more else other < WORTH_DOUBLING * own
        if takes_other:
            self.threads, self._wait = self._other, 0  # and the next one in that direction at once
        else:
            slower = max(other / max(own, 1e-9), 1.0)
            self._wait = round(min(_BETWEEN_PASSES * slower**2, _MOST_BETWEEN_PASSES))
            is_more = not is_more
        self._grows, self._other = is_more, 0


def have_waiting_threads_sleep() -> None:
    """Tell OpenMP so, unless it is set otherwise; it listens only before torch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault(_POLICY, _SLEEPS)


def threads_here(set_threads: Callable[[int], None]) -> PassThreads:
    """Return what chooses the threads of passes on this machine, few to begin with where those that wait may spin."""
    cores = len(os.sched_getaffinity(0))
    if os.environ.get(_POLICY, "").upper() != _SLEEPS:
        return PassThreads(cores, first=1, set_threads=set_threads)
    return PassThreads(cores, first=min(cores, _FIRST_THREADS), reading=cores // 2, set_threads=set_threads)
