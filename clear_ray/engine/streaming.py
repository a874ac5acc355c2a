"""Answers while they are written: an optional second way out of an engine, and the same in slices for engines without it.

`Engine` hands an answer out when its grant ends. An engine that is a `StreamingEngine` besides says what it has in
between. For every other engine a grant is spent in slices, each going on where the last one ended: it then reads prompt and
prefix again for each slice, and must not force answers at the end of a grant (`answer_reserve_tokens`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from clear_ray.engine.base import Engine, Generation, Grant, check_generation
from clear_ray.ingest.logprobs import TokenLogprob


@dataclass(frozen=True, slots=True)
class Partial:
    """An answer that goes on.

    Attributes:
        token_ids: Tokens generated under the grant so far.
        text: Answer so far as text, prefix included, special tokens dropped; later tokens may still change its end.
        logprobs: Those of the grant so far, as `Generation` has them.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine may offer besides `Engine`."""

    def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Run one grant in the continuous batch and tell of it meanwhile.

        Yields a `Partial` about every `every_tokens` tokens, fewer where the caller does not keep up, and last the
        generation, as `generate` would.

        Raises:
            EngineError: The engine as a whole failed; nothing more will be yielded.
        """


def _never(text: str) -> bool:
    del text
    return False


async def stream(
    engine: Engine, grant: Grant, *, every_tokens: int, is_over: Callable[[str], bool] = _never
) -> AsyncIterator[Partial | Generation]:
    """Run one grant; yield what there is about every `every_tokens` tokens, and last the generation.

    Args:
        engine: Streams by itself or not.
        grant: What to run.
        every_tokens: How often to yield, and to look whether the answer is over.
        is_over: Tells from the text so far that no more is wanted. The generation is then `cancelled` unless it ended by
            itself in the same moment; it holds all tokens that were generated, those after the moment included.

    Raises:
        EngineError: The engine failed or broke the grant.
    """
    if not isinstance(engine, StreamingEngine):
        async for item in _in_slices(engine, grant, every_tokens, is_over):
            yield item
        return
    is_told = False
    async for item in engine.stream(grant, every_tokens):
        if isinstance(item, Generation):
            yield check_generation(grant, item)
            return
        if not is_told and is_over(item.text):
            engine.cancel([grant.query_id])
            is_told = True
        if not is_told:
            yield item


async def _in_slices(
    engine: Engine, grant: Grant, slice_tokens: int, is_over: Callable[[str], bool]
) -> AsyncIterator[Partial | Generation]:
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = ()
    while True:
        size = min(slice_tokens, grant.max_tokens - len(token_ids))
        part = replace(grant, max_tokens=size, prefix_token_ids=grant.prefix_token_ids + token_ids)
        (generation,) = [check_generation(part, generation) async for generation in engine.generate([part])]
        is_last = generation.finish_reason != "length" or len(generation.token_ids) < size
        token_ids += generation.token_ids
        logprobs = None if logprobs is None or generation.logprobs is None else logprobs + generation.logprobs
        whole = replace(generation, token_ids=token_ids, logprobs=logprobs)
        if is_last or len(token_ids) == grant.max_tokens:
            yield whole
            return
        if is_over(generation.text):
            yield replace(whole, finish_reason="cancelled")
            return
        yield Partial(token_ids, generation.text, logprobs)
