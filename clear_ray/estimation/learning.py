"""What a run believes after some of its answers, and how far it trusts that.

**The guard.** Features may say nothing (a label that was shuffled, a scorer that is random, a batch of twenty), and curves
that follow noise are worse than equal ceilings. So what was learned has to show itself: every observed answer, cut ones too,
is predicted by factors that were fitted without it, once with the coordinates and once without any. The difference of the two
log-likelihoods is the evidence, in nats. The share of the learned curves is `1 / (1 + exp(bar - evidence))`; the rest is the
*uninformed law*, at the pooled level, under which all queries ask for equal ceilings. The pooled curve is as S-shaped as
chance has drawn it, and a price gives up queries for it: it stands in the law's place as far as that pays (`giving_up`).

**Given beliefs**, such as those of a head of an earlier run, are a third candidate: they predict the same answers, and
need no fit.

Deterministic, and without memory: the same answers give the same beliefs, so that a resumed run goes on with the same ones.
The cost is bounded: at most `MOST_ANSWERS` of the answers are fitted, and the evidence is taken from at most
`EVIDENCE_ANSWERS`, both drawn by the seed.

Shapes: N queries, M observed answers, K grid points, P coordinates.

Source: method.md section 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.factors import Factors, Label, Observed, fit_factors, law, log_likelihood_M
from clear_ray.estimation.giving_up import Judged, share_of_pooled
from clear_ray.estimation.hazards import Incidence

Array = NDArray[np.float64]
MOST_ANSWERS, EVIDENCE_ANSWERS = 10_000, 1_000
FOLDS = 4
_BAR_NATS = 1.0
_FURTHEST = 50.0
_LEAST_SOLVABILITY = 0.02


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the answers say about the candidates, each predicting answers that it was not fitted on.

    Attributes:
        answers: How many answers were predicted.
        learned_nats: Log-likelihood of the learned curves less that of the pooled one.
        given_nats: Log-likelihood of the given beliefs less that of the pooled curve; None if nothing was given.
    """

    answers: int
    learned_nats: float
    given_nats: float | None = None

    def shares(self) -> tuple[float, float]:
        """Return the shares of learned and given curves; what is left of 1 is the uninformed law's."""
        nats = np.array([0.0, self.learned_nats - _BAR_NATS, -np.inf if self.given_nats is None else self.given_nats])
        weight = np.exp(np.clip(nats - nats.max(), -_FURTHEST, 0.0)) * np.isfinite(nats)
        share = weight / weight.sum()
        return float(share[1]), float(share[2])


@dataclass(frozen=True, slots=True)
class Belief:
    """Curves of any query by its coordinates.

    Attributes:
        factors: One fit of all answers; or one for each fold of queries, without the answers of that fold.
        evidence: How well they predict.
        solvability: Solvability of the uninformed law that they are mixed with.
        pooled: The curve of all answers.
        pooled_share: How far it is followed, and not the law, where the coordinates are not.
    """

    factors: tuple[Factors, ...]
    evidence: Evidence
    solvability: float
    pooled: Factors | None = None
    pooled_share: float = 0.0

    def incidence(
        self,
        x_NP: Array,
        *,
        tokens_K: NDArray[np.int64],
        given: Incidence | None = None,
        fold_N: NDArray[np.int64] | None = None,
        is_guarded: bool = True,
    ) -> Incidence:
        """Return the incidences of queries with these coordinates.

        Args:
            x_NP: Coordinates.
            tokens_K: The grid.
            given: Beliefs of these queries that were there before.
            fold_N: Fold of each query, if the factors are by folds.
            is_guarded: Whether to mix by the evidence; otherwise the learned curves are taken as they are.
        """
        learned = by_fold(self.factors, x_NP, fold_N, tokens_K=tokens_K)
        if not is_guarded:
            return learned
        share, share_given = self.evidence.shares()
        if given is not None and share_given > 0.0:
            # Shares of what is not the law's; together they are 1.
            own = share / (share + share_given)
            learned = _mixed(learned, own, given.right_NK, given.survival_NK)
        found = with_law(learned, share=share + share_given, solvability=self.solvability, tokens_K=tokens_K)
        if self.pooled is None or not self.pooled_share:
            return found
        pooled = self.pooled.incidence(x_NP[:1, :0], tokens_K=tokens_K)
        rest = (1.0 - share - share_given) * self.pooled_share
        law_right_K, law_survival_K = law(tokens_K, solvability=self.solvability)
        right = found.right_NK + rest * (pooled.right_NK - law_right_K)
        survival = found.survival_NK + rest * (pooled.survival_NK - law_survival_K)
        return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)


