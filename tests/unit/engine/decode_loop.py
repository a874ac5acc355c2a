"""The plainest correct decoding: a padded batch on transformers' own cache that drops rows as they finish.

Nothing in clear_ray runs on it. It shares no code with the continuous batches but the choice of the token, and is what
they are compared with, token for token.

Shapes: N rows that still run, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from clear_ray.engine.base import Grant
from clear_ray.engine.sampling import choose_tokens, sampling_key, uniform


@torch.inference_mode()
def decode(
    model: Any,
    grants: Sequence[Grant],
    input_ids: Sequence[Sequence[int]],
    *,
    end_token_ids: frozenset[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[tuple[int, ...]]:
    """Generate every grant in one batch.

    Args:
        model: A causal language model of transformers.
        grants: Ceilings, seeds and prefixes.
        input_ids: Prompt and prefix of each grant.
        end_token_ids: Tokens that end an answer.
        temperature: As for `choose_tokens`.
        top_p: As for `choose_tokens`.

    Returns:
        The tokens generated under each grant, end token included.
    """
    longest = max(map(len, input_ids))
    padded = [[0] * (longest - len(ids)) + list(ids) for ids in input_ids]
    step_ids = torch.tensor(padded, device=model.device)
    mask_NT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in input_ids], device=model.device)
    position_ids = (mask_NT.cumsum(dim=-1) - 1).clamp(min=0)
    generated: list[list[int]] = [[] for _ in grants]
    running = list(range(len(grants)))
    cache = DynamicCache(config=model.config)
    while running:
        logits_NV = model(
            input_ids=step_ids, attention_mask=mask_NT, position_ids=position_ids, past_key_values=cache
        ).logits[:, -1]
        uniform_N = [
            uniform(sampling_key(grants[i]), len(grants[i].prefix_token_ids) + len(generated[i])) for i in running
        ]
        chosen_N = choose_tokens(logits_NV, temperature=temperature, top_p=top_p, uniform_N=uniform_N)
        for i, token_id in zip(running, chosen_N, strict=True):
            generated[i].append(token_id)
        kept = [
            row
            for row, i in enumerate(running)
            if generated[i][-1] not in end_token_ids and len(generated[i]) < grants[i].max_tokens
        ]
        running = [running[row] for row in kept]
        rows = torch.tensor(kept, dtype=torch.long, device=model.device)
        cache.batch_select_indices(rows)
        step_ids = torch.tensor([[generated[i][-1]] for i in running], device=model.device)
        position_ids = position_ids[rows, -1:] + 1
        mask_NT = torch.cat([mask_NT[rows], mask_NT.new_ones(len(kept), 1)], dim=-1)
    return [tuple(tokens) for tokens in generated]
