"""What a query can still buy where it may be asked again: this attempt and all later ones, in one supply curve.

A *plan* is a ceiling and a number of attempts under it: go on with the cut answer up to the ceiling, or leave it, and then
ask afresh up to so many times, each time under the same ceiling, until an answer is right. With P the chance that one answer
is right by the ceiling and C what it is expected to spend,

    success = 1 - product over j of (1 - P_j),      spend = sum over j of C * product over i < j of (1 - P_i),

each an average over the kinds that the query may be of (`likeness`), by what its attempts have shown so far. An attempt that
is left before it has ended counts as a wrong one: else plans would be better for not looking, and answers that will probably
be wrong would be left for fresh ones although going on with them costs less. Where prompts are paid for, C holds the prompt
of each call, and the answer that one goes on with. Every plan is a point (spend, success);
the upper concave envelope over all plans of a query is what the price sees. The grant is that of the plan's next attempt
alone: what comes of it is known before the next one is priced.

Shapes: N queries, K grid points, A attempts, Z kinds, J plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.allocation.envelope import limited_points
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.likeness import Likeness, curves_of_kinds
from clear_ray.rounds.batch import Batch

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class AttemptStates:
    """Where the queries that are priced stand.

    Attributes:
        started_tokens_N: Tokens of the answer that can be gone on with; 0 where there is none.
        left_N: How many attempts each may still begin.
        wrong_N: How many answers ended and were wrong.
        right_N: How many ended and were right.
        unended_N: How many were left before they ended.
        weight_ZN: What is believed of each one's kind.
        likeness: How alike the answers to one query are.
    """

    started_tokens_N: NDArray[np.int64]
    left_N: NDArray[np.int64]
    wrong_N: Array
    right_N: Array
    unended_N: Array
    weight_ZN: Array
    likeness: Likeness

    def take(self, rows: NDArray[np.int64]) -> AttemptStates:
        """Return where some of the queries stand."""
        return AttemptStates(
            self.started_tokens_N[rows],
            self.left_N[rows],
            self.wrong_N[rows],
            self.right_N[rows],
            self.unended_N[rows],
            self.weight_ZN[:, rows],
            self.likeness,
        )

    def only_one_more(self) -> AttemptStates:
        """Return the same queries with nothing to go on with, and one fresh attempt each."""
        return replace(self, started_tokens_N=0 * self.started_tokens_N, left_N=np.ones_like(self.left_N))


@dataclass(frozen=True, slots=True, eq=False)
class Menu:
    """All plans of N queries; plan 0 buys nothing.

    Attributes:
        success_JN: Chance that the query is solved by the plan, weighted.
        spend_JN: What the plan is expected to spend, in tokens of cost 1; prompts included where they are paid for.
        tokens_JN: Further tokens that the plan's next attempt is granted.
        first_success_JN: Chance that this attempt is right, weighted.
        first_spend_JN: What this attempt is expected to generate.
        is_fresh_JN: Whether the plan begins an attempt.
        most_tokens_N: Most tokens that the next attempt of any plan is granted that begins one; where none may be begun, of
            any that goes on.
    """

    success_JN: Array
    spend_JN: Array
    tokens_JN: NDArray[np.int64]
    first_success_JN: Array
    first_spend_JN: Array
    is_fresh_JN: NDArray[np.bool_]
    most_tokens_N: NDArray[np.int64]


def menu_of(batch: Batch, standing: AttemptStates, *, most_tokens_N: NDArray[np.int64]) -> Menu:
    """Return the plans of some queries.

    Args:
        batch: Their curves, weights, ceilings and costs.
        standing: Where they stand.
        most_tokens_N: Most further tokens that each may be granted at once.
    """
    return menu_by(partial(_again, standing=standing), batch, standing, most_tokens_N=most_tokens_N)


def menu_by(plans_of: PlansOf, batch: Batch, standing: AttemptStates, *, most_tokens_N: NDArray[np.int64]) -> Menu:
    """Return the plans of some queries; the arguments of `menu_of`, and what makes plans of the odds of further answers."""
    started, likeness = standing.started_tokens_N, standing.likeness
    curves = curves_of_kinds(batch.curves, likeness.rho, len(standing.weight_ZN))
    fresh = AnswerOdds.of(curves, batch, np.zeros_like(started), most_tokens_N)
    plans = [_nothing(fresh), *plans_of(fresh, None)]
    if (started > 0).any():
        plans += plans_of(fresh, AnswerOdds.of(curves, batch, started, most_tokens_N))
    return _stacked(batch, plans, left_N=standing.left_N)


Plans = tuple[Array, Array, NDArray[np.int64], Array, Array, NDArray[np.bool_]]
"""Some plans of N queries: the columns of a `Menu`, not weighted and in tokens."""

PlansOf = Callable[["AnswerOdds", "AnswerOdds | None"], list[Plans]]
"""Makes the plans that begin another answer, by its odds, and that go on with one, by its own, if there is one."""


def _stacked(batch: Batch, plans: list[Plans], *, left_N: NDArray[np.int64]) -> Menu:
    """Return plans as one menu, in the batch's weights and costs; `left_N` is how many attempts each query may begin.

    What is granted nothing next is no plan: going on up to a ceiling that the answer has reached is a fresh attempt.
    """
    columns = (np.concatenate(parts) for parts in zip(*plans, strict=True))
    success, spend, tokens, first_success, first_spend, is_fresh = columns
    success, spend = (np.where(tokens > 0, column, 0.0) for column in (success, spend))
    return Menu(
        success_JN=success * batch.weight_N,
        spend_JN=spend * batch.cost_N,
        tokens_JN=tokens,
        first_success_JN=first_success * batch.weight_N,
        first_spend_JN=first_spend,
        is_fresh_JN=is_fresh,
        most_tokens_N=tokens.max(axis=0, initial=0, where=is_fresh == (left_N > 0)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class AnswerOdds:
    """Chance and spend of one answer of each kind under each ceiling, from where it stands.

    Attributes:
        tokens_KN: The ceilings, in further tokens.
        success_KZN: Chance that the answer is right.
        spend_KZN: What it is expected to generate.
        read_N: What its call takes before that, counted in generated tokens; nothing where prompts are not paid for.
        ended_KZN: Chance that it ends by itself.
    """

    tokens_KN: NDArray[np.int64]
    success_KZN: Array
    spend_KZN: Array
    read_N: Array
    ended_KZN: Array

    @staticmethod
    def of(curves: Curves, batch: Batch, started_N: NDArray[np.int64], most_tokens_N: NDArray[np.int64]) -> AnswerOdds:
        """Return the answers of N queries, of whose curves there are Z * N rows, kind by kind."""
        kinds = len(curves) // len(started_N)
        started, room = (
            np.tile(started_N, kinds),
            np.tile(np.minimum(batch.max_tokens_N - started_N, most_tokens_N), kinds),
        )
        whole = Tabulated(curves.tokens_K, curves.success_NK, curves.spend_NK, survival_NK=curves.survival_NK)
        further = whole.continued(started) if started.any() else whole
        # The grid may end before some kind of query does, but it is the same for all of them.
        ceiling = np.clip(np.minimum(room, np.tile(_reach(curves, started_N), kinds)), 0, None).astype(np.float64)
        floor, shape = np.zeros_like(ceiling), (len(curves.tokens_K), kinds, len(started_N))
        columns = (further.success_NK, further.spend_NK, 1.0 - np.asarray(further.survival_NK))
        success, spend, ended = (
            limited_points(further.tokens_NK, column, floor, ceiling)[1:].reshape(shape) for column in columns
        )
        return AnswerOdds(
            np.minimum(further.tokens_NK, ceiling[:, None]).astype(np.int64)[: len(started_N)].T,
            success,
            spend,
            _read(batch, started_N),
            ended,
        )


def _read(batch: Batch, started_N: NDArray[np.int64]) -> Array:
    costs = batch.costs
    read: Array = costs.fixed_parts(np.arange(len(started_N)), started_N) / costs.token_parts_N
    return read


def _reach(curves: Curves, started_N: NDArray[np.int64]) -> NDArray[np.int64]:
    reach: NDArray[np.int64] = curves.tokens_K[-1] - started_N
    return reach


def _nothing(fresh: AnswerOdds) -> Plans:
    """Return the plan that buys nothing."""
    none = np.zeros((1, fresh.tokens_KN.shape[1]))
    return none, none, none.astype(np.int64), none, none, none.astype(bool)


def _again(fresh: AnswerOdds, ongoing: AnswerOdds | None, standing: AttemptStates) -> list[Plans]:
    """Return the plans that go on with an answer, or with none: one table of ceilings for each number of attempts."""
    trust, weight_ZN = standing.likeness.trust, standing.weight_ZN
    unsolved, spend = np.ones_like(fresh.success_KZN), np.zeros_like(fresh.success_KZN)
    first, plans = fresh if ongoing is None else ongoing, []
    wrong_N = standing.wrong_N + standing.unended_N
    if ongoing is None:
        wrong_N = wrong_N + (standing.started_tokens_N > 0)  # is left for a fresh one
    for number in range(int(standing.left_N.max(initial=0)) + (ongoing is not None)):
        answer = first if number == 0 else fresh
        doubt_N = 1.0 if np.isinf(trust) else trust / (trust + wrong_N + number)
        spend = spend + unsolved * (answer.spend_KZN + answer.read_N)
        unsolved = unsolved * (1.0 - answer.success_KZN * doubt_N)
        can_N = (standing.left_N >= number + (ongoing is None)) & (first.tokens_KN[-1] > 0)
        if ongoing is not None:
            can_N &= standing.started_tokens_N > 0
        success_KN, spend_KN = ((weight_ZN * table).sum(axis=1) for table in (1.0 - unsolved, spend))
        if number == 0:
            first_success_KN, first_spend_KN = success_KN, (weight_ZN * answer.spend_KZN).sum(axis=1)
        plans.append(
            (
                np.where(can_N, success_KN, 0.0),
                np.where(can_N, spend_KN, 0.0),
                np.where(can_N, first.tokens_KN, 0),
                np.where(can_N, first_success_KN, 0.0),
                np.where(can_N, first_spend_KN, 0.0),
                np.broadcast_to(np.array(ongoing is None), success_KN.shape),
            )
        )
    return plans
