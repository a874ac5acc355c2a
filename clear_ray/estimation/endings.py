"""WHEN an answer ends: one hazard over the token grid, taught by every answer, cut ones too.

In each cell of the grid an answer that still runs ends with a chance whose log-odds are `B[k] a + x[n] W C[k]`: a pooled
curve, and a deviation that is linear in the query's coordinates x, with weights that change slowly along the grid. An
answer that was cut counts for the cells that it was seen through. The pooled curve is drawn to the uninformed law and W to
zero: a query of which nothing is known gets the pooled curve, and with no answers at all that is the uninformed law.

Shapes: N queries, K grid points, P coordinates, J and M basis functions along the grid.

Source: method.md sections 2.3 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from clear_ray.estimation.hazards import hat_basis
from clear_ray.estimation.head import Arrays

Array = NDArray[np.float64]
_POOLED_KNOTS, _DEVIATION_KNOTS = 10, 5
_BEND, _DRAW = 1.0, 0.1
_DEVIATION_SMOOTHNESS = 4.0
_SMALLEST, _FURTHEST = 1e-6, 30.0
TOLERANCE = 1e-7
"""Of the fits: they end when a step brings less than this part of the loss."""


@dataclass(frozen=True, slots=True)
class Endings:
    """Fitted coefficients of the hazard.

    Attributes:
        law_K: Log-odds of ending in each cell under the uninformed law.
        pooled_J: Deviation of the pooled curve from it.
        deviation_PM: Weights of the coordinates along the grid.
    """

    law_K: Array
    pooled_J: Array
    deviation_PM: Array

    def turned(self, turn_PR: Array) -> Endings:
        """Return the same fit in coordinates of which these were turned ones."""
        return Endings(self.law_K, self.pooled_J, turn_PR @ self.deviation_PM)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Endings:
        """Make the hazard again."""
        return cls(**{name: arrays[name] for name in cls.__slots__})

    def hazard(self, x_NP: Array, *, tokens_K: NDArray[np.int64]) -> Array:
        """Return the chance of ending in each cell, if still running, of queries with these coordinates, shape (N, K)."""
        pooled_KJ, deviation_KM = hat_basis(tokens_K, _POOLED_KNOTS), hat_basis(tokens_K, _DEVIATION_KNOTS)
        return chance_of(self.law_K + pooled_KJ @ self.pooled_J + (x_NP @ self.deviation_PM) @ deviation_KM.T)


def fit_endings(
    x_NP: Array,
    ended_NK: Array,
    at_risk_NK: Array,
    *,
    tokens_K: NDArray[np.int64],
    law_survival_K: Array,
    ridge: float,
    iterations: int = 60,
) -> Endings:
    """Maximise the penalised likelihood of the endings.

    Args:
        x_NP: Coordinates; zero stands for a query of which nothing is known.
        ended_NK: Answers that ended in each cell.
        at_risk_NK: Answers that ran at its start and were seen to its end.
        tokens_K: The grid.
        law_survival_K: Survival under the uninformed law.
        ridge: Strength of the shrinkage of the deviations, in answers.
        iterations: Most steps of the optimiser.
    """
    pooled_KJ, deviation_KM = hat_basis(tokens_K, _POOLED_KNOTS), hat_basis(tokens_K, _DEVIATION_KNOTS)
    J, M, P = _POOLED_KNOTS, _DEVIATION_KNOTS, x_NP.shape[1]
    law_K = law_log_odds(law_survival_K)
    bend_JJ = _BEND * differences(J, 2) + _DRAW * np.eye(J)
    bend_MM = ridge * (np.eye(M) + _DEVIATION_SMOOTHNESS * differences(M, 1))

    def loss(flat: Array) -> tuple[float, Array]:
        pooled_J, deviation_PM = flat[:J], flat[J:].reshape(P, M)
        eta_NK = law_K + pooled_KJ @ pooled_J + (x_NP @ deviation_PM) @ deviation_KM.T
        error_NK = chance_of(eta_NK) * at_risk_NK - ended_NK
        smooth_J, shrunk_PM = bend_JJ @ pooled_J, deviation_PM @ bend_MM
        value = float((at_risk_NK * np.logaddexp(0.0, eta_NK) - ended_NK * eta_NK).sum())
        value += 0.5 * (float(smooth_J @ pooled_J) + float((shrunk_PM * deviation_PM).sum()))
        slope_PM = x_NP.T @ (error_NK @ deviation_KM) + shrunk_PM
        return value, np.concatenate([error_NK.sum(axis=0) @ pooled_KJ + smooth_J, slope_PM.ravel()])

    first = np.zeros(J + P * M)
    found = minimize(
        loss, first, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 10, "ftol": TOLERANCE}
    )
    return Endings(law_K, found.x[:J], found.x[J:].reshape(P, M))


def law_log_odds(survival_K: Array) -> Array:
    """Return the log-odds of ending in each cell of a law that is given by its survival."""
    before_K = np.concatenate([[1.0], survival_K[:-1]])
    hazard_K = np.clip(1.0 - survival_K / np.maximum(before_K, 1e-300), _SMALLEST, 1.0 - _SMALLEST)
    odds_K: Array = np.log(hazard_K / (1.0 - hazard_K))
    return odds_K


def chance_of(eta: Array) -> Array:
    """Return the chance with log-odds `eta`."""
    chance: Array = 1.0 / (1.0 + np.exp(-np.clip(eta, -_FURTHEST, _FURTHEST)))
    return chance


def differences(size: int, order: int) -> Array:
    """Return the penalty matrix of the squared differences of some order between neighbouring coefficients."""
    step = np.diff(np.eye(size), n=order, axis=0)
    product: Array = step.T @ step
    return product
