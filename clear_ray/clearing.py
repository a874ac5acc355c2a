"""One round of the market, as a pure function: what is open and what is left -> grants, in their order.

A round (docs/method.md, sections 3 and 4) prices the tokens that are left over everything that is not finished. A query that
was cut off counts as what it is: a curve of further tokens, given that it has not ended yet.

What is priced is the ceiling, because the ledger reserves it in full: all grants of a round fit together, none waits for
another's refund, and no estimate of lengths can promise more than the budget pays for. What early finishers return is
priced in the next round, so in the end tokens really generated are what a run pays with. Pricing expected spend instead
counts the refunds in advance: one pass in place of some rounds, and as good where lengths are well estimated; grants that
do not fit at once then follow by expected answers per token, and what refunds never reach is priced again.

A minimum service is a floor under every query that was never granted anything. Floors are paid before anything is priced;
the floors of queries that are not worth the price are kept back, and the last round pays them out for direct answers.

Shapes: N queries of the batch, M of them granted, K grid points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.allocation import Allocation, Tabulated, allocate, uniform
from clear_ray.estimation.curves import Curves
from clear_ray.records import COST_PARTS

Policy = Literal["clear_ray", "uniform"]
Basis = Literal["ceilings", "expected_spend"]
Solve = Callable[..., Allocation]
"""Anything with the signature of `allocate`."""

SOLVERS: Mapping[Policy, Solve] = {"clear_ray": allocate, "uniform": uniform}


@dataclass(frozen=True, slots=True)
class Batch:
    """What a round is cleared over.

    Attributes:
        curves: One curve of each query, N rows.
        weight_N: Value of a correct answer.
        max_tokens_N: Ceiling of each query over all its grants, tokens.
        tie_break_N: A number that belongs to the query and not to its place in the input.
        cost_N: What a token of each query takes from the budget.
    """

    curves: Curves
    weight_N: NDArray[np.float64]
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    cost_N: NDArray[np.float64]

    def take(self, index: NDArray[np.int64]) -> Batch:
        """Return some of the queries."""
        return Batch(
            self.curves.take(index),
            self.weight_N[index],
            self.max_tokens_N[index],
            self.tie_break_N[index],
            self.cost_N[index],
        )


@dataclass(frozen=True, slots=True)
class Clearing:
    """The outcome of one round.

    Attributes:
        index_M: Queries granted tokens, in order of dispatch.
        tokens_M: Further tokens granted to each.
        expected_tokens_M: What each is expected to spend.
        expected_utility_M: Correct answers each grant is expected to add, weighted.
        surplus_N: Utility minus price times the tokens priced of every query, shape (N,); 0 for queries not open.
        shadow_price: The price, expected answers per token priced.
        dual_bound: No allocation of these tokens, counted as they were priced, can be expected to add more.
        gap: dual_bound minus the expected utility of the grants; at least 0.
        kept_tokens: Tokens of cost 1 that are held back for the minimum service of queries that are not worth the price.
        is_service: Whether these grants are that minimum service.
    """

    index_M: NDArray[np.int64]
    tokens_M: NDArray[np.int64]
    expected_tokens_M: NDArray[np.float64]
    expected_utility_M: NDArray[np.float64]
    surplus_N: NDArray[np.float64]
    shadow_price: float
    dual_bound: float
    gap: float
    kept_tokens: int = 0
    is_service: bool = False


def clear(
    batch: Batch,
    *,
    generated_tokens_N: NDArray[np.int64],
    is_open_N: NDArray[np.bool_],
    available_tokens: int,
    policy: Policy | Solve = "clear_ray",
    basis: Basis = "ceilings",
    minimum_service_tokens: int = 0,
) -> Clearing:
    """Price `available_tokens` over the open queries and grant them.

    Args:
        batch: Curves, weights and ceilings.
        generated_tokens_N: Tokens that each query's answer holds so far.
        is_open_N: Queries that have neither ended by themselves nor failed.
        available_tokens: What may be granted, in tokens of cost 1.
        policy: `clear_ray` by the price, `uniform` equal ceilings, or a rule of your own.
        basis: What a grant is priced at: `ceilings` at its whole ceiling, `expected_spend` at what it is expected to spend.
        minimum_service_tokens: Floor of every query that has generated nothing yet; see `minimum_service`.

    Returns:
        The clearing; without grants if nothing is open, nothing is left, or what is left is owed as minimum service.

    Source: docs/method.md, sections 3 and 4.4.
    """
    room_N = batch.max_tokens_N - generated_tokens_N
    index = np.flatnonzero(is_open_N & (room_N > 0))
    floor = np.where(generated_tokens_N[index] == 0, np.minimum(room_N[index], minimum_service_tokens), 0)
    if not len(index) or available_tokens < 1 or floor @ batch.cost_N[index] > available_tokens:
        return nothing_to_grant(len(room_N))

    def utility_above(floor_tokens: NDArray[np.int64]) -> Tabulated:
        return further_utility(
            batch,
            index,
            generated_tokens_N=generated_tokens_N,
            available_tokens=available_tokens,
            basis=basis,
            floor_tokens=floor_tokens,
        )

    solve = policy if callable(policy) else SOLVERS[policy]
    allocation = solve(utility_above(floor), budget_tokens=available_tokens, tie_break_N=batch.tie_break_N[index])
    kept_tokens = 0
    if floor.any():
        allocation, is_kept = _without_kept(allocation, floor, utility_above(np.zeros_like(floor)))
        kept_tokens = math.ceil(floor[is_kept] @ batch.cost_N[index[is_kept]])
    spend = expected_spend(batch.curves.take(index), generated_tokens_N[index], allocation.tokens_N)
    granted = grants_of(
        allocation,
        index,
        queries=len(room_N),
        available_tokens=available_tokens,
        expected_tokens=spend,
        cost_N=batch.cost_N[index],
    )
    return replace(granted, kept_tokens=kept_tokens)


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


def _without_kept(
    allocation: Allocation, floor_M: NDArray[np.int64], unfloored: Tabulated
) -> tuple[Allocation, NDArray[np.bool_]]:
    """Return the grants without the floors of queries that would not buy a token at the price, and which those are.

    A query that would buy, but less than its floor, is granted its floor in the usual way: it is owed to it anyhow.
    """
    is_worth_M = unfloored.reservation_price > allocation.shadow_price
    is_kept_M = (floor_M > 0) & (allocation.tokens_N <= floor_M) & ~is_worth_M
    kept_utility = float(allocation.utility_N[is_kept_M].sum())
    granted = replace(
        allocation,
        tokens_N=np.where(is_kept_M, 0, allocation.tokens_N),
        utility_N=np.where(is_kept_M, 0.0, allocation.utility_N),
        surplus_N=np.where(is_kept_M, 0.0, allocation.surplus_N),
        dual_bound=allocation.dual_bound - kept_utility,
    )
    return granted, is_kept_M


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
    parts_N = np.rint(cost_N * COST_PARTS).astype(np.int64)
    return np.asarray(available_tokens * COST_PARTS // parts_N)


def reservation_prices(batch: Batch) -> NDArray[np.float64]:
    """Return the price above which each query is not worth a first token, priced at ceilings, shape (N,)."""
    return Tabulated(
        batch.curves.tokens_K,
        batch.curves.success_NK,
        survival_NK=batch.curves.survival_NK,
        weight_N=batch.weight_N,
        max_tokens_N=batch.max_tokens_N,
        cost_per_token_N=batch.cost_N,
    ).reservation_price


def nothing_to_grant(queries: int) -> Clearing:
    """Return the clearing of N queries without a grant."""
    none = np.zeros(0, np.int64)
    return Clearing(none, none, np.zeros(0), np.zeros(0), np.zeros(queries), 0.0, 0.0, 0.0)


def grants_of(
    allocation: Allocation,
    index: NDArray[np.int64],
    *,
    queries: int,
    available_tokens: int,
    expected_tokens: NDArray[np.float64] | None = None,
    cost_N: ArrayLike = 1.0,
) -> Clearing:
    """Put the grants of an allocation into the order of dispatch.

    Args:
        allocation: Over the open queries.
        index: Which queries those are.
        queries: N.
        available_tokens: What may be reserved.
        expected_tokens: What each grant is expected to spend; by the allocation if not given.
        cost_N: What a token of each open query takes from what is available.
    """
    taken = allocation.tokens_N * np.asarray(cost_N)
    rows = dispatch_order(allocation.tokens_N, taken, allocation.utility_N, available_tokens=available_tokens)
    surplus_N = np.zeros(queries)
    surplus_N[index] = allocation.surplus_N
    return Clearing(
        index_M=index[rows],
        tokens_M=allocation.tokens_N[rows],
        expected_tokens_M=(allocation.spend_N if expected_tokens is None else expected_tokens)[rows],
        expected_utility_M=allocation.utility_N[rows],
        surplus_N=surplus_N,
        shadow_price=float(allocation.shadow_price),
        dual_bound=float(allocation.dual_bound),
        gap=float(allocation.gap),
    )


def dispatch_order(
    tokens_M: NDArray[np.int64], taken_M: NDArray[np.float64], utility_M: NDArray[np.float64], *, available_tokens: int
) -> NDArray[np.int64]:
    """Return the places of the grants above 0: those that can all be reserved at once longest first, then the rest.

    The rest follow by expected answers per token that they take from what is available.
    """
    rows = np.flatnonzero(tokens_M > 0)
    value = utility_M[rows] / taken_M[rows]
    by_value = rows[np.argsort(-value, kind="stable")]
    fits = np.cumsum(taken_M[by_value]) <= available_tokens
    at_once = by_value[fits]
    return np.concatenate([at_once[np.argsort(-tokens_M[at_once], kind="stable")], by_value[~fits]])


def expected_spend(
    curves: Curves, generated_tokens_M: NDArray[np.int64], tokens_M: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what grants of further tokens are expected to spend, whatever they were priced at."""
    spend = Tabulated(curves.tokens_K, curves.success_NK, curves.spend_NK, survival_NK=curves.survival_NK)
    return np.minimum(spend.continued(generated_tokens_M).spend(tokens_M), tokens_M)


def uniform_ceiling(batch: Batch, spend_tokens: float) -> tuple[int, float]:
    """Return the equal ceiling that is expected to spend `spend_tokens` in all, and the utility expected from it."""
    curves = batch.curves
    tokens_K = np.concatenate([[0], curves.tokens_K]).astype(np.float64)
    spend_K = np.concatenate([[0.0], batch.cost_N @ curves.spend_NK.astype(np.float64)])
    utility_K = np.concatenate([[0.0], batch.weight_N @ curves.success_NK.astype(np.float64)])
    ceiling = int(np.interp(spend_tokens, spend_K, tokens_K))
    return ceiling, float(np.interp(ceiling, tokens_K, utility_K))
