"""What an endpoint says of the first token of each answer, where that is to be read beside the words of the prompts.

    a call of one token for each prompt, with the likeliest tokens in its place -> four numbers a query

Shapes: N queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.engine import EngineConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Engine, Grant, Prompt
from clear_ray.ingest.logprobs import TokenLogprob

NUMBERS = 4
"""Entropy of the likeliest tokens, log-probability of the likeliest, its lead over the next, and what the others have."""
_CHAT_TOPS, _LEGACY_TOPS = 20, 5  # as many as OpenAI's API gives


async def first_tokens(
    engine: Engine, config: EngineConfig, query_ids: Sequence[str], prompts: Sequence[Prompt]
) -> NDArray[np.float32]:
    """Return the numbers of each query, shape (N, 4); NaN where the endpoint gives none.

    Args:
        engine: The engine; a token of each query is generated.
        config: Its settings.
        query_ids: The queries.
        prompts: Their prompts.
    """
    tops = _LEGACY_TOPS if getattr(config, "api", "chat") == "completions" else _CHAT_TOPS
    asked = Sampling(logprobs=tops)
    grants = [Grant(name, prompt, 1, sampling=asked) for name, prompt in zip(query_ids, prompts, strict=True)]
    found = np.full((len(grants), NUMBERS), np.nan, np.float32)
    place = {name: row for row, name in enumerate(query_ids)}
    async for generation in engine.generate(grants):
        if generation.logprobs:
            found[place[generation.query_id]] = numbers_of(generation.logprobs[0])
    return found


def numbers_of(first: TokenLogprob) -> tuple[float, float, float, float]:
    """Return what the likeliest tokens in the place of one say; see `NUMBERS`."""
    known = sorted({first.token: first.logprob, **dict(first.top)}.values(), reverse=True)
    chances = [math.exp(min(value, 0.0)) for value in known]
    rest = max(1.0 - sum(chances), 0.0)
    entropy = -sum(p * math.log(p) for p in (*chances, rest) if p > 0.0)
    lead = known[0] - known[1] if len(known) > 1 else -math.log(max(rest, 1e-4))
    return entropy, known[0], min(lead, 20.0), rest
