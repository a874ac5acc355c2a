"""Lengths of answers as a shifted Erlang-2: nothing before a threshold, then a surge.

Density `beta^2 * x * exp(-beta * x)` with x = tokens - threshold > 0. A share of every length is taken to come from
anywhere below the cap, so that one answer that ends before its predicted threshold does not decide the fit.

Shapes: R rollouts, N queries, K grid points.

Source: docs/method.md, sections 2.1 and 2.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_STRAY = 0.05
_RATES = np.geomspace(0.5, 400.0, 40)
_SHARES = np.linspace(0.0, 0.95, 20)


def cumulative(tokens: Array, *, threshold: Array, beta: Array) -> Array:
    """Return the chance that an answer has ended by `tokens`; arguments broadcast."""
    y = beta * np.maximum(tokens - threshold, 0.0)
    ended: Array = -np.expm1(-y) - y * np.exp(-y)
    return ended


def log_likelihood_R(tokens_R: Array, is_ended_R: NDArray[np.bool_], *, threshold_R: Array, beta: Array) -> Array:
    """Return the log-likelihood of each length; one that was cut counts as longer than it is known to be."""
    y = beta * np.maximum(tokens_R - threshold_R, 0.0)
    density = (1 - _STRAY) * beta * y * np.exp(-y) + _STRAY / max(float(tokens_R.max(initial=1.0)), 1.0)
    running = (1 - _STRAY) * (1.0 + y) * np.exp(-y) + _STRAY
    return np.log(np.where(is_ended_R, density, running))


def fit_shared(tokens_R: Array, is_ended_R: NDArray[np.bool_], predicted_R: Array) -> tuple[float, float]:
    """Return the distance of the threshold before the predicted length, and the rate, tokens and per token.

    One pair for all: `threshold = max(predicted - distance, 0)`, the rate shared (docs/method.md, section 2.1).

    Args:
        tokens_R: Lengths.
        is_ended_R: Whether each ended by itself.
        predicted_R: Its query's predicted length, from a fit that has not seen it.
    """
    typical = max(float(np.median(tokens_R)), 1.0) if len(tokens_R) else 1.0
    distances, rates = typical * _SHARES * 2, _RATES / typical
    score = [
        [
            float(
                log_likelihood_R(
                    tokens_R, is_ended_R, threshold_R=np.maximum(predicted_R - distance, 0.0), beta=np.asarray(rate)
                ).sum()
            )
            for rate in rates
        ]
        for distance in distances
    ]
    i, j = np.unravel_index(int(np.argmax(score)), (len(distances), len(rates)))
    return float(distances[i]), float(rates[j])


def fit_scaled(tokens_R: Array, is_ended_R: NDArray[np.bool_], predicted_R: Array) -> tuple[float, float]:
    """Return threshold and rate of lengths in units of the predicted length: both scale with the query.

    Args:
        tokens_R: Lengths.
        is_ended_R: Whether each ended by itself.
        predicted_R: Its query's predicted length, from a fit that has not seen it.
    """
    relative_R = tokens_R / np.maximum(predicted_R, 1.0)
    score = [
        [
            float(log_likelihood_R(relative_R, is_ended_R, threshold_R=np.asarray(share), beta=np.asarray(rate)).sum())
            for rate in _RATES
        ]
        for share in _SHARES
    ]
    i, j = np.unravel_index(int(np.argmax(score)), (len(_SHARES), len(_RATES)))
    return float(_SHARES[i]), float(_RATES[j])
