"""The default head: competing risks over a token grid, from hidden states and cheap text features.

Shapes: N queries, K grid points, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.hazards import Hazards, Incidence, fit_hazards, log_likelihood_N
from clear_ray.estimation.head import Arrays, Head, HeadCard, arrays_of, join_arrays
from clear_ray.estimation.landmarks import Landmarks, fit_landmarks
from clear_ray.estimation.observations import Rollouts, count, take_features
from clear_ray.estimation.prior import uninformed
from clear_ray.estimation.projection import Projection, fit_projection

RIDGES = (1.0, 0.4, 0.2, 0.1, 0.05)
SHARES = (0.0, 0.3, 0.6, 0.8, 0.9, 1.0)
_INNER_FOLDS = 4


@dataclass(frozen=True, slots=True)
class Predictor:
    """Features to incidences: projection, landmarks, hazards, a share of the pooled curve, and doubt about strangers.

    Attributes:
        projection: Map from features to short vectors.
        landmarks: Map from short vectors to the coordinates that hazards are linear in.
        hazards: The fitted hazards.
        share: Weight of the fitted incidences against the pooled ones, 0 to 1.
    """

    projection: Projection
    landmarks: Landmarks
    hazards: Hazards
    share: float

    def incidence(self, features: Features, prompts: Sequence[Prompt], *, tokens_K: NDArray[np.int64]) -> Incidence:
        """Return the incidences of the queries, in order."""
        z_NF = self.projection(features, prompts)
        fitted = mix(self.hazards, self.landmarks(z_NF), tokens_K=tokens_K, share=self.share)
        return doubt(fitted, self.landmarks.familiarity(z_NF), tokens_K=tokens_K)


class CompetingRisksHead(Head):
    """Hazards over the token grid that vary smoothly with the features, shrunk to the pooled curve.

    Args:
        card: Where the head comes from.
        predictor: The fitted parts.
    """

    def __init__(self, card: HeadCard, *, predictor: Predictor) -> None:
        super().__init__(card)
        self._predictor = predictor

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query; see `Head`."""
        incidence = self._predictor.incidence(features, prompts, tokens_K=self.tokens_K)
        return curves_from_incidence(incidence.right_NK, survival_NK=incidence.survival_NK, tokens_K=self.tokens_K)

    def arrays(self) -> Arrays:
        """Return the numbers to store."""
        return join_arrays(
            {name: getattr(self._predictor, name).arrays() for name in ("projection", "landmarks", "hazards")}
        )

    def settings(self) -> dict[str, Any]:
        """Return the share."""
        return {"share": self._predictor.share}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again."""
        predictor = Predictor(
            projection=Projection.restore(arrays_of("projection", arrays)),
            landmarks=Landmarks.restore(arrays_of("landmarks", arrays)),
            hazards=Hazards.restore(arrays_of("hazards", arrays)),
            share=float(settings["share"]),
        )
        return cls(card, predictor=predictor)


def fit_competing_risks(card: HeadCard, rollouts: Rollouts, features: Features, *, seed: int) -> CompetingRisksHead:
    """Fit the head; ridge and share are chosen by cross-validated likelihood inside these rollouts.

    Args:
        card: Its grid is used; kind and the rest are kept.
        rollouts: Rollouts of the training queries.
        features: Features of the same queries, in the same order.
        seed: Seed of the inner folds and the landmarks.
    """
    tokens_K = np.array(card.tokens_K, np.int64)
    best, chosen = _most_credible(_inner_scores(rollouts, features, tokens_K=tokens_K, seed=seed))
    projection = fit_projection(features, rollouts.prompts)
    z_NF = projection(features, rollouts.prompts)
    landmarks = fit_landmarks(z_NF, seed=seed)
    hazards = fit_hazards(landmarks(z_NF), count(rollouts, tokens_K=tokens_K), tokens_K=tokens_K, ridge=RIDGES[best])
    predictor = Predictor(projection=projection, landmarks=landmarks, hazards=hazards, share=SHARES[chosen])
    figures = {**card.diagnostics, "ridge": RIDGES[best], "share": SHARES[chosen]}
    return CompetingRisksHead(replace(card, diagnostics=figures), predictor=predictor)


def mix(hazards: Hazards, x_NP: NDArray[np.float64], *, tokens_K: NDArray[np.int64], share: float) -> Incidence:
    """Return `share` of the fitted incidences and the rest of the pooled ones."""
    own = hazards.incidence(x_NP, tokens_K=tokens_K)
    pooled = hazards.incidence(np.zeros((1, x_NP.shape[1])), tokens_K=tokens_K)
    return Incidence(
        right_NK=share * own.right_NK + (1 - share) * pooled.right_NK,
        wrong_NK=share * own.wrong_NK + (1 - share) * pooled.wrong_NK,
        survival_NK=share * own.survival_NK + (1 - share) * pooled.survival_NK,
    )


def doubt(fitted: Incidence, familiarity_N: NDArray[np.float64], *, tokens_K: NDArray[np.int64]) -> Incidence:
    """Return the fitted incidences of queries like those of the training, and the uninformed law of those unlike all.

    A fit says little of a kind of query that it has never seen, and the pooled curve is no better: where other queries
    were hard it gives a new kind up without a try. Under the uninformed law all queries ask for about equal ceilings.
    """
    right_K, survival_K = uninformed(tokens_K)
    own = familiarity_N[:, None]
    return Incidence(
        right_NK=own * fitted.right_NK + (1 - own) * right_K,
        wrong_NK=own * fitted.wrong_NK + (1 - own) * (1 - right_K - survival_K),
        survival_NK=own * fitted.survival_NK + (1 - own) * survival_K,
    )


def _most_credible(score: NDArray[np.float64]) -> tuple[int, int]:
    """Return the places of the best ridge and of the smallest share that is not clearly worse than the best.

    Not clearly: by at most one standard error over queries. Where features carry no information the difference between
    shares is noise, and the rule ends at the pooled curve; where they carry some, the shares below are clearly worse.
    """
    best, chosen = np.unravel_index(int(score.sum(axis=2).argmax()), score.shape[:2])
    loss = score[best, chosen] - score[best]
    error = loss.std(axis=1, ddof=1) * np.sqrt(score.shape[2])
    return int(best), int(np.flatnonzero(loss.sum(axis=1) <= error)[0])


def _inner_scores(
    rollouts: Rollouts, features: Features, *, tokens_K: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Return each query's held-out log-likelihood under every ridge and share, shape (ridges, shares, N)."""
    counts = count(rollouts, tokens_K=tokens_K)
    fold_N = np.random.default_rng(seed).permutation(np.arange(len(rollouts)) % _INNER_FOLDS)
    score = np.zeros((len(RIDGES), len(SHARES), len(rollouts)))
    for fold in range(_INNER_FOLDS):
        train, held = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        inner, outer = rollouts.take(train).prompts, rollouts.take(held).prompts
        projection = fit_projection(take_features(features, train), inner)
        z_train, z_held = (
            projection(take_features(features, train), inner),
            projection(take_features(features, held), outer),
        )
        landmarks = fit_landmarks(z_train, seed=seed)
        x_train, x_held, hazards = landmarks(z_train), landmarks(z_held), None
        for i, ridge in enumerate(RIDGES):
            hazards = fit_hazards(x_train, counts.take(train), tokens_K=tokens_K, ridge=ridge, start=hazards)
            for j, share in enumerate(SHARES):
                incidence = mix(hazards, x_held, tokens_K=tokens_K, share=share)
                score[i, j, held] = log_likelihood_N(incidence, counts.take(held))
    return score
