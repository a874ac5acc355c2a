"""How many tokens a model reads, prompt and answer together, as its configuration says it.

`max_position_embeddings` is that number, unless positions are scaled: some scalings leave it at what the model was trained on
first and name a factor beside it. YaRN, `linear` and `dynamic` do; `llama3` and `longrope` name the scaled number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clear_ray.config.engine import ModelConfig
from clear_ray.errors import ConfigError

_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
_MULTIPLIED = frozenset(("yarn", "linear", "dynamic"))
_BY_LENGTH = frozenset(("dynamic", "longrope"))


def longest_context(saved: Any) -> int | None:
    """Return how many tokens a model reads; None if its configuration does not say.

    Args:
        saved: Its configuration, as transformers reads it.
    """
    text_config = saved.get_text_config()
    named = [getattr(text_config, name, None) for name in _LIMITS]
    limit = next((number for number in named if isinstance(number, int) and number > 0), None)
    if limit is None:
        return None
    return max([limit, *(_scaled(rope, limit) for rope in _scalings(text_config))])


def context_tokens(config: ModelConfig, saved: Any) -> int:
    """Return how many tokens a run lets the model read.

    Args:
        config: The longest context that is wanted; None takes the model's own limit.
        saved: The model's configuration, as transformers reads it.

    Raises:
        ConfigError: The model's context is shorter, or unknown and not given.
    """
    limit, wanted = longest_context(saved), config.max_context_tokens
    if limit is None and wanted is None:
        raise ConfigError(
            "the model states no longest context",
            "engine.max_context_tokens",
            remedy="Set it: prompt and answer together.",
        )
    if wanted is not None and (wanted < 2 or (limit is not None and wanted > limit)):
        shown = "at least 2 tokens" if limit is None else f"{limit} tokens"
        raise ConfigError(f"the model's context is {shown}", "engine.max_context_tokens", str(wanted), "Give less.")
    return wanted or limit or 0


def unscaled_context(saved: Any) -> int | None:
    """Return up to how many tokens positions mean the same in every pass; None if they always do.

    `dynamic` and `longrope` turn positions by angles that depend on the longest row of a pass: past this number a row would
    get other tokens beside a longer one.

    Args:
        saved: The model's configuration, as transformers reads it.
    """
    text_config = saved.get_text_config()
    limits: list[int] = []
    for rope in _scalings(text_config):
        if rope.get("rope_type") in _BY_LENGTH:
            original = rope.get("original_max_position_embeddings")
            limits.append(int(original or getattr(text_config, "max_position_embeddings", None) or 0))
    return min(limits, default=None)


def moving_positions(saved: Any, context_tokens: int | None = None) -> str:
    """Return why rows of this length cannot share passes, if their positions would move by it; empty if they would not.

    Args:
        saved: The model's configuration, as transformers reads it.
        context_tokens: The longest row; None for the longest that the model reads.
    """
    unscaled, longest = unscaled_context(saved), context_tokens or longest_context(saved)
    if unscaled is None or (longest is not None and longest <= unscaled):
        return ""
    return f"past {unscaled} tokens its positions are scaled by the longest row of a pass"


def _scalings(text_config: Any) -> Iterable[dict[str, Any]]:
    """Yield the position scalings of a model: one, or one for each type of layer."""
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    if not isinstance(rope, dict):
        return
    if nested := [part for part in rope.values() if isinstance(part, dict) and "rope_type" in part]:
        # Models with a scaling for each type of layer name the scaled number: `linear` multiplies it no further.
        yield from (part for part in nested if part["rope_type"] != "linear")
    else:
        yield {**rope, "rope_type": rope.get("rope_type", rope.get("type"))}


def _scaled(rope: dict[str, Any], limit: int) -> int:
    if rope.get("rope_type") not in _MULTIPLIED:
        return limit
    original = rope.get("original_max_position_embeddings") or limit
    return int(original * (rope.get("factor") or 1.0))
