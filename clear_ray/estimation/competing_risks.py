"""The default head: competing risks over a token grid, from hidden states and cheap text features.

Shapes: N queries, K grid points, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.hazards import Hazards, Incidence, fit_hazards, log_likelihood
from clear_ray.estimation.head import Arrays, HeadCard, check_fingerprint
from clear_ray.estimation.observations import Rollouts, count, take_features
from clear_ray.estimation.projection import Projection, fit_projection

RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_INNER_FOLDS = 4


class CompetingRisksHead:
    """Hazards that are linear in a short vector, mixed with the pooled curve.

    Args:
        card: Where the head comes from.
        projection: From features to short vectors.
        hazards: The fitted hazards.
        share: Weight of the fitted incidences against the pooled ones, 0 to 1.
    """

    def __init__(self, card: HeadCard, *, projection: Projection, hazards: Hazards, share: float) -> None:
        self._card, self._projection, self._hazards, self._share = card, projection, hazards, share
        self._tokens_K = np.array(card.tokens_K, np.int64)

    @property
    def card(self) -> HeadCard:
        """Where this head comes from."""
        return self._card

    def check_model(self, fingerprint: str) -> None:
        """Raise ConfigError unless the head is for the model of this fingerprint."""
        check_fingerprint(self._card, fingerprint)

    def curves(self, features: Features, prompts: Sequence[str], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query.

        Raises:
            ConfigError: The hidden states have another width than the head was fitted on.
        """
        z_NF = self._projection(features, prompts)
        mixed = _mix(self._hazards, z_NF, tokens_K=self._tokens_K, share=self._share)
        return curves_from_incidence(mixed.right_NK, survival_NK=mixed.survival_NK, tokens_K=self._tokens_K)

    def arrays(self) -> Arrays:
        """Return the numbers to store."""
        return {
            **{f"projection.{name}": array for name, array in self._projection.arrays().items()},
            "hazards.pooled_2J": self._hazards.pooled_2J.astype(np.float32),
            "hazards.deviation_2FM": self._hazards.deviation_2FM.astype(np.float32),
        }

    def settings(self) -> dict[str, Any]:
        """Return the share."""
        return {"share": self._share}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again."""
        stored = {n.removeprefix("projection."): a for n, a in arrays.items() if n.startswith("projection.")}
        hazards = Hazards(*(arrays[f"hazards.{n}"].astype(np.float64) for n in ("pooled_2J", "deviation_2FM")))
        return cls(card, projection=Projection.restore(stored), hazards=hazards, share=float(settings["share"]))


def fit_competing_risks(card: HeadCard, rollouts: Rollouts, features: Features, *, seed: int) -> CompetingRisksHead:
    """Fit the head; ridge and share are chosen by cross-validated likelihood inside these rollouts.

    Args:
        card: Its grid is used; kind and the rest are kept.
        rollouts: Of the training queries.
        features: Of the same queries, in the same order.
        seed: Of the inner folds.
    """
    tokens_K = np.array(card.tokens_K, np.int64)
    counts = count(rollouts, tokens_K=tokens_K)
    fold_N = np.random.default_rng(seed).permutation(np.arange(len(rollouts)) % _INNER_FOLDS)
    score = np.zeros((len(RIDGES), len(SHARES)))
    for fold in range(min(_INNER_FOLDS, len(rollouts))):
        train, held = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        if len(train) < 2:
            continue
        inner = rollouts.take(train)
        projection = fit_projection(take_features(features, train), inner.prompts)
        z_train, z_held = (projection(take_features(features, r), rollouts.take(r).prompts) for r in (train, held))
        for i, ridge in enumerate(RIDGES):
            hazards = fit_hazards(z_train, counts.take(train), tokens_K=tokens_K, ridge=ridge)
            for j, share in enumerate(SHARES):
                mixed = _mix(hazards, z_held, tokens_K=tokens_K, share=share)
                score[i, j] += log_likelihood(mixed, counts.take(held))
    best, chosen = np.unravel_index(int(score.argmax()), score.shape)
    projection = fit_projection(features, rollouts.prompts)
    z_NF = projection(features, rollouts.prompts)
    hazards = fit_hazards(z_NF, counts, tokens_K=tokens_K, ridge=RIDGES[best])
    diagnostics = {**card.diagnostics, "ridge": RIDGES[best], "share": SHARES[chosen]}
    return CompetingRisksHead(
        replace(card, diagnostics=diagnostics), projection=projection, hazards=hazards, share=SHARES[chosen]
    )


def _mix(hazards: Hazards, z_NF: NDArray[np.float64], *, tokens_K: NDArray[np.int64], share: float) -> Incidence:
    own, pooled = (hazards.incidence(z, tokens_K=tokens_K) for z in (z_NF, np.zeros_like(z_NF)))
    return Incidence(
        *(
            share * getattr(own, name) + (1 - share) * getattr(pooled, name)
            for name in ("right_NK", "wrong_NK", "survival_NK")
        )
    )
