"""What a round is cleared over: curves, weights, ceilings and costs, one of each for every query.

Shapes: N queries of the batch, M of them chosen, K grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.allocation.in_blocks import block_slices
from clear_ray.estimation.curves import Curves
from clear_ray.records import COST_PARTS
from clear_ray.rounds.calls import CallCosts

Basis = Literal["ceilings", "expected_spend"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a round is cleared over.

    Attributes:
        curves: One curve of each query, N rows.
        weight_N: Value of a correct answer.
        max_tokens_N: Ceiling of each query over all its grants, tokens.
        tie_break_N: A number that belongs to the query and not to its place in the input.
        cost_N: What a token of each query takes from the budget.
        calls: What calls take in all, where prompts are paid for.
    """

    curves: Curves
    weight_N: NDArray[np.float64]
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    cost_N: NDArray[np.float64]
    calls: CallCosts | None = None

    @property
    def costs(self) -> CallCosts:
        """What calls take; where prompts are not paid for, their tokens alone."""
        if self.calls is not None:
            return self.calls
        nothing_N = np.zeros(len(self.cost_N), np.int64)
        return CallCosts(cost_parts(self.cost_N), nothing_N, nothing_N)

    def take(self, index: NDArray[np.int64]) -> Batch:
        """Return some of the queries."""
        return Batch(
            self.curves.take(index),
            self.weight_N[index],
            self.max_tokens_N[index],
            self.tie_break_N[index],
            self.cost_N[index],
            None if self.calls is None else self.calls.take(index),
        )


def by_blocks(
    curves: Curves, index_M: NDArray[np.int64], asked: Callable[[Curves, slice], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return a number of each of some queries' curves, a block of which is looked at at once.

    Args:
        curves: Of all queries.
        index_M: Which queries.
        asked: Returns the numbers of a block's curves, which are those of a stretch of `index_M`.
    """
    found_M = np.empty(len(index_M))
    for some in block_slices(len(index_M)):
        found_M[some] = asked(curves.take(index_M[some]), some)
    return found_M


def further_utility(
    batch: Batch,
    index: NDArray[np.int64],
    *,
    generated_tokens_N: NDArray[np.int64],
    available_tokens: int,
    basis: Basis = "ceilings",
    floor_tokens: NDArray[np.int64] | None = None,
) -> Tabulated:
    """Return the curves of further tokens of the queries at `index`, given that their answers have not ended yet.

    Args:
        batch: Curves, weights and ceilings.
        index: Which queries.
        generated_tokens_N: Tokens that each query's answer holds so far.
        available_tokens: What may be granted.
        basis: What a grant is priced at.
        floor_tokens: Further tokens owed to each query at `index` whatever the price; none if not given.
    """
    curves, cost = batch.curves.take(index), batch.cost_N[index]
    room = batch.max_tokens_N[index] - generated_tokens_N[index]
    return Tabulated(
        curves.tokens_K,
        curves.success_NK,
        curves.spend_NK if basis == "expected_spend" else None,
        survival_NK=curves.survival_NK,
        weight_N=batch.weight_N[index],
        # A ceiling above what is left could never be reserved.
        max_tokens_N=generated_tokens_N[index] + np.minimum(room, affordable_tokens(available_tokens, cost)),
        min_tokens_N=None
        if floor_tokens is None
        else np.where(floor_tokens > 0, generated_tokens_N[index] + floor_tokens, 0),
        cost_per_token_N=cost,
    ).continued(generated_tokens_N[index])


def affordable_tokens(available_tokens: int, cost_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many whole tokens of each query could be paid for, were they all that is bought."""
    return np.asarray(available_tokens * COST_PARTS // cost_parts(cost_N))


def taken_tokens(tokens_M: NDArray[np.int64], cost_M: NDArray[np.float64]) -> int:
    """Return what tokens of some queries take from the budget in all, in tokens of cost 1, rounded up."""
    return -(-int(tokens_M @ cost_parts(cost_M)) // COST_PARTS)


def first_call_parts(batch: Batch, index: NDArray[np.int64], tokens_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what a first call of so many tokens takes, prompt included where it is paid for, thousandths."""
    return batch.costs.taken_parts(index, tokens_M, np.zeros_like(tokens_M))


def cost_parts(cost_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return costs in whole thousandths, as the ledger counts them."""
    return np.rint(cost_N * COST_PARTS).astype(np.int64)


def expected_spend(
    curves: Curves, generated_tokens_M: NDArray[np.int64], tokens_M: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what grants of further tokens are expected to spend, whatever they were priced at."""
    spend = Tabulated(curves.tokens_K, curves.success_NK, curves.spend_NK, survival_NK=curves.survival_NK)
    return np.minimum(spend.continued(generated_tokens_M).spend(tokens_M), tokens_M)


def survival_at(curves: Curves, tokens_M: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the chance that each answer is still running after so many tokens; beyond the grid as at its end."""
    rows, grid = np.arange(len(tokens_M)), np.concatenate([[0], curves.tokens_K])
    survival = np.concatenate([np.ones((len(rows), 1)), curves.survival_NK], axis=1)
    at = np.clip(np.searchsorted(grid, tokens_M, side="right") - 1, 0, len(grid) - 2)
    share = np.clip((tokens_M - grid[at]) / (grid[at + 1] - grid[at]), 0.0, 1.0)
    found: NDArray[np.float64] = survival[rows, at] + share * (survival[rows, at + 1] - survival[rows, at])
    return found


def uniform_ceiling(batch: Batch, spend_tokens: float) -> tuple[int, float]:
    """Return the equal ceiling that is expected to spend `spend_tokens` in all, and the utility expected from it."""
    curves = batch.curves
    tokens_K = np.concatenate([[0], curves.tokens_K]).astype(np.float64)
    prompts = 0.0
    if batch.calls is not None:
        index = np.arange(len(batch.cost_N))
        prompts = float(batch.calls.fixed_parts(index, np.zeros_like(index)).sum()) / COST_PARTS
    spend_K, utility_K = np.zeros((2, len(tokens_K)))
    for some in block_slices(len(curves)):
        block = curves.take(np.arange(some.start, some.stop))
        spend_K[1:] += batch.cost_N[some] @ block.spend_NK.astype(np.float64)
        utility_K[1:] += batch.weight_N[some] @ block.success_NK.astype(np.float64)
    spend_K[1:] += prompts
    ceiling = int(np.interp(spend_tokens, spend_K, tokens_K))
    return ceiling, float(np.interp(ceiling, tokens_K, utility_K))
