"""Offers of a run whose queries may be asked again: to go on with a cut answer, or to begin a fresh one, at one price.

A clearing prices what is available over the plans of all free queries (`attempt_menu`), each of which counts this attempt
and all later ones. It grants the next attempt of each plan that is bought, at its ceiling, best first, as far as the ceilings
fit: what does not fit is priced anew once more is known.

The certificate is one of expectations: no plans that are expected to spend what is available can be expected to solve more
than the bound.

Shapes: N queries of the batch, M of them priced, J plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.likeness import Likeness, Tried, kind_weights, learn_likeness
from clear_ray.estimation.votes import Habits, Votes
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempt_hull import menu_in_blocks
from clear_ray.rounds.attempt_menu import AttemptStates, Menu, menu_of
from clear_ray.rounds.attempt_price import Bought, bought_calls, buy
from clear_ray.rounds.batch import Batch, first_call_parts
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.group_menu import group_menu
from clear_ray.rounds.history import SOLVED_SCORE
from clear_ray.rounds.offers import HeldBatch
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.vote_menu import habits_of, vote_menu


@dataclass(frozen=True, slots=True, eq=False)
class AttemptOffers(HeldBatch):
    """Offers by the curves of a batch that is held in memory; its ceilings are those of one attempt.

    Attributes:
        likeness: How alike the answers to one query are; learned on the way if not given.
    """

    likeness: Likeness | None = None

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`."""
        return clear_attempts(
            self.batch,
            states,
            is_free_N=is_free_N,
            available_tokens=available_tokens,
            owed_tokens_N=owed_tokens_N,
            likeness=self.likeness,
        )


