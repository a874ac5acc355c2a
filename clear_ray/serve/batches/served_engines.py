"""The server's own engines as those of a batch's run: one model in memory, whatever asks it.

A run of its own engines would load the model once more beside the server's, which on a GPU that the server fills finds no
place at all. So a run reaches the replicas through Serve, which knows where they are, sends each call to the one with the
fewest outstanding tokens, and replaces those that die; `SharedSlots` in each replica shares it out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from clear_ray.cluster.engines import EngineActors, is_worker_death
from clear_ray.cluster.several import SeveralEngines
from clear_ray.config.engine import EngineConfig
from clear_ray.engine.base import Generation, Grant, ModelCard, Prompt
from clear_ray.errors import SchemaError
from clear_ray.estimation.head import Head, HeadCard
from clear_ray.stages.roster import Workers

_NEVER_STALLS = 1e9  # Serve's own health check ends a replica that hangs


@dataclass(frozen=True, slots=True)
class _Call:
    """A method that is called as one of an actor's handle is."""

    call: Callable[..., Any]

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        return self.call(*arguments)


@dataclass(frozen=True, slots=True)
class ServedWorker:
    """All engine replicas of a server, called as if they were one worker of a run.

    Attributes:
        engine: Serve's handle of them.
        batch: Name of the batch; its queries have it in their names there, beside those of other batches.
        weight: Its share beside other batches.
        life: One start of the run: what an earlier one left running is not taken for this one's.
    """

    engine: DeploymentHandle[Any]
    batch: str
    weight: float
    life: str

    @property
    def cards(self) -> _Call:
        """See `EngineWorker.cards`."""
        return _Call(self.engine.cards.remote)

    @property
    def pulse(self) -> _Call:
        """None: Serve looks after replicas that hang."""
        return _Call(_no_pulse)

    @property
    def probe(self) -> _Call:
        """See `EngineWorker.probe`."""
        return _Call(self._probe)

    @property
    def generate(self) -> _Call:
        """See `EngineWorker.generate`."""
        return _Call(self._generate)

    async def _probe(self, query_ids: list[str], prompts: list[Prompt], is_alone: bool, direct_text: str) -> Any:
        del is_alone
        columns = await self.engine.probe_for_batch.remote(
            [self._name(each) for each in query_ids], prompts, direct_text
        )
        if isinstance(columns, SchemaError):
            raise columns
        return columns

    async def _generate(self, grants: Sequence[Grant], is_alone: bool) -> AsyncIterator[Awaitable[list[Generation]]]:
        own = {self._name(grant.query_id): grant.query_id for grant in grants}
        named = [replace(grant, query_id=self._name(grant.query_id)) for grant in grants]
        ended: Any = self.engine.options(stream=True).generate_for_batch.remote(
            self.batch, self.weight, is_alone, *named
        )
        async for generations in ended:
            yield _at_once([replace(each, query_id=own[each.query_id]) for each in generations])

    def _name(self, query_id: str) -> str:
        # A copy of a recording, where recordings are replayed: `NAME#COPY`, or what is one already.
        return f"{query_id}{'.' if '#' in query_id else '#'}{self.batch}.{self.life}"


async def _no_pulse() -> None:
    return None


async def _at_once(generations: list[Generation]) -> list[Generation]:
    return generations


def is_death(error: BaseException) -> bool:
    """Tell a replica that died, or cannot be had at the moment, from one that raised an error of its own."""
    return isinstance(error, BackPressureError | DeploymentUnavailableError) or is_worker_death(error)


def _leave(worker: Any) -> None:
    """Serve starts replicas again by itself."""
    del worker


class ServedEngines(EngineActors):
    """A server's engines in the place of a run's own: none of them is started, resized or ended.

    Args:
        worker: Reaches them.
        cards: Cards of their model and head.
        count: How many there are at least.
    """

    def __init__(self, worker: ServedWorker, cards: tuple[ModelCard, HeadCard], count: int) -> None:
        self._worker, self._count = worker, count
        self.model, self.head = cards
        self.start_seconds = 0.0

    def __len__(self) -> int:
        return self._count

    @property
    def workers(self) -> Workers:
        """What callers need to know."""
        return Workers((self._worker,), is_death, _leave, _NEVER_STALLS)

    def oddities(self) -> dict[str, int]:
        """Nothing: replicas answer others, too."""
        return {}

    def up(self) -> int:
        """Return how many there are."""
        return self._count

    def wait(
        self, is_wanted: Callable[[], bool] = lambda: True, told: Callable[[float | None], None] = lambda _: None
    ) -> None:
        """Nothing: they have loaded their models."""
        del is_wanted, told

    def resize(self, count: int) -> None:
        """Nothing: the server has as many as its settings say."""
        del count


Handles = Sequence[tuple[str, DeploymentHandle[Any]]]
"""Serve's handles of engines, each with the name of its model in the API."""


def served(handles: Handles, *, batch: str, weight: float) -> Callable[..., Any]:
    """Return what takes the place of `cluster.several.engines_of_run` for a run on a server's engines.

    Args:
        handles: Of the engines of the run, in their order.
        batch: Name of the batch.
        weight: Its share beside other batches.
    """
    return partial(_served, handles, batch, weight)


@contextmanager
def _served(
    handles: Handles, batch: str, weight: float, engines: Sequence[tuple[EngineConfig, Head]], **_: Any
) -> Iterator[EngineActors]:
    life, each = uuid4().hex[:8], []
    # Their heads are those that the server's settings name, and so do the run's.
    for (name, engine), (config, _head) in zip(handles, engines, strict=True):
        model, head_card = engine.cards.remote().result(timeout_s=None)
        worker = ServedWorker(engine, batch, weight, life)
        each.append(ServedEngines(worker, (replace(model, name=name), head_card), config.workers))
    if len(each) == 1:
        yield each[0]
        return
    several = SeveralEngines(tuple(each))
    several.wait()
    yield several
