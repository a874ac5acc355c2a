"""Discrete-time competing risks: in each cell of the token grid an answer ends correctly, ends wrongly or goes on.

The three chances are a softmax of (eta_right, eta_wrong, 0), with `eta_c[n, k] = B[k] a_c + z[n] W_c C[k]`: a pooled
curve that is smooth in the logarithm of the tokens, and a deviation that is linear in the query's short vector z, with
weights that change slowly along the grid. Rollouts that were cut count for the cells they were seen through. W is
shrunk to zero, so that a query about which nothing is known gets the pooled curve.

Shapes: N queries, K grid points, F features, J and M basis functions along the grid, c = 0 right, 1 wrong.

Source: docs/method.md, sections 2.3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from clear_ray.estimation.head import Arrays
from clear_ray.estimation.observations import Counts

Array = NDArray[np.float64]
_POOLED_KNOTS, _DEVIATION_KNOTS = 10, 5
_POOLED_SMOOTHNESS, _DEVIATION_SMOOTHNESS = 1.0, 4.0
_START = -3.0


@dataclass(frozen=True, slots=True)
class Hazards:
    """Fitted coefficients.

    Attributes:
        pooled_2J: Coefficients of the pooled log-odds.
        deviation_2FM: Weights of the features along the grid.
    """

    pooled_2J: Array
    deviation_2FM: Array

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Hazards:
        """Make the hazards again."""
        return cls(**{name: arrays[name] for name in cls.__slots__})

    def incidence(self, z_NF: Array, *, tokens_K: NDArray[np.int64]) -> Incidence:
        """Return the cumulative incidences of queries with short vectors `z_NF`."""
        eta = _eta(self.pooled_2J, self.deviation_2FM, z_NF, tokens_K)
        right_NK, wrong_NK, _ = _softmax(eta)
        return incidence_from_hazards(right_NK, wrong_NK)


@dataclass(frozen=True, slots=True)
class Incidence:
    """Cumulative chances by each grid point; the three add up to 1.

    Attributes:
        right_NK: Ended with a correct answer.
        wrong_NK: Ended without one.
        survival_NK: Still running.
    """

    right_NK: Array
    wrong_NK: Array
    survival_NK: Array


def incidence_from_hazards(right_NK: Array, wrong_NK: Array) -> Incidence:
    """Return the cumulative incidences that follow from the chances of ending in each cell if still running."""
    survival_NK = np.cumprod(np.clip(1.0 - right_NK - wrong_NK, 0.0, 1.0), axis=1, dtype=np.float64)
    before_NK = np.concatenate([np.ones((len(right_NK), 1)), survival_NK[:, :-1]], axis=1)
    return Incidence(np.cumsum(before_NK * right_NK, axis=1), np.cumsum(before_NK * wrong_NK, axis=1), survival_NK)


def fit_hazards(
    z_NF: Array,
    counts: Counts,
    *,
    tokens_K: NDArray[np.int64],
    ridge: float,
    start: Hazards | None = None,
    iterations: int = 80,
) -> Hazards:
    """Maximise the penalised likelihood of the counts.

    Args:
        z_NF: Short vectors; zero stands for the average query.
        counts: Rollouts on the grid.
        tokens_K: The grid.
        ridge: Strength of the shrinkage of the deviations to the pooled curve, in rollouts.
        start: Where to begin: the fit of another ridge; None: a flat curve.
        iterations: Most steps of the optimiser.
    """
    pooled_KJ, deviation_KM = hat_basis(tokens_K, _POOLED_KNOTS), hat_basis(tokens_K, _DEVIATION_KNOTS)
    features, J, M = z_NF.shape[1], pooled_KJ.shape[1], deviation_KM.shape[1]
    observed = np.stack([counts.right_NK, counts.wrong_NK, counts.at_risk_NK - counts.right_NK - counts.wrong_NK])
    bend_JJ, bend_MM = _differences(J, 2), np.eye(M) + _DEVIATION_SMOOTHNESS * _differences(M, 1)

    def loss(flat: Array) -> tuple[float, Array]:
        pooled, deviation = flat[: 2 * J].reshape(2, J), flat[2 * J :].reshape(2, features, M)
        chances = _softmax(_eta_from_bases(pooled, deviation, z_NF, pooled_KJ, deviation_KM))
        error = chances[:2] * counts.at_risk_NK - observed[:2]
        smooth, shrunk = _POOLED_SMOOTHNESS * pooled @ bend_JJ, ridge * deviation @ bend_MM
        value = -float((observed * np.log(chances)).sum()) + 0.5 * float((smooth * pooled).sum())
        value += 0.5 * float((shrunk * deviation).sum())
        slope = np.concatenate(
            [
                (error.sum(axis=1) @ pooled_KJ + smooth).ravel(),
                (z_NF.T @ (error @ deviation_KM) + shrunk).ravel(),
            ]
        )
        return value, slope

    begin = start or Hazards(np.full((2, J), _START), np.zeros((2, features, M)))
    flat = np.concatenate([begin.pooled_2J.ravel(), begin.deviation_2FM.ravel()])
    found = minimize(loss, flat, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 20})
    return Hazards(found.x[: 2 * J].reshape(2, J), found.x[2 * J :].reshape(2, features, M))


def log_likelihood(incidence: Incidence, counts: Counts) -> float:
    """Return the log-likelihood of the counts, nats, under predicted incidences."""
    return float(log_likelihood_N(incidence, counts).sum())


def log_likelihood_N(incidence: Incidence, counts: Counts) -> Array:
    """Return the log-likelihood of each query's counts, nats, under predicted incidences."""
    before = np.concatenate([np.ones((len(incidence.survival_NK), 1)), incidence.survival_NK[:, :-1]], axis=1)
    total_N = np.zeros(len(before))
    on_NK = counts.at_risk_NK - counts.right_NK - counts.wrong_NK
    for cumulative, seen_NK in ((incidence.right_NK, counts.right_NK), (incidence.wrong_NK, counts.wrong_NK)):
        chance = np.diff(cumulative, prepend=0.0, axis=1) / np.maximum(before, 1e-12)
        total_N += (seen_NK * np.log(np.clip(chance, 1e-6, 1.0))).sum(axis=1)
    on = np.clip(incidence.survival_NK / np.maximum(before, 1e-12), 1e-6, 1.0)
    total_N += (on_NK * np.log(on)).sum(axis=1)
    return total_N


