"""The choice of the next token, reproducible per query.

Every answer has a key, made from its seed, query and sample. The random number for its t-th token is a hash of (key, t)
and of nothing else: not of the batch, the order, the device, or how the answer was cut into grants. One number in [0, 1)
picks the token by the inverse of the cumulative distribution over the vocabulary.

What this does not promise: the distribution itself comes out of matrix products whose last bits depend on the shape of
the batch. A token changes only where the number falls within that error of a boundary: about once in a million tokens
in float32, noticeably more often in bfloat16. Greedy decoding has the same limit, at ties.

Shapes: N rows, M of them, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from clear_ray.engine.base import Grant

_NUCLEUS_TOKENS = 1_024


def sampling_key(grant: Grant) -> bytes:
    """Return the key of the answer that `grant` belongs to: the same for all grants of one query and sample."""
    name = grant.query_id if grant.drawn_as is None else grant.drawn_as
    return hashlib.blake2b(f"{grant.seed}\0{grant.sample}\0{name}".encode(), digest_size=16).digest()


def uniform(key: bytes, position: int) -> float:
    """Return the random number for token `position` of an answer: a multiple of 2^-24 in [0, 1)."""
    hashed = hashlib.blake2b(position.to_bytes(8, "little"), key=key, digest_size=3).digest()
    return int.from_bytes(hashed, "little") / 2**24


def choose_tokens(
    logits_NV: torch.Tensor,
    *,
    temperature: float | Sequence[float],
    top_p: float | Sequence[float],
    uniform_N: Sequence[float],
    top_k: int | Sequence[int] = 0,
    min_p: float | Sequence[float] = 0.0,
) -> list[int]:
    """Choose each row's next token; every setting is one for all rows, or one for each.

    Args:
        logits_NV: Logits, any float type.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Only the most likely tokens that together reach this probability can be drawn, at least one.
        uniform_N: A random number for each row, as from `uniform`; not looked at where temperature is 0.
        top_k: Only so many of the most likely tokens can be drawn; 0 for all.
        min_p: Only tokens that are at least so likely as this share of the most likely one can be drawn.
    """
    rows = len(logits_NV)
    temperature_N = _of_each(temperature, rows)
    drawn = [row for row, value in enumerate(temperature_N) if value > 0]
    if not drawn:
        greedy: list[int] = logits_NV.argmax(dim=-1).tolist()
        return greedy
    kept_MV = keep_likely(
        _rows_of(logits_NV, drawn).float(),
        temperature_M=[temperature_N[row] for row in drawn],
        top_k_M=_taken(top_k, rows, drawn),
        top_p_M=_taken(top_p, rows, drawn),
        min_p_M=_taken(min_p, rows, drawn),
    )
    chosen = _draw(kept_MV, [uniform_N[row] for row in drawn])
    if len(drawn) == rows:
        return chosen
    tokens: list[int] = logits_NV.argmax(dim=-1).tolist()
    for row, token_id in zip(drawn, chosen, strict=True):
        tokens[row] = token_id
    return tokens


def keep_likely(
    logits_NV: torch.Tensor,
    *,
    temperature_M: Sequence[float],
    top_k_M: Sequence[int],
    top_p_M: Sequence[float],
    min_p_M: Sequence[float],
) -> torch.Tensor:
    """Return tempered logits with all tokens at minus infinity that are not to be drawn.

    The filters follow each other as in transformers' `generate`, and keep what it keeps, ties included: top-k, then the
    nucleus of what that leaves, then what is likely enough beside the likeliest.

    Args:
        logits_NV: Logits, float32.
        temperature_M: Temperature of each row, above 0.
        top_k_M: Top k of each row; 0 for all tokens.
        top_p_M: Top p of each row.
        min_p_M: Min p of each row.
    """
    device, vocabulary = logits_NV.device, logits_NV.shape[-1]
    logits_NV = logits_NV / torch.tensor(temperature_M, dtype=torch.float32, device=device)[:, None]
    if rows := [row for row, k in enumerate(top_k_M) if 0 < k < vocabulary]:
        part_MV = _rows_of(logits_NV, rows)
        k_M = torch.tensor([top_k_M[row] for row in rows], device=device)
        best_MK = torch.topk(part_MV, int(k_M.max()))[0]
        part_MV = part_MV.masked_fill(part_MV < best_MK.gather(1, k_M[:, None] - 1), -torch.inf)
        logits_NV = _with_rows(logits_NV, rows, part_MV)
    if rows := [row for row, p in enumerate(top_p_M) if p < 1]:
        part_MV = _rows_of(logits_NV, rows)
        part_MV = part_MV.masked_fill(_outside_nucleus(part_MV, [top_p_M[row] for row in rows]), -torch.inf)
        logits_NV = _with_rows(logits_NV, rows, part_MV)
    if rows := [row for row, p in enumerate(min_p_M) if p > 0]:
        part_MV = _rows_of(logits_NV, rows)
        probability_MV = torch.softmax(part_MV, dim=-1)
        share_M1 = torch.tensor([min_p_M[row] for row in rows], dtype=torch.float32, device=device)[:, None]
        is_out_MV = probability_MV < share_M1 * probability_MV.amax(dim=-1, keepdim=True)
        logits_NV = _with_rows(logits_NV, rows, part_MV.masked_fill(is_out_MV, -torch.inf))
    return logits_NV


def _outside_nucleus(logits_MV: torch.Tensor, top_p_M: Sequence[float]) -> torch.Tensor:
    """Return which tokens are not among the likeliest that together reach top p; the likeliest one always is.

    A nucleus is small beside a vocabulary, so that the tokens of all but the widest need not be sorted. Where some of several
    equally likely ones are left out, the order of the sort decides which, as in transformers.
    """
    top_p_M1 = torch.tensor(top_p_M, dtype=torch.float64, device=logits_MV.device)[:, None]
    if logits_MV.shape[-1] <= _NUCLEUS_TOKENS:
        return _outside_by_sorting(logits_MV, top_p_M1)
    best_MK = logits_MV.topk(_NUCLEUS_TOKENS)[0]
    reached_MK = (best_MK - logits_MV.logsumexp(dim=-1, keepdim=True)).exp().double().cumsum(dim=-1)
    kept_M1 = (reached_MK < top_p_M1).sum(dim=-1, keepdim=True).clamp(max=_NUCLEUS_TOKENS - 1) + 1
    is_in_MV = logits_MV >= best_MK.gather(1, kept_M1 - 1)
    is_whole_M1 = (reached_MK[:, -1:] >= top_p_M1) & (is_in_MV.sum(dim=-1, keepdim=True) == kept_M1)
    is_out_MV = ~is_in_MV
    # Each row by itself: what is drawn depends on no other.
    if len(rows := (~is_whole_M1[:, 0]).nonzero()[:, 0]):
        is_out_MV[rows] = _outside_by_sorting(logits_MV[rows], top_p_M1[rows])
    return is_out_MV


def _outside_by_sorting(logits_MV: torch.Tensor, top_p_M1: torch.Tensor) -> torch.Tensor:
    ascending_MV, order_MV = torch.sort(logits_MV, descending=False)
    is_out_MV = ascending_MV.softmax(dim=-1).cumsum(dim=-1) <= (1 - top_p_M1).float()
    is_out_MV[:, -1] = False
    return is_out_MV.scatter(1, order_MV, is_out_MV)


def _draw(logits_NV: torch.Tensor, uniform_N: Sequence[float]) -> list[int]:
    """Draw a token of each row by its random number."""
    probability_NV = torch.softmax(logits_NV, dim=-1)
    cumulative_NV = probability_NV.cumsum(dim=-1)
    drawn_N1 = torch.tensor(uniform_N, dtype=torch.float32, device=logits_NV.device)[:, None]
    # The total differs from 1 by rounding.
    token_N1 = torch.searchsorted(cumulative_NV, drawn_N1 * cumulative_NV[:, -1:], right=True)
    most_likely_N1 = probability_NV.argmax(dim=-1, keepdim=True)
    chosen: list[int] = torch.where(token_N1 < logits_NV.shape[-1], token_N1, most_likely_N1)[:, 0].tolist()
    return chosen


def _of_each(value: float | Sequence[float], rows: int) -> Sequence[float]:
    return [value] * rows if isinstance(value, int | float) else value


def _taken(value: Any, rows: int, taken: list[int]) -> list[Any]:
    each = _of_each(value, rows)
    return [each[row] for row in taken]


def _rows_of(values_NV: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return values_NV if len(rows) == len(values_NV) else values_NV[torch.tensor(rows, device=values_NV.device)]


def _with_rows(values_NV: torch.Tensor, rows: list[int], part_MV: torch.Tensor) -> torch.Tensor:
    if len(rows) == len(values_NV):
        return part_MV
    return values_NV.index_copy(0, torch.tensor(rows, device=values_NV.device), part_MV)
