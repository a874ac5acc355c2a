"""Offers of a run with several models under one price: which model a query is asked of next, and at which ceiling.

**Where nothing says whether an answer is right**, a query is answered once: the envelope over every (model, ceiling) decides
(`menu`), a cut answer is gone on with or begun again by another model, and an answer that ended is the query's.

**Where a scorer says so**, a wrong answer may be followed by one of a dearer model, which the price counts in (`menu_plans`).

**What is believed** of a model comes from a head that was there before, from the run's own answers, or both. All models are
learned together: a query's coordinates, which models the one that answered is dearer than, and whether another has failed on
the query before. So a model that was seen little is believed to be like the others, and an answer that was wrong says
something about the next. No query is believed anything that an answer of its own has taught, except by that last number.

**Pilot and stages** are those of a run that teaches itself (`learning_offers`). The pilot asks the first model of which
nothing is known, a second one those others whose answers would not take many times what the budget has for a query. A model
that nothing has been learned of, because all its answers failed, is believed the uninformed law.

Shapes: N queries, M of them granted, J models, K grid points, P coordinates.

Source: docs/method.md, sections 8 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.factors import Factors, Label, fit_factors, law, log_likelihood_M
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import Evidence, by_fold
from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, clear_menu, nothing_to_grant
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import Stages
from clear_ray.rounds.menu import Option
from clear_ray.rounds.menu_courses import Seen, course_tables, seen_answers
from clear_ray.rounds.menu_plans import filled, price_plans
from clear_ray.rounds.states import QueryStates

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
FOLDS = 4
_INDICATOR, _GROWTH, _GIVE = 0.5, 0.8, 0.02
_PILOT_SHARE, _DEAREST_PILOT = 0.1, 2.0


@dataclass(frozen=True, slots=True, eq=False)
class MenuRule(AttemptRule):
    """What ends a query of a menu: an answer that ended by itself, unless it is wrong and another model may follow."""

    def closes_M(self, attempts: Attempts, number_M: NDArray[np.int32]) -> NDArray[np.bool_]:
        """See `AttemptRule`."""
        is_last_M = attempts.is_over_M & (number_M >= self.most_of(attempts.index_M))
        is_answered_M = attempts.has_stopped_M & ~attempts.has_failed_M
        if self.objective == "solved":
            is_answered_M = is_answered_M & (attempts.correct_M >= 1.0)
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
        is_verified: Whether a scorer says at once if an answer is right.
        given: Beliefs of each model by a head that was there before; None for one that has none.
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
    is_verified: bool = False
    given: tuple[Incidence | None, ...] = ()
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
        """What ends a query: each model is asked once."""
        most_N = np.full(len(self.weight_N), len(self.calls), np.int64)
        return MenuRule("solved" if self.is_verified else "correct", most_N)

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: Integers,
    ) -> Clearing:
        """See `Offers`."""
        clearing = self._cleared(states, is_free_N, available_tokens)
        if clearing.option_M is None:
            return clearing
        token_parts_JN = np.stack([calls.token_parts_N for calls in self.calls])
        return replace(clearing, token_cost_M=token_parts_JN[clearing.option_M, clearing.index_M] / COST_PARTS)

    def _cleared(self, states: QueryStates, is_free_N: NDArray[np.bool_], available_tokens: int) -> Clearing:
        rng = np.random.default_rng([self.seed, int(states.last_round_N.max(initial=0))])
        seen, is_new_N = seen_answers(states), is_free_N & (states.attempt_N == 0)
        unknown = [model for model in range(len(self.calls)) if self._given(model) is None]
        if self.learns and unknown and not len(seen.answers):
            pilot = self._pilot(rng, unknown[:1], is_new_N, available_tokens)
            if len(pilot.index_M):
                return pilot
        fresh, after = self._believed(self._fit(seen) if self.learns and len(seen.answers) else None)
        if self.learns and len(seen.answers) and (unseen := self._worth_a_pilot(seen, fresh)):
            pilot = self._pilot(rng, unseen, is_new_N, available_tokens)
            if len(pilot.index_M):
                return pilot
        if self.is_verified:
            clearing = self._clear_plans(states, fresh, after, is_free_N, available_tokens)
        else:
            options = self._options(states, fresh, after)
            clearing = clear_menu(options, is_open_N=is_free_N, available_tokens=available_tokens)
            option_M = np.zeros_like(clearing.index_M) if clearing.option_M is None else clearing.option_M
            clearing = replace(clearing, is_fresh_M=_begins_M(states, clearing.index_M, option_M))
        if not self.learns:
            return clearing
        # A budget that was raised on the way is more than the run began with.
        written_tokens = (
            int(states.written_tokens_N @ np.min([c.token_parts_N for c in self.calls], axis=0)) / COST_PARTS
        )
        stage_tokens = max(self.budget_tokens - available_tokens, written_tokens) * _GROWTH
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
        """See `Offers`; a menu has no minimum service."""
        return nothing_to_grant(len(owed_tokens_N))

    def _given(self, model: int) -> Incidence | None:
        return self.given[model] if self.given else None

    def _may_go_on_N(self, states: QueryStates, model: int) -> NDArray[np.bool_]:
        can = not self.can_go_on or self.can_go_on[model]
        return np.asarray(states.may_go_on_N & (states.option_N == model) & can, np.bool_)

    def _offered_N(self, states: QueryStates, model: int) -> NDArray[np.bool_]:
        """Return which queries may be asked of a model from the beginning: those it has not answered, nor one after it."""
        return np.asarray((states.attempt_N == 0) | (states.option_N < model), np.bool_)

    def _batch(self, curves: Curves, model: int) -> Batch:
        calls = self.calls[model]
        return Batch(
            curves, self.weight_N, self.max_tokens_JN[model], self.tie_break_N, calls.token_parts_N / COST_PARTS, calls
        )

    def _options(self, states: QueryStates, fresh: Sequence[Curves], after: Sequence[Curves]) -> list[Option]:
        """Return each model as an option, gone on with where it has been cut off, else from the beginning."""
        options = []
        for model in range(len(self.calls)):
            goes_on_N = self._may_go_on_N(states, model)
            has_failed_N = np.where(goes_on_N, states.attempt_N > 1, states.attempt_N > 0)
            curves = _either(fresh[model], after[model], has_failed_N)
            generated_N = np.where(goes_on_N, states.answer_tokens_N, 0)
            options.append(Option(self._batch(curves, model), generated_N, goes_on_N | self._offered_N(states, model)))
        return options

    def _clear_plans(
        self,
        states: QueryStates,
        fresh: Sequence[Curves],
        after: Sequence[Curves],
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
    ) -> Clearing:
        options, queries = self._options(states, fresh, after), len(is_free_N)
        index = np.flatnonzero(is_free_N & (np.max([option.room_N for option in options], axis=0) > 0))
        if not len(index) or available_tokens < 1:
            return nothing_to_grant(queries)
        tables = [course_tables(option, index, available_tokens) for option in options]
        first = [table.course(model) for model, table in enumerate(tables)]
        nothing_N = np.zeros(queries, np.int64)
        again = [Option(self._batch(curves, model), nothing_N) for model, curves in enumerate(after)]
        later = [course_tables(option, index, available_tokens).course(model) for model, option in enumerate(again)]
        tie_break_M = self.tie_break_N[index]
        plans = price_plans(first, later, available=float(available_tokens), give=_GIVE)
        plans = filled(plans, available=float(available_tokens), tie_break_M=tie_break_M)
        bought = np.flatnonzero(plans.course_M >= 0)
        option_M, point_M = plans.course_M[bought], plans.point_M[bought]
        tokens = np.stack([t.tokens_MK for t in tables])[option_M, bought, point_M]
        parts = np.stack([t.parts_MK for t in tables])[option_M, bought, point_M]
        spends = np.stack([t.spend_MK for t in tables])[option_M, bought, point_M]
        # Best first, as far as ceilings fit: what does not is priced anew once more is known.
        order = np.lexsort((tie_break_M[bought], -plans.surplus_M[bought] / np.maximum(plans.cost_M[bought], 1e-300)))
        fits = np.cumsum(parts[order]) <= available_tokens * COST_PARTS
        chosen = order[fits]
        chosen = chosen[np.argsort(-tokens[chosen], kind="stable")]
        surplus_N = np.zeros(queries)
        surplus_N[index] = plans.surplus_M
        dual = plans.price * available_tokens + float(plans.surplus_M.sum())
        worth = float(plans.first_worth_M[bought[chosen]].sum())
        later_worth = float(plans.worth_M[bought[chosen]].sum()) - worth
        return Clearing(
            index_M=index[bought[chosen]],
            tokens_M=tokens[chosen],
            expected_tokens_M=spends[chosen],
            expected_utility_M=plans.first_worth_M[bought[chosen]],
            surplus_N=surplus_N,
            shadow_price=plans.price,
            dual_bound=dual,
            gap=max(dual - worth - later_worth, 0.0),
            later_utility=later_worth,
            option_M=option_M[chosen],
            is_fresh_M=_begins_M(states, index[bought[chosen]], option_M[chosen]),
            reserved_parts_M=parts[chosen],
        )

    def learned(self, states: QueryStates) -> tuple[list[Batch], Evidence | None]:
        """Return what is believed of each model's answers by now, and what that rests on; None if nothing taught."""
        seen = seen_answers(states)
        fitted = self._fit(seen) if self.learns and len(seen.answers) else None
        fresh, _ = self._believed(fitted)
        batches = [self._batch(curves, model) for model, curves in enumerate(fresh)]
        return batches, None if fitted is None else fitted.evidence

    def _believed(self, fitted: Fitted | None) -> tuple[list[Curves], list[Curves]]:
        """Return each model's curves of all queries: where no other model has failed, and where one has."""
        fresh: list[Curves] = []
        after: list[Curves] = []
        for model in range(len(self.calls)):
            given = self._given(model)
            for curves, has_failed in ((fresh, False), (after, True)):
                found = given
                if fitted is not None and (given is None or has_failed):
                    found = self._incidence(fitted, model, has_failed)
                if found is None:
                    found = self._law()
                curves.append(
                    curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=self.tokens_K)
                )
        return fresh, after

    def _law(self) -> Incidence:
        right_NK, survival_NK = (np.tile(row, (len(self.x_NP), 1)) for row in law(self.tokens_K))
        return Incidence(right_NK, 1.0 - right_NK - survival_NK, survival_NK)

    def _coordinates(self, x_MP: Array, model_M: Integers, has_failed_M: NDArray[np.bool_]) -> Array:
        indicators = _INDICATOR * (model_M[:, None] > np.arange(len(self.calls) - 1))
        return np.concatenate([x_MP, indicators, _INDICATOR * has_failed_M[:, None]], axis=1)

    def _folds(self) -> Integers:
        if self.fold_N is not None:
            return self.fold_N
        return np.random.default_rng(self.seed).permutation(np.arange(len(self.x_NP)) % FOLDS)

    def _fit(self, seen: Seen) -> Fitted:
        """Return fits for each fold of queries, of the answers to the others: with what is known of queries, and without."""
        query_M, fold_N = seen.answers.query_M, self._folds()
        x_MP = self._coordinates(self.x_NP[query_M], seen.model_M, seen.has_failed_M)
        blind_MP, fold_M = x_MP[:, self.x_NP.shape[1] :], fold_N[query_M]
        answers = replace(seen.answers, query_M=np.arange(len(query_M)))
        informed, blind, gain = [], [], 0.0
        for fold in range(int(fold_N.max()) + 1):
            taught, held = answers.take(fold_M != fold), answers.take(fold_M == fold)
            informed.append(fit_factors(x_MP, taught, tokens_K=self.tokens_K, label=self.label))
            blind.append(fit_factors(blind_MP, taught, tokens_K=self.tokens_K, label=self.label))
            for factors, x, sign in ((informed[-1], x_MP, 1.0), (blind[-1], blind_MP, -1.0)):
                if len(held):
                    found = factors.incidence(x[held.query_M], tokens_K=self.tokens_K)
                    gain += sign * float(log_likelihood_M(found, held, tokens_K=self.tokens_K).sum())
        return Fitted(informed, blind, Evidence(len(answers), gain))

    def _incidence(self, fitted: Fitted, model: int, has_failed: bool) -> Incidence:
        queries, fold_N = len(self.x_NP), self._folds()
        x_NP = self._coordinates(self.x_NP, np.full(queries, model), np.full(queries, has_failed))
        blind_NP, share = x_NP[:, self.x_NP.shape[1] :], fitted.evidence.shares()[0]
        informed = by_fold(tuple(fitted.informed), x_NP, fold_N, tokens_K=self.tokens_K)
        blind = by_fold(tuple(fitted.blind), blind_NP, fold_N, tokens_K=self.tokens_K)
        right, survival = (
            share * getattr(informed, name) + (1.0 - share) * getattr(blind, name)
            for name in ("right_NK", "survival_NK")
        )
        return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)

    def _worth_a_pilot(self, seen: Seen, fresh: Sequence[Curves]) -> list[int]:
        """Return the models of which nothing is known yet, and whose answers may be worth what they take.

        An answer that takes many times what the budget has for a query is bought after others have failed, if at all.
        """
        mean_parts = self.budget_tokens * COST_PARTS / len(self.weight_N)
        wanted = []
        for model, calls in enumerate(self.calls):
            tokens = float(fresh[model].spend_NK[:, -1].mean())
            parts = float((calls.token_parts_N * tokens + calls.read_parts_N * calls.prompt_tokens_N).mean())
            is_known = bool((seen.model_M == model).any()) or self._given(model) is not None
            if not is_known and parts <= _DEAREST_PILOT * mean_parts:
                wanted.append(model)
        return wanted

    def _pilot(
        self, rng: np.random.Generator, models: Sequence[int], is_free_N: NDArray[np.bool_], available_tokens: int
    ) -> Clearing:
        """Grant a few random queries a generous ceiling each, of each model as many as an equal share pays for."""
        order = rng.permutation(np.flatnonzero(is_free_N))
        grants: list[tuple[int, int, int, int]] = []
        share_parts = _PILOT_SHARE * available_tokens * COST_PARTS / len(models)
        most, none = self.stages.pilot_size(len(self.weight_N)), np.zeros(1, np.int64)
        for model in models:
            calls, left = self.calls[model], share_parts
            order = order[~np.isin(order, [grant[0] for grant in grants])]
            for query in order[self.max_tokens_JN[model, order] > 0][:most].tolist():
                one, room = np.array([query]), int(self.max_tokens_JN[model, query])
                least = min(self.stages.smallest_ceiling_tokens, room)
                if not grants:  # of a small budget one answer is more than a share, and nothing is learned without it
                    one_parts = int(calls.taken_parts(one, np.array([least]), none)[0])
                    left = max(left, min(one_parts, available_tokens * COST_PARTS))
                tokens = min(room, int(calls.affordable_tokens(int(left), one, none)[0]))
                if tokens < least:
                    break
                tokens = min(tokens, self._pilot_ceiling(model, query))
                grants.append((query, tokens, model, int(calls.taken_parts(one, np.array([tokens]), none)[0])))
                left -= grants[-1][3]
        if not grants:
            return nothing_to_grant(len(is_free_N))
        index_M, tokens_M, option_M, parts_M = np.array(grants, np.int64).T
        return replace(
            nothing_to_grant(len(is_free_N)),
            index_M=index_M,
            tokens_M=tokens_M,
            expected_tokens_M=tokens_M.astype(np.float64),
            expected_utility_M=np.zeros(len(index_M)),
            option_M=option_M,
            is_fresh_M=np.ones(len(index_M), bool),
            reserved_parts_M=parts_M,
        )

    def _pilot_ceiling(self, model: int, query: int) -> int:
        """Return a generous ceiling: a multiple of what the budget pays for, were it shared equally."""
        calls, one = self.calls[model], np.array([query])
        parts = int(self.stages.pilot_ceiling * self.budget_tokens * COST_PARTS / len(self.weight_N))
        tokens = int(calls.affordable_tokens(parts, one, np.zeros(1, np.int64))[0])
        return max(tokens, self.stages.smallest_ceiling_tokens)


def _begins_M(states: QueryStates, index: Integers, option_M: Integers) -> NDArray[np.bool_]:
    """Return which grants begin an attempt: of queries that another model has been asked, or none."""
    return np.asarray((states.attempt_N[index] == 0) | (states.option_N[index] != option_M), np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What the answers of a run taught, by folds of queries.

    Attributes:
        informed: By what is known of queries, and which model answered.
        blind: By which model answered, alone.
        evidence: How much better the first predicts answers that it was not fitted on, by which it is trusted.
    """

    informed: list[Factors]
    blind: list[Factors]
    evidence: Evidence


def _either(one: Curves, other: Curves, is_other_N: NDArray[np.bool_]) -> Curves:
    """Return some queries' curves of one kind, and the rest of another."""
    if not is_other_N.any():
        return one
    names = ("success_NK", "spend_NK", "survival_NK", "threshold_tokens_N", "solvability_N", "beta_N")

    def mixed(name: str) -> NDArray[np.float32]:
        a, b = getattr(one, name), getattr(other, name)
        return np.asarray(np.where(is_other_N[:, None] if a.ndim == 2 else is_other_N, b, a))

    return Curves(one.tokens_K, *(mixed(name) for name in names))
