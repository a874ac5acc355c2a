"""The probe's passes: prompts read once, and what the model says of them.

Shapes: N prompts, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from clear_ray.engine.base import Features
from clear_ray.engine.kept_prompts import KeptPrompts
from clear_ray.engine.shallow import states_of
from clear_ray.engine.trial import Way, make_cache


@torch.inference_mode()
def read_prompts(
    runner: Any,
    way: Way,
    features: Features,
    rows: list[int],
    ids_N: list[list[int]],
    *,
    pass_tokens: int,
    kept: KeptPrompts | None = None,
) -> None:
    """Fill in the features of some prompts from passes over all but their last token, and one over that.

    Args:
        runner: What `make_runner` made for `way`.
        way: How the model is run.
        features: Features of all prompts; changed in these rows.
        rows: Which prompts.
        ids_N: Token ids of all prompts.
        pass_tokens: Positions of one pass.
        kept: Takes what was read, for the answers to these prompts; None where the runner has not all layers.
    """
    lengths = [len(ids_N[row]) for row in rows]
    if way == "own_caches":
        read = [runner.read(ids_N[row]) for row in rows]
        last_ND = torch.stack([states_LD[-1] for states_LD, _ in read]).float()
        total_ND = torch.stack([states_LD.float().sum(dim=0) for states_LD, _ in read])
        logits_NV = torch.stack([logits_V for _, logits_V in read])
    else:
        cache = make_cache(way)
        cache.reserve(len(rows), max(lengths), kept_rows=0)
        heads = [ids_N[row][:-1] for row in rows]
        head_ND = runner.prefill(cache, 0, heads, max(1, pass_tokens // len(rows))) if max(lengths) > 1 else 0.0
        with states_of(runner.decoder) as states:
            output = runner.decode(cache, [ids_N[row][-1] for row in rows], [len(head) for head in heads])
        if kept is not None:
            kept.keep([ids_N[row] for row in rows], cache)
        last_ND = torch.cat(states)[:, -1].float()
        total_ND, logits_NV = head_ND + last_ND, output.logits[:, -1]
    log_p_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    features.hidden_last_ND[rows] = last_ND.cpu().numpy()
    features.hidden_mean_ND[rows] = (total_ND / torch.tensor(lengths, device=last_ND.device)[:, None]).cpu().numpy()
    features.entropy_N[rows] = torch.special.entr(log_p_NV.exp()).sum(dim=-1).cpu().numpy()
