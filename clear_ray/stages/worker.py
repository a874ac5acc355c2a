"""One engine worker: a language model and the head that reads its features. `cluster.engines` makes it a Ray actor.

Both stages call the same workers, so a model is loaded once for each GPU. Hidden states never leave the worker: `probe`
returns curve parameters only (docs/method.md, section 4.1), and where a run learns on states a few random sums of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.engine import EngineConfig
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt, check_generation, words_of
from clear_ray.engine.build import build_engine
from clear_ray.engine.streaming import Partial, stream
from clear_ray.errors import ClearRayError, EngineError, EngineFailedError, told
from clear_ray.estimation.head import Head, HeadCard
from clear_ray.estimation.states import kept_states
from clear_ray.stages.first_tokens import first_tokens
from clear_ray.stages.generate import asked_directly
from clear_ray.stages.lock import ReadWriteLock
from clear_ray.stages.occupancy import Occupancy


class EngineWorker:
    """A loaded engine with its head.

    Args:
        config: Which engine.
        head: Turns features into curves.
        told: As for `build_engine`.

    Attributes:
        occupancy: How many queries it runs, and what they have generated.
        failure: What the engine failed of, after which every call fails; None while it works.
        gather_seconds: How long what has ended may wait for others of its call, with which it then travels together.

    Raises:
        ConfigError: The head was fitted for another model.
        EngineError: The model cannot be loaded.
    """

    gather_seconds = 0.0

    def __init__(self, config: EngineConfig, head: Head, *, told: Callable[[float], None] = lambda _: None) -> None:
        self._engine = build_engine(config, probe_layers=head.card.probe_layers, told=told)
        self._has_context = config.kind != "replay"  # a recording ends where it was cut, whatever was granted
        self._head, self._config = head, config
        self._lock = ReadWriteLock()
        self._running = 0
        self.occupancy = Occupancy(config.max_batch)
        self.failure: Exception | None = None
        head.check_model(self._engine.card.fingerprint)

    async def cards(self) -> tuple[ModelCard, HeadCard]:
        """Return the cards of the model and the head."""
        return self._engine.card, self._head.card

    async def oddities(self) -> dict[str, int]:
        """Return what should be known of the engine's answers: a line each, and of how many it holds; of endpoints alone."""
        return dict(getattr(self._engine, "oddities", {}))

    async def pulse(self) -> int | None:
        """Return the engine's progress, or None if it has nothing to do."""
        return self._engine.progress if self._running else None

    async def probe(
        self,
        query_ids: Sequence[str],
        prompts: Sequence[Prompt],
        is_alone: bool = False,
        direct_text: str = "",
        has_states: bool = False,
    ) -> dict[str, NDArray[Any]]:
        """Return the columns of `records.estimate_schema` that the probe adds, row for row.

        Args:
            query_ids: Queries that these prompts are of.
            prompts: What to read.
            is_alone: As for `generate`.
            direct_text: What may be put after a prompt later, and takes room from its answer.
            has_states: Whether to return what is kept of hidden states, in a column `states`; of an endpoint what it says of
                first tokens, for which it generates one of each query.

        Returns:
            The columns, with `room_tokens`: the most that prompt and context leave for an answer.
        """
        async with self._turn(is_alone):
            features = await asyncio.to_thread(self._engine.prefill, query_ids, prompts)
            if direct_text:  # then prompts are rendered once more
                room_tokens_N = await asyncio.to_thread(self._room_tokens, prompts, features, direct_text)
            else:
                room_tokens_N = self._room_tokens(prompts, features, direct_text)
        curves = self._head.curves(features, [words_of(prompt) for prompt in prompts], query_ids)
        states = {"states": await self._states(query_ids, prompts, features)} if has_states else {}
        return states | {
            "room_tokens": room_tokens_N,
            "prompt_tokens": np.asarray(features.prompt_tokens_N),
            "entropy": np.asarray(features.entropy_N),
            "threshold_tokens": curves.threshold_tokens_N,
            "solvability": curves.solvability_N,
            "beta": curves.beta_N,
            "success_K": curves.success_NK,
            "spend_K": curves.spend_NK,
            "survival_K": curves.survival_NK,
        }

    async def _states(
        self, query_ids: Sequence[str], prompts: Sequence[Prompt], features: Features
    ) -> NDArray[np.float32]:
        """Return what is kept of hidden states, or of an endpoint, which has none to show, of first tokens."""
        if self._config.kind == "openai":
            return await first_tokens(self._engine, self._config, query_ids, prompts)
        return await asyncio.to_thread(kept_states, features)

    def _room_tokens(self, prompts: Sequence[Prompt], features: Features, direct_text: str) -> NDArray[np.int64]:
        if not self._has_context:
            return np.full(len(prompts), MOST_TOKENS, np.int64)
        room_N = self._engine.card.context_tokens - np.asarray(features.prompt_tokens_N, np.int64)
        if not direct_text:
            return room_N
        direct = self._engine.prompt_tokens([asked_directly(prompt, direct_text) for prompt in prompts])
        direct_room_N = np.minimum(room_N, self._engine.card.context_tokens - np.asarray(direct, np.int64))
        return np.where(direct_room_N > 0, direct_room_N, room_N)

    async def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of prompts, without running the model.

        Raises:
            SchemaError: A prompt cannot be rendered.
        """
        return await asyncio.to_thread(self._engine.prompt_tokens, prompts)

    async def features(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Return the raw features, hidden states included."""
        return await asyncio.to_thread(self._engine.prefill, query_ids, prompts)

    async def generate(self, grants: Sequence[Grant], is_alone: bool = False) -> AsyncIterator[list[Generation]]:
        """Run grants in the engine's continuous batch; yield generations as they end, checked against their grants.

        What ends while an earlier list is on its way travels together in the next one.

        Args:
            grants: What to run.
            is_alone: Wait until nothing else runs here, and let nothing else begin: for a query that may kill the engine.

        Raises:
            EngineError: The engine failed, broke a grant or lost one.
        """
        async with self._turn(is_alone):
            async for generations in self._generate(grants):
                yield generations

    async def stream(
        self, grant: Grant, *, every_tokens: int, is_over: Callable[[str], bool]
    ) -> AsyncIterator[Partial | Generation]:
        """Run one grant beside whatever else runs; yield what there is meanwhile, as `engine.streaming.stream` does."""
        async with self._turn(is_alone=False):
            self.occupancy.enter(1)
            come = 0
            try:
                async for item in stream(self._engine, grant, every_tokens=every_tokens, is_over=is_over):
                    come = len(item.token_ids)
                    yield item
            finally:
                self.occupancy.leave(come)

    @asynccontextmanager
    async def _turn(self, is_alone: bool) -> AsyncIterator[None]:
        async with self._lock.alone() if is_alone else self._lock.together():
            await self._stop_if_failed()
            self._running += 1
            try:
                yield
            except EngineFailedError as failure:
                self._fail(failure)
                raise
            except ClearRayError:
                raise
            except Exception as error:
                unforeseen = EngineFailedError("the engine failed", value=told(error))
                self._fail(unforeseen)
                raise unforeseen from error
            finally:
                self._running -= 1

    async def _stop_if_failed(self) -> None:
        """Let a call that comes after the failure end as the worker's calls are to end; the engine itself raises."""

    def _fail(self, failure: Exception) -> None:
        """Note that the engine has failed."""
        self.failure = failure

    async def _generate(self, grants: Sequence[Grant]) -> AsyncIterator[list[Generation]]:
        ended: asyncio.Queue[Generation | None] = asyncio.Queue()
        feeder = asyncio.ensure_future(self._feed(grants, ended))
        try:
            is_over, left = False, len(grants)
            while not is_over:
                generations = [await ended.get()]
                if self.gather_seconds and left > 1 and generations[0] is not None:
                    await asyncio.sleep(self.gather_seconds)
                while not ended.empty():
                    generations.append(ended.get_nowait())
                is_over = generations[-1] is None
                if found := [generation for generation in generations if generation is not None]:
                    left -= len(found)
                    yield found
            await feeder
        finally:
            feeder.cancel()

    async def _feed(self, grants: Sequence[Grant], ended: asyncio.Queue[Generation | None]) -> None:
        open_grants = {(grant.query_id, grant.sample): grant for grant in grants}
        self.occupancy.enter(len(grants))
        try:
            async for generation in self._engine.generate(grants):
                grant = open_grants.pop((generation.query_id, generation.sample))
                ended.put_nowait(check_generation(grant, generation))
                self.occupancy.leave(len(generation.token_ids))
            if open_grants:
                raise EngineError("the engine lost grants", value=", ".join(name for name, _ in list(open_grants)[:5]))
        finally:
            self.occupancy.leave(0, queries=len(open_grants))
            ended.put_nowait(None)
