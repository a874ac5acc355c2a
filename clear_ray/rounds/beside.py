"""A clearing while other grants are still running: priced over all that is open, granted to what is free.

A query whose grant is running may want more when it comes back cut off. If the price left that out, what came back early
would be sold below its worth to the queries that happen to be free. So each running query takes part with what it may want
beyond its grant, times the chance `P` that it will still be open there, at a cost per token of `P` too; and what its grant
is expected to give back is counted as available. What the running queries buy is held back for them.

    free:     weight * u(t),      cost * t                             running:  P * weight * u(t),  P * cost * t
    budget:   available + sum over running of cost * (granted - expected spend)

Without a running query this is `clear`. If the free queries would buy more than is there yet, they share that alone.

Some queries may stand for others that are like them and are not looked at (`windowed`): each counts as many times as it
stands for, itself included, in what it wants and in what its running grant is expected to give back. They are granted
nothing, and what they all buy is held back.

Shapes: N queries of the batch, F of them free, M running.

Source: docs/method.md, section 11.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated, Utility, allocate
from clear_ray.allocation.in_blocks import curves_of
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import (
    Batch,
    affordable_tokens,
    by_blocks,
    cost_parts,
    expected_spend,
    survival_at,
    taken_tokens,
)
from clear_ray.rounds.clearing import Clearing, clear, grants_of, nothing_to_grant

_LEAST_CHANCE = 1 / COST_PARTS


@dataclass(frozen=True, slots=True, eq=False)
class RunningGrants:
    """Grants that have not come back.

    Attributes:
        index_M: Their queries.
        tokens_M: What was granted to each.
        progress_M: What each has generated of it, as far as it is known.
    """

    index_M: NDArray[np.int64]
    tokens_M: NDArray[np.int64]
    progress_M: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """Queries that stand for others.

    Attributes:
        index_S: The queries; those that run are among the running grants, too.
        each: How many each of them stands for, itself included.
    """

    index_S: NDArray[np.int64]
    each: float


_NO_ONE = Standing(np.zeros(0, np.int64), 1.0)


def clear_beside(
    batch: Batch,
    *,
    generated_tokens_N: NDArray[np.int64],
    is_free_N: NDArray[np.bool_],
    running: RunningGrants,
    available_tokens: int,
    standing: Standing = _NO_ONE,
) -> Clearing:
    """Grant free queries what they buy at the price of all that is open.

    Args:
        batch: Curves, weights and ceilings, priced at their ceilings.
        generated_tokens_N: Tokens that each query's answer holds so far, without what is running.
        is_free_N: Queries that may be granted tokens now.
        running: The grants that are running.
        available_tokens: What may be granted, in tokens of cost 1.
        standing: Free and running queries that stand for others; none if not given.
    """
    is_own_N = is_free_N.copy()
    is_own_N[standing.index_S] = False
    has_room_N = generated_tokens_N < batch.max_tokens_N
    free, others = np.flatnonzero(is_own_N & has_room_N), np.flatnonzero(is_free_N & ~is_own_N & has_room_N)
    if not len(free) or available_tokens < 1:
        return nothing_to_grant(len(generated_tokens_N))
    wide = _WideMarket.of(batch, generated_tokens_N, free, others, running, standing, available_tokens)
    allocation = allocate(wide.utility, budget_tokens=wide.budget_tokens, tie_break_N=batch.tie_break_N[wide.index])
    tokens_F, cost_F = allocation.tokens_N[: len(free)], batch.cost_N[free]
    taken = taken_tokens(tokens_F, cost_F)
    if taken > available_tokens:
        return clear(
            batch, generated_tokens_N=generated_tokens_N, is_open_N=is_own_N, available_tokens=available_tokens
        )
    to_free = replace(
        allocation,
        tokens_N=tokens_F,
        spend_N=allocation.spend_N[: len(free)],
        utility_N=allocation.utility_N[: len(free)],
        surplus_N=allocation.surplus_N[: len(free)],
        dual_bound=allocation.dual_bound - float(allocation.utility_N[len(free) :].sum()),
    )
    funded = np.flatnonzero(tokens_F)
    spend_F = np.zeros(len(free))
    spend_F[funded] = _expected_spend(batch, free[funded], generated_tokens_N[free[funded]], tokens_F[funded])
    granted = grants_of(
        to_free,
        free,
        queries=len(generated_tokens_N),
        available_tokens=available_tokens,
        expected_tokens=spend_F,
        parts_M=tokens_F * cost_parts(cost_F),
    )
    return replace(granted, kept_tokens=available_tokens - taken)


@dataclass(frozen=True, slots=True, eq=False)
class _WideMarket:
    """All that is open.

    Attributes:
        index: The queries: those that are free, those that stand for others, then those running that may go on.
        utility: Their curves of further tokens.
        budget_tokens: What is available, and what is expected to come back.
    """

    index: NDArray[np.int64]
    utility: Utility
    budget_tokens: int

    @staticmethod
    def of(
        batch: Batch,
        generated_N: NDArray[np.int64],
        free: NDArray[np.int64],
        others: NDArray[np.int64],
        running: RunningGrants,
        standing: Standing,
        available_tokens: int,
    ) -> _WideMarket:
        index_M, at_M = running.index_M, generated_N[running.index_M] + running.progress_M
        end_M, left_M = generated_N[running.index_M] + running.tokens_M, running.tokens_M - running.progress_M
        refund_M = np.maximum(left_M - _expected_spend(batch, index_M, at_M, left_M), 0.0)
        chance_M = by_blocks(
            batch.curves,
            index_M,
            lambda curves, some: (
                survival_at(curves, end_M[some]) / np.maximum(survival_at(curves, at_M[some]), _LEAST_CHANCE)
            ),
        )
        may_M = (end_M < batch.max_tokens_N[index_M]) & (chance_M > _LEAST_CHANCE)
        many_M = np.where(np.isin(index_M, standing.index_S), standing.each, 1.0)
        index = np.concatenate([free, others, index_M[may_M]])
        of_running = many_M[may_M] * np.minimum(chance_M[may_M], 1.0)
        many = np.concatenate([np.ones(len(free)), np.full(len(others), standing.each), of_running])
        start = np.concatenate([generated_N[free], generated_N[others], end_M[may_M]])
        budget_tokens = available_tokens + int((many_M * refund_M) @ batch.cost_N[index_M])
        cost = np.maximum(np.rint(batch.cost_N[index] * many * COST_PARTS), 1.0) / COST_PARTS
        room = np.minimum(batch.max_tokens_N[index] - start, affordable_tokens(budget_tokens, cost))
        # What is not there yet can be bought by none of those that are free.
        room[: len(free)] = np.minimum(room[: len(free)], affordable_tokens(available_tokens, batch.cost_N[free]))
        weight, ceiling = batch.weight_N[index] * many, start + room

        def made(places: NDArray[np.int64]) -> Tabulated:
            curves = batch.curves.take(index[places])
            whole = Tabulated(
                curves.tokens_K,
                curves.success_NK,
                None,
                survival_NK=curves.survival_NK,
                weight_N=weight[places],
                max_tokens_N=ceiling[places],
                cost_per_token_N=cost[places],
            )
            return whole.continued(start[places])

        return _WideMarket(index, curves_of(made, len(index)), budget_tokens)


def _expected_spend(
    batch: Batch, index_M: NDArray[np.int64], before_M: NDArray[np.int64], tokens_M: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what further tokens of some queries are expected to spend."""
    return by_blocks(batch.curves, index_M, lambda curves, some: expected_spend(curves, before_M[some], tokens_M[some]))
