"""What an endpoint says of the first token of each answer, where that is to be read beside the words of the prompts.

    a call of one token for each prompt, with the likeliest tokens in its place -> four numbers a query

Such a call is charged before it is made. A run that dies meanwhile has charged what it paid, and what it asks again is
charged again.

Shapes: N queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.engine import EngineConfig
from clear_ray.config.prices import Prices, scaled_parts
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Engine, Grant, Prompt
from clear_ray.ingest.logprobs import TokenLogprob
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.records import COST_PARTS
from clear_ray.stages.charging import reserved_prompts

NUMBERS = 4
"""Entropy of the likeliest tokens, log-probability of the likeliest, its lead over the next, and what the others have."""
_CHAT_TOPS, _LEGACY_TOPS = 20, 5  # as many as OpenAI's API gives


def first_token_parts(
    config: EngineConfig, prices: Prices | None, prompt_tokens_N: NDArray[np.int64], cost_N: NDArray[np.float64]
) -> int:
    """Return what one token of each query takes at most, thousandths of the budget's unit.

    Args:
        config: The endpoint.
        prices: What its tokens cost; None where the budget counts tokens.
        prompt_tokens_N: Length of the prompts, as estimated.
        cost_N: Costs of the input.
    """
    if prices is None:
        return sum(scaled_parts(COST_PARTS, cost) for cost in cost_N.tolist())
    held_N = reserved_prompts(config, prompt_tokens_N)
    return sum(
        scaled_parts(prices.token_parts, cost) + scaled_parts(prices.read_parts, cost) * held
        for held, cost in zip(held_N.tolist(), cost_N.tolist(), strict=True)
    )


@dataclass(frozen=True, slots=True)
class FirstTokenFee:
    """What calls for first tokens are charged; it travels with what makes them.

    Attributes:
        market: The run's market.
        config: The endpoint.
        prices: What its tokens cost; None where the budget counts tokens.
        name: Under which they are charged; each call has a name of its own that begins so.
    """

    market: AsyncMarketClient
    config: EngineConfig
    prices: Prices | None
    name: str

    async def charge(self, prompts: Sequence[Prompt], cost_N: NDArray[np.float64]) -> None:
        """Charge the call that is to ask for the first tokens of some queries: the journal has it before it is made.

        Raises:
            BudgetError: The budget does not pay for it.
        """
        from clear_ray.engine.endpoint.engine import prompt_tokens_of

        prompt_tokens_N = np.array([prompt_tokens_of(prompt) for prompt in prompts], np.int64)
        parts = first_token_parts(self.config, self.prices, prompt_tokens_N, cost_N)
        await self.market.charge(f"{self.name} {uuid4().hex[:12]}", parts)


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
