"""The minimum service: a short direct answer for every query that no price has funded.

Shapes: N queries of the batch, M of them granted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.rounds.batch import Batch, expected_spend
from clear_ray.rounds.clearing import Clearing


def minimum_service(
    batch: Batch,
    *,
    generated_tokens_N: NDArray[np.int64],
    is_open_N: NDArray[np.bool_],
    available_tokens: int,
    minimum_service_tokens: int,
    shadow_price: float,
) -> Clearing:
    """Grant the floors of the queries that no round has funded, for a short direct answer each.

    Args:
        batch: Curves, weights and ceilings.
        generated_tokens_N: Tokens that each query's answer holds so far.
        is_open_N: Queries that have neither ended by themselves nor failed.
        available_tokens: What may be granted. Less than all floors only if workers died and took tokens along; then they
            are granted in the order in which ties are broken, as far as they fit.
        minimum_service_tokens: The floor.
        shadow_price: The price that these queries were not worth.
    """
    queries = len(is_open_N)
    index = np.flatnonzero(is_open_N & (generated_tokens_N == 0) & (batch.max_tokens_N > 0))
    index = index[np.argsort(batch.tie_break_N[index], kind="stable")]
    tokens = np.minimum(batch.max_tokens_N[index], minimum_service_tokens).astype(np.int64)
    is_paid = (np.cumsum(tokens * batch.cost_N[index]) <= available_tokens) & (tokens > 0)
    index, tokens = index[is_paid], tokens[is_paid]
    curves = batch.curves.take(index)
    utility = Tabulated(curves.tokens_K, curves.success_NK, weight_N=batch.weight_N[index]).utility(tokens)
    worth = float(utility.sum())
    return Clearing(
        index_M=index,
        tokens_M=tokens,
        expected_tokens_M=expected_spend(curves, np.zeros_like(tokens), tokens),
        expected_utility_M=utility,
        surplus_N=np.zeros(queries),
        shadow_price=shadow_price,
        dual_bound=worth,
        gap=0.0,
        is_service=True,
    )
