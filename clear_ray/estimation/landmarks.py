"""Nearness to training queries as coordinates: a Gaussian kernel, centred, in its principal coordinates.

A fit that is linear in these coordinates is a smooth function of the query that bends where the training queries
differ and, far away from all of them, returns to a constant: an unfamiliar query gets about the pooled curve.

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


@dataclass(frozen=True, slots=True)
class Landmarks:
    """A fitted kernel map.

    Attributes:
        landmark_LF: Short vectors of the training queries that serve as landmarks.
        bandwidth: Squared distance over which nearness falls by a factor of the square root of e; shape (1,).
        mean_L: Mean nearness of each landmark to the others.
        map_LP: From centred nearness to coordinates; training queries have mean square 1 in all.
    """

    landmark_LF: Array
    bandwidth: Array
    mean_L: Array
    map_LP: Array

    def __call__(self, z_NF: Array) -> Array:
        """Return the coordinates of queries with short vectors `z_NF`."""
        near_NL = _nearness(z_NF, self.landmark_LF, self.bandwidth[0])
        centred = near_NL - near_NL.mean(axis=1, keepdims=True) - self.mean_L + self.mean_L.mean()
        coordinates: Array = centred @ self.map_LP
        return coordinates

    def arrays(self) -> Arrays:
        """Return the arrays to store; double precision, because small coordinates are differences of near numbers."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Landmarks:
        """Make the map again."""
        return cls(**{name: arrays[name] for name in cls.__slots__})


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
    apart = _squared_distance(landmark_LF, landmark_LF)
    apart = apart[apart > _SMALLEST]
    bandwidth = width * float(np.median(apart)) if apart.size else 1.0
    near = _nearness(landmark_LF, landmark_LF, bandwidth)
    mean_L = near.mean(axis=0)
    values, vectors = np.linalg.eigh(near - mean_L - mean_L[:, None] + mean_L.mean())
    kept = values > _SMALLEST * max(values[-1], _SMALLEST)
    size = np.sqrt(max(values[kept].sum() / len(landmark_LF), _SMALLEST))
    # In the order of memory that a reader of the file gets: products of matrices differ in the last bit otherwise.
    map_LP = np.ascontiguousarray(vectors[:, kept] / np.sqrt(values[kept]) / size)
    return Landmarks(landmark_LF, np.array([bandwidth]), mean_L, map_LP)


def _nearness(z_NF: Array, landmark_LF: Array, bandwidth: float) -> Array:
    near: Array = np.exp(-_squared_distance(z_NF, landmark_LF) / (2 * bandwidth))
    return near


def _squared_distance(a_NF: Array, b_LF: Array) -> Array:
    apart: Array = (a_NF**2).sum(axis=1)[:, None] + (b_LF**2).sum(axis=1) - 2 * a_NF @ b_LF.T
    return np.maximum(apart, 0.0)
