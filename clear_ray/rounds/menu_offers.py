"""Offers of a run with several models under one price: which model a query is asked of next, and at which ceiling.

**Where nothing says whether an answer is right**, a query is answered once: the best (model, ceiling) at the price of what it
is expected to take. A cut answer is gone on with or begun again by another model, and one that ended is the query's.

**Where a scorer says so**, a wrong answer may be followed by one of a dearer model, which the price counts in (`menu_plans`).
Where the best of several counts, a further answer is worth what is left to the full score.

**What is believed** of a model comes from a head that was there before, from the run's own answers, or both (`menu_beliefs`).

**Pilots and stages.** A model of which nothing is known is not priced before a pilot has asked it (`menu_pilot`). Stages
are those of a run that teaches itself (`learning_offers`).

Shapes: N queries, M of them granted, J models, K grid points, P coordinates.

Source: docs/method.md, sections 8 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import Objective
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.factors import Label
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import Evidence
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.history import SOLVED_SCORE, AttemptRule
from clear_ray.rounds.menu import Option
from clear_ray.rounds.menu_beliefs import MenuBeliefs, ModelCurves
from clear_ray.rounds.menu_courses import Seen, course_tables, seen_answers
from clear_ray.rounds.menu_pilot import Pilot, stretch_J, supposed_parts
from clear_ray.rounds.menu_pricing import Block, best_that_fit, buy_plans
from clear_ray.rounds.menu_service import MenuService
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
_GROWTH, _LEAST_STAGE, _GIVE = 0.8, 0.02, 0.02


@dataclass(frozen=True, slots=True, eq=False)
class MenuRule(AttemptRule):
    """What ends a query of a menu: an answer that ended by itself, unless it is wrong and another model may follow.

    Where votes are counted none does, and no error: other answers may follow either.
    """

    def closes_M(self, attempts: Attempts, number_M: NDArray[np.int32]) -> NDArray[np.bool_]:
        """See `AttemptRule`."""
        is_last_M = attempts.is_over_M & (number_M >= self.most_of(attempts.index_M))
        is_answered_M = attempts.has_stopped_M & ~attempts.has_failed_M & (self.objective != "vote")
        if self.objective in ("solved", "best_of_n"):
            # Where nothing says that an answer is wrong, none follows: NaN is below nothing.
            is_answered_M = is_answered_M & ~(attempts.correct_M < SOLVED_SCORE)
        return np.asarray(is_last_M | is_answered_M, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class MenuOffers:
    """See the module.

    Attributes:
        x_NP: Coordinates of all queries.
        tokens_K: The token grid of all curves.
        weight_N: Value of a correct answer.
        max_tokens_JN: Ceilings by model.
        tie_break_N: A number that belongs to the query and not to its place in the input.
        calls: What calls of each model take, the cheapest model first.
        budget_tokens: What the run may spend, in the budget's unit.
        objective: What the answers of a query are for; where they are to be solved, or the best counts, a scorer says at
            once how right one is.
        given: Beliefs of each model by a head that was there before; None for one that has none.
        earlier: Beliefs of each model by what runs before have learned of it; None for none.
        times: How often each model may be asked of a query; more than once only where a scorer says what is wrong.
        learns: Whether the run's own answers teach.
        can_go_on: Whether each model can go on with a cut answer; all can if not given.
        stages: Sizes of pilot and stages.
        fold_N: For replays in which several queries are the same one asked again: their fold.
        seed: Of all random choices.
        label: What says that an answer is right, where answers teach.
    """

    x_NP: Array
    tokens_K: Integers
    weight_N: Array
    max_tokens_JN: Integers
    tie_break_N: NDArray[np.uint64]
    calls: tuple[CallCosts, ...]
    budget_tokens: int
    objective: Objective = "correct"
    given: tuple[Incidence | None, ...] = ()
    earlier: tuple[Incidence | None, ...] = ()
    times: int = 1
    learns: bool = True
    can_go_on: tuple[bool, ...] = ()
    stages: Stages = field(default_factory=Stages)
    fold_N: Integers | None = None
    seed: int = 0
    label: Label = "verdict"

    @property
    def cost_N(self) -> Array:
        """See `Offers`; of the dearest model."""
        return np.asarray(np.max([calls.token_parts_N for calls in self.calls], axis=0) / COST_PARTS)

    @property
    def max_tokens_N(self) -> Integers:
        """See `Offers`; of one attempt."""
        return np.asarray(self.max_tokens_JN.max(axis=0), np.int64)

    @property
    def rule(self) -> MenuRule:
        """What ends a query: each model is asked so often."""
        most_N = np.full(len(self.weight_N), self.times * len(self.calls), np.int64)
        return MenuRule(self.objective, most_N)

    @property
    def is_verified(self) -> bool:
        """Whether a scorer says at once how right an answer is."""
        return self.objective in ("solved", "best_of_n")

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: Integers,
    ) -> Clearing:
        """See `Offers`."""
        service = MenuService(self.calls, self.max_tokens_JN, owed_tokens_N)
        clearing = self._cleared(states, is_free_N, available_tokens, service.kept_tokens)
        clearing = service.with_floors(clearing, available_tokens=available_tokens)
        if clearing.option_M is None:
            return clearing
        token_parts_JN = np.stack([calls.token_parts_N for calls in self.calls])
        return replace(clearing, token_cost_M=token_parts_JN[clearing.option_M, clearing.index_M] / COST_PARTS)

    def _cleared(
        self, states: QueryStates, is_free_N: NDArray[np.bool_], available_tokens: int, kept_tokens: int
    ) -> Clearing:
        spent_tokens, available_tokens = self.budget_tokens - available_tokens, available_tokens - kept_tokens
        if available_tokens < 1:
            return nothing_to_grant(len(is_free_N))
        rng = np.random.default_rng([self.seed, int(states.last_round_N.max(initial=0))])
        seen, models = seen_answers(states), tuple(range(len(self.calls)))
        market = self._market(states, is_free_N, self._believed(seen))
        if not self.learns:
            return self._priced(market, available_tokens, models)
        known = [model for model in models if self._is_known(seen, model)]
        clearing = self._priced(market, available_tokens, known)
        if len(known) < len(models):
            pilot = self._next_pilot(rng, market, available_tokens, known, len(clearing.index_M) > 0)
            if len(pilot.index_M):
                return pilot
            if not len(clearing.index_M):  # what pays for no pilot still buys something
                return self._priced(market, available_tokens, models)
        # A budget that was raised on the way is more than the run began with.
        written_tokens = (
            int(states.written_tokens_N @ np.min([c.token_parts_N for c in self.calls], axis=0)) / COST_PARTS
        )
        stage_tokens = max(max(spent_tokens, written_tokens) * _GROWTH, _LEAST_STAGE * available_tokens)
        if stage_tokens >= 0.5 * available_tokens or states.last_round_N.max(initial=0) > self.stages.most_rounds:
            return clearing
        return self._random_part(clearing, stage_tokens, rng)

    def _random_part(self, clearing: Clearing, tokens: float, rng: np.random.Generator) -> Clearing:
        """Return a random subset of the grants that takes about so much, and at least one grant."""
        if not len(clearing.index_M):
            return clearing
        option_M = np.zeros_like(clearing.index_M) if clearing.option_M is None else clearing.option_M
        token_parts_M = np.stack([calls.token_parts_N for calls in self.calls])[option_M, clearing.index_M]
        back_M = token_parts_M * (clearing.tokens_M - clearing.expected_tokens_M)
        most_M = clearing.parts_M(self.cost_N) / COST_PARTS
        # Early beliefs of what answers take may be far too low; ceilings are far too high.
        guessed_M = np.sqrt(most_M * (most_M - back_M / COST_PARTS))
        order = rng.permutation(len(guessed_M))
        count = max(int(np.searchsorted(np.cumsum(guessed_M[order]), tokens, side="right")), 1)
        return clearing.some(np.sort(order[:count]))

    def serve(self, owed_tokens_N: Integers, *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`: each query by the model that serves it at the least cost."""
        service = MenuService(self.calls, self.max_tokens_JN, owed_tokens_N)
        served = [self._batch(curves, model) for model, curves in enumerate(self._believed(None).fresh)]
        return service.paid_out(served, available_tokens=available_tokens, shadow_price=shadow_price)

    def _may_go_on_N(self, states: QueryStates, model: int) -> NDArray[np.bool_]:
        can = not self.can_go_on or self.can_go_on[model]
        return np.asarray(states.may_go_on_N & (states.option_N == model) & can, np.bool_)

    def _offered_N(self, states: QueryStates, model: int, asked_N: Integers) -> NDArray[np.bool_]:
        """Return which queries may be asked of a model anew: of no model after it, and of it less often than they may be."""
        is_again_N = (states.option_N == model) & (asked_N < self.times)
        return np.asarray((states.attempt_N == 0) | (states.option_N < model) | is_again_N, np.bool_)

    def _asked_N(self, states: QueryStates) -> Integers:
        """Return how often each query has been asked of the model that it was asked of last."""
        past = states.past
        same = past.index_P[past.option_P == states.option_N[past.index_P]]
        return np.asarray(np.bincount(same, minlength=len(self.weight_N)) + (states.attempt_N > 0), np.int64)

    def _rung_N(self, states: QueryStates, model: int, ended_N: Integers) -> Integers:
        """Return the rung of the next call of each query to a model, by how many of its calls are over; see `menu_plans`."""
        is_same_N = (states.attempt_N > 0) & (states.option_N == model)
        before_N = np.where(is_same_N, ended_N, 0)
        return np.asarray(np.minimum(self.times * model + before_N, self.times * len(self.calls) - 1), np.int64)

    def _batch(self, curves: Curves, model: int, weight_N: Array | None = None, rows: Integers | None = None) -> Batch:
        """Return a model's curves with what belongs to their queries, which are those at `rows`, or all."""
        weight_N = self.weight_N if weight_N is None else weight_N
        calls, most_N, tie_break_N = self.calls[model], self.max_tokens_JN[model], self.tie_break_N
        if rows is not None:
            weight_N, most_N, tie_break_N, calls = weight_N[rows], most_N[rows], tie_break_N[rows], calls.take(rows)
        return Batch(curves, weight_N, most_N, tie_break_N, calls.token_parts_N / COST_PARTS, calls)

    def _worth_N(self, states: QueryStates) -> Array:
        """Return what a right answer is worth now: where the best counts, what it may add to the best score so far."""
        if self.objective != "best_of_n":
            return self.weight_N
        return np.asarray(self.weight_N * (1.0 - np.clip(np.nan_to_num(states.chosen_score_N), 0.0, 1.0)))

    @property
    def _pilot(self) -> Pilot:
        return Pilot(self.calls, self.max_tokens_JN, self.stages, self.budget_tokens, float(self.weight_N.mean()))

    def _pilot_order(self, rng: np.random.Generator, market: Market, model: int, *, has_time: bool) -> Integers:
        """Return which queries a pilot asks of a model: first those that others got wrong, of the dearest other model first.

        Where it is known what is wrong, and others are still to be asked, no other queries.
        """
        states = market.states
        may_N = rng.permutation(np.flatnonzero(market.is_free_N & market.offered_JN[model]))
        failed = may_N[(states.attempt_N[may_N] > 0) & ~states.may_go_on_N[may_N]]
        failed = failed[np.argsort(-states.option_N[failed], kind="stable")]
        new = may_N[(states.attempt_N[may_N] == 0) & (not has_time or not self.is_verified)]
        return np.concatenate([failed, new])

    def _is_known(self, seen: Seen, model: int) -> bool:
        told = (*self.given[model : model + 1], *self.earlier[model : model + 1])
        is_told = any(each is not None for each in told)
        return is_told or int((seen.model_M == model).sum()) >= self._pilot.least_answers

    def _next_pilot(
        self, rng: np.random.Generator, market: Market, available_tokens: int, known: Sequence[int], is_worth: bool
    ) -> Clearing:
        """Return grants of a pilot of the first unknown model that may pay; nothing to grant if none does.

        Args:
            rng: For the choice of queries.
            market: What is for sale.
            available_tokens: What there is.
            known: Models of which enough is known.
            is_worth: Whether anything of these is worth its price.
        """
        pilot, states, models = self._pilot, market.states, range(len(self.calls))
        price, supposed = 0.0, [0.0 for _ in models]
        if known:
            answers = int((states.answer_tokens_N > 0).sum()) + len(states.past)
            price = self._priced(market, pilot.left_tokens(available_tokens, answers), known).shadow_price
            means = [float(market.believed.fresh[model].spend_NK[:, -1].mean()) for model in models]
            supposed = supposed_parts(self.calls, [mean if m in known else None for m, mean in enumerate(means)])
        for model in (model for model in models if model not in known):
            share = pilot.share_parts(available_tokens, price=price, answer_parts=supposed[model])
            if is_worth and share < pilot.least_answers * supposed[model]:
                continue
            order = self._pilot_order(rng, market, model, has_time=is_worth)
            if is_worth and len(order) < pilot.least_answers:
                continue
            one_parts = 0 if is_worth else available_tokens * COST_PARTS
            granted = pilot.grants(model, order, share_parts=share, at_least_parts=one_parts)
            if len(granted.index_M):
                return granted
        return nothing_to_grant(len(market.is_free_N))

    def _market(self, states: QueryStates, is_free_N: NDArray[np.bool_], believed: ModelCurves) -> Market:
        models, asked_N = range(len(self.calls)), self._asked_N(states)
        goes_on_JN = np.stack([self._may_go_on_N(states, model) for model in models])
        return Market(
            states,
            is_free_N,
            believed,
            worth_N=self._worth_N(states),
            asked_N=asked_N,
            goes_on_JN=goes_on_JN,
            offered_JN=np.stack([self._offered_N(states, model, asked_N) for model in models]),
            rung_JN=np.stack([self._rung_N(states, model, asked_N - goes_on_JN[model]) for model in models]),
        )

    def _block(self, market: Market, models: Sequence[int], rows: Integers, available_tokens: int) -> Block:
        """Return what the queries at `rows` may buy of some of the models.

        Each is gone on with where it has been cut off, else from the beginning. Nothing follows an answer of which nothing
        says that it is wrong.
        """
        states, here, nothing = market.states, np.arange(len(rows)), np.zeros(len(rows), np.int64)
        attempt, answer_tokens = states.attempt_N[rows], states.answer_tokens_N[rows]
        block = Block([], [], [])
        for model in range(len(self.calls)):
            believed = [curves[model].take(rows) for curves in market.believed.by_failures]
            goes_on, is_sold = market.goes_on_JN[model, rows], np.full(len(rows), model in models)
            failures = attempt - goes_on
            curves, after = _of_each(believed, failures), _of_each(believed, failures + 1)
            batch = self._batch(curves, model, market.worth_N, rows)
            is_offered = (goes_on | market.offered_JN[model, rows]) & is_sold
            now = Option(batch, np.where(goes_on, answer_tokens, 0), is_offered)
            again = Option(replace(batch, curves=after), nothing, is_sold & self.is_verified)
            block.tables.append(course_tables(now, here, available_tokens))
            block.first.append(block.tables[-1].course(model, market.rung_JN[model, rows]))
            block.later.append(course_tables(again, here, available_tokens).course(model))
        return block

    def _priced(self, market: Market, available_tokens: int, models: Sequence[int]) -> Clearing:
        """Return what queries buy of some of the models."""
        index = market.with_room(self.max_tokens_JN, models)
        if not len(index) or available_tokens < 1:
            return nothing_to_grant(len(market.is_free_N))
        plans = buy_plans(
            index,
            lambda rows: self._block(market, models, rows, available_tokens),
            available=float(available_tokens),
            tie_break_M=self.tie_break_N[index],
            give=_GIVE,
            times=self.times,
        )
        chosen = best_that_fit(plans, available_tokens * COST_PARTS, self.tie_break_N[index])
        surplus_N = np.zeros(len(market.is_free_N))
        surplus_N[index] = plans.surplus_M
        dual = plans.price * available_tokens + float(plans.surplus_M.sum())
        worth, whole_worth = (float(of[chosen].sum()) for of in (plans.first_worth_M, plans.worth_M))
        return Clearing(
            index_M=index[chosen],
            tokens_M=plans.tokens_M[chosen],
            expected_tokens_M=plans.spend_M[chosen],
            expected_utility_M=plans.first_worth_M[chosen],
            surplus_N=surplus_N,
            shadow_price=plans.price,
            dual_bound=dual,
            gap=max(dual - whole_worth, 0.0),
            later_utility=whole_worth - worth,
            option_M=plans.course_M[chosen],
            is_fresh_M=~market.goes_on_JN[plans.course_M[chosen], index[chosen]],
            reserved_parts_M=plans.parts_M[chosen],
        )

    def learned(self, states: QueryStates) -> tuple[list[Batch], Evidence | None]:
        """Return what is believed of each model's answers by now, and what that rests on; None if nothing taught."""
        believed = self._believed(seen_answers(states))
        return [self._batch(curves, model) for model, curves in enumerate(believed.fresh)], believed.evidence

    def _believed(self, seen: Seen | None) -> ModelCurves:
        beliefs = MenuBeliefs(
            x_NP=self.x_NP,
            tokens_K=self.tokens_K,
            stretch_J=stretch_J(self.calls),
            given=self.given,
            earlier=self.earlier,
            fold_N=self.fold_N,
            seed=self.seed,
            label=self.label,
            most_failures=self.times * len(self.calls) - 1,
        )
        return beliefs.after(seen if self.learns else None)


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """What a clearing sells, the queries that it is for, and what is believed of it.

    Attributes:
        states: Where every query stands.
        is_free_N: Queries that may be granted tokens.
        believed: Curves by each model.
        worth_N: What a right answer is worth now.
        asked_N: How often each query has been asked of the model that it was asked of last.
        goes_on_JN: Whether a model's answer was cut off and can be gone on with.
        offered_JN: Whether it may be asked of a model anew.
        rung_JN: Rung of the next call to it.
    """

    states: QueryStates
    is_free_N: NDArray[np.bool_]
    believed: ModelCurves
    worth_N: Array
    asked_N: Integers
    goes_on_JN: NDArray[np.bool_]
    offered_JN: NDArray[np.bool_]
    rung_JN: Integers

    def with_room(self, max_tokens_JN: Integers, models: Sequence[int]) -> Integers:
        """Return the free queries that may have more of some of the models."""
        of = list(models)
        room_JN = max_tokens_JN[of] - np.where(self.goes_on_JN[of], self.states.answer_tokens_N, 0)
        room_JN[~(self.goes_on_JN[of] | self.offered_JN[of])] = 0
        return np.flatnonzero(self.is_free_N & (room_JN.max(axis=0, initial=0) > 0))


def _of_each(kinds: Sequence[Curves], kind_N: Integers) -> Curves:
    """Return each query's curve of its own kind; of numbers above the last kind it is that one."""
    kind_N, rows = np.minimum(kind_N, len(kinds) - 1), np.arange(len(kind_N))
    if not kind_N.any():
        return kinds[0]
    names = ("success_NK", "spend_NK", "survival_NK", "threshold_tokens_N", "solvability_N", "beta_N")
    chosen = (np.stack([getattr(curves, name) for curves in kinds])[kind_N, rows] for name in names)
    return Curves(kinds[0].tokens_K, *chosen)
