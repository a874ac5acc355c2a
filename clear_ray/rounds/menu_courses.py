"""What plans over a menu rest on: each model at each ceiling in numbers, and the answers of the run so far.

Shapes: M queries, K grid points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.factors import Observed
from clear_ray.records import COST_PARTS
from clear_ray.rounds.menu import Option, further_points
from clear_ray.rounds.menu_plans import Course
from clear_ray.rounds.states import QueryStates

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CourseTables:
    """Points of an option: further tokens, chance and worth, expected and most cost, expected tokens; shape (M, K) each."""

    tokens_MK: Integers
    chance_MK: Array
    worth_MK: Array
    cost_MK: Array
    parts_MK: Integers
    spend_MK: Array

    def course(self, model: int, rung: Integers | None = None) -> Course:
        """Return what the price over plans looks at; see `Course`."""
        return Course(model, self.worth_MK, self.chance_MK, self.cost_MK, rung)


def course_tables(option: Option, index: Integers, available_tokens: int) -> CourseTables:
    """Return what the queries at `index` may have of an option, by each ceiling."""
    batch, calls, generated = option.batch, option.batch.costs, option.generated_tokens_N[index]
    points = further_points(option, index, available_tokens)
    tokens, chance, spend = (table[:, 1:] for table in (points.tokens_MP, points.success_MP, points.spend_MP))
    spend = np.minimum(spend, tokens)
    fixed = calls.fixed_parts(index, generated)[:, None]
    token_parts = calls.token_parts_N[index][:, None]
    is_call = tokens >= 1
    cost = np.where(is_call, (fixed + token_parts * spend) / COST_PARTS, 0.0)
    parts = np.where(is_call, fixed + token_parts * tokens.astype(np.int64), 0)
    chance = np.where(is_call, chance, 0.0)
    worth = np.where(is_call, batch.weight_N[index][:, None] * chance, -np.inf)
    return CourseTables(tokens.astype(np.int64), chance, worth, cost, parts, spend)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Answers of a run so far, those to the same query too.

    Attributes:
        answers: What came of them.
        model_M: By which model.
        failures_M: How many answers had failed on the query before.
    """

    answers: Observed
    model_M: Integers
    failures_M: Integers

    @property
    def has_failed_M(self) -> NDArray[np.bool_]:
        """Whether any had failed before."""
        return self.failures_M > 0

    def some(self, most: int, *, seed: int) -> Seen:
        """Return at most so many of the answers, drawn at random by the seed."""
        if len(self.answers) <= most:
            return self
        drawn = np.sort(np.random.default_rng(seed).choice(len(self.answers), most, replace=False))
        return Seen(self.answers.take(drawn), self.model_M[drawn], self.failures_M[drawn])


def seen_answers(states: QueryStates) -> Seen:
    """Return the answers of a run so far, cut ones too; errors and the minimum service teach nothing.

    Where votes are counted an answer is as right as its query's votes make it, and no answer is a failure of another.
    """
    past, is_vote = states.past, states.rule.objective == "vote"
    is_lesson_N = (states.attempt_N > 0) & ~states.has_failed_N & ~states.is_served_N
    now = np.flatnonzero((states.answer_tokens_N > 0) & is_lesson_N)
    query = np.concatenate([past.index_P, now])
    tokens = np.concatenate([past.tokens_P, states.answer_tokens_N[now]])
    stopped = np.concatenate([past.has_stopped_P, states.has_stopped_N[now]])
    score = np.concatenate([past.correct_P, states.correct_N[now]])
    if is_vote:
        score = states.ballots.is_right_P(query, np.concatenate([past.vote_P, states.vote_N[now]]))
    model = np.concatenate([past.option_P, states.option_N[now]])
    order = np.argsort(query, kind="stable")  # past ones stand in their order, and before the current one
    _, first = np.unique(query[order], return_index=True)
    before, runs = np.arange(len(query)), np.diff(first, append=len(query))
    failures = np.zeros(len(query), np.int64)
    if not is_vote:
        failures[order] = before - np.repeat(first, runs)
    right = np.where(stopped, np.clip(score, 0.0, 1.0), np.nan)
    keep = tokens > 0
    observed = Observed(query[keep], tokens[keep], stopped[keep], right[keep])
    return Seen(observed, model[keep], failures[keep])
