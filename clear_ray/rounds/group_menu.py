"""What a query can still buy where it is to have a right answer and a wrong one, for training: a *mixed* group.

A plan is a ceiling and a number of answers under it, as where a query is to be solved (`attempt_menu`); it ends when the
group is mixed. With r_j and w_j the chances that the j-th further answer ends right or wrong by the ceiling, n of them mix

    a group of no kind yet   with 1 - prod(1 - r_j) - prod(1 - w_j) + prod(1 - r_j - w_j),
    one of right ones        with 1 - prod(1 - w_j),
    one of wrong ones        with 1 - prod(1 - r_j).

Answers to one query are alike: after r right and w wrong ones one that ends is right with (trust p + r) / (trust + r + w).
Each product counts those that it supposes. So a query that is nearly always right, or hardly ever, is soon worth little, and
the price stops it.

Shapes: N queries, K grid points, A answers, Z kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.attempt_menu import AnswerOdds, AttemptStates, Menu, Plans, menu_by
from clear_ray.rounds.batch import Batch

Array = NDArray[np.float64]
_TINY = 1e-12


def group_menu(batch: Batch, standing: AttemptStates, *, most_tokens_N: NDArray[np.int64]) -> Menu:
    """Return the plans of some queries; success is the chance that a plan mixes a query's group, weighted.

    Args:
        batch: Their curves, weights, ceilings and costs.
        standing: Where they stand.
        most_tokens_N: Most further tokens that each may be granted at once.
    """
    return menu_by(partial(_plans, standing=standing), batch, standing, most_tokens_N=most_tokens_N)


def _plans(fresh: AnswerOdds, ongoing: AnswerOdds | None, standing: AttemptStates) -> list[Plans]:
    """Return the plans that go on with an answer, or with none: one table of ceilings for each number of answers."""
    goes_on, weight_ZN = ongoing is not None, standing.weight_ZN
    first = fresh if ongoing is None else ongoing
    count = int(standing.left_N.max(initial=0)) + goes_on
    spend, mixed = np.zeros_like(fresh.success_KZN), np.zeros_like(fresh.success_KZN)
    plans: list[Plans] = []
    for number, after in enumerate(_mixed(fresh, first, standing, count)):
        answer = first if number == 0 else fresh
        spend = spend + (1.0 - mixed) * (answer.spend_KZN + answer.read_N)
        mixed = after
        can_N = (standing.left_N >= number + (not goes_on)) & (first.tokens_KN[-1] > 0)
        if goes_on:
            can_N &= standing.started_tokens_N > 0
        mixed_KN, spend_KN, first_spend_KN = (
            (weight_ZN * table).sum(axis=1) for table in (mixed, spend, first.spend_KZN)
        )
        success_KN = np.where(can_N, mixed_KN, 0.0)
        plans.append(
            (
                success_KN,
                np.where(can_N, spend_KN, 0.0),
                np.where(can_N, first.tokens_KN, 0),
                success_KN
                * np.minimum(first_spend_KN / np.maximum(spend_KN, _TINY), 1.0),  # its part of what all bring
                np.where(can_N, first_spend_KN, 0.0),
                np.broadcast_to(np.array(not goes_on), success_KN.shape),
            )
        )
    return plans


def _mixed(fresh: AnswerOdds, first: AnswerOdds, standing: AttemptStates, count: int) -> Iterator[Array]:
    """Yield the chance that a group is mixed after one further answer, after two, and so on, each of shape (K, Z, N)."""
    trust, right_N, wrong_N = standing.likeness.trust, standing.right_N, standing.wrong_N
    none_right, none_wrong, none_ended = (np.ones_like(fresh.success_KZN) for _ in range(3))
    wrong, right = (np.broadcast_to(of_N, none_right.shape) for of_N in (wrong_N, right_N))
    for number in range(count):
        answer = first if number == 0 else fresh
        ended = answer.ended_KZN
        chance = np.clip(answer.success_KZN / np.maximum(ended, _TINY), 0.0, 1.0)
        if np.isinf(trust):
            is_right, is_wrong = chance, 1.0 - chance
        else:
            is_right = (trust * chance + right_N) / (trust + right_N + wrong)
            is_wrong = (trust * (1.0 - chance) + wrong_N) / (trust + right + wrong_N)
        none_right = none_right * (1.0 - ended * is_right)
        none_wrong = none_wrong * (1.0 - ended * is_wrong)
        none_ended = none_ended * (1.0 - ended)
        # Of answers that were not right, so many ended wrong; and the other way round.
        wrong = wrong + ended * (1.0 - is_right) / np.maximum(1.0 - ended * is_right, _TINY)
        right = right + ended * (1.0 - is_wrong) / np.maximum(1.0 - ended * is_wrong, _TINY)
        either = 1.0 - none_right - none_wrong + none_ended
        yield np.clip(
            np.where(right_N > 0, 1.0 - none_wrong, np.where(wrong_N > 0, 1.0 - none_right, either)), 0.0, 1.0
        )
