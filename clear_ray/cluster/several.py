"""The engine actors of a run with several engines: each engine has workers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from clear_ray.cluster.engines import EngineActors, begun_engines
from clear_ray.cluster.room import refuse_too_many_gpus, wait_for_room
from clear_ray.config.engine import EngineConfig
from clear_ray.engine.base import ModelCard
from clear_ray.estimation.head import Head

AskFor = Callable[[int, int], None]


class SeveralEngines(EngineActors):
    """The engines of a run together.

    Args:
        each: Each of them.
    """

    def __init__(self, each: tuple[EngineActors, ...]) -> None:
        self._each = each
        self.start_seconds = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._each))

    @property
    def each(self) -> tuple[EngineActors, ...]:
        """See `EngineActors`."""
        return self._each

    def up(self) -> int:
        """Return how many have loaded their model."""
        return sum(engines.up() for engines in self._each)

    def resize(self, count: int) -> None:
        """Nothing: each of them is resized by itself."""
        del count

    def wait(
        self, is_wanted: Callable[[], bool] = lambda: True, told: Callable[[float | None], None] = lambda _: None
    ) -> None:
        """See `EngineActors`; the card is that of all models together."""
        for engines in self._each:
            engines.wait(is_wanted, told)
        cards = [engines.model for engines in self._each]
        self.model = ModelCard(
            name=", ".join(card.name for card in cards),
            fingerprint=hashlib.sha256("\n".join(card.fingerprint for card in cards).encode()).hexdigest(),
            context_tokens=max(card.context_tokens for card in cards),
            hidden_width=0,
        )
        self.head = self._each[0].head
        self.start_seconds = max(engines.start_seconds for engines in self._each)


@contextmanager
def engines_of_run(
    engines: Sequence[tuple[EngineConfig, Head]],
    *,
    run_dir: str,
    ask_for: AskFor = lambda _place, _count: None,
    rows_each: Sequence[int | None],
) -> Iterator[EngineActors]:
    """Start the workers of a run's engine, or of its engines, and end them afterwards.

    Args:
        engines: Settings and head of each.
        run_dir: As for `EngineActors`.
        ask_for: Function that is told of which engine, by its place, there are to be how many workers, before they are.
        rows_each: As for `EngineActors`, of each engine.

    Raises:
        ConfigError: The cluster has fewer GPUs than several engines take together.
        ClusterError: The cluster is full.
    """
    if len(engines) > 1:
        with several_engines(engines, run_dir=run_dir, ask_for=ask_for, rows_each=rows_each) as several:
            yield several
        return
    ((config, head),) = engines
    with begun_engines(config, head, run_dir=run_dir, ask_for=partial(ask_for, 0), rows_each=rows_each[0]) as one:
        yield one


@contextmanager
def several_engines(
    engines: Sequence[tuple[EngineConfig, Head]], *, run_dir: str, ask_for: AskFor, rows_each: Sequence[int | None]
) -> Iterator[SeveralEngines]:
    """Start the workers of several engines, which then load their models side by side, and end them afterwards.

    Args:
        engines: Settings and head of each.
        run_dir: As for `EngineActors`.
        ask_for: As for `engines_of_run`.
        rows_each: The same.

    Raises:
        ConfigError: The cluster has fewer GPUs than they take together.
        ClusterError: The cluster is full.
    """
    refuse_too_many_gpus([config for config, _ in engines])
    each: list[EngineActors] = []
    with ExitStack() as started:
        for place, ((config, head), rows) in enumerate(zip(engines, rows_each, strict=True)):
            wait_for_room(config)
            first = sum(map(len, each))
            each.append(EngineActors(config, head, run_dir, partial(ask_for, place), rows, first))
            started.callback(each[-1].resize, 0)
            each[-1].resize(config.workers)
        yield SeveralEngines(tuple(each))
