"""Answers while they are written, and the moment at which no more of one is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

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


def _never(text: str) -> bool:
    del text
    return False


async def stream(
    engine: Engine, grant: Grant, *, every_tokens: int, is_over: Callable[[str], bool] = _never
) -> AsyncIterator[Partial | Generation]:
    """Run one grant; yield what there is about every `every_tokens` tokens, and last the generation.

    Args:
        engine: What runs it.
        grant: What to run.
        every_tokens: How often to yield, and to look whether the answer is over.
        is_over: Tells from the text so far that no more is wanted. The generation is then `cancelled` unless it ended by
            itself in the same moment; it holds all tokens that were generated, those after the moment included.

    Raises:
        EngineError: The engine failed or broke the grant.
    """
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
