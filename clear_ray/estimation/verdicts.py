"""WHETHER an answer is right once it has ended: a ridge logistic regression in a query's coordinates.

The log-odds are `B[k] a + x[n] w`: a pooled curve over the length of the answer, since of the answers of a batch the long
ones are more often wrong than the short ones (or the other way round), and a deviation that is linear in the coordinates.
The pooled curve is drawn, weakly, to the chance of the uninformed law, so that no verdicts at all mean just that.

Shapes: N queries, K grid points, P coordinates, J basis functions along the grid, E answers that ended and were judged.

Source: method.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from clear_ray.estimation.endings import TOLERANCE, chance_of, differences
from clear_ray.estimation.hazards import hat_basis
from clear_ray.estimation.head import Arrays

Array = NDArray[np.float64]
_KNOTS = 6
_BEND, _TILT, _DRAW = 1.0, 1.0, 0.005


@dataclass(frozen=True, slots=True)
class Rightness:
    """Fitted coefficients.

    Attributes:
        law: Log-odds under the uninformed law; shape (1,).
        pooled_J: Deviation of the pooled curve over lengths from it.
        weight_P: Weights of the coordinates.
    """

    law: Array
    pooled_J: Array
    weight_P: Array

    def turned(self, turn_PR: Array) -> Rightness:
        """Return the same fit in coordinates of which these were turned ones."""
        return Rightness(self.law, self.pooled_J, turn_PR @ self.weight_P)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Rightness:
        """Make the regression again."""
        return cls(**{name: arrays[name] for name in cls.__slots__})

    def chance(self, x_NP: Array, *, tokens_K: NDArray[np.int64]) -> Array:
        """Return the chance that an answer which ends in a cell is right, shape (N, K)."""
        pooled_K = self.law[0] + hat_basis(tokens_K, _KNOTS) @ self.pooled_J
        return chance_of(pooled_K + (x_NP @ self.weight_P)[:, None])


def fit_verdicts(
    x_EP: Array,
    right_E: Array,
    cell_E: NDArray[np.int64],
    *,
    tokens_K: NDArray[np.int64],
    law_solvability: float,
    ridge: float,
    iterations: int = 60,
) -> Rightness:
    """Maximise the penalised likelihood of the verdicts.

    Args:
        x_EP: Coordinates of the query of each judged answer.
        right_E: Its verdict, 0 to 1.
        cell_E: The cell of the grid that it ended in.
        tokens_K: The grid.
        law_solvability: Chance of a right answer under the uninformed law.
        ridge: Strength of the shrinkage of the weights, in answers.
        iterations: Most steps of the optimiser.
    """
    law = float(np.log(law_solvability / (1.0 - law_solvability)))
    basis_EJ = hat_basis(tokens_K, _KNOTS)[cell_E]
    J = _KNOTS
    bend_JJ = _BEND * differences(J, 2) + _TILT * differences(J, 1) + _DRAW * np.eye(J)

    def loss(flat: Array) -> tuple[float, Array]:
        pooled_J, weight_P = flat[:J], flat[J:]
        eta_E = law + basis_EJ @ pooled_J + x_EP @ weight_P
        error_E = chance_of(eta_E) - right_E
        smooth_J = bend_JJ @ pooled_J
        value = float((np.logaddexp(0.0, eta_E) - right_E * eta_E).sum())
        value += 0.5 * (float(smooth_J @ pooled_J) + ridge * float(weight_P @ weight_P))
        return value, np.concatenate([basis_EJ.T @ error_E + smooth_J, x_EP.T @ error_E + ridge * weight_P])

    first = np.zeros(J + x_EP.shape[1])
    found = minimize(
        loss, first, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 10, "ftol": TOLERANCE}
    )
    return Rightness(np.array([law]), found.x[:J], found.x[J:])