def learn(
    x_NP: Array,
    observed: Observed,
    *,
    tokens_K: NDArray[np.int64],
    label: Label = "verdict",
    seed: int = 0,
    given: Incidence | None = None,
    fold_N: NDArray[np.int64] | None = None,
    average_tokens: float | None = None,
) -> Belief:
    """Fit what was observed, and weigh it.

    Args:
        x_NP: Coordinates of all queries.
        observed: Answers to some of them; at least one.
        tokens_K: The grid.
        label: What says that an answer is right.
        seed: Seed of the folds, and of the samples of answers where there are many.
        given: Beliefs of all queries that were there before.
        fold_N: For replays in which several queries are the same one asked again: their fold. No query is then believed
            anything that an answer of its own fold has taught.
        average_tokens: Budget of a query; the law alone stands beside what was learned if not given.
    """
    rng = np.random.default_rng(seed)
    observed = _some(observed, MOST_ANSWERS, rng)
    whole, weighed = None, observed
    if fold_N is None:
        whole = fit_factors(x_NP, observed, tokens_K=tokens_K, label=label)
        weighed = _some(observed, EVIDENCE_ANSWERS, rng)
    folds = [
        _predict(x_NP, weighed, is_held_M, tokens_K=tokens_K, label=label, given=given)
        for is_held_M in _folds(weighed, fold_N, rng)
    ]
    evidence = Evidence(
        len(weighed),
        sum(fold.learned_nats for fold in folds),
        None if given is None else sum(fold.given_nats for fold in folds),
    )
    solvability = max(float(np.mean([fold.judged.pooled.right_NK[0, -1] for fold in folds])), _LEAST_SOLVABILITY)
    factors = tuple(fold.learned for fold in folds) if whole is None else (whole,)
    if average_tokens is None:
        return Belief(factors, evidence, solvability)
    judged = [fold.judged for fold in folds]
    share = share_of_pooled(judged, average_tokens=average_tokens, tokens_K=tokens_K, label=label, seed=seed)
    pooled = fit_factors(x_NP[:, :0], weighed, tokens_K=tokens_K, label=label)
    return Belief(factors, evidence, solvability, pooled, share)


@dataclass(frozen=True, slots=True)
class _Fold:
    """What the answers outside a fold say of those in it.

    Attributes:
        learned: Factors that were fitted outside.
        judged: The pooled curve that was fitted outside, and the answers inside.
        learned_nats: Log-likelihood of the answers inside by the factors, less that by the pooled curve.
        given_nats: The same of the given beliefs; 0 if nothing was given.
    """

    learned: Factors
    judged: Judged
    learned_nats: float = 0.0
    given_nats: float = 0.0


def _predict(
    x_NP: Array,
    observed: Observed,
    is_held_M: NDArray[np.bool_],
    *,
    tokens_K: NDArray[np.int64],
    label: Label,
    given: Incidence | None,
) -> _Fold:
    """Fit the answers that are not held out, and predict those that are."""
    seen, held = observed.take(~is_held_M), observed.take(is_held_M)
    learned = fit_factors(x_NP, seen, tokens_K=tokens_K, label=label)
    pooled = fit_factors(x_NP[:, :0], seen, tokens_K=tokens_K, label=label)
    judged = Judged(pooled.incidence(x_NP[:1, :0], tokens_K=tokens_K), held)
    if not len(held):
        return _Fold(learned, judged)
    x_MP = x_NP[held.query_M]
    pooled_M = log_likelihood_M(pooled.incidence(x_MP[:, :0], tokens_K=tokens_K), held, tokens_K=tokens_K)

    def nats(incidence: Incidence) -> float:
        return float((log_likelihood_M(incidence, held, tokens_K=tokens_K) - pooled_M).sum())

    given_nats = 0.0 if given is None else nats(take_rows(given, held.query_M))
    return _Fold(learned, judged, nats(learned.incidence(x_MP, tokens_K=tokens_K)), given_nats)


def _folds(
    observed: Observed, fold_N: NDArray[np.int64] | None, rng: np.random.Generator
) -> Iterator[NDArray[np.bool_]]:
    """Return for each fold which answers it holds; all answers to a query are in one.

    That other answers to the same query are predicted says nothing of what tells queries apart.
    """
    if fold_N is not None:
        count, fold_M = int(fold_N.max()) + 1, fold_N[observed.query_M]
    else:
        query, place_M = np.unique(observed.query_M, return_inverse=True)
        count, fold_M = FOLDS, rng.permutation(np.arange(len(query)) % FOLDS)[place_M]
    return (fold_M == fold for fold in range(count))


def _some(observed: Observed, most: int, rng: np.random.Generator) -> Observed:
    """Return at most so many of the answers, at random and in their order."""
    if len(observed) <= most:
        return observed
    return observed.take(np.sort(rng.choice(len(observed), most, replace=False)))


def by_fold(
    factors: tuple[Factors, ...], x_NP: Array, fold_N: NDArray[np.int64] | None, *, tokens_K: NDArray[np.int64]
) -> Incidence:
    """Return the incidences of each query by the factors of its fold; by the only ones if there are no folds."""
    if fold_N is None or len(factors) == 1:
        return factors[0].incidence(x_NP, tokens_K=tokens_K)
    shape = (len(x_NP), len(tokens_K))
    found = Incidence(np.empty(shape), np.empty(shape), np.empty(shape))
    for fold, fitted in enumerate(factors):
        rows = fold_N == fold
        part = fitted.incidence(x_NP[rows], tokens_K=tokens_K)
        for name in ("right_NK", "wrong_NK", "survival_NK"):
            getattr(found, name)[rows] = getattr(part, name)
    return found


def with_law(fitted: Incidence, *, share: float, solvability: float, tokens_K: NDArray[np.int64]) -> Incidence:
    """Return `share` of fitted incidences and the rest of the uninformed law."""
    return _mixed(fitted, share, *law(tokens_K, solvability=solvability))


def _mixed(one: Incidence, share: float, right_NK: Array, survival_NK: Array) -> Incidence:
    right = share * one.right_NK + (1.0 - share) * right_NK
    survival = share * one.survival_NK + (1.0 - share) * survival_NK
    return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)


def take_rows(incidence: Incidence, index: NDArray[np.int64]) -> Incidence:
    """Return the incidences of the queries at `index`."""
    return Incidence(incidence.right_NK[index], incidence.wrong_NK[index], incidence.survival_NK[index])
