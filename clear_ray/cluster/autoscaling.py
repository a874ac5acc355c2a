"""Keeps the number of a run's engines at what its work calls for (`clear_ray/cluster/scaling.py` has the law).

Between rounds engines are added or ended; while one goes on they are added only, since those that are there are at work.
Where a run has several engines the law holds of each by itself: its grants of the round, what one worker of it generates, and
of the rest of the budget as great a part as the round gives it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from clear_ray.cluster.engines import EngineActors
from clear_ray.cluster.scaling import RateMeter, Work, planned_work, workers_wanted
from clear_ray.config.menu import NamedEngine
from clear_ray.config.run import RunConfig
from clear_ray.ledger.client import MarketClient

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Granted:
    """What one engine was granted.

    Attributes:
        expected_tokens: What it is expected to generate.
        queries: How many grants that is.
        cost: What it is expected to take, in the budget's unit.
    """

    expected_tokens: float
    queries: int
    cost: float


class EngineScaler:
    """Of one run.

    Args:
        config: Configuration of the run.
        engines: Its engine workers.
        market: Its market.
        seconds: Returns how long the run has been going on, seconds.
    """

    def __init__(
        self, config: RunConfig, engines: EngineActors, market: MarketClient, seconds: Callable[[], float]
    ) -> None:
        self.engines = engines
        self._market = market
        self._each = [
            _OneScaler(config, named, each, seconds)
            for named, each in zip(config.named_engines, engines.each, strict=True)
        ]
        self.most_up = len(engines)
        self._is_over = threading.Event()

    @property
    def tokens_per_second(self) -> float | None:
        """What a worker of the only engine was measured to generate; None if it was not, or there are several."""
        return self._each[0].tokens_per_second if len(self._each) == 1 else None

    def tokens_per_second_of(self, engine: int) -> float | None:
        """Return what a worker of an engine, by its place, was measured to generate; None if it was not."""
        return self._each[engine].tokens_per_second

    @property
    def slots(self) -> int:
        """Queries that all engines there are run at the same time."""
        return sum(each.slots for each in self._each)

    @contextmanager
    def round(self, granted: Sequence[Granted], *, is_scarce: bool) -> Iterator[None]:
        """Have as many engines as a round's work calls for, while it is done.

        Args:
            granted: What each engine was granted.
            is_scarce: Whether the budget binds.
        """
        available_tokens = self._market.balance().available_tokens
        share = available_tokens / max(sum(each.cost for each in granted), 1.0)
        for each, own in zip(self._each, granted, strict=True):
            each.begin(own, rest_tokens=own.expected_tokens * share, is_scarce=is_scarce)
        self._is_over.clear()
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._is_over.set()
            watch.join()

    def add(self, granted: Sequence[Granted]) -> None:
        """Count grants that are made while a round is going on to its work.

        Args:
            granted: What each engine was granted.
        """
        for each, own in zip(self._each, granted, strict=True):
            each.add(own.expected_tokens)

    def note(self, engine: int, tokens: int) -> None:
        """Note what an engine, by its place, has generated in a call that came back."""
        self._each[engine].generated_tokens += tokens

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            with suppress(Exception):  # the run itself meets whatever is wrong
                self.most_up = max(self.most_up, sum(each.look() for each in self._each))


class _OneScaler:
    """Keeps the number of one engine's workers; arguments as of `EngineScaler`, and the engine."""

    def __init__(
        self, config: RunConfig, named: NamedEngine, engines: EngineActors, seconds: Callable[[], float]
    ) -> None:
        self.generated_tokens = 0
        self._config, self._named, self._engines, self._seconds = config, named, engines, seconds
        self._meter = RateMeter(config.scaling.rate_of(named.name))
        self._work: Work | None = None
        self._before_tokens = 0

    @property
    def tokens_per_second(self) -> float | None:
        """What one worker was measured to generate; None if it was not."""
        return self._meter.tokens_per_second if self._meter.is_measured else None

    @property
    def slots(self) -> int:
        """Queries that all its workers run at the same time."""
        return len(self._engines) * self._named.config.max_batch

    def begin(self, granted: Granted, *, rest_tokens: float, is_scarce: bool) -> None:
        """Have as many workers as a round's work calls for.

        Args:
            granted: What the engine was granted.
            rest_tokens: What it would generate of all that the budget has left.
            is_scarce: Whether the budget binds.
        """
        self._work = planned_work(
            expected_tokens=granted.expected_tokens,
            queries=max(granted.queries, 1),
            slots=self._named.config.max_batch,
            available_tokens=rest_tokens,
            is_scarce=is_scarce,
        )
        if not self._is_fixed:
            self._engines.resize(self._wanted(self._work))
        self._meter.begin()
        self._before_tokens = self.generated_tokens

    def add(self, expected_tokens: float) -> None:
        """Count grants that are made while a round is going on to its work."""
        if self._work is not None:
            round_tokens = self._work.round_tokens + expected_tokens
            run_tokens = max(self._work.run_tokens, round_tokens)
            self._work = replace(self._work, round_tokens=round_tokens, run_tokens=run_tokens)

    def look(self) -> int:
        """Have more workers where the work calls for them; return how many are up."""
        up, work, tokens = self._engines.up(), self._work, self.generated_tokens
        if work is None:
            return up
        left = work.after(tokens - self._before_tokens)
        if left.round_tokens >= work.batch_tokens * up:  # later on not every worker has a full batch
            self._meter.note(seconds=time.monotonic(), workers=up, tokens=tokens, batch_tokens=work.batch_tokens)
        if not self._is_fixed and (wanted := self._wanted(left)) > len(self._engines):
            self._engines.resize(wanted)
        return up

    @property
    def _is_fixed(self) -> bool:
        return self._config.scaling.most_of(self._named.name) is None

    def _wanted(self, work: Work) -> int:
        deadline = self._config.scaling.deadline_seconds
        return workers_wanted(
            work,
            workers=len(self._engines),
            tokens_per_second=self._meter.tokens_per_second,
            start_seconds=self._engines.start_seconds,
            seconds_left=None if deadline is None else deadline - self._seconds(),
            least=self._named.config.workers,
            most=self._config.most_workers_of(self._named),
        )
