"""What runs, servers and engines tell Ray's own metrics, which every node of a cluster exports to Prometheus.

Ray writes `ray_` before each name, so none of these is a name of the server's own `/metrics`, which are of one process of it.
Labels: `source` is `batch` or `server`, `run` is a run folder's name or a model's. No label holds text of a query.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.util.metrics import Counter, Gauge

from clear_ray.stages.occupancy import Occupancy

_SECONDS = 2.0
_LABELS = ("source", "run")


@dataclass(frozen=True, slots=True)
class AccountGauges:
    """An account at one moment; what is spent, refunded and wasted is counted since its start, in whole units.

    Attributes:
        reserved_tokens: Held by queries under way.
        spent_tokens: Charged.
        refunded_tokens: Reserved, and given back unused.
        wasted_tokens: Charged for work that was lost.
        available_tokens: Can be reserved.
        price: Shadow price in force; None before the first.
        queries: How many there are, by status and by the queue that they are in.
    """

    reserved_tokens: int
    spent_tokens: int
    refunded_tokens: int
    wasted_tokens: int
    available_tokens: int
    price: float | None
    queries: Mapping[tuple[str, str], int]


class AccountMetrics:
    """Metrics of one account.

    Args:
        source: `batch` or `server`.
        run: Name of the run or of the model.
    """

    def __init__(self, source: str, run: str) -> None:
        self._labels = {"source": source, "run": run}
        self._told: dict[str, int] = {}
        self._gauges = {
            name: Gauge(f"clear_ray_{name}", words, tag_keys=_LABELS)
            for name, words in (
                ("tokens_reserved", "Tokens, or parts of money, held by queries under way."),
                ("tokens_available", "Tokens, or parts of money, that can be reserved now."),
                ("price", "Shadow price: expected correct answers a token."),
            )
        }
        self._queries = Gauge(
            "clear_ray_queries", "Queries by status and queue.", tag_keys=(*_LABELS, "status", "queue")
        )
        self._counters = {
            name: Counter(f"clear_ray_tokens_{name}", words, tag_keys=_LABELS)
            for name, words in (
                ("spent", "Tokens, or parts of money, charged."),
                ("refunded", "Tokens, or parts of money, reserved and given back unused."),
                ("wasted", "Tokens, or parts of money, charged for work that was lost."),
            )
        }

    def publish(self, account: AccountGauges) -> None:
        """Tell what an account is now."""
        for name, value in (
            ("tokens_reserved", account.reserved_tokens),
            ("tokens_available", account.available_tokens),
            ("price", account.price),
        ):
            if value is not None:
                self._gauges[name].set(value, tags=self._labels)
        for (status, queue), count in account.queries.items():
            self._queries.set(count, tags=self._labels | {"status": status, "queue": queue})
        for name, counter in self._counters.items():
            total = getattr(account, f"{name}_tokens")
            _count(counter, total - self._told.get(name, 0), self._labels)
            self._told[name] = total


class Throttle:
    """Lets something happen every few seconds at most.

    Args:
        seconds: How many.
    """

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds, self._last = seconds, 0.0

    def is_due(self) -> bool:
        """Whether it is time; if so, the time begins anew."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def _count(counter: Counter, more: int, labels: dict[str, str]) -> None:
    if more > 0:  # Ray counts nothing that is none
        counter.inc(more, tags=labels)


def watch_engine(occupancy: Occupancy, source: str, run: str) -> Callable[[], None]:
    """Tell every few seconds how busy the engine of this process is, if it belongs to a cluster; return what ends that.

    Args:
        occupancy: Places of the engine.
        source: `batch` or `server`.
        run: Name of the run or of the model.
    """
    if not ray.is_initialized():  # it would be started to be asked
        return lambda: None
    labels = {"source": source, "run": run, "engine": f"{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"}
    keys = tuple(labels)
    idle = Gauge("clear_ray_engine_idle_share", "Share of an engine's batch that stood empty, 0 to 1.", tag_keys=keys)
    running = Gauge("clear_ray_engine_queries", "Queries in an engine's batch.", tag_keys=keys)
    tokens = Counter("clear_ray_engine_tokens", "Tokens generated.", tag_keys=keys)
    over, told = threading.Event(), 0

    def tell() -> None:
        nonlocal told
        while not over.wait(_SECONDS):
            with suppress(Exception):  # a metric must not end an engine
                idle.set(occupancy.idle_share(), tags=labels)
                running.set(occupancy.queries, tags=labels)
                now = occupancy.tokens
                _count(tokens, now - told, labels)
                told = now

    threading.Thread(target=tell, daemon=True, name="clear_ray metrics").start()
    return over.set
