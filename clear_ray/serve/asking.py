"""What passes between the ingress and an engine for one query: what is asked, and what the engine found and bought for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import FinishReason, Grant, Prompt
from clear_ray.ingest.logprobs import TokenLogprob
from clear_ray.serve.law import Ask, Curve
from clear_ray.serve.sale_queue import Sale

_Item = TypeVar("_Item")


class Weight:
    """Tokens that a query counts for where replicas are chosen: at most so many, until it is known what was bought.

    It stays in the process that sends the query; the router there follows it.

    Args:
        tokens: Most that it may be granted.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._follow: Callable[[int], object] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Weight, (self.tokens,)

    def follow(self, told: Callable[[int], object]) -> None:
        """Have every change told to a function, in place of the one before."""
        self._follow = told

    def change(self, tokens: int) -> None:
        """Note what was bought."""
        self.tokens = tokens
        if self._follow is not None:
            self._follow(tokens)


@dataclass(frozen=True, slots=True, eq=False)
class ServedQuery:
    """One query, as the ingress hands it to an engine.

    Attributes:
        name: Its name, which no other query has; asked again under it, it holds what was bought before.
        query_id: Its name for the engine.
        prompt: What to read.
        sampling: What is asked of its answer; None for the engine's settings.
        most_prompt_tokens: Longest prompt that may be read; None for any.
        most_tokens: Ceiling of its answer.
        choices: How many answers it wants.
        seed: Of their sampling.
        tie_break: A number that belongs to it.
        stops: Texts that end an answer.
        every_tokens: Tokens of a piece.
        tenant: On whose account it is.
        ticket: Digest of what was asked, by which one that comes again is known.
        weight: What it counts for.
    """

    name: str
    query_id: str
    prompt: Prompt
    sampling: Sampling | None
    most_prompt_tokens: int | None
    most_tokens: int
    choices: int
    seed: int
    tie_break: int
    stops: tuple[str, ...]
    every_tokens: int
    tenant: str = ""
    ticket: str = ""
    weight: Weight = field(default_factory=lambda: Weight(0))

    def ask(self, reading: PromptReading) -> Ask | None:
        """Return what it asks of the price; None if it cannot be read, or its prompt leaves no room."""
        room = reading.context_tokens - reading.prompt_tokens
        if reading.curve is None or room < 1:
            return None
        return Ask(reading.curve, min(self.most_tokens, room), self.tie_break, self.choices, ticket=self.ticket)

    def grant(self, choice: int, tokens: int, token_ids: tuple[int, ...] = ()) -> Grant:
        """Return permission to generate what a choice may still have.

        Args:
            choice: Its number.
            tokens: What was bought for each choice.
            token_ids: What has come of it.
        """
        return Grant(
            # Choices run side by side, and an engine knows a running answer by its name.
            query_id=f"{self.query_id}.{choice}",
            prompt=self.prompt,
            max_tokens=tokens - len(token_ids),
            seed=self.seed,
            prefix_token_ids=token_ids,
            sample=choice,
            sampling=self.sampling,
            # With a seed the same request has the same answer, whatever it is called here.
            drawn_as=None if self.sampling is None or self.sampling.seed is None else "",
        )


@dataclass(frozen=True, slots=True, eq=False)
class PromptReading:
    """What the probe found about one query, or why the query cannot be read.

    Attributes:
        prompt_tokens: Length of the rendered prompt.
        context_tokens: Prompt and answer together may not be longer.
        curve: The estimate; None if the query cannot be read.
        error: Empty, or why not; no prompt text.
        param: Parameter of the request that it is about.
        is_too_long: Whether it cannot be read because it is too long.
    """

    prompt_tokens: int
    context_tokens: int
    curve: Curve | None
    error: str = ""
    param: str = ""
    is_too_long: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What an engine says first of a query.

    Attributes:
        reading: What the probe found.
        sale: What became of it at the price; None if it has not been asked, or if it has to wait.
        ask: What it asks of the price, if it has to wait there.
    """

    reading: PromptReading
    sale: Sale | None = None
    ask: Ask | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: What is new.
        token_ids: Generated for it, those of text that is held back or cut away included.
        finish_reason: None while the answer goes on.
        error: Empty, or why this query could not be generated.
        logprobs: Of those of its tokens that have text, where they are asked for; None where there are none.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    error: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None


async def merged(sources: Sequence[AsyncIterator[_Item]]) -> AsyncGenerator[tuple[int, _Item]]:
    """Yield what comes of several sources, with their numbers, as it comes; the first error of one ends all."""
    if len(sources) == 1:
        async for item in sources[0]:
            yield 0, item
        return
    come: asyncio.Queue[tuple[int, _Item | BaseException | None]] = asyncio.Queue()

    async def feed(number: int, source: AsyncIterator[_Item]) -> None:
        try:
            async for item in source:
                come.put_nowait((number, item))
            come.put_nowait((number, None))
        except Exception as error:
            come.put_nowait((number, error))

    feeders = [asyncio.create_task(feed(number, source)) for number, source in enumerate(sources)]
    try:
        left = len(feeders)
        while left:
            number, told = await come.get()
            if isinstance(told, BaseException):
                raise told
            if told is None:
                left -= 1
            else:
                yield number, told
    finally:
        for feeder in feeders:
            feeder.cancel()


async def gathered(source: AsyncIterator[_Item], linger_seconds: float = 0.0) -> AsyncGenerator[list[_Item]]:
    """Yield what comes of a source in lists: what came while an earlier list was on its way travels together.

    Args:
        source: Where it comes from.
        linger_seconds: How long the first item waits for the second at most.
    """
    come: asyncio.Queue[_Item | None] = asyncio.Queue()

    async def feed() -> None:
        try:
            async for item in source:
                come.put_nowait(item)
        finally:
            come.put_nowait(None)

    feeder = asyncio.create_task(feed())
    try:
        is_first, is_over = True, False
        while not is_over:
            told = [await come.get()]
            if is_first and linger_seconds and told[0] is not None:
                with suppress(TimeoutError):
                    told.append(await asyncio.wait_for(come.get(), linger_seconds))
            is_first = False
            while not come.empty():
                told.append(come.get_nowait())
            is_over = told[-1] is None
            if some := [item for item in told if item is not None]:
                yield some
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


async def scattered(lists: AsyncIterator[list[_Item]]) -> AsyncGenerator[_Item]:
    """Yield what `gathered` has put together, one by one."""
    async for some in lists:
        for item in some:
            yield item
