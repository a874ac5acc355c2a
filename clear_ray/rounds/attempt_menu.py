"""What a query can still buy where it may be asked again: this attempt and all later ones, in one supply curve.

A *plan* is a ceiling and a number of attempts under it: go on with the cut answer up to the ceiling, or leave it, and then
ask afresh up to so many times, each time under the same ceiling, until an answer is right. With P the chance that one answer
is right by the ceiling and C what it is expected to spend,

    success = 1 - product over j of (1 - P_j),      spend = sum over j of C * product over i < j of (1 - P_i).

Every plan is a point (spend, success); the upper concave envelope over all plans of a query is what the price sees. The
grant is that of the plan's next attempt alone: what comes of it is known before the next one is priced.

**Failures** speak against a query. How far its curve is from the truth is measured by `trust`: the curve counts for so many
attempts, and after e failures P is believed to be P * trust / (trust + e), the mean of a beta distribution. A failure under a
lower ceiling than the one asked about counts for the share of the success that had been due by then.

Shapes: N queries, K grid points, A attempts, J plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.allocation.envelope import limited_points
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import PastAttempts

Array = NDArray[np.float64]
_LEAST = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """Where the queries that are priced stand.

    Attributes:
        started_tokens_N: Tokens of the answer that can be gone on with; 0 where there is none.
        left_N: How many attempts each may still begin.
        failures_KN: Failures so far, counted as above, under each ceiling.
        trust: See the module; infinite to believe the curves whatever happens.
    """

    started_tokens_N: NDArray[np.int64]
    left_N: NDArray[np.int64]
    failures_KN: Array
    trust: float


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """All plans of N queries; plan 0 buys nothing.

    Attributes:
        success_JN: Chance that the query is solved by the plan, weighted.
        spend_JN: What the plan is expected to spend, in tokens of cost 1.
        tokens_JN: Further tokens that the plan's next attempt is granted.
        first_success_JN: Chance that this attempt is right, weighted.
        first_spend_JN: What this attempt is expected to spend, in its own tokens.
        is_fresh_JN: Whether the plan begins an attempt.
    """

    success_JN: Array
    spend_JN: Array
    tokens_JN: NDArray[np.int64]
    first_success_JN: Array
    first_spend_JN: Array
    is_fresh_JN: NDArray[np.bool_]


def menu_of(batch: Batch, standing: Standing, *, most_tokens_N: NDArray[np.int64]) -> Menu:
    """Return the plans of some queries.

    Args:
        batch: Their curves, weights, ceilings and costs.
        standing: Where they stand.
        most_tokens_N: Most further tokens that each may be granted at once.
    """
    started = standing.started_tokens_N
    fresh = _Answer.of(batch, np.zeros_like(started), most_tokens_N)
    plans = [_nothing(fresh), *_again(fresh, None, standing)]
    if (started > 0).any():
        plans += _again(fresh, _Answer.of(batch, started, most_tokens_N), standing)
    success, spend, tokens, first_success, first_spend, is_fresh = (
        np.concatenate(parts) for parts in zip(*plans, strict=True)
    )
    return Menu(
        success_JN=success * batch.weight_N,
        spend_JN=spend * batch.cost_N,
        tokens_JN=tokens,
        first_success_JN=first_success * batch.weight_N,
        first_spend_JN=first_spend,
        is_fresh_JN=is_fresh,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """Chance and spend of one answer under each ceiling, from where it stands, shape (K, N)."""

    tokens_KN: NDArray[np.int64]
    success_KN: Array
    spend_KN: Array

    @staticmethod
    def of(batch: Batch, started_N: NDArray[np.int64], most_tokens_N: NDArray[np.int64]) -> _Answer:
        curves = batch.curves
        whole = Tabulated(curves.tokens_K, curves.success_NK, curves.spend_NK, survival_NK=curves.survival_NK)
        further = whole.continued(started_N) if started_N.any() else whole
        room_N = np.minimum(batch.max_tokens_N - started_N, most_tokens_N)
        ceiling_N = np.clip(np.minimum(room_N, further.max_tokens_N), 0, None).astype(np.float64)
        floor_N = np.zeros_like(ceiling_N)
        return _Answer(
            np.minimum(further.tokens_NK, ceiling_N[:, None]).astype(np.int64).T,
            limited_points(further.tokens_NK, further.success_NK, floor_N, ceiling_N)[1:],
            limited_points(further.tokens_NK, further.spend_NK, floor_N, ceiling_N)[1:],
        )


_Plans = tuple[Array, Array, NDArray[np.int64], Array, Array, NDArray[np.bool_]]


def _nothing(fresh: _Answer) -> _Plans:
    none = np.zeros_like(fresh.success_KN[:1])
    return none, none, none.astype(np.int64), none, none, none.astype(bool)


def _again(fresh: _Answer, ongoing: _Answer | None, standing: Standing) -> list[_Plans]:
    """Return the plans that go on with an answer, or with none: one table of ceilings for each number of attempts."""
    trust, failures = standing.trust, standing.failures_KN
    unsolved, spend = np.ones_like(fresh.success_KN), np.zeros_like(fresh.success_KN)
    first, plans = fresh if ongoing is None else ongoing, []
    most = int(standing.left_N.max(initial=0))
    for number in range(most if ongoing is None else most + 1):
        answer = first if number == 0 else fresh
        doubt = 1.0 if np.isinf(trust) else trust / (trust + failures + number)
        spend = spend + unsolved * answer.spend_KN
        unsolved = unsolved * (1.0 - np.minimum(answer.success_KN * doubt, 1.0))
        begun = number + (ongoing is None)
        can_N = (standing.left_N >= begun) & (first.tokens_KN[-1] > 0)
        if ongoing is not None:
            can_N &= standing.started_tokens_N > 0
        if number == 0:
            first_success = 1.0 - unsolved
        plans.append(
            (
                np.where(can_N, 1.0 - unsolved, 0.0),
                np.where(can_N, spend, 0.0),
                np.where(can_N, first.tokens_KN, 0),
                np.where(can_N, first_success, 0.0),
                np.where(can_N, first.spend_KN, 0.0),
                np.broadcast_to(np.array(ongoing is None), unsolved.shape),
            )
        )
    return plans


def failures_of(batch: Batch, index: NDArray[np.int64], past: PastAttempts, left: NDArray[np.int64]) -> Array:
    """Return the failures of the queries at `index` under each ceiling, shape (K, N).

    Args:
        batch: Of all queries.
        index: Which are priced.
        past: Attempts that were left.
        left: Queries whose current attempt ended, so that it counts as well.
    """
    curves = batch.curves
    counted = np.zeros((len(curves), len(curves.tokens_K)))
    np.add.at(counted, left, 1.0)
    rows, stopped = past.index_P, past.has_stopped_P
    np.add.at(counted, rows[stopped], 1.0)
    cut, tokens = rows[~stopped], past.tokens_P[~stopped]
    if len(cut):
        success_PK = curves.success_NK[cut].astype(np.float64)
        at = np.clip(np.searchsorted(curves.tokens_K, tokens, side="right") - 1, 0, None)
        due_P = np.where(tokens >= curves.tokens_K[0], success_PK[np.arange(len(cut)), at], 0.0)
        np.add.at(counted, cut, np.minimum(due_P[:, None] / np.maximum(success_PK, _LEAST), 1.0))
    return counted[index].T
