"""A tiny model with random weights, and batches of answers on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine import Grant
from clear_ray.engine.batch import AnswerBatch, RunningGrant
from clear_ray.engine.slots import SlotBatch

VOCABULARY = 60
END = frozenset({1, 2, 3})


def tiny_config(**changes: Any) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        # Wide weights: decided distributions, and answers that really depend on what came before.
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**settings, **changes})


def tiny_model(*, dtype: torch.dtype = torch.float64, device: str = "cpu", **changes: Any) -> Any:
    """Return a random model; float64, where batches of different shape never tip a token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(**changes), attn_implementation="sdpa")
    return model.to(device=device, dtype=dtype).eval()


def slot_batch(model: Any, **changes: Any) -> SlotBatch:
    """Return a greedy batch of at most 3 answers, unless a change says otherwise: a setting, or an argument of the batch."""
    settings = {name: changes.pop(name) for name in list(changes) if name in TransformersConfig.model_fields}
    sizes: dict[str, Any] = {"cache_tokens": 10_000, "prefill_tokens": 16, "end_token_ids": END}
    return SlotBatch(model, TransformersConfig(**({"max_batch": 3} | settings)), **(sizes | changes))


def answer_for(grant: Grant, prompt_ids: Sequence[int]) -> RunningGrant:
    return RunningGrant(grant, [*prompt_ids, *grant.prefix_token_ids], on_end=lambda _: None)


def run_batch(batch: AnswerBatch, answers: Sequence[RunningGrant]) -> list[RunningGrant]:
    """Add the answers and step until the batch is idle; return them in the order of their ends."""
    for answer in answers:
        batch.add(answer)
    ended: list[RunningGrant] = []
    while not batch.is_idle:
        ended += batch.step()
    return ended