def hat_basis(tokens_K: NDArray[np.int64], knots: int) -> Array:
    """Return hat functions at evenly spaced knots in the logarithm of the tokens, one column a knot."""
    position_K = np.log(tokens_K.astype(np.float64))
    span = max(position_K[-1] - position_K[0], 1e-9)
    place_K = (position_K - position_K[0]) / span * (knots - 1)
    hats: Array = np.clip(1.0 - np.abs(place_K[:, None] - np.arange(knots)), 0.0, None)
    return hats


def _eta(pooled: Array, deviation: Array, z_NF: Array, tokens_K: NDArray[np.int64]) -> Array:
    bases = hat_basis(tokens_K, pooled.shape[1]), hat_basis(tokens_K, deviation.shape[2])
    return _eta_from_bases(pooled, deviation, z_NF, *bases)


def _eta_from_bases(pooled: Array, deviation: Array, z_NF: Array, pooled_KJ: Array, deviation_KM: Array) -> Array:
    eta: Array = (pooled @ pooled_KJ.T)[:, None, :] + (z_NF @ deviation) @ deviation_KM.T
    return eta


def _softmax(eta_2NK: Array) -> Array:
    full = np.concatenate([eta_2NK, np.zeros_like(eta_2NK[:1])])
    weight = np.exp(np.clip(full, -30.0, 30.0))
    chances: Array = weight / weight.sum(axis=0)
    return chances


def _differences(size: int, order: int) -> Array:
    step = np.diff(np.eye(size), n=order, axis=0)
    product: Array = step.T @ step
    return product
