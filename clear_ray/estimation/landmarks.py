"""Nearness to training queries as coordinates: a Gaussian kernel in its principal coordinates.

A fit that is linear in these coordinates is a smooth function of the query that bends where the training queries
differ and, far away from all of them, returns to a constant: a query that is near no landmark has coordinates 0, and gets
what is fitted beside the slopes. How far is far is known too: a query much farther from every landmark than the landmarks
are from each other is not one that the fit knows anything about.

Shapes: N queries, L landmarks, F entries of the short vector, P principal coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.head import Arrays

Array = NDArray[np.float64]
_MOST_LANDMARKS = 400
_SMALLEST = 1e-4
# Of the reach: up to the first a query is known, from the second on it is not. Chosen so that held-out queries of tasks
# that were trained on lose nothing (docs/calibrating.md).
_KNOWN, _UNKNOWN = 1.2, 1.6
_REACH_PERCENT = 95.0


@dataclass(frozen=True, slots=True)
class Landmarks:
    """A fitted kernel map.

    Attributes:
        landmark_LF: Short vectors of the training queries that serve as landmarks.
        bandwidth: Squared distance over which nearness falls by a factor of the square root of e; shape (1,).
        mean_L: What is taken off the nearness to each landmark: 0; the mean nearness in heads of earlier versions.
        map_LP: Map from nearness to coordinates; training queries have mean square about 1 in all.
        reach: Squared distance within which nearly every landmark has another; shape (1,). Infinite in heads of earlier
            versions: they take every query for known.
    """

    landmark_LF: Array
    bandwidth: Array
    mean_L: Array
    map_LP: Array
    reach: Array

    def __call__(self, z_NF: Array) -> Array:
        """Return the coordinates of queries with short vectors `z_NF`."""
        coordinates: Array = (_nearness(z_NF, self.landmark_LF, self.bandwidth[0]) - self.mean_L) @ self.map_LP
        return coordinates

    def familiarity(self, z_NF: Array) -> Array:
        """Return how far each query is known, 0 to 1: by its distance to the nearest landmark."""
        nearest_N = _squared_distance(z_NF, self.landmark_LF).min(axis=1)
        known: Array = np.clip((_UNKNOWN - nearest_N / self.reach[0]) / (_UNKNOWN - _KNOWN), 0.0, 1.0)
        return known

    def arrays(self) -> Arrays:
        """Return the arrays to store; double precision, because small coordinates are differences of near numbers."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Landmarks:
        """Make the map again."""
        return cls(
            **{"reach": np.array([np.inf]), **{name: array for name, array in arrays.items() if name in cls.__slots__}}
        )


def fit_landmarks(z_NF: Array, *, seed: int, width: float = 1.0) -> Landmarks:
    """Choose landmarks, bandwidth and coordinates from training queries.

    Args:
        z_NF: Short vectors of the training queries; at least one.
        seed: Which queries become landmarks when there are more than 400.
        width: Bandwidth in units of the median squared distance between landmarks.
    """
    chosen = np.arange(len(z_NF))
    if len(chosen) > _MOST_LANDMARKS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MOST_LANDMARKS, replace=False))
    landmark_LF = z_NF[chosen]
    distance_LL = _squared_distance(landmark_LF, landmark_LF)
    apart = distance_LL[distance_LL > _SMALLEST]
    bandwidth = width * float(np.median(apart)) if apart.size else 1.0
    near = _nearness(landmark_LF, landmark_LF, bandwidth)
    values, vectors = np.linalg.eigh(near)
    kept = values > _SMALLEST * max(values[-1], _SMALLEST)
    # The size of the nearness around its mean, so that a ridge means the same however alike the queries are.
    size = np.sqrt(max((near.trace() - near.mean(axis=0).sum()) / len(landmark_LF), _SMALLEST))
    # In the order of memory that a reader of the file gets: products of matrices differ in the last bit otherwise.
    map_LP = np.ascontiguousarray(vectors[:, kept] / np.sqrt(values[kept]) / size)
    return Landmarks(landmark_LF, np.array([bandwidth]), np.zeros(len(landmark_LF)), map_LP, _reach(distance_LL))


def _reach(distance_LL: Array) -> Array:
    """Return the squared distance to the nearest other landmark that only a twentieth of the landmarks exceed."""
    if len(distance_LL) < 2:
        return np.array([np.inf])
    others = np.where(np.eye(len(distance_LL), dtype=bool), np.inf, distance_LL)
    return np.array([max(float(np.percentile(others.min(axis=1), _REACH_PERCENT)), _SMALLEST)])


def _nearness(z_NF: Array, landmark_LF: Array, bandwidth: float) -> Array:
    near: Array = np.exp(-_squared_distance(z_NF, landmark_LF) / (2 * bandwidth))
    return near


def _squared_distance(a_NF: Array, b_LF: Array) -> Array:
    apart: Array = (a_NF**2).sum(axis=1)[:, None] + (b_LF**2).sum(axis=1) - 2 * a_NF @ b_LF.T
    return np.maximum(apart, 0.0)
