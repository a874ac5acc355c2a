"""A head of two factors, when an answer ends and whether it is right then; see `factors`.

It needs no choice of ridge or share inside, so it is fitted in a fraction of the time of `competing_risks`, and it learns
faster from few answers. Of kinds of queries that it has never seen it knows as little as that one: `doubt`.

Shapes: N queries, K grid points, P coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.estimation.competing_risks import doubt
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.factors import Factors, Observed, fit_factors
from clear_ray.estimation.feature_sets import FeatureMap, fit_feature_map
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.head import Arrays, Head, HeadCard, arrays_of, join_arrays
from clear_ray.estimation.landmarks import Landmarks, fit_landmarks
from clear_ray.estimation.learning import Belief, with_law
from clear_ray.estimation.observations import Rollouts
from clear_ray.estimation.readings import Readings

LANDMARK_WIDTH = 0.3
"""Of the median distance between queries: narrow enough that a few answers to one kind of query teach nothing of another."""
DEFAULT_SETS = ("hidden", "text")


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """From features to the coordinates that factors are linear in.

    Attributes:
        feature_map: Feature map from features to short vectors.
        landmarks: Landmarks from short vectors to coordinates.
    """

    feature_map: FeatureMap
    landmarks: Landmarks

    def __call__(
        self, features: Features, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """Return the coordinates of the queries, in order."""
        return self.landmarks(self.feature_map(features, prompts, tasks))

    def arrays(self) -> Arrays:
        """Return the arrays to store; made again from these the map gives the same coordinates, to the bit."""
        return join_arrays({"feature_map": self.feature_map.arrays(), "landmarks": self.landmarks.arrays()})

    @classmethod
    def restore(cls, sets: Sequence[str], arrays: Arrays) -> Coordinates:
        """Make the map again, of these feature sets."""
        feature_map = FeatureMap.restore(sets, arrays_of("feature_map", arrays))
        return cls(feature_map, Landmarks.restore(arrays_of("landmarks", arrays)))


def fit_coordinates(
    features: Features,
    prompts: Sequence[Prompt],
    *,
    sets: Sequence[str] = DEFAULT_SETS,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
) -> Coordinates:
    """Fit coordinates on prompts alone, all of a batch: nothing has to be known of any answer.

    Args:
        features: Features of the probe; see `feature_sets` for what is read of them.
        prompts: What is asked; at least one.
        sets: Names out of `feature_sets.FEATURE_SETS`.
        tasks: Labels, for the set `task`.
        seed: Seed of what is drawn of large batches.
    """
    feature_map = fit_feature_map(features, prompts, sets=sets, seed=seed)
    z_NF = feature_map(features, prompts, tasks)
    return Coordinates(feature_map, fit_landmarks(z_NF, seed=seed, width=LANDMARK_WIDTH))


class FactorisedHead(Head):
    """When an answer ends, times whether it is right.

    Args:
        card: Where the head comes from.
        coordinates: Map from features to coordinates; task labels are not read.
        factors: The fitted factors.
        share: Weight of the fitted curves against the uninformed law, 0 to 1: how far a guard trusts them.
        solvability: Solvability of that law.
    """

    def __init__(
        self,
        card: HeadCard,
        *,
        coordinates: Coordinates,
        factors: Factors,
        share: float = 1.0,
        solvability: float = 0.5,
    ) -> None:
        super().__init__(card)
        self._coordinates, self._factors = coordinates, factors
        self._share, self._solvability = share, solvability

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query; see `Head`."""
        found = self._incidence(self._coordinates.feature_map(features, prompts))
        return curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=self.tokens_K)

    def incidence_of(self, readings: Readings) -> Incidence:
        """Estimate the incidences of queries by what was read of them, labels too; of a head that reads no hidden state."""
        return self._incidence(self._coordinates.feature_map.of(readings))

    @property
    def share(self) -> float:
        """Weight of the fitted curves against the uninformed law."""
        return self._share

    def _incidence(self, z_NF: NDArray[np.float64]) -> Incidence:
        landmarks, tokens_K = self._coordinates.landmarks, self.tokens_K
        fitted = self._factors.incidence(landmarks(z_NF), tokens_K=tokens_K)
        trusted = with_law(fitted, share=self._share, solvability=self._solvability, tokens_K=tokens_K)
        return doubt(trusted, landmarks.familiarity(z_NF), tokens_K=tokens_K)

    def arrays(self) -> Arrays:
        """Return the numbers to store."""
        return {**self._coordinates.arrays(), **join_arrays({"factors": self._factors.arrays()})}

    def settings(self) -> dict[str, Any]:
        """Return the feature sets, and how far the curves are trusted."""
        sets = list(self._coordinates.feature_map.sets)
        return {"sets": sets, "share": self._share, "solvability": self._solvability}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again."""
        coordinates = Coordinates.restore(settings["sets"], arrays)
        trust = {name: float(settings[name]) for name in ("share", "solvability")}
        return cls(card, coordinates=coordinates, factors=Factors.restore(arrays_of("factors", arrays)), **trust)


def head_of(belief: Belief, coordinates: Coordinates, *, card: HeadCard, is_guarded: bool = True) -> FactorisedHead:
    """Return what a run has learned as a head: for a store, or for workers that make the curves where the estimates are.

    Args:
        belief: What was learned, of all queries alike (not by folds); given beliefs are no part of it.
        coordinates: The map to the coordinates that it was learned in.
        card: Where it comes from; its kind is `factorised`.
        is_guarded: Whether to trust it only as far as the evidence goes.
    """
    share = belief.evidence.shares()[0] if is_guarded else 1.0
    trust = {"share": share, "solvability": belief.solvability}
    return FactorisedHead(card, coordinates=coordinates, factors=belief.factors[0], **trust)


def fit_factorised(
    card: HeadCard, rollouts: Rollouts, features: Features, *, seed: int, sets: Sequence[str] = DEFAULT_SETS
) -> FactorisedHead:
    """Fit the head.

    Args:
        card: Its grid is used; kind and the rest are kept.
        rollouts: Rollouts of the training queries.
        features: Features of the same queries, in the same order.
        seed: Seed of the landmarks.
        sets: Which features to read.
    """
    coordinates = fit_coordinates(features, rollouts.prompts, sets=sets, seed=seed)
    observed = Observed(
        rollouts.query_R,
        rollouts.tokens_R,
        rollouts.is_ended_R,
        np.where(rollouts.is_ended_R, rollouts.is_right_R.astype(np.float64), np.nan),
    )
    x_NP = coordinates(features, rollouts.prompts)
    factors = fit_factors(x_NP, observed, tokens_K=np.array(card.tokens_K, np.int64))
    return FactorisedHead(card, coordinates=coordinates, factors=factors)
