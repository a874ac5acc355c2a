"""Keeps the number of a run's engines at what its work calls for (`clear_ray/cluster/scaling.py` has the law).

Between rounds engines are added or ended; while one goes on they are added only, since those that are there are at work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from clear_ray.cluster.engines import EngineActors
from clear_ray.cluster.scaling import RateMeter, Work, planned_work, workers_wanted
from clear_ray.config.run import RunConfig
from clear_ray.ledger.client import MarketClient
from clear_ray.ledger.ledger import Balance

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0


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
        self._config, self._market, self._seconds = config, market, seconds
        self._meter = RateMeter(config.scaling.tokens_per_second)
        self.most_up = len(engines)
        self._is_over = threading.Event()
        self._work: Work | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """What one engine was measured to generate; None if it was not."""
        return self._meter.tokens_per_second if self._meter.is_measured else None

    @contextmanager
    def round(self, *, expected_tokens: float, queries: int, is_scarce: bool) -> Iterator[None]:
        """Have as many engines as a round's work calls for, while it is done.

        Args:
            expected_tokens: What its grants are expected to spend.
            queries: How many they are.
            is_scarce: Whether the budget binds.
        """
        balance = self._market.balance()
        work = planned_work(
            expected_tokens=expected_tokens,
            queries=queries,
            slots=self._config.engine.max_batch,
            available_tokens=balance.available_tokens,
            is_scarce=is_scarce,
        )
        if not self._is_fixed:
            self.engines.resize(self._wanted(work))
        self._meter.begin()
        self._is_over.clear()
        self._work = work
        watch = threading.Thread(target=self._watch, args=(_generated(balance),), daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._is_over.set()
            watch.join()

    def add(self, *, expected_tokens: float) -> None:
        """Count grants that are made while a round is going on to its work.

        Args:
            expected_tokens: What they are expected to spend.
        """
        if self._work is not None:
            round_tokens = self._work.round_tokens + expected_tokens
            run_tokens = max(self._work.run_tokens, round_tokens)
            self._work = replace(self._work, round_tokens=round_tokens, run_tokens=run_tokens)

    @property
    def _is_fixed(self) -> bool:
        return self._config.scaling.max_workers is None

    def _wanted(self, work: Work) -> int:
        deadline = self._config.scaling.deadline_seconds
        return workers_wanted(
            work,
            workers=len(self.engines),
            tokens_per_second=self._meter.tokens_per_second,
            start_seconds=self.engines.start_seconds,
            seconds_left=None if deadline is None else deadline - self._seconds(),
            least=self._config.engine.workers,
            most=self._config.most_workers,
        )

    def _watch(self, generated_before: int) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            with suppress(Exception):  # the run itself meets whatever is wrong
                if self._work is not None:
                    self._look(self._work, generated_before)

    def _look(self, work: Work, generated_before: int) -> None:
        balance = self._market.within(_PATIENCE_SECONDS).balance()
        up = self.engines.up()
        self.most_up = max(self.most_up, up)
        tokens, left = _generated(balance), work.after(_generated(balance) - generated_before)
        if left.round_tokens >= work.batch_tokens * up:  # later on not every engine has a full batch
            self._meter.note(seconds=time.monotonic(), workers=up, tokens=tokens, batch_tokens=work.batch_tokens)
        if not self._is_fixed and (wanted := self._wanted(left)) > len(self.engines):
            self.engines.resize(wanted)


def _generated(balance: Balance) -> int:
    """Return the tokens of answers that ended; what died with its engine was charged without having been counted."""
    return balance.spent_tokens - balance.wasted_tokens
