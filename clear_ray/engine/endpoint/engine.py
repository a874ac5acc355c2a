"""A model behind an OpenAI-compatible endpoint, as an engine: grants become calls, answers become generations.

Tokens are those of the endpoint's own count (`usage`). Where it does not say, or says what cannot be, a call counts as the
most that it may have generated. A prompt is read when it is answered and not before: the probe sees its text alone, and
hidden states have no width.

Shapes: N queries.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.admission import empty_features
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt, TokenIds
from clear_ray.engine.endpoint.answers import (
    EndpointReply,
    failed,
    generation_of,
    is_cut,
    is_cut_short,
    is_unknown_end,
    lost,
)
from clear_ray.engine.endpoint.calls import Calls, Dialect, FaultError
from clear_ray.engine.endpoint.check import fingerprint_of, goes_on, look_at
from clear_ray.engine.endpoint.connection import key_of
from clear_ray.engine.endpoint.limit import jittered
from clear_ray.engine.endpoint.requests import CHAT, EndpointRequest, request_of
from clear_ray.engine.streaming import Partial
from clear_ray.errors import EngineError, SchemaError
from clear_ray.ingest.sampling_fields import STRUCTURE_FIELDS

REFUSED_BY_ENDPOINT = "the endpoint refused it: "  # as `stages.causes` has it
LOST_BY_ENDPOINT = "the endpoint lost it: "
_LONGEST_LOST_WAIT_SECONDS = 30.0
_PIECE = re.compile(r"[A-Z]?[a-z]{1,5}|[A-Z]{1,2}|\d{1,2}|\s{2,}|[^\sA-Za-z\d]")
_WIDE = "\u2e80"  # from here on a sign is often two tokens
_TURN_TOKENS, _CHAT_TOKENS = 4, 3


class OpenAIEngine:
    """An endpoint behind the Engine protocol.

    A query that the endpoint refuses is that query's `error`. A grant of which it is not known what it came to is `is_lost`
    and counts as spent. A call that was not taken is sent again, for as long as `patience_seconds` says.

    Args:
        config: The endpoint.

    Raises:
        ConfigError: A package, the key or the model is not there, or the address is wrong.
        EngineError: The endpoint cannot be reached, or is broken.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        found = look_at(config)
        self._config, self._key = config, key_of(config)
        self._goes_on = config.api == "chat" and goes_on(config, self._key)
        self._card = ModelCard(
            name=config.model,
            fingerprint=fingerprint_of(config.model),
            context_tokens=found.context_tokens or MOST_TOKENS,
            hidden_width=0,
        )
        self._calls: WeakKeyDictionary[asyncio.AbstractEventLoop, Calls] = WeakKeyDictionary()
        self._open: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Generation]]]] = {}
        self._dialect = Dialect(streams=config.stream)
        self._lost_of: dict[str, int] = {}
        self._oddities: Counter[str] = Counter()
        self._rng = random.Random()  # noqa: S311 - jitter
        self._is_closed = False

    @property
    def card(self) -> ModelCard:
        """Identity and limits: the fingerprint digests the model's name, which is all that is known of it."""
        return self._card

    @property
    def progress(self) -> int:
        """The clock, nanoseconds: every call ends by itself, in an answer or in an error."""
        return time.monotonic_ns()

    @property
    def counts(self) -> dict[str, int]:
        """Answers so far by what they were: `answered`, `limited` (429), `busy`, `lost`, `refused`, `fatal`."""
        total: dict[str, int] = {}
        for calls in self._calls.values():
            for kind, count in calls.counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    @property
    def oddities(self) -> dict[str, int]:
        """What a user of this endpoint should know of the answers so far: a line each, and of how many it holds."""
        return dict(self._oddities)

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Estimate the tokens of each prompt from its letters; those of token ids are counted."""
        return [prompt_tokens_of(prompt) for prompt in prompts]

    def prefill(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Return the estimated length of each prompt; there are no hidden states, and the entropy is not known."""
        self._refuse_if_closed()
        features = empty_features(len(query_ids), 0)
        features.prompt_tokens_N[:] = self.prompt_tokens(prompts)
        features.entropy_N[:] = np.nan
        return features

    async def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Have each grant answered; yield each generation as soon as it ends.

        Raises:
            EngineError: The engine is closed, the endpoint takes no call any more, or generated more than it was granted.
        """
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(self._run(grant)) for grant in grants]
        for grant, task in zip(grants, tasks, strict=True):
            self._open.setdefault(grant.query_id, set()).add((loop, task))
        grant_of = dict(zip(tasks, grants, strict=True))
        try:
            waiting = set(tasks)
            while waiting:
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    # One that was cancelled was sent, perhaps, and nothing is known of it any more.
                    yield replace(lost(grant_of[task], ""), is_lost=False) if task.cancelled() else task.result()
        finally:
            for task, grant in grant_of.items():
                task.cancel()
                self._forget(grant.query_id, loop, task)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Have one grant answered; nothing is told before its end.

        Raises:
            EngineError: As `generate` does.
        """
        del every_tokens
        async for generation in self.generate([grant]):
            yield generation

    def cancel(self, query_ids: Iterable[str]) -> None:
        """Give these queries' calls up; what they spent is not known, and counts as all. Safe from any thread."""
        for query_id in query_ids:
            for loop, task in tuple(self._open.get(query_id, ())):
                loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Refuse further calls; connections are closed with the event loops that they belong to."""
        self._is_closed = True

    async def _run(self, grant: Grant) -> Generation:
        if grant.max_tokens < 1:
            return failed(grant, f"a grant must allow at least 1 token, not {grant.max_tokens}")
        try:
            request = request_of(grant, self._config)
        except SchemaError as error:
            return failed(grant, str(error))
        can_continue = self._can_continue(grant, request)
        if grant.prefix_token_ids and not (can_continue and request.sent_text):
            return failed(grant, "the endpoint does not go on with a cut answer")
        prompt_tokens = prompt_tokens_of(grant.prompt) + len(grant.prefix_token_ids)
        try:
            reply = await self._calls_of_loop().send(request, prompt_tokens=prompt_tokens)
        except FaultError as error:
            return await self._without_answer(grant, error)
        self._lost_of.pop(grant.query_id, None)
        self._note(grant, reply)
        return generation_of(grant, reply, sent_text=request.sent_text, can_continue=can_continue)

    def _note(self, grant: Grant, reply: EndpointReply) -> None:
        if reply.usage is None:
            self._oddities["no usage came with them that can be, so each counts as its whole grant"] += 1
        elif is_cut_short(grant, reply):
            self._oddities[
                "a limit of the endpoint's own cut them below their grants: its context or ceiling is short"
            ] += 1
        elif reply.has_reasoning and not reply.text.strip() and is_cut(reply):
            self._oddities[
                "thoughts took the whole grant, and no answer was begun: allocation.max_tokens counts both"
            ] += 1
        if is_unknown_end(reply):
            self._oddities[f"they ended for a reason that is not known, {reply.finish[:40]}, and count as ended"] += 1
        if left_out := self._dialect.left_out:
            self._oddities[f"the endpoint does not take {', '.join(left_out)}, so its own holds"] += 1

    def _can_continue(self, grant: Grant, request: EndpointRequest) -> bool:
        is_structured = grant.sampling is not None and grant.sampling.structure is not None
        if is_structured or any(self._config.extra_body.get(name) for name in STRUCTURE_FIELDS):
            return False  # a call begins its structure anew
        return self._goes_on if request.path == CHAT else not isinstance(grant.prompt, TokenIds)

    async def _without_answer(self, grant: Grant, error: FaultError) -> Generation:
        fault = error.fault
        if fault.kind != "lost":
            if grant.prefix_token_ids:  # what it was cut off at is an answer all the same
                cut = failed(grant, "")
                return replace(cut, text=grant.prefix_text, finish_reason="length", is_at_end=True, logprobs=())
            return failed(grant, REFUSED_BY_ENDPOINT + fault.said)
        tries = self._lost_of[grant.query_id] = self._lost_of.get(grant.query_id, 0) + 1
        # Whoever tries it again does so at once: the wait is before it is told.
        await asyncio.sleep(jittered(min(_LONGEST_LOST_WAIT_SECONDS, 0.5 * 2.0 ** min(tries - 1, 8)), self._rng))
        return lost(grant, LOST_BY_ENDPOINT + fault.said)

    def _calls_of_loop(self) -> Calls:
        loop = asyncio.get_running_loop()
        calls = self._calls.get(loop)
        if calls is None:
            calls = self._calls[loop] = Calls(self._config, self._key, dialect=self._dialect, rng=self._rng)
        return calls

    def _forget(self, query_id: str, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Generation]) -> None:
        running = self._open.get(query_id, set())
        running.discard((loop, task))
        if not running:
            self._open.pop(query_id, None)

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed", remedy="Make a new one.")


def prompt_tokens_of(prompt: Prompt) -> int:
    """Estimate the tokens of a prompt without its tokenizer: pieces of words, of numbers, and signs; rather too many."""
    if isinstance(prompt, TokenIds):
        return len(prompt)
    turns = [prompt] if isinstance(prompt, str) else [content for _, content in prompt]
    pieces = sum(1 + (piece[0][0] >= _WIDE) for text in turns for piece in _PIECE.finditer(text))
    return int(pieces) + _TURN_TOKENS * len(turns) + _CHAT_TOKENS