def clear_attempts(
    batch: Batch,
    states: QueryStates,
    *,
    is_free_N: NDArray[np.bool_],
    available_tokens: int,
    owed_tokens_N: NDArray[np.int64],
    likeness: Likeness | None = None,
) -> Clearing:
    """Price `available_tokens` over this attempt and all later ones of the free queries, and grant the next attempts.

    What is owed as minimum service is kept back until the query is granted at least as much.

    Source: docs/method.md, section 9.
    """
    owed_parts_N = first_call_parts(batch, np.arange(len(owed_tokens_N)), owed_tokens_N)
    for_sale_tokens = available_tokens - -(-int(owed_parts_N.sum()) // COST_PARTS)
    index = np.flatnonzero(is_free_N & (batch.max_tokens_N > 0))
    if not len(index) or for_sale_tokens < 1:
        return nothing_to_grant(len(is_free_N))
    part = _priced_part(batch, states, index)
    standing = attempt_states(batch, states, index, likeness=likeness)
    costs = part.costs
    most_tokens = costs.affordable_tokens(
        for_sale_tokens * COST_PARTS, np.arange(len(index)), standing.started_tokens_N
    )
    menu = _menu(batch, standing, states, index, most_tokens)
    bought = buy(menu, available_tokens=for_sale_tokens, tie_break_N=part.tie_break_N)
    left_M = standing.left_N
    is_fresh_M = np.where(bought.plan_N == 0, left_M > 0, menu.is_fresh_JN[bought.plan_N, np.arange(len(index))])
    next_calls = _NextCalls(costs, np.where(is_fresh_M, 0, standing.started_tokens_N), owed_tokens_N[index])
    tokens_M = _that_fit(part, menu, bought, next_calls, for_sale_parts=for_sale_tokens * COST_PARTS)
    return _clearing(
        part, menu, bought, index, tokens_M, is_fresh_M=is_fresh_M, next_calls=next_calls, queries=len(is_free_N)
    )


def _priced_part(batch: Batch, states: QueryStates, index: NDArray[np.int64]) -> Batch:
    """Return some queries at what an answer is worth now."""
    part = batch.take(index)
    if states.rule.objective == "best_of_n":
        # An answer is worth what it may raise the best score by; of scores in between the mean alone is known.
        best_M = np.clip(np.nan_to_num(states.chosen_score_N[index]), 0.0, 1.0)
        part = replace(part, weight_N=part.weight_N * (1.0 - best_M))
    return part


def _menu(
    batch: Batch,
    standing: AttemptStates,
    states: QueryStates,
    index: NDArray[np.int64],
    most_tokens_M: NDArray[np.int64],
) -> Menu:
    """Return the plans of the queries at `index` that some price would buy."""
    votes_M: list[Votes] = []
    habits = Habits()
    if states.rule.objective == "vote":
        votes_M = states.ballots.votes_of(index)
        habits = habits_of(batch, states.ballots.votes_of(np.arange(len(batch.weight_N))))

    def of(rows: NDArray[np.int64]) -> Menu:
        some, where, most = _priced_part(batch, states, index[rows]), standing.take(rows), most_tokens_M[rows]
        if states.rule.objective == "groups":
            return group_menu(some, where, most_tokens_N=most)
        if states.rule.objective != "vote":
            return menu_of(some, where, most_tokens_N=most)
        return vote_menu(some, where, [votes_M[row] for row in rows], most_tokens_N=most, habits=habits)

    return menu_in_blocks(len(index), of)


@dataclass(frozen=True, slots=True, eq=False)
class _NextCalls:
    """The next call of each query that is priced.

    Attributes:
        costs: What calls take.
        before_M: Tokens of the answer that it goes on with; 0 where it begins one.
        owed_M: Tokens that are owed to the query, which has no answer yet.
    """

    costs: CallCosts
    before_M: NDArray[np.int64]
    owed_M: NDArray[np.int64]

    def parts_M(self, tokens_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what calls of so many tokens take in all, thousandths."""
        return self.costs.taken_parts(np.arange(len(tokens_M)), tokens_M, self.before_M)

    def more_parts_M(self, tokens_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what they take beyond what is owed."""
        return self.parts_M(tokens_M) - self.parts_M(self.owed_M)

    def affordable_M(self, more_parts: int) -> NDArray[np.int64]:
        """Return how many tokens each could have for so much beyond what is owed."""
        fixed_M = self.costs.fixed_parts(np.arange(len(self.owed_M)), self.before_M)
        left_M = self.parts_M(self.owed_M) + more_parts - fixed_M
        return np.asarray(np.maximum(left_M, 0) // self.costs.token_parts_N, np.int64)


def attempt_states(
    batch: Batch, states: QueryStates, index: NDArray[np.int64], *, likeness: Likeness | None = None
) -> AttemptStates:
    """Return where the queries at `index` stand; how alike their answers are is learned if it is not given."""
    tried = attempts_so_far(states)
    likeness = likeness or learn_likeness(batch.curves, tried)
    place_N = np.full(len(states.attempt_N), -1)
    place_N[index] = np.arange(len(index))
    some = tried.of_queries(place_N >= 0)
    some = replace(some, query_P=place_N[some.query_P])
    started_N = np.where(states.may_go_on_N, states.answer_tokens_N, 0)[index]

    def count_N(is_one_P: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(some.query_P[is_one_P], minlength=len(index)).astype(np.float64)

    return AttemptStates(
        started_tokens_N=started_N,
        left_N=states.left_N[index],
        wrong_N=count_N(some.is_ended_P & ~some.is_right_P),
        right_N=count_N(some.is_right_P),
        unended_N=count_N(~some.is_ended_P & (some.tokens_P > 0)) - (started_N > 0),
        weight_ZN=kind_weights(batch.curves.take(index), likeness.rho, likeness.kinds, some),
        likeness=likeness,
    )


def attempts_so_far(states: QueryStates) -> Tried:
    """Return all attempts of a run, those that can be gone on with too."""
    current, past = np.flatnonzero(states.attempt_N > 0), states.past
    score_P = np.concatenate([past.correct_P, states.correct_N[current]])
    return Tried(
        query_P=np.concatenate([past.index_P, current]),
        tokens_P=np.concatenate([past.tokens_P, states.answer_tokens_N[current]]),
        is_ended_P=np.concatenate([past.has_stopped_P, states.has_stopped_N[current]]),
        is_right_P=np.nan_to_num(score_P) >= SOLVED_SCORE,
    )


def _that_fit(
    part: Batch,
    menu: Menu,
    bought: Bought,
    next_calls: _NextCalls,
    *,
    for_sale_parts: int,
) -> NDArray[np.int64]:
    """Return what each query is granted: the next attempts of the plans bought, best first, as far as their ceilings fit."""
    rows, owed_M = np.arange(len(next_calls.owed_M)), next_calls.owed_M
    tokens_M = menu.tokens_JN[bought.plan_N, rows]
    worth_M = menu.first_success_JN[bought.plan_N, rows]
    fixed_M = next_calls.costs.fixed_parts(rows, next_calls.before_M) / COST_PARTS
    spend_M = fixed_M + menu.first_spend_JN[bought.plan_N, rows] * part.cost_N
    granted_M = np.zeros_like(tokens_M)
    buyers = rows[tokens_M > 0]
    order = buyers[np.lexsort((part.tie_break_N[buyers], -worth_M[buyers] / np.maximum(spend_M[buyers], 1e-12)))]
    left_parts = _grant(granted_M, order, np.maximum(tokens_M, owed_M), next_calls, for_sale_parts)
    if bought.price == 0.0:
        # Nothing is certain to be worth nothing: what no plan wants, now or later, is shared by those that want none.
        later_M = np.maximum(menu.spend_JN[bought.plan_N, rows] - spend_M, 0.0)
        left_parts = max(left_parts - int(np.ceil(later_M[buyers].sum() * COST_PARTS)), 0)
        most_M = menu.most_tokens_N
        others = rows[(tokens_M == 0) & (most_M > 0)]
        others = others[np.argsort(part.tie_break_N[others], kind="stable")]
        share_M = np.minimum(np.maximum(most_M, owed_M), next_calls.affordable_M(left_parts // max(len(others), 1)))
        _grant(granted_M, others, share_M, next_calls, left_parts)
    return granted_M


def _grant(
    granted_M: NDArray[np.int64],
    order: NDArray[np.int64],
    tokens_M: NDArray[np.int64],
    next_calls: _NextCalls,
    left_parts: int,
) -> int:
    """Grant in order what fits beside what is owed to all, and return the thousandths that are left. Changes `granted_M`."""
    taken_M = next_calls.more_parts_M(tokens_M)
    smallest = np.minimum.accumulate(taken_M[order][::-1])[::-1]
    for place, row in enumerate(order.tolist()):
        if smallest[place] > left_parts:
            break
        if taken_M[row] <= left_parts and tokens_M[row] > 0:
            granted_M[row] = tokens_M[row]
            left_parts -= int(taken_M[row])
    return left_parts


def _clearing(
    part: Batch,
    menu: Menu,
    bought: Bought,
    index: NDArray[np.int64],
    tokens_M: NDArray[np.int64],
    *,
    is_fresh_M: NDArray[np.bool_],
    next_calls: _NextCalls,
    queries: int,
) -> Clearing:
    chosen = np.flatnonzero(tokens_M)
    chosen = chosen[np.argsort(-tokens_M[chosen], kind="stable")]
    kept_parts = int(next_calls.parts_M(np.where(tokens_M > 0, 0, next_calls.owed_M)).sum())
    return replace(
        bought_calls(menu, bought, index, tokens_M, chosen, queries=queries),
        kept_tokens=-(-kept_parts // COST_PARTS),
        is_fresh_M=is_fresh_M[chosen],
        reserved_parts_M=None if part.calls is None else next_calls.parts_M(tokens_M)[chosen],
    )
