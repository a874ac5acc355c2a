"""The probe's passes: prompts read once, and what the model says of them.

Shapes: N prompts, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from clear_ray.engine.base import Features
from clear_ray.engine.shallow import states_of
from clear_ray.engine.trial import Way, make_cache


@torch.inference_mode()
def read_prompts(
    runner: Any, way: Way, features: Features, rows: list[int], ids_N: list[list[int]], *, pass_tokens: int
) -> None:
    """Fill in the features of some prompts from passes over all but their last token, and one over that.

    Args:
        runner: What `make_runner` made for `way`.
        way: How the model is run.
        features: Of all prompts; changed in these rows.
        rows: Which prompts.
        ids_N: Token ids of all prompts.
        pass_tokens: Positions of one pass.
    """
    cache = make_cache(way)
    longest = max(len(ids_N[row]) for row in rows)
    cache.reserve(len(rows), longest, kept_rows=0)
    heads = [ids_N[row][:-1] for row in rows]
    total_ND = runner.prefill(cache, 0, heads, max(1, pass_tokens // len(rows))) if longest > 1 else 0.0
    last_ids = [ids_N[row][-1] for row in rows]
    with states_of(runner.decoder) as states:
        output = runner.decode(cache, last_ids, [len(head) for head in heads])
    last_ND = torch.cat(states)[:, -1].float()
    length_N1 = torch.tensor([[len(ids_N[row])] for row in rows], device=last_ND.device)
    log_p_NV = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    features.hidden_last_ND[rows] = last_ND.cpu().numpy()
    features.hidden_mean_ND[rows] = ((total_ND + last_ND) / length_N1).cpu().numpy()
    features.entropy_N[rows] = torch.special.entr(log_p_NV.exp()).sum(dim=-1).cpu().numpy()
