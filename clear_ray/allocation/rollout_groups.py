"""Rollouts for a trainer that owns its engine: ask which to sample, tell what came back.

    groups = RolloutGroups(tokens_N, budget_tokens=2_000_000)
    while len(asked := groups.ask(256)):
        ... sample asked.rollouts_M rollouts of the prompts asked.prompt_M ...
        groups.tell(prompt_R, is_right_R, tokens_R)

What was told changes what is believed of each prompt, and what a rollout did not use of its ceiling is for sale again.

Legend: N prompts, M of them asked for at a time, R rollouts that are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

from clear_ray.allocation.columns import FloatArray, IntArray, query_column
from clear_ray.allocation.rollouts import MOST_ROLLOUTS, Objective, RolloutAllocation, allocate_rollouts
from clear_ray.errors import BudgetError

_STRENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
_MEANS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_SHARES = (0.5, 0.75, 0.9, 1.0)
_FEWEST_TOLD = 8
_GIVEN_ROLLOUTS = 2.0
"""How many rollouts of its own outweigh what was given as the expected tokens of a prompt."""
_TOLD = ("right", "wrong", "spent")


@dataclass(frozen=True, slots=True, eq=False)
class AskedRollouts:
    """Rollouts to sample now.

    Attributes:
        prompt_M: Prompts, each once.
        rollouts_M: How many further rollouts of each, at least 1.
        allocation: What the whole budget that is left would buy by what is known now; these are the first of it.
    """

    prompt_M: IntArray
    rollouts_M: IntArray
    allocation: RolloutAllocation

    def __len__(self) -> int:
        """Return M: nothing is asked for any more where it is 0 and nothing is under way."""
        return len(self.prompt_M)


class RolloutGroups:
    """Groups of rollouts of N prompts under one budget of tokens.

    Args:
        tokens_N: Expected tokens of a rollout of each prompt, > 0.
        budget_tokens: What all rollouts together may generate.
        ceiling_N: The most that a rollout may generate, which is reserved for it; `tokens_N` if not given.
        solvability_N: Chance that a rollout of each prompt is right, by a head or an earlier epoch. Not given: the same
            for all, learned from what is told.
        strength: How many rollouts of its own outweigh that belief of a prompt. Not given: as many as make what was told
            likeliest, which may also set the belief aside.
        objective: What a group is worth; see `allocate_rollouts`.
        rollouts: Size of a group; see `allocate_rollouts`.

    Raises:
        UtilityError: A column has the wrong length or a value out of range.

    Source: docs/method.md, section 9.
    """

    def __init__(
        self,
        tokens_N: ArrayLike,
        *,
        budget_tokens: int,
        ceiling_N: ArrayLike | None = None,
        solvability_N: ArrayLike | None = None,
        strength: float | None = None,
        objective: Objective = "mixed",
        rollouts: int | tuple[int, int] = (2, MOST_ROLLOUTS),
    ) -> None:
        queries = np.size(tokens_N)
        self.tokens_N = query_column(tokens_N, name="tokens_N", queries=queries, is_low_allowed=False)
        ceiling = np.ceil(self.tokens_N) if ceiling_N is None else ceiling_N
        self.ceiling_N = query_column(ceiling, name="ceiling_N", queries=queries, low=1.0).astype(np.int64)
        self._solvability_N = (
            None
            if solvability_N is None
            else query_column(solvability_N, name="solvability_N", queries=queries, high=1.0)
        )
        self._strength = strength
        self._objective: Objective = objective
        self._rollouts = rollouts
        self.budget_tokens = budget_tokens
        self.spent_N = np.zeros(queries, np.int64)
        self.right_N = np.zeros(queries, np.int64)
        self.wrong_N = np.zeros(queries, np.int64)
        self.running_N = np.zeros(queries, np.int64)

    @property
    def spent_tokens(self) -> int:
        """What all rollouts that were told have generated."""
        return int(self.spent_N.sum())

    @property
    def promised_tokens(self) -> int:
        """What rollouts that were asked for, and not told yet, may generate."""
        return int(self.running_N @ self.ceiling_N)

    def allocation(self) -> RolloutAllocation:
        """Return what the budget that is left would buy by what is known now. Changes nothing."""
        solvability_N, strength = self._belief()
        return allocate_rollouts(
            np.where(self.running_N > 0, 0.0, solvability_N),
            self._expected_tokens_N(),
            budget_tokens=max(self.budget_tokens - self.spent_tokens - self.promised_tokens, 0),
            objective=self._objective,
            rollouts=self._rollouts,
            strength=np.where(self.running_N > 0, np.inf, strength),  # one that is running gets no more
            right_N=self.right_N,
            wrong_N=self.wrong_N,
        )

    def ask(self, most_rollouts: int) -> AskedRollouts:
        """Return rollouts to sample, those of the greatest worth a token first.

        Args:
            most_rollouts: How many rollouts are wanted at most. A group that is smaller than its fewest rollouts would teach
                nothing, so the first rollouts of a prompt come together or not at all.
        """
        allocation = self.allocation()
        prompt = np.flatnonzero((allocation.rollouts_N > 0) & (self.running_N == 0))
        rate = allocation.worth_N[prompt] / (allocation.rollouts_N * self._expected_tokens_N())[prompt]
        prompt = prompt[np.argsort(-rate, kind="stable")]
        rollouts = self._first_of(prompt, allocation.rollouts_N[prompt], most_rollouts)
        prompt, rollouts = prompt[rollouts > 0], rollouts[rollouts > 0]
        self.running_N[prompt] += rollouts
        return AskedRollouts(prompt, rollouts, allocation)

    def tell(self, prompt_R: ArrayLike, is_right_R: ArrayLike, tokens_R: ArrayLike) -> None:
        """Tell what came of rollouts that were asked for, in any order and any number at a time.

        Args:
            prompt_R: The prompt of each rollout.
            is_right_R: Whether it was right; one that was lost is told as wrong, with what it generated.
            tokens_R: Tokens that it generated.

        Raises:
            BudgetError: A rollout was not asked for, or is longer than its ceiling. Nothing is noted then.
        """
        prompt, tokens = np.asarray(prompt_R, np.int64), np.asarray(tokens_R, np.int64)
        is_right = np.asarray(is_right_R, bool)
        told_N = np.bincount(prompt, minlength=len(self.running_N))
        if len(told_N) > len(self.running_N) or (told_N > self.running_N).any():
            raise BudgetError("a rollout is told that was not asked for", f"prompt {_worst(told_N, self.running_N)}")
        is_over = (tokens < 0) | (tokens > self.ceiling_N[prompt])
        if is_over.any():
            first = int(np.argmax(is_over))
            what = f"a rollout is longer than its ceiling of {self.ceiling_N[prompt[first]]} tokens"
            raise BudgetError(
                what, f"prompt {prompt[first]}", str(tokens[first]), "Have the engine keep to `ceiling_N`."
            )
        self.running_N -= told_N
        self.right_N += np.bincount(prompt, weights=is_right, minlength=len(told_N)).astype(np.int64)
        self.wrong_N += np.bincount(prompt, weights=~is_right, minlength=len(told_N)).astype(np.int64)
        self.spent_N += np.bincount(prompt, weights=tokens, minlength=len(told_N)).astype(np.int64)

    def state(self) -> dict[str, Any]:
        """Return what a trainer's checkpoint keeps; what is running is given up with the process and not charged."""
        return {name: getattr(self, f"{name}_N").tolist() for name in _TOLD}

    def restored(self, state: dict[str, Any]) -> Self:
        """Take over what `state` returned, and return itself."""
        for name in _TOLD:
            setattr(self, f"{name}_N", np.array(state[name], np.int64))
        self.running_N = np.zeros(len(self.tokens_N), np.int64)
        return self

    def _expected_tokens_N(self) -> FloatArray:
        """Return the expected tokens of a rollout of each prompt: what was given, moved by what was told."""
        told_N = self.right_N + self.wrong_N
        return (_GIVEN_ROLLOUTS * self.tokens_N + self.spent_N) / (_GIVEN_ROLLOUTS + told_N)

    def _belief(self) -> tuple[FloatArray, float]:
        if self._strength is not None and self._solvability_N is not None:
            return self._solvability_N, self._strength
        return _likeliest(self._solvability_N, self.right_N, self.wrong_N)

    def _first_of(self, prompt_M: IntArray, wanted_M: IntArray, most_rollouts: int) -> IntArray:
        """Return how many of the wanted rollouts are sampled before their outcomes are looked at: all that fit."""
        fewest, most = (self._rollouts, self._rollouts) if isinstance(self._rollouts, int) else self._rollouts
        done_M = self.right_N[prompt_M] + self.wrong_N[prompt_M]
        least_M = np.maximum(fewest - done_M, 1)
        first_M = wanted_M if fewest == most else np.minimum(wanted_M, np.maximum(least_M, -(-wanted_M // 4)))
        left = self.budget_tokens - self.spent_tokens - self.promised_tokens
        rollouts_M = np.zeros(len(prompt_M), np.int64)
        for m, prompt in enumerate(prompt_M):
            fitting = min(int(first_M[m]), most_rollouts, left // int(self.ceiling_N[prompt]))
            if fitting >= least_M[m]:
                rollouts_M[m] = fitting
                most_rollouts, left = most_rollouts - fitting, left - fitting * int(self.ceiling_N[prompt])
            if most_rollouts < 1:
                break
        return rollouts_M


def _likeliest(given_N: FloatArray | None, right_N: IntArray, wrong_N: IntArray) -> tuple[FloatArray, float]:
    """Return mean and strength of each prompt's belief, of those under which what was told is likeliest.

    The likelihood is a beta-binomial's, which holds whatever prompts were sampled how often for what they had shown.
    """
    told = np.flatnonzero(right_N + wrong_N)
    means = [np.full(len(right_N), mean) for mean in _MEANS]
    if given_N is not None:
        pooled = float((right_N.sum() + 0.5) / (right_N.sum() + wrong_N.sum() + 1.0))
        means += [np.clip(share * given_N + (1.0 - share) * pooled, 1e-4, 1.0 - 1e-4) for share in _SHARES]
    best, chosen = -np.inf, (means[-1] if given_N is not None else np.full(len(right_N), 0.5), 2.0)
    for mean_N in means if len(told) >= _FEWEST_TOLD else []:
        for strength in _STRENGTHS:
            alpha, beta = mean_N[told] * strength, (1.0 - mean_N[told]) * strength
            likelihood = float((betaln(alpha + right_N[told], beta + wrong_N[told]) - betaln(alpha, beta)).sum())
            if likelihood > best:
                best, chosen = likelihood, (mean_N, strength)
    return chosen


def _worst(told_N: IntArray, running_N: IntArray) -> int:
    known = min(len(told_N), len(running_N))
    over = np.flatnonzero(told_N[:known] > running_N[:known])
    return int(over[0]) if len(over) else len(told_N) - 1
