"""Hidden states small enough to be kept of every query: a run that learns reads them where no head does.

Of each state a few random sums are kept, by one matrix for all engines of a width, so that distances between queries stay
what they were to a tenth. A few units of a transformer are a hundred times larger than the rest and say little: no unit
counts for more than four times the state's typical one.

Shapes: N queries, D hidden width, S sums.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features

SUMS = 128
"""Sums of one state; a narrower state is kept as it is."""
_LARGEST = 4.0
_FEW = 1e-6


def kept_states(features: Features) -> NDArray[np.float32]:
    """Return what is kept of the last and the mean state of each query, side by side, shape (N, 2 S)."""
    return np.concatenate([_kept(features.hidden_last_ND), _kept(features.hidden_mean_ND)], axis=1)


def width_kept(hidden_width: int) -> int:
    """Return how many numbers are kept of a query, 2 S."""
    return 2 * min(hidden_width, SUMS)


def features_of(
    prompt_tokens_N: NDArray[np.int64], entropy_N: NDArray[np.float32], states_NS: NDArray[np.float32]
) -> Features:
    """Return what was kept as features of a probe."""
    half = states_NS.shape[1] // 2
    return Features(prompt_tokens_N, entropy_N, states_NS[:, :half], states_NS[:, half:])


def _kept(states_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    width = states_ND.shape[1]
    if not width:
        return states_ND
    typical_N1 = np.median(np.abs(states_ND), axis=1, keepdims=True) + _FEW
    clipped_ND = np.clip(states_ND / typical_N1, -_LARGEST, _LARGEST)
    return np.asarray(clipped_ND if width <= SUMS else clipped_ND @ _matrix(width), np.float32)


@lru_cache(maxsize=4)
def _matrix(width: int) -> NDArray[np.float32]:
    drawn: NDArray[np.float32] = np.random.default_rng([width, SUMS]).standard_normal((width, SUMS), np.float32)
    return np.asarray(drawn / np.sqrt(SUMS), np.float32)
