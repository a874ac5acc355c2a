"""The choice of the next token, reproducible per query.

Every answer has a key, made from its seed, query and sample. The random number for its t-th token is a hash of (key, t)
and of nothing else: not of the batch, the order, the device, or how the answer was cut into grants. One number in [0, 1)
picks the token by the inverse of the cumulative distribution over the vocabulary.

What this does not promise: the distribution itself comes out of matrix products whose last bits depend on the shape of
the batch. A token changes only where the number falls within that error of a boundary: about once in a million tokens
in float32, noticeably more often in bfloat16. Greedy decoding has the same limit, at ties.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from clear_ray.engine.base import Grant


def sampling_key(grant: Grant) -> bytes:
    """Return the key of the answer that `grant` belongs to: the same for all grants of one query and sample."""
    return hashlib.blake2b(f"{grant.seed}\0{grant.sample}\0{grant.query_id}".encode(), digest_size=16).digest()


def uniform(key: bytes, position: int) -> float:
    """Return the random number for token `position` of an answer: a multiple of 2^-24 in [0, 1)."""
    hashed = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=3).digest()
    return int.from_bytes(hashed, "little") / 2**24


def choose_tokens(
    logits_NV: torch.Tensor, *, temperature: float, top_p: float, uniform_N: Sequence[float]
) -> list[int]:
    """Choose each row's next token.

    Args:
        logits_NV: Logits, any float type.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Only the most likely tokens that together reach this probability can be drawn, at least one.
        uniform_N: A random number for each row, as from `uniform`; not looked at where temperature is 0.
    """
    if temperature == 0:
        greedy: list[int] = logits_NV.argmax(dim=-1).tolist()
        return greedy
    probability_NV = torch.softmax(logits_NV.float() / temperature, dim=-1)
    if top_p < 1:
        probability_NV = _keep_nucleus(probability_NV, top_p)
    cumulative_NV = probability_NV.cumsum(dim=-1)
    drawn_N1 = torch.tensor(uniform_N, dtype=torch.float32, device=logits_NV.device)[:, None]
    # The total differs from 1 by rounding, and by what the nucleus left out.
    token_N1 = torch.searchsorted(cumulative_NV, drawn_N1 * cumulative_NV[:, -1:], right=True)
    most_likely_N1 = probability_NV.argmax(dim=-1, keepdim=True)
    chosen: list[int] = torch.where(token_N1 < logits_NV.shape[-1], token_N1, most_likely_N1)[:, 0].tolist()
    return chosen


def _keep_nucleus(probability_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities with those outside the nucleus set to 0, not renormalised."""
    sorted_NV, order_NV = probability_NV.sort(dim=-1, descending=True)
    before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
    kept_NV = torch.where(before_NV < top_p, sorted_NV, 0.0)
    return torch.zeros_like(probability_NV).scatter(-1, order_NV, kept_NV)
