"""The minimum service: a short direct answer for every query that no price has funded.

A query is owed it from the start until a grant of it has been run. What is owed is a floor under the query's grant in every
clearing, is kept back where the query is not worth the price, and is paid out in the last round (`clearing`, `rounds`).

Shapes: N queries of the batch, M of them granted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Batch, expected_spend, first_call_parts
from clear_ray.rounds.clearing import Clearing


def owed_tokens(
    is_unserved_N: NDArray[np.bool_], max_tokens_N: NDArray[np.int64], minimum_service_tokens: int | None
) -> NDArray[np.int64]:
    """Return what each query is owed, in its own tokens, shape (N,).

    Args:
        is_unserved_N: Open queries of which no grant has been run, nor is running.
        max_tokens_N: Ceiling of each query.
        minimum_service_tokens: The service; None if there is none.
    """
    return np.where(is_unserved_N, np.minimum(max_tokens_N, minimum_service_tokens or 0), 0).astype(np.int64)


def minimum_service(
    batch: Batch, *, owed_tokens_N: NDArray[np.int64], available_tokens: int, shadow_price: float
) -> Clearing:
    """Grant what is owed, for a short direct answer each.

    Args:
        batch: Curves, weights and costs.
        owed_tokens_N: See `owed_tokens`.
        available_tokens: What may be granted. Less than all that is owed only if workers died and took tokens along; then
            queries are served in the order in which ties are broken, as far as it goes.
        shadow_price: The price that these queries were not worth.
    """
    index = np.flatnonzero(owed_tokens_N > 0)
    index = index[np.argsort(batch.tie_break_N[index], kind="stable")]
    taken_parts = first_call_parts(batch, index, owed_tokens_N[index])
    fits = np.cumsum(taken_parts) <= available_tokens * COST_PARTS
    index, taken_parts = index[fits], taken_parts[fits]
    tokens, curves = owed_tokens_N[index], batch.curves.take(index)
    utility = Tabulated(curves.tokens_K, curves.success_NK, weight_N=batch.weight_N[index]).utility(tokens)
    return Clearing(
        index_M=index,
        tokens_M=tokens,
        expected_tokens_M=expected_spend(curves, np.zeros_like(tokens), tokens),
        expected_utility_M=utility,
        surplus_N=np.zeros(len(owed_tokens_N)),
        shadow_price=shadow_price,
        dual_bound=float(utility.sum()),
        gap=0.0,
        is_service=True,
        reserved_parts_M=None if batch.calls is None else taken_parts,
    )
