"""Which grants a stage makes: a random part of those of a clearing, and further ones beside them.

Shapes: N queries, M granted.

Source: method.md section 8.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Batch, expected_spend
from clear_ray.rounds.clearing import Clearing

Array = NDArray[np.float64]


def random_part(clearing: Clearing, tokens: float, *, cost_N: Array, rng: np.random.Generator) -> Clearing:
    """Return a random subset of the grants that takes at most `tokens`, or the smallest grant if none does.

    Price, surplus and certificate stay those of the whole clearing.
    """
    if not len(clearing.index_M):
        return clearing
    taken_M = clearing.parts_M(cost_N) / COST_PARTS
    order = rng.permutation(len(taken_M))
    chosen = np.sort(order[np.cumsum(taken_M[order]) <= tokens])
    if not len(chosen):
        chosen = np.array([int(taken_M.argmin())])
    return clearing.some(chosen)


def joined(
    part: Clearing,
    batch: Batch,
    index: NDArray[np.int64],
    tokens: NDArray[np.int64],
    before: NDArray[np.int64],
    *,
    is_fresh: bool = False,
) -> Clearing:
    """Return the grants of a clearing and further ones, longest first: to go on, or for another answer."""
    if not len(index):
        return part
    curves = batch.curves.take(index)
    worth = Tabulated(curves.tokens_K, curves.success_NK, weight_N=batch.weight_N[index])
    tokens_M = np.concatenate([part.tokens_M, tokens])
    order = np.argsort(-tokens_M, kind="stable")
    parts_M = None
    if batch.calls is not None:
        own_parts_M = part.parts_M(batch.cost_N)
        parts_M = np.concatenate([own_parts_M, batch.calls.taken_parts(index, tokens, before)])[order]
    added = (worth.utility(before + tokens) - worth.utility(before)) * (not is_fresh)
    is_fresh_M = np.repeat([False, is_fresh], [len(part.index_M), len(index)])[order] if is_fresh else None
    return replace(
        part,
        index_M=np.concatenate([part.index_M, index])[order],
        tokens_M=tokens_M[order],
        expected_tokens_M=np.concatenate([part.expected_tokens_M, expected_spend(curves, before, tokens)])[order],
        expected_utility_M=np.concatenate([part.expected_utility_M, added])[order],
        reserved_parts_M=parts_M,
        is_fresh_M=is_fresh_M,
    )
