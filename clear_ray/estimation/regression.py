"""Weighted ridge regression on a query's coordinates, its strength chosen by cross-validation.

Shapes: N queries, P coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.head import Arrays

Array = NDArray[np.float64]
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
_FOLDS = 4


@dataclass(frozen=True, slots=True)
class Regression:
    """A fitted line.

    Attributes:
        weight_P: Slope along each coordinate.
        level: What the average query gets; shape (1,).
    """

    weight_P: Array
    level: Array

    def __call__(self, x_NP: Array) -> Array:
        """Return one value a query."""
        found: Array = self.level[0] + x_NP @ self.weight_P
        return found

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Regression:
        """Make the line again."""
        return cls(**{name: arrays[name] for name in cls.__slots__})


def fit_regression(x_NP: Array, value_N: Array, weight_N: Array, *, seed: int) -> tuple[Regression, Array]:
    """Fit values by weighted least squares, shrunk towards their weighted mean.

    Args:
        x_NP: Coordinates.
        value_N: What to fit; ignored where the weight is 0.
        weight_N: How much each query counts, such as its number of rollouts.
        seed: Seed of the folds.

    Returns:
        The line fitted on all queries, and each query's prediction by the line that has not seen it.
    """
    known = np.flatnonzero(weight_N > 0)
    fold_N = np.full(len(value_N), -1)
    fold_N[known] = np.random.default_rng(seed).permutation(np.arange(len(known)) % _FOLDS)
    best: tuple[float, float, Array] | None = None
    for ridge in RIDGES:
        held = np.empty(len(value_N))
        for fold in range(-1, _FOLDS):
            rows = fold_N == fold
            if rows.any():
                held[rows] = _fit(x_NP, value_N, np.where(rows, 0.0, weight_N), ridge)(x_NP[rows])
        error = float((weight_N * np.where(weight_N > 0, held - value_N, 0.0) ** 2).sum())
        if best is None or error < best[0]:
            best = error, ridge, held
    assert best is not None  # noqa: S101 - RIDGES is not empty
    return _fit(x_NP, value_N, weight_N, best[1]), best[2]


def _fit(x_NP: Array, value_N: Array, weight_N: Array, ridge: float) -> Regression:
    total = max(float(weight_N.sum()), 1e-9)
    value_N = np.where(weight_N > 0, value_N, 0.0)
    level = float(weight_N @ value_N) / total
    center_P = weight_N @ x_NP / total
    away_NP = x_NP - center_P
    weighted = away_NP * weight_N[:, None]
    gram = away_NP.T @ weighted + ridge * np.eye(x_NP.shape[1])
    slope_P: Array = np.linalg.solve(gram, weighted.T @ (value_N - level)).astype(np.float64)
    return Regression(slope_P, np.array([level - center_P @ slope_P]))
