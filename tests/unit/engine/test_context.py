"""How long a context is, from the shapes in which configurations say it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.context import context_tokens, longest_context, unscaled_context
from clear_ray.errors import ConfigError

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
FACTORS = {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"}
SHAPES: list[tuple[str, dict[str, Any], int, int | None]] = [
    # Architecture, what its config.json says, longest context, up to where positions mean the same in every pass.
    ("llama", {"max_position_embeddings": 4096}, 4096, None),
    ("mistral", {"max_position_embeddings": 32768, "sliding_window": 4096, "rope_scaling": None}, 32768, None),
    ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072, None),
    ("qwen3", {"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072, None),
    (
        "deepseek_v3",
        {
            "max_position_embeddings": 163840,
            "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"},
        },
        163840,
        None,
    ),
    (
        "gpt_oss",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {"factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn"},
        },
        131072,
        None,
    ),
    ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"factor": 4.0, "type": "linear"}}, 16384, None),
    ("llama", {"max_position_embeddings": 4096, "rope_scaling": {"factor": 2.0, "type": "dynamic"}}, 8192, 4096),
    (
        "llama",
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        131072,
        None,
    ),
    (
        "phi3",
        {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": FACTORS},
        131072,
        4096,
    ),
    # Scaled for the layers that see everything, and the number is the scaled one.
    (
        "gemma3_text",
        {"max_position_embeddings": 131072, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        131072,
        None,
    ),
    ("gpt2", {"n_positions": 1024}, 1024, None),
    ("mpt", {"max_seq_len": 2048}, 2048, None),
    ("rwkv", {"context_length": 1024}, 1024, None),
    ("gemma3", {"text_config": {"max_position_embeddings": 8192}}, 8192, None),
]


@pytest.mark.parametrize(
    ("name", "saved", "longest", "unscaled"), SHAPES, ids=[f"{i} {s[0]}" for i, s in enumerate(SHAPES)]
)
def test_the_longest_context(name: str, saved: dict[str, Any], longest: int, unscaled: int | None) -> None:
    config = CONFIG_MAPPING[name].from_dict(saved)
    assert longest_context(config) == longest
    assert unscaled_context(config) == unscaled
    assert context_tokens(TransformersConfig(), config) == longest
    assert context_tokens(TransformersConfig(max_context_tokens=longest), config) == longest
    with pytest.raises(ConfigError, match=f"context is {longest} tokens"):
        context_tokens(TransformersConfig(max_context_tokens=longest + 1), config)


def test_a_model_without_a_longest_context_needs_one_to_be_set() -> None:
    config = CONFIG_MAPPING["mamba"]()
    assert longest_context(config) is None
    with pytest.raises(ConfigError, match=r"engine.max_context_tokens: the model states no longest context"):
        context_tokens(TransformersConfig(), config)
    assert context_tokens(TransformersConfig(max_context_tokens=700), config) == 700
