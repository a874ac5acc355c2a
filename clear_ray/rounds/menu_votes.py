"""Offers of a run with several models whose votes are counted: which model gives a query's next vote, at which ceiling.

Every answer has one vote, whichever model gave it, and the query's answer is one of the most frequent result. A plan is some
further answers of one model under one ceiling (`vote_menu`); all plans of all models are one supply curve, and the price
picks from it. So the cheap model votes first, and a dear one where votes are divided and its own are right more often. Only
the next answer of a plan is granted.

Nothing says at once that an answer is wrong, so no plan counts on a later model; what the run learns of each is by how often
its answers agree with others.

Shapes: N queries, M of them priced, J models, P attempts, Z kinds.

Source: docs/method.md, sections 9 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import Curves
from clear_ray.estimation.likeness import Tried, kind_weights, learn_likeness
from clear_ray.estimation.votes import Habits, Votes, learn_habits
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempt_hull import menu_in_blocks
from clear_ray.rounds.attempt_menu import AttemptStates, Menu
from clear_ray.rounds.attempt_price import Bought, bought_calls, buy
from clear_ray.rounds.ballots import NO_VOTE
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.menu_offers import Market, MenuOffers
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.vote_menu import chance_once_ended, vote_menu

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
_PLAN_COLUMNS = ("success_JN", "spend_JN", "tokens_JN", "first_success_JN", "first_spend_JN", "is_fresh_JN")
_TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class VotingMenuOffers(MenuOffers):
    """See the module."""

    def _priced(self, market: Market, available_tokens: int, models: Sequence[int]) -> Clearing:
        """Return which votes queries buy of some of the models."""
        index = market.with_room(self.max_tokens_JN, models)
        if not len(index) or available_tokens < 1:
            return nothing_to_grant(len(market.is_free_N))
        votes_N = market.states.ballots.votes_of(np.arange(len(market.is_free_N)))
        cast_N = self._cast_N(market)
        habits = learn_habits(votes_N, cast_N)
        votes_M = [votes_N[query] for query in index.tolist()]
        menus = [
            self._votes_of(market, model, index, available_tokens, votes_M, habits, cast_N[index]) for model in models
        ]
        menu, model_J = _stacked(menus, models)
        bought = buy(menu, available_tokens=available_tokens, tie_break_N=self.tie_break_N[index])
        return self._granted(market, menu, bought, index, model_J[bought.plan_N], available_tokens)

    def _votes_of(
        self,
        market: Market,
        model: int,
        index: Integers,
        available_tokens: int,
        votes_M: list[Votes],
        habits: Habits,
        cast_M: Array,
    ) -> Menu:
        """Return the plans of one model for the queries at `index`."""
        curves = market.believed.fresh[model]
        standing = self._standing(market, model, curves, index)
        most_M = self.calls[model].affordable_tokens(available_tokens * COST_PARTS, index, standing.started_tokens_N)

        def of(rows: Integers) -> Menu:
            queries = index[rows]
            return vote_menu(
                self._batch(curves.take(queries), model, market.worth_N, queries),
                standing.take(rows),
                [votes_M[row] for row in rows.tolist()],
                most_tokens_N=most_M[rows],
                habits=habits,
                cast_N=cast_M[rows],
            )

        return menu_in_blocks(len(index), of)

    def _standing(self, market: Market, model: int, curves: Curves, index: Integers) -> AttemptStates:
        """Return where the queries at `index` stand with a model; how alike its answers are is learned from them."""
        states = market.states
        tried = _tried_with(states, model)
        likeness = learn_likeness(curves, tried)
        place_N = np.full(len(states.attempt_N), -1)
        place_N[index] = np.arange(len(index))
        some = tried.of_queries(place_N >= 0)
        some = replace(some, query_P=place_N[some.query_P])
        is_same_N = (states.attempt_N > 0) & (states.option_N == model)
        left_N = np.where(market.offered_JN[model], self.times - np.where(is_same_N, market.asked_N, 0), 0)
        return AttemptStates(
            started_tokens_N=np.where(market.goes_on_JN[model], states.answer_tokens_N, 0)[index],
            left_N=left_N[index],
            wrong_N=np.zeros(len(index)),
            right_N=np.zeros(len(index)),
            unended_N=np.zeros(len(index)),
            weight_ZN=kind_weights(curves.take(index), likeness.rho, likeness.kinds, some),
            likeness=likeness,
        )

    def _cast_N(self, market: Market) -> Array:
        """Return the mean chance of a right answer by those that have voted on each query; the first model's if none has."""
        states, past = market.states, market.states.past
        voted = np.flatnonzero((states.attempt_N > 0) & (states.vote_N != NO_VOTE))
        is_vote_P = past.vote_P != NO_VOTE
        query = np.concatenate([past.index_P[is_vote_P], voted])
        model = np.concatenate([past.option_P[is_vote_P], states.option_N[voted]])
        chance_JN = np.stack([chance_once_ended(curves) for curves in market.believed.fresh])
        sums = np.bincount(query, weights=chance_JN[model, query], minlength=len(states.attempt_N))
        count = np.bincount(query, minlength=len(states.attempt_N))
        return np.asarray(np.where(count > 0, sums / np.maximum(count, 1), chance_JN[0]))

    def _granted(
        self, market: Market, menu: Menu, bought: Bought, index: Integers, model_M: Integers, available_tokens: int
    ) -> Clearing:
        """Return the next answers of the plans that are bought, best first, as far as their ceilings fit."""
        rows, plan_M = np.arange(len(index)), bought.plan_N
        tokens_M, is_fresh_M = menu.tokens_JN[plan_M, rows], menu.is_fresh_JN[plan_M, rows]
        success_M, spend_M = menu.success_JN[plan_M, rows], menu.spend_JN[plan_M, rows]
        before_M = np.where(is_fresh_M, 0, market.states.answer_tokens_N[index])
        parts_JM = np.stack([calls.taken_parts(index, tokens_M, before_M) for calls in self.calls])
        parts_M = parts_JM[model_M, rows]
        buyers = np.flatnonzero(tokens_M > 0)
        worth_M = success_M[buyers] / np.maximum(spend_M[buyers], 1e-300)
        order = buyers[np.lexsort((self.tie_break_N[index[buyers]], -worth_M))]
        chosen = order[np.cumsum(parts_M[order]) <= available_tokens * COST_PARTS]
        chosen = chosen[np.argsort(-tokens_M[chosen], kind="stable")]
        return replace(
            bought_calls(menu, bought, index, tokens_M, chosen, queries=len(market.is_free_N)),
            option_M=model_M[chosen],
            is_fresh_M=is_fresh_M[chosen],
            reserved_parts_M=parts_M[chosen],
        )


def _tried_with(states: QueryStates, model: int) -> Tried:
    """Return all attempts with a model; none of them is known to be wrong."""
    past = states.past
    current = np.flatnonzero((states.attempt_N > 0) & (states.option_N == model))
    is_of_P = past.option_P == model
    query_P = np.concatenate([past.index_P[is_of_P], current])
    return Tried(
        query_P=query_P,
        tokens_P=np.concatenate([past.tokens_P[is_of_P], states.answer_tokens_N[current]]),
        is_ended_P=np.concatenate([past.has_stopped_P[is_of_P], states.has_stopped_N[current]]),
        is_right_P=np.zeros(len(query_P), bool),
    )


def _stacked(menus: Sequence[Menu], models: Sequence[int]) -> tuple[Menu, Integers]:
    """Return the plans of several models as one menu, and which model each is of."""
    columns = {name: np.concatenate([getattr(menu, name) for menu in menus]) for name in _PLAN_COLUMNS}
    most_N = np.max([menu.most_tokens_N for menu in menus], axis=0)
    return Menu(**columns, most_tokens_N=most_N), np.repeat(models, [len(menu.success_JN) for menu in menus])
