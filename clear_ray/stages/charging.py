"""What a call is charged, by what its endpoint says that it took, and what is set aside for its prompt.

Shapes: N queries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.engine import EngineConfig
from clear_ray.config.prices import Prices, scaled_parts
from clear_ray.engine.base import Usage

_PROMPT_MARGIN, _TEMPLATE_TOKENS = 1.25, 16


def reserved_prompts(config: EngineConfig, prompt_tokens_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what is set aside for prompts: of an engine that only estimates their length, some more."""
    if config.kind != "openai":
        return prompt_tokens_N
    return np.asarray(np.ceil(_PROMPT_MARGIN * prompt_tokens_N) + _TEMPLATE_TOKENS, np.int64)


def charged_parts(
    prices: Prices, usage: Usage, *, generated_tokens: int, reserved_parts: int, cost: float = 1.0
) -> int:
    """Return what a call takes from the budget, thousandths of its unit.

    All that was reserved if the usage cannot be that of this call: a part that is more than its whole, another number of
    generated tokens than were counted, or nothing read. And never more than was reserved, which no usage can make undone: a
    caller that reserves too little for a prompt would otherwise spend what is promised to others.

    Args:
        prices: Of the model that answered.
        usage: What the endpoint says.
        generated_tokens: What was counted.
        reserved_parts: What was set aside for the call.
        cost: Of the query, by its input.
    """
    is_possible = (
        0 <= usage.cached_tokens <= usage.prompt_tokens
        and 0 <= usage.reasoning_tokens <= usage.output_tokens == generated_tokens
        and usage.prompt_tokens > 0
    )
    if not is_possible:
        return reserved_parts
    taken_parts = prices.taken_parts(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
    return min(scaled_parts(taken_parts, cost), reserved_parts)
