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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Allocation, Utility, allocate, uniform
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Basis, Batch, cost_parts, taken_tokens
from clear_ray.rounds.menu import Option, axis_of

Policy = Literal["clear_ray", "uniform"]
Solve = Callable[..., Allocation]
"""Anything with the signature of `allocate`."""

SOLVERS: Mapping[Policy, Solve] = {"clear_ray": allocate, "uniform": uniform}


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
        gap: dual_bound minus the expected utility of the grants and of the attempts that may follow them; at least 0.
        kept_tokens: Tokens of cost 1 that are held back for the minimum service of queries that are not worth the price.
        is_service: Whether these grants are that minimum service.
        is_fresh_M: Which grants begin an attempt; if not given, those of queries that have none.
        option_M: Which of its options each query takes, such as one of several models; the first if not given.
        reserved_parts_M: What each grant may take from the budget in all, its prompt included, in thousandths of the budget's
            unit; if not given, its tokens at the query's cost.
        token_cost_M: What a token of each grant takes from the budget, of several models; if not given, as of its query.
        later_utility: Correct answers expected of later attempts, which the price counts on and nothing is granted for yet.
        over_queries: How many queries it was cleared over, where these are not all that were offered by then.
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
    is_fresh_M: NDArray[np.bool_] | None = None
    option_M: NDArray[np.int64] | None = None
    reserved_parts_M: NDArray[np.int64] | None = None
    token_cost_M: NDArray[np.float64] | None = None
    later_utility: float = 0.0
    over_queries: int | None = None

    def some(self, chosen: NDArray[np.int64]) -> Clearing:
        """Return some of the grants, by their places; price, surplus and certificate stay those of the whole."""
        columns = {name: getattr(self, name) for name in _PER_GRANT}
        per_grant: dict[str, Any] = {name: None if c is None else c[chosen] for name, c in columns.items()}
        return replace(self, **per_grant)

    def parts_M(self, cost_N: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return what each grant may take, in thousandths of the budget's unit.

        Args:
            cost_N: What a token of each query takes from the budget.
        """
        if self.reserved_parts_M is not None:
            return self.reserved_parts_M
        return self.tokens_M * cost_parts(cost_N[self.index_M])

    def expected_taken_M(self, cost_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what each grant is expected to take, in the budget's unit."""
        cost_M = cost_N[self.index_M] if self.token_cost_M is None else self.token_cost_M
        back_M = (self.tokens_M - self.expected_tokens_M) * cost_M
        return self.parts_M(cost_N) / COST_PARTS - back_M


_PER_GRANT = (
    *("index_M", "tokens_M", "expected_tokens_M", "expected_utility_M"),
    *("is_fresh_M", "option_M", "reserved_parts_M", "token_cost_M"),
)


def clear(
    batch: Batch,
    *,
    generated_tokens_N: NDArray[np.int64],
    is_open_N: NDArray[np.bool_],
    available_tokens: int,
    policy: Policy | Solve = "clear_ray",
    basis: Basis = "ceilings",
    owed_tokens_N: NDArray[np.int64] | None = None,
) -> Clearing:
    """Price `available_tokens` over the open queries and grant them.

    Args:
        batch: Curves, weights and ceilings.
        generated_tokens_N: Tokens that each query's answer holds so far.
        is_open_N: Queries that have neither ended by themselves nor failed.
        available_tokens: What may be granted, in tokens of cost 1.
        policy: `clear_ray` by the price, `uniform` equal ceilings, or a rule of your own.
        basis: What a grant is priced at: `ceilings` at its whole ceiling, `expected_spend` at what it is expected to spend.
        owed_tokens_N: Floor under what each query is granted, shape (N,), see `minimum_service`; none if not given.

    Returns:
        The clearing; without grants if nothing is open, nothing is left, or what is left is owed as minimum service.

    Source: docs/method.md, sections 3 and 4.4.
    """
    return clear_menu(
        (Option(batch, generated_tokens_N),),
        is_open_N=is_open_N,
        available_tokens=available_tokens,
        policy=policy,
        basis=basis,
        owed_tokens_N=owed_tokens_N,
    )


def clear_menu(
    options: Sequence[Option],
    *,
    is_open_N: NDArray[np.bool_],
    available_tokens: int,
    policy: Policy | Solve = "clear_ray",
    basis: Basis = "ceilings",
    owed_tokens_N: NDArray[np.int64] | None = None,
) -> Clearing:
    """Price `available_tokens` over the open queries, each of which takes one of several options, and grant them.

    Args:
        options: What queries may take; at least one.
        is_open_N: As for `clear`.
        available_tokens: What may be granted, in the budget's unit.
        policy: As for `clear`.
        basis: As for `clear`.
        owed_tokens_N: As for `clear`.

    Source: docs/method.md, sections 3 and 10.
    """
    queries = len(is_open_N)
    index = np.flatnonzero(is_open_N & (np.max([option.room_N for option in options], axis=0) > 0))
    axis = axis_of(options, index, available_tokens=available_tokens, basis=basis) if len(index) else None
    if axis is None or available_tokens < 1:
        return nothing_to_grant(queries)
    floor = axis.floors(np.zeros_like(index) if owed_tokens_N is None else owed_tokens_N[index])
    batch, is_one = options[0].batch, len(options) == 1
    cost_M = batch.cost_N[index] if axis.is_tokens else np.ones(len(index))
    if taken_tokens(floor, cost_M) > available_tokens:
        return nothing_to_grant(queries)
    solve = policy if callable(policy) else SOLVERS[policy]
    allocation = solve(axis.utility(floor), budget_tokens=available_tokens, tie_break_N=batch.tie_break_N[index])
    kept_tokens = 0
    if floor.any():
        allocation, is_kept = _without_kept(allocation, floor, axis.utility(np.zeros_like(floor)))
        kept_tokens = taken_tokens(floor[is_kept], cost_M[is_kept])
    option_M, tokens_M = axis.read(allocation.tokens_N)
    parts_M = axis.parts(option_M, tokens_M)
    granted = grants_of(
        replace(allocation, tokens_N=tokens_M),
        index,
        queries=queries,
        available_tokens=available_tokens,
        expected_tokens=axis.expected_tokens(option_M, tokens_M),
        parts_M=parts_M,
    )
    place_M = np.searchsorted(index, granted.index_M)
    return replace(
        granted,
        kept_tokens=kept_tokens,
        option_M=None if is_one else option_M[place_M],
        reserved_parts_M=None if axis.is_tokens else parts_M[place_M],
    )


def _without_kept(
    allocation: Allocation, floor_M: NDArray[np.int64], unfloored: Utility
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
    parts_M: NDArray[np.int64] | None = None,
) -> Clearing:
    """Put the grants of an allocation into the order of dispatch.

    Args:
        allocation: Over the open queries.
        index: Which queries those are.
        queries: Number of queries, N.
        available_tokens: What may be reserved.
        expected_tokens: What each grant is expected to spend; by the allocation if not given.
        parts_M: What each grant may take of it, thousandths; its tokens if not given.
    """
    taken = allocation.tokens_N.astype(np.float64) if parts_M is None else parts_M / COST_PARTS
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
