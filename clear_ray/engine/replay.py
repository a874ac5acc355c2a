"""An engine without a model: it plays recorded rollouts by token count.

Budgets decide only where an answer is cut, never what it says, so a recording answers "what would this grant have
brought" exactly: the first k tokens of a rollout are what a cap of k tokens would have left. Whole runs are replayed in
seconds, on real answers and real features, on machines that could not load the model.

Shapes: R rollouts, N queries asked, D hidden width.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from clear_ray.config.engine import ReplayConfig
from clear_ray.engine.base import Features, FinishReason, Generation, Grant, ModelCard, Prompt, check_generation
from clear_ray.engine.recordings import RecordedFeatures, RecordedRollouts
from clear_ray.engine.streaming import Partial
from clear_ray.errors import EngineError

_PLAYED_AT_ONCE = 16


@dataclass(eq=False, slots=True)
class _Play:
    """One grant being played; `cancelled` may be set from its own event loop only, `is_cancelled` from any thread."""

    grant: Grant
    loop: asyncio.AbstractEventLoop
    is_cancelled: bool = False
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class ReplayEngine:
    """Play recorded rollouts by token count.

    `Grant.sample` picks among the recorded samples of a query, modulo their number, in order of the `sample` column;
    the length of `prefix_token_ids` says how many tokens were played before. A generation ends with `stop` where the
    recording ended by itself, with `length` where the grant ends, or where the recording was cut at its own cap: then
    it holds fewer tokens than its grant, and there is nothing to continue.

    A query `NAME#COPY` that was not recorded itself plays the recording of NAME, so a batch of any size can be replayed.

    There is no tokenizer, so the text of a truncated answer is the same share of the recorded text as of its tokens,
    not the exact decoding. Finished answers carry the recorded text exactly.

    Memory is that of the tokens, texts and features of the files, held once in Arrow and NumPy buffers.

    Args:
        config: The recordings. With a rate, each generation takes as long as it would, at most `max_batch` at a time, like
            continuous batching with a constant step time; else everything ends at once.

    Raises:
        SchemaError: A file cannot be read or lacks a column.
    """

    def __init__(self, config: ReplayConfig) -> None:
        self._rollouts = RecordedRollouts(config.rollouts)
        self._features = RecordedFeatures(config.features)
        self._tokens_per_second, self._max_batch = config.tokens_per_second, config.max_batch
        self._open: dict[str, set[_Play]] = {}
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._is_closed = False
        self._card = ModelCard(
            name=f"replay of {', '.join(self._rollouts.models)}",
            fingerprint=hashlib.sha256("\n".join(self._rollouts.models).encode()).hexdigest(),
            context_tokens=self._rollouts.context_tokens,
            hidden_width=self._features.width,
        )

    @property
    def card(self) -> ModelCard:
        """Identity and limits: the fingerprint digests the recorded `model` names, the context is what was recorded."""
        return self._card

    @property
    def progress(self) -> int:
        """The clock, nanoseconds: nothing in a replay can come to a stop while its process runs."""
        return time.monotonic_ns()

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count tokens: exactly for a recorded prompt, else from its characters at the recordings' mean rate."""
        self._refuse_if_closed()
        return [self._rollouts.count_prompt_tokens(prompt) for prompt in prompts]

    def prefill(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Return the recorded features of `query_ids`; `prompts` are not looked at.

        Raises:
            SchemaError: A query was not recorded.
        """
        del prompts
        self._refuse_if_closed()
        rows_N = np.array([self._rollouts.first_row(query_id) for query_id in query_ids], dtype=np.int64)
        hidden_last_ND, hidden_mean_ND = self._features.read(query_ids)
        return Features(
            prompt_tokens_N=self._rollouts.prompt_tokens_R[rows_N],
            entropy_N=self._rollouts.first_entropy_R[rows_N],
            hidden_last_ND=hidden_last_ND,
            hidden_mean_ND=hidden_mean_ND,
        )

    async def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Play each grant; yield each generation as soon as it ends.

        Raises:
            EngineError: The engine is closed.
        """
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        plays = [_Play(grant, loop) for grant in grants]
        for play in plays:
            self._open.setdefault(play.grant.query_id, set()).add(play)
        try:
            if self._tokens_per_second is None:
                for number, play in enumerate(plays):
                    if not number % _PLAYED_AT_ONCE:  # others have their turn
                        await asyncio.sleep(0)
                    yield self._play(play, limit_tokens=0 if play.is_cancelled else None)
                    self._forget(play)
            else:
                async for generation in self._in_real_time(plays, self._tokens_per_second):
                    yield generation
        finally:
            for play in plays:
                self._forget(play)

    async def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Play one grant; yield what there is after every `every_tokens` tokens, then the generation.

        Raises:
            EngineError: The engine is closed.
        """
        self._refuse_if_closed()
        loop, rate = asyncio.get_running_loop(), self._tokens_per_second
        play = _Play(grant, loop)
        self._open.setdefault(grant.query_id, set()).add(play)
        try:
            async with self._slots_of(loop) if rate else contextlib.nullcontext():
                started = time.monotonic()
                whole = self._play(play)
                tokens, said = len(whole.token_ids), 0
                for told in [*range(every_tokens, tokens, every_tokens), tokens]:
                    due = started + told / rate if rate else 0.0
                    if await _is_set_by(play.cancelled, due):
                        played = int((time.monotonic() - started) * rate) if rate else said
                        yield self._play(play, limit_tokens=played)
                        return
                    if told < tokens:
                        part = self._play(play, limit_tokens=told)
                        yield Partial(part.token_ids, part.text)
                        said = told
                yield whole
        finally:
            self._forget(play)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations, those that wait for a slot when they get it; safe from any thread."""
        for query_id in query_ids:
            for play in tuple(self._open.get(query_id, ())):
                play.is_cancelled = True
                play.loop.call_soon_threadsafe(play.cancelled.set)

    def close(self) -> None:
        """Drop the recordings."""
        self._is_closed = True

    async def _in_real_time(self, plays: Sequence[_Play], tokens_per_second: float) -> AsyncIterator[Generation]:
        """Yield the plays in the order in which an engine with `max_batch` slots would end them."""
        slots = self._slots_of(asyncio.get_running_loop())

        async def run(play: _Play) -> Generation:
            async with slots:
                started = time.monotonic()
                whole = self._play(play)
                try:
                    await asyncio.wait_for(play.cancelled.wait(), timeout=len(whole.token_ids) / tokens_per_second)
                except TimeoutError:
                    return whole
                finally:
                    self._forget(play)
                return self._play(play, limit_tokens=int((time.monotonic() - started) * tokens_per_second))

        tasks = [asyncio.create_task(run(play)) for play in plays]
        try:
            for ended in asyncio.as_completed(tasks):
                yield await ended
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _slots_of(self, loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
        return self._slots.setdefault(loop, asyncio.Semaphore(self._max_batch))

    def _play(self, play: _Play, *, limit_tokens: int | None = None) -> Generation:
        """Play one grant to its end, or to `limit_tokens` if it was cancelled."""
        grant = play.grant
        if grant.max_tokens < 1:
            return _failed(grant, f"a grant must allow at least 1 token, not {grant.max_tokens}")
        row = self._rollouts.row_of_sample(grant.query_id, grant.sample)
        if row is None:
            return _failed(grant, "there is no recording of this query")
        played = len(grant.prefix_token_ids)
        recorded = self._rollouts.length(row)
        if played > recorded:
            return _failed(grant, f"the prefix has {played} tokens, the recording only {recorded}")
        end = min(recorded, played + grant.max_tokens)
        reason: FinishReason = "stop" if end == recorded and self._rollouts.has_stopped(row) else "length"
        if limit_tokens is not None and played + limit_tokens < end:
            end, reason = played + limit_tokens, "cancelled"
        token_ids = self._rollouts.token_ids(row, played, end)
        generation = Generation(
            query_id=grant.query_id,
            token_ids=token_ids,
            text=self._rollouts.text(row, end),
            finish_reason=reason,
            sample=grant.sample,
        )
        return check_generation(grant, generation)

    def _forget(self, play: _Play) -> None:
        running = self._open.get(play.grant.query_id)
        if running is not None:
            running.discard(play)
            if not running:
                del self._open[play.grant.query_id]

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed", remedy="Make a new one.")


async def _is_set_by(event: asyncio.Event, due: float) -> bool:
    """Wait until a time of the steady clock, or until the event is set if that comes first; tell whether it is."""
    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout=max(0.0, due - time.monotonic()))
    return event.is_set()


def _failed(grant: Grant, error: str) -> Generation:
    return Generation(grant.query_id, (), "", "cancelled", error=error, sample=grant.sample)
