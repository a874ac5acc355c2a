"""Offers of a run that teaches itself: nothing is known at the start, and every answer is a lesson.

**The pilot** is the first round: a few random queries under generous ceilings, a multiple of the average budget.

**A stage** clears the price over all that is left, on what is believed by now, and spends only a part of it, on a random
subset of the grants of that clearing: so that each stage sees what the run would buy, and little is lost on a belief that the
next answers overturn. A stage may spend a multiple of what was spent so far, such that the stages that are left reach half of
the budget: the multiple grows where answers were shorter than their ceilings.

**Answers that were cut off** go on to twice their length beside each stage, a few of the shortest: a kind of query whose
answers were all cut is believed never to end, and would never be seen to.

**The rest**: a stage that might spend half of what is left grants all of it, and so does any after `most_rounds`. Later
rounds do the same with what comes back.

**The guard** (`estimation.learning`) is heeded once the explored share of the budget is spent; before that the learned curves
are followed as they are, since a stage has to look where answers might be.

A function of where the queries stand and of the seed, without memory: a resumed run goes on with the same grants.

Shapes: N queries, M granted, K grid points, P coordinates.

Source: method.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.estimation.factors import Label, Observed, law
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import Belief, learn, take_rows
from clear_ray.records import COST_PARTS
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.attempt_offers import clear_attempts
from clear_ray.rounds.batch import Basis, Batch, cost_parts, first_call_parts, taken_tokens
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, clear, nothing_to_grant
from clear_ray.rounds.history import PastAttempts
from clear_ray.rounds.minimum_service import minimum_service
from clear_ray.rounds.stage_grants import joined, random_part
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates

Array = NDArray[np.float64]
LEARNING_ROUNDS = 24
"""Clearings that a run needs for its pilot, its stages, and what comes back of them."""
_FOLDS_OF_ATTEMPTS = 8
"""Folds of a batch that is asked again: more of them leave out fewer answers, and each costs a fit."""


@dataclass(frozen=True, slots=True, eq=False)
class LearningOffers:
    """See the module.

    Attributes:
        x_NP: Coordinates of all queries, by a projection that was fitted on all of them, without labels.
        tokens_K: The token grid of the curves.
        weight_N: Value of a correct answer.
        max_tokens_N: Ceiling of each query over all its grants.
        tie_break_N: A number that belongs to the query and not to its place in the input.
        cost_N: What a token of each query takes from the budget.
        budget_tokens: What the run may generate by the settings that it began with, in tokens of cost 1.
        label: What says that an answer is right.
        stages: Sizes of pilot and stages.
        given: Beliefs of a head that was there before; none if not given.
        fold_N: For replays in which several queries are the same one asked again; see `learn`.
        seed: Seed of all random choices.
        basis: What a grant is priced at.
        asks_again: Whether queries may be asked more than once; see `attempt_offers`. No query is then believed anything that
            its own attempts have taught: what they say of it comes in by itself.
        calls: What calls take in all, where prompts are paid for.
        agreement: Whether, and how far, answers to the same query are compared; they are not if not given.
        is_streamed: Whether prompts were read meanwhile: after as many rounds as there are stages they follow what was spent,
            and not their number.
        part_of: Of how many queries these are a part, before all are known: the pilot is as large as that of all, and stages
            alone are granted, up to half of the budget; None of a whole batch.
    """

    x_NP: Array
    tokens_K: NDArray[np.int64]
    weight_N: Array
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    cost_N: Array
    budget_tokens: int
    label: Label = "verdict"
    stages: Stages = field(default_factory=Stages)
    given: Incidence | None = None
    fold_N: NDArray[np.int64] | None = None
    seed: int = 0
    basis: Basis = "ceilings"
    asks_again: bool = False
    calls: CallCosts | None = None
    agreement: Agreement | None = None
    is_streamed: bool = False
    part_of: int | None = None

    def some(self, index: NDArray[np.int64]) -> Self:
        """Return the law of some of the queries, rising: that of a batch of so many, with their part of the budget."""
        names = ("x_NP", "weight_N", "max_tokens_N", "tie_break_N", "cost_N")
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in names},
            budget_tokens=self.budget_tokens * len(index) // max(len(self.cost_N), 1),
            given=None if self.given is None else take_rows(self.given, index),
            fold_N=None if self.fold_N is None else self.fold_N[index],
            calls=None if self.calls is None else self.calls.take(index),
        )

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`."""
        rng = np.random.default_rng([self.seed, int(states.last_round_N.max(initial=0))])
        observed = observe(states, label=self.label)
        if not len(observed):
            return self._pilot(rng, is_free_N=is_free_N, available_tokens=available_tokens, owed_tokens_N=owed_tokens_N)
        if self.has_explored(states, available_tokens):
            return nothing_to_grant(len(is_free_N))
        batch = self._believed(self.learned(observed), is_guarded=self.is_guarded(states, available_tokens))
        if self.asks_again:
            clearing = clear_attempts(
                batch,
                states,
                is_free_N=is_free_N,
                available_tokens=available_tokens,
                owed_tokens_N=owed_tokens_N,
            )
        else:
            clearing = clear(
                batch,
                generated_tokens_N=states.answer_tokens_N,
                is_open_N=is_free_N & states.is_unanswered_N,
                available_tokens=available_tokens,
                basis=self.basis,
                owed_tokens_N=owed_tokens_N,
            )
        stage_tokens = self._stage_tokens(states, available_tokens)
        if stage_tokens is None:
            return clearing
        part = self._stage_of(clearing, stage_tokens, states, rng)
        if self.asks_again:
            return part
        owed_parts = int(first_call_parts(batch, np.arange(len(owed_tokens_N)), owed_tokens_N).sum())
        unowed_tokens = available_tokens - -(-owed_parts // COST_PARTS)
        part = self._with_longer(part, batch, states, is_free_N & states.is_unanswered_N, unowed_tokens, rng)
        if self.agreement is None or not len(part.index_M):
            return part
        stage_parts = int(part.parts_M(self.cost_N).sum())
        index, tokens = self.agreement.further(
            batch,
            states,
            is_free_N=is_free_N,
            least_tokens=self.stages.smallest_ceiling_tokens,
            stage_parts=stage_parts,
            left_parts=unowed_tokens * COST_PARTS - stage_parts,
            rng=rng,
        )
        return joined(part, batch, index, tokens, np.zeros_like(tokens), is_fresh=True)

    def is_exploring(self, states: QueryStates, available_tokens: int) -> bool:
        """Return whether the next clearing grants a pilot or a stage, and not all that is left."""
        return not len(observe(states, label=self.label)) or self._stage_tokens(states, available_tokens) is not None

    def has_explored(self, states: QueryStates, available_tokens: int) -> bool:
        """Return whether there is no stage left of a part of a batch, and the rest waits for all to be known."""
        stage_tokens = self._stage_tokens(states, available_tokens)
        return self.part_of is not None and stage_tokens is not None and stage_tokens < 1.0

    def is_guarded(self, states: QueryStates, available_tokens: int) -> bool:
        """Return whether what was learned is trusted as far as it has shown itself, and no further."""
        return 1.0 - available_tokens / self._whole_tokens(states, available_tokens) >= self.stages.explored_share

    def _whole_tokens(self, states: QueryStates, available_tokens: int) -> int:
        """Return the budget; one that was raised on the way is more than the run began with."""
        return max(self.budget_tokens, available_tokens + taken_tokens(states.written_tokens_N, self.cost_N), 1)

    def _stage_tokens(self, states: QueryStates, available_tokens: int) -> float | None:
        """Return what the next stage may spend; None if it is the rest."""
        queries, number = len(self.x_NP), int(states.last_round_N.max())
        budget_tokens = self._whole_tokens(states, available_tokens)
        so_far = {"budget_tokens": budget_tokens, "spent_tokens": budget_tokens - available_tokens}
        if self.part_of is not None:
            pilot = self.stages.pilot_size(self.part_of)
            return min(self.stages.part_tokens(queries, pilot, **so_far), 0.5 * budget_tokens - so_far["spent_tokens"])
        if self.is_streamed and number > self.stages.most_stages:
            stage_tokens = self.stages.part_tokens(queries, self.stages.pilot_size(queries), **so_far)
            return None if stage_tokens >= 0.5 * available_tokens else stage_tokens
        stage_tokens = self.stages.stage_tokens(queries, **so_far, round_number=number)
        is_rest = stage_tokens >= 0.5 * available_tokens or number > self.stages.most_rounds
        return None if is_rest else stage_tokens

    def _stage_of(
        self, clearing: Clearing, stage_tokens: float, states: QueryStates, rng: np.random.Generator
    ) -> Clearing:
        """Return the random part of a clearing that a stage grants.

        Where prompts were read meanwhile the number of rounds has all granted that is left at no time. So once there were as
        many, stages of all queries grow by what is asked, and not by what that spends, which may be far less.
        """
        is_late = self.is_streamed and self.part_of is None and states.last_round_N.max() > self.stages.most_rounds
        if is_late and (funded := len(clearing.index_M)):
            clearing_tokens = float(clearing.parts_M(self.cost_N).sum()) / COST_PARTS
            asked = int((states.rounds_N > 0).sum())
            stage_tokens = max(stage_tokens, self.stages.growth * asked * clearing_tokens / funded)
        return random_part(clearing, stage_tokens, cost_N=self.cost_N, rng=rng)

    def _with_longer(
        self,
        part: Clearing,
        batch: Batch,
        states: QueryStates,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        rng: np.random.Generator,
    ) -> Clearing:
        """Add to a stage's grants that some answers that were cut off go on to twice their length, the shortest first.

        What a kind of query that is always cut off would have answered is never seen otherwise: the less it is believed to
        end, the shorter its next ceilings.
        """
        is_cut_N = is_free_N & (states.answer_tokens_N > 0) & (states.answer_tokens_N < self.max_tokens_N)
        is_cut_N[part.index_M] = False
        index = np.flatnonzero(is_cut_N)
        index = index[np.lexsort((rng.random(len(index)), states.answer_tokens_N[index]))]
        before = states.answer_tokens_N[index]
        tokens = np.minimum(before, self.max_tokens_N[index] - before)
        parts = batch.costs.taken_parts(index, tokens, before)
        stage_parts = int(part.parts_M(self.cost_N).sum())
        most = min(self.stages.longer_share * stage_parts, available_tokens * COST_PARTS - stage_parts)
        fits = np.cumsum(parts) <= most
        fits[:1] |= parts[:1] <= available_tokens * COST_PARTS - stage_parts
        return joined(part, batch, index[fits], tokens[fits], before[fits])

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`."""
        batch = self._of(self._law())
        return minimum_service(
            batch, owed_tokens_N=owed_tokens_N, available_tokens=available_tokens, shadow_price=shadow_price
        )

    def learned(self, observed: Observed) -> Belief:
        """Return what some answers teach."""
        return learn(
            self.x_NP,
            observed,
            tokens_K=self.tokens_K,
            label=self.label,
            seed=self.seed,
            given=self.given,
            fold_N=self.folds_N,
            average_tokens=None if self.asks_again else self.budget_tokens / float(self.cost_N.sum()),
        )

    @property
    def folds_N(self) -> NDArray[np.int64] | None:
        """Fold of each query, where queries are believed nothing that some others have taught."""
        if self.fold_N is not None or not self.asks_again:
            return self.fold_N
        return (self.tie_break_N % _FOLDS_OF_ATTEMPTS).astype(np.int64)

    def _believed(self, belief: Belief, *, is_guarded: bool) -> Batch:
        return self._of(
            belief.incidence(
                self.x_NP, tokens_K=self.tokens_K, given=self.given, fold_N=self.folds_N, is_guarded=is_guarded
            )
        )

    def _of(self, incidence: Incidence) -> Batch:
        curves = curves_from_incidence(incidence.right_NK, survival_NK=incidence.survival_NK, tokens_K=self.tokens_K)
        return Batch(curves, self.weight_N, self.max_tokens_N, self.tie_break_N, self.cost_N, self.calls)

    def _law(self) -> Incidence:
        right_K, survival_K = law(self.tokens_K)
        right_NK, survival_NK = (np.tile(row, (len(self.x_NP), 1)) for row in (right_K, survival_K))
        return self.given or Incidence(right_NK, 1.0 - right_NK - survival_NK, survival_NK)

    def _pilot(
        self,
        rng: np.random.Generator,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """Grant a few random queries a generous ceiling each, as far as that is not owed to others."""
        index = rng.permutation(np.flatnonzero(is_free_N & (self.max_tokens_N > 0)))
        parts_N = cost_parts(self.cost_N)
        mean_cost = float(self.cost_N[index].mean()) if len(index) else 1.0
        all_N, none_N = np.arange(len(is_free_N)), np.zeros(len(is_free_N), np.int64)
        prompt_parts_N = none_N if self.calls is None else self.calls.fixed_parts(all_N, none_N)
        answers_tokens = self.budget_tokens - float(prompt_parts_N[index].sum()) / COST_PARTS
        ceiling = self.stages.pilot_ceiling_tokens(len(index), budget_tokens=max(answers_tokens, 0.0) / mean_cost)
        # What is owed to all others has to be there beside the grants of the pilot.
        left_parts = available_tokens * COST_PARTS - int(
            owed_tokens_N @ parts_N + prompt_parts_N[owed_tokens_N > 0].sum()
        )
        tokens_N = np.zeros(len(is_free_N), np.int64)
        for query in index[: self.stages.pilot_size(self.part_of or len(index))]:
            prompt_parts = 0 if owed_tokens_N[query] else int(prompt_parts_N[query])
            more = max(left_parts - prompt_parts, 0) // int(parts_N[query])
            tokens = min(int(self.max_tokens_N[query]), ceiling, int(owed_tokens_N[query]) + more)
            tokens_N[query] = max(tokens, 0)
            if tokens > owed_tokens_N[query]:
                left_parts -= prompt_parts + (tokens - int(owed_tokens_N[query])) * int(parts_N[query])
        granted = self.serve(tokens_N, available_tokens=available_tokens, shadow_price=0.0)
        return replace(granted, is_service=False)


def observe(states: QueryStates, *, label: Label = "verdict") -> Observed:
    """Return the answers of a run so far, cut ones too; those that came to an error teach nothing."""
    if states.rule.objective == "vote":
        return _observe_votes(states)
    index = np.flatnonzero((states.answer_tokens_N > 0) & ~states.has_failed_N & ~states.is_served_N)
    is_ended = states.has_stopped_N[index]
    right = np.where(is_ended, np.clip(states.correct_N[index], 0.0, 1.0), np.nan)
    if label == "ended":
        right = np.full(len(index), np.nan)
    current = Observed(index, states.answer_tokens_N[index], is_ended, right)
    return current if not len(states.past) else _with_past(current, states.past, label=label)


def _observe_votes(states: QueryStates) -> Observed:
    """Return all answers so far, each as right as its query's votes make it, where there are several."""
    is_current_N = (states.answer_tokens_N > 0) & ~states.has_failed_N & ~states.is_served_N
    current, past = np.flatnonzero(is_current_N), states.past
    query = np.concatenate([past.index_P, current])
    votes = np.concatenate([past.vote_P, states.vote_N[current]])
    every = Observed(
        query,
        np.concatenate([past.tokens_P, states.answer_tokens_N[current]]),
        np.concatenate([past.has_stopped_P, states.has_stopped_N[current]]),
        states.ballots.is_right_P(query, votes),
    )
    return every.take(np.argsort(query, kind="stable"))


def _with_past(current: Observed, past: PastAttempts, *, label: Label) -> Observed:
    """Return the current answers and those that others came after; in the order of their queries."""
    right_P = np.where(past.has_stopped_P, np.clip(past.correct_P, 0.0, 1.0), np.nan)
    query = np.concatenate([current.query_M, past.index_P])
    every = Observed(
        query,
        np.concatenate([current.tokens_M, past.tokens_P]),
        np.concatenate([current.is_ended_M, past.has_stopped_P]),
        np.concatenate([current.right_M, np.full(len(past), np.nan) if label == "ended" else right_P]),
    )
    return every.take(np.argsort(query, kind="stable"))
