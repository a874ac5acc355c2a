"""What a query can still buy where nothing says which answer is right: further votes, in one supply curve.

A *plan* is a ceiling and a number of answers under it: go on with the cut answer up to the ceiling, or leave it, and then ask
afresh up to so many times. Its worth is the chance that the most frequent result is right in the end, less the chance that it
is now (`estimation.votes`): where all answers agree another one is worth next to nothing, and it is the price that stops the
query, with no rule of its own. How many of the answers end by the ceiling, and so vote, is binomial. The plan spends what
all of them are expected to spend. The grant is that of the next answer alone: what comes of it is known before the next.

Shapes: N queries, K grid points, V answers more, Z kinds, J plans.
"""

from __future__ import annotations

from functools import partial
from math import comb

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import Curves
from clear_ray.estimation.votes import Habits, Votes, VoteWorth, learn_habits, vote_worth, votes_ahead
from clear_ray.rounds.attempt_menu import AnswerOdds, AttemptStates, Menu, Plans, menu_by
from clear_ray.rounds.batch import Batch

Array = NDArray[np.float64]
_TINY = 1e-9


def vote_menu(
    batch: Batch,
    standing: AttemptStates,
    votes_N: list[Votes],
    *,
    most_tokens_N: NDArray[np.int64],
    habits: Habits | None = None,
    cast_N: Array | None = None,
) -> Menu:
    """Return the plans of some queries; success is what a plan adds to the chance that a query's answer is right, weighted.

    Args:
        batch: Their curves, weights, ceilings and costs.
        standing: Where they stand.
        votes_N: The votes that each has.
        most_tokens_N: Most further tokens that each may be granted at once.
        habits: How answers to one query agree; see `habits_of`.
        cast_N: Chance of a right answer by those that have given the votes so far, if others than these curves' model have.
    """
    count_N = np.zeros(len(votes_N)) if cast_N is None else np.array([float(sum(votes)) for votes in votes_N])
    cast = count_N, count_N if cast_N is None else count_N * cast_N
    plans_of = partial(_plans, standing=standing, votes_N=votes_N, worth=vote_worth(habits or Habits()), cast=cast)
    return menu_by(plans_of, batch, standing, most_tokens_N=most_tokens_N)


def habits_of(batch: Batch, votes_N: list[Votes]) -> Habits:
    """Return how the answers to one query of a batch agree, by the votes of all of its queries."""
    return learn_habits(votes_N, chance_once_ended(batch.curves))


def chance_once_ended(curves: Curves) -> Array:
    """Return the chance that an answer that has ended is right, shape (N,)."""
    ended_N = np.maximum(1.0 - curves.survival_NK[:, -1].astype(np.float64), _TINY)
    return np.asarray(np.clip(curves.success_NK[:, -1] / ended_N, 0.0, 1.0))


def _plans(
    fresh: AnswerOdds,
    ongoing: AnswerOdds | None,
    standing: AttemptStates,
    votes_N: list[Votes],
    worth: VoteWorth,
    cast: tuple[Array, Array],
) -> list[Plans]:
    """Return the plans that go on with an answer, or with none: one table of ceilings for each number of answers.

    All votes of a query count as given with one chance of a right answer each: the mean of those that a plan adds, and of
    `cast`, how many others have given, and the sum of their chances.
    """
    goes_on, weight_ZN = ongoing is not None, standing.weight_ZN
    first = fresh if ongoing is None else ongoing
    most = max((votes_ahead(votes, int(left)) for votes, left in zip(votes_N, standing.left_N, strict=True)), default=0)
    ended_KZN, first_ended_KZN = fresh.ended_KZN, first.ended_KZN
    chance_KN = _share(fresh.success_KZN, ended_KZN, weight_ZN)
    first_chance_KN = _share(first.success_KZN, first_ended_KZN, weight_ZN)
    spend_KN, first_spend_KN = (((weight_ZN * answer.spend_KZN).sum(axis=1)) for answer in (fresh, first))
    rows_of: dict[Votes, list[int]] = {}
    for row, votes in enumerate(votes_N):
        rows_of.setdefault(votes, []).append(row)
    plans: list[Plans] = []
    for number in range(1, most + goes_on + 1):
        again = number - 1
        mean_KN = (first_chance_KN + again * chance_KN + cast[1]) / (number + cast[0])
        share_VKN = _how_many_end(first_ended_KZN, ended_KZN, weight_ZN, again)
        gain_KN = np.zeros_like(chance_KN)
        for votes, rows in rows_of.items():
            if number > votes_ahead(votes, most) + goes_on:
                continue
            now_KN = worth.is_right(votes, mean_KN[:, rows])
            for ended in range(1, number + 1):
                after_KN = worth.after(votes, ended, mean_KN[:, rows]) - now_KN
                gain_KN[:, rows] += share_VKN[ended][:, rows] * after_KN
        total_KN = first_spend_KN + first.read_N + again * (spend_KN + fresh.read_N)
        can_N = (standing.left_N >= again + (not goes_on)) & (first.tokens_KN[-1] > 0)
        if goes_on:
            can_N &= standing.started_tokens_N > 0
        gain_KN = np.where(can_N, np.maximum(gain_KN, 0.0), 0.0)
        plans.append(
            (
                gain_KN,
                np.where(can_N, total_KN, 0.0),
                np.where(can_N, first.tokens_KN, 0),
                gain_KN * first_spend_KN / np.maximum(total_KN, _TINY),  # each answer's part of what all bring together
                np.where(can_N, first_spend_KN, 0.0),
                np.broadcast_to(np.array(not goes_on), gain_KN.shape),
            )
        )
    return plans


def _share(success_KZN: Array, ended_KZN: Array, weight_ZN: Array) -> Array:
    """Return the chance that an answer that has ended is right."""
    success_KN, ended_KN = ((weight_ZN * table).sum(axis=1) for table in (success_KZN, ended_KZN))
    found: Array = np.clip(success_KN / np.maximum(ended_KN, _TINY), 0.0, 1.0)
    return found


def _how_many_end(first_KZN: Array, again_KZN: Array, weight_ZN: Array, again: int) -> list[Array]:
    """Return the chance that none, one, two ... answers end, each of shape (K, N): the first one and `again` further ones."""
    binomial = [comb(again, k) * again_KZN**k * (1.0 - again_KZN) ** (again - k) for k in range(again + 1)]
    none = np.zeros_like(first_KZN)
    return [
        (weight_ZN * ((1.0 - first_KZN) * without + first_KZN * with_it)).sum(axis=1)
        for without, with_it in zip([*binomial, none], [none, *binomial], strict=True)
    ]
