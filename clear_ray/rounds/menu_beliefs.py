"""What is believed of the models of a menu: by heads that were there before, by the run's own answers, or both.

All models are learned together: a query's coordinates, which models the one that answered is dearer than, and how many
answers have failed on the query before, two at the most. So a model that was seen little is believed to be like the others,
and a wrong answer says something about the next, also before the run has seen any that followed one. No query is believed
anything that its own answers have taught, except by that last number.

**Like the others, but dearer.** Models stand in order of what they cost. Lengths are learned in units of each model: the
tokens at which it costs twice what the one before it costs, unless its tokens are as dear as that. Otherwise the second of
two efforts of one model, of which a few cut answers were seen, is believed to end where the first does, and bought too early.

Shapes: N queries, M answers, J models, K grid points, P coordinates.

Source: docs/method.md, section 10.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.endings import chance_of
from clear_ray.estimation.factors import Factors, Label, fit_factors, law, law_scale, log_likelihood_M
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.learning import MOST_ANSWERS, Evidence, by_fold, take_rows
from clear_ray.estimation.length_law import length_law
from clear_ray.rounds.menu_courses import Seen

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
MOST_TOLD_APART = 2
"""So many failures on a query are told apart, and more are taken to be as many."""
_FOLDS, _INDICATOR = 4, 0.5
_AFTER_FAILURE, _FAILURES = 0.7, 20
"""How much less often an answer is right where a cheaper model's was wrong, and for how many answers that counts: 0.72 in the
median of 21 pairs of published models (0.45 to 0.94)."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelCurves:
    """Curves of all queries by each model.

    Attributes:
        by_failures: Where so many answers have failed: none, one, or more.
        evidence: What they rest on; None if no answer taught them.
    """

    by_failures: list[list[Curves]]
    evidence: Evidence | None

    @property
    def fresh(self) -> list[Curves]:
        """Curves where none has failed."""
        return self.by_failures[0]

    @property
    def after(self) -> list[Curves]:
        """Curves where one has."""
        return self.by_failures[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What the answers of a run taught, by folds of queries.

    Attributes:
        informed: By what is known of queries, and which model answered.
        blind: By which model answered, alone.
        evidence: How much better the first predicts answers that it was not fitted on, by which it is trusted.
    """

    informed: list[Factors]
    blind: list[Factors]
    evidence: Evidence


@dataclass(frozen=True, slots=True, eq=False)
class MenuBeliefs:
    """See the module.

    Attributes:
        x_NP: Coordinates of all queries.
        tokens_K: The grid.
        stretch_J: How many times as long as the first model's each model's answers are taken to be.
        given: Beliefs of each model by a head that was there before; None for one that has none.
        earlier: Beliefs of each model by what runs before have learned of it, to be put to the test; None for none.
        fold_N: For replays in which several queries are the same one asked again: their fold.
        seed: Of the folds.
        label: What says that an answer is right.
        most_failures: Most answers that may have failed on a query before another.
    """

    x_NP: Array
    tokens_K: Integers
    stretch_J: Array
    given: tuple[Incidence | None, ...] = ()
    earlier: tuple[Incidence | None, ...] = ()
    fold_N: Integers | None = None
    seed: int = 0
    label: Label = "verdict"
    most_failures: int = MOST_TOLD_APART

    def after(self, seen: Seen | None) -> ModelCurves:
        """Return what is believed after some answers; None, or none of them, teach nothing."""
        taught = seen if seen is not None and len(seen.answers) else None
        fitted = None if taught is None else self._fit(taught)
        by_failures: list[list[Curves]] = []
        for failures in range(MOST_TOLD_APART + 1):
            if failures > max(self.most_failures, 1):
                by_failures.append(by_failures[-1])
                continue
            by_failures.append([])
            for model in range(len(self.stretch_J)):
                found = self._believed(fitted, taught, model, failures)
                by_failures[-1].append(
                    curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=self.tokens_K)
                )
        return ModelCurves(by_failures, None if fitted is None else fitted.evidence)

    def _believed(self, fitted: _Fitted | None, taught: Seen | None, model: int, failures: int) -> Incidence:
        given = self.given[model] if self.given else None
        earlier = self.earlier[model] if self.earlier else None
        found = given or earlier
        if fitted is not None and (given is None or failures):
            found = self._incidence(fitted, model, failures)
            if taught is not None and earlier is not None and not failures:
                found = self._weighed(found, earlier, taught, model)
        found = found or self._law()
        for before in range(1, failures + 1):
            found = _after_failure(found, taught, before)
        return found

    def _weighed(self, own: Incidence, earlier: Incidence, seen: Seen, model: int) -> Incidence:
        """Return what this run and those before say of a model, mixed as each predicts the model's first answers here."""
        answers = seen.answers.take((seen.model_M == model) & ~seen.has_failed_M)
        nats = [
            float(log_likelihood_M(take_rows(each, answers.query_M), answers, tokens_K=self.tokens_K).sum())
            for each in (own, earlier)
        ]
        share = float(chance_of(np.array(nats[0] - nats[1]))) if len(answers) else 0.0
        right, survival = (
            share * getattr(own, name) + (1.0 - share) * getattr(earlier, name) for name in ("right_NK", "survival_NK")
        )
        return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)

    def _law(self) -> Incidence:
        right_NK, survival_NK = (np.tile(row, (len(self.x_NP), 1)) for row in law(self.tokens_K))
        return Incidence(right_NK, 1.0 - right_NK - survival_NK, survival_NK)

    def _coordinates(self, x_MP: Array, model_M: Integers, failures_M: Integers) -> Array:
        indicators = _INDICATOR * (model_M[:, None] > np.arange(len(self.stretch_J) - 1))
        told_M = np.minimum(failures_M, MOST_TOLD_APART)
        return np.concatenate([x_MP, indicators, _INDICATOR * told_M[:, None]], axis=1)

    def _folds(self) -> Integers:
        if self.fold_N is not None:
            return self.fold_N
        return np.random.default_rng(self.seed).permutation(np.arange(len(self.x_NP)) % _FOLDS)

    def _fit(self, seen: Seen) -> _Fitted:
        """Return fits for each fold of queries, of the answers to the others: with what is known of queries, and without."""
        seen, fold_N = seen.some(MOST_ANSWERS, seed=self.seed), self._folds()
        query_M = seen.answers.query_M
        x_MP = self._coordinates(self.x_NP[query_M], seen.model_M, seen.failures_M)
        blind_MP, fold_M = x_MP[:, self.x_NP.shape[1] :], fold_N[query_M]
        tokens_M = np.ceil(seen.answers.tokens_M / self.stretch_J[seen.model_M]).astype(np.int64)
        answers = replace(seen.answers, query_M=np.arange(len(query_M)), tokens_M=tokens_M)
        informed, blind, gain, scale = [], [], 0.0, law_scale(self.tokens_K)
        for fold in range(int(fold_N.max()) + 1):
            taught, held = answers.take(fold_M != fold), answers.take(fold_M == fold)
            lengths_K = length_law(taught.tokens_M, taught.is_ended_M, self.tokens_K, scale_tokens=scale)
            fit = partial(fit_factors, tokens_K=self.tokens_K, label=self.label, law_survival_K=lengths_K)
            informed.append(fit(x_MP, taught))
            blind.append(fit(blind_MP, taught))
            for factors, x, sign in ((informed[-1], x_MP, 1.0), (blind[-1], blind_MP, -1.0)):
                if len(held):
                    found = factors.incidence(x[held.query_M], tokens_K=self.tokens_K)
                    gain += sign * float(log_likelihood_M(found, held, tokens_K=self.tokens_K).sum())
        return _Fitted(informed, blind, Evidence(len(answers), gain))

    def _incidence(self, fitted: _Fitted, model: int, failures: int) -> Incidence:
        queries, fold_N = len(self.x_NP), self._folds()
        x_NP = self._coordinates(self.x_NP, np.full(queries, model), np.full(queries, failures))
        blind_NP, share = x_NP[:, self.x_NP.shape[1] :], fitted.evidence.shares()[0]
        informed = by_fold(tuple(fitted.informed), x_NP, fold_N, tokens_K=self.tokens_K)
        blind = by_fold(tuple(fitted.blind), blind_NP, fold_N, tokens_K=self.tokens_K)
        right, survival = (
            share * getattr(informed, name) + (1.0 - share) * getattr(blind, name)
            for name in ("right_NK", "survival_NK")
        )
        stretch = float(self.stretch_J[model])
        if stretch > 1.0:
            right, survival = (
                _stretched(table, self.tokens_K, stretch, first) for table, first in ((right, 0.0), (survival, 1.0))
            )
        return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)


def _after_failure(found: Incidence, taught: Seen | None, failures: int) -> Incidence:
    """Return what is believed of answers that follow so many failures: as `found`, as far as some such answers were seen."""
    count = 0 if taught is None else int(((taught.failures_M >= failures) & taught.answers.is_ended_M).sum())
    right_NK = (count + _FAILURES * _AFTER_FAILURE) / (count + _FAILURES) * found.right_NK
    return Incidence(right_NK, 1.0 - right_NK - found.survival_NK, found.survival_NK)


def _stretched(table_NK: Array, tokens_K: Integers, stretch: float, first: float) -> Array:
    """Return a table along the grid of answers that are so much longer."""
    grid = np.concatenate([[0], tokens_K])
    at_K = tokens_K / stretch
    right_K = np.searchsorted(grid, at_K)
    share_K = (at_K - grid[right_K - 1]) / (grid[right_K] - grid[right_K - 1])
    padded = np.concatenate([np.full((len(table_NK), 1), first), table_NK], axis=1)
    return np.asarray(padded[:, right_K - 1] * (1.0 - share_K) + padded[:, right_K] * share_K)
