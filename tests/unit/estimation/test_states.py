"""What is kept of hidden states keeps queries as far apart as they were, whatever a few large units do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.estimation.states import SUMS, features_of, kept_states, width_kept

QUERIES, WIDTH = 40, 1_000


def features(hidden_ND: NDArray[np.float64]) -> Features:
    states_ND = hidden_ND.astype(np.float32)
    ones_N = np.ones(len(states_ND))
    return Features(ones_N.astype(np.int64), ones_N.astype(np.float32), states_ND, 2 * states_ND[:, ::-1])


def distances(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    apart: NDArray[np.float32] = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    return apart[np.triu_indices(len(rows), 1)]


def test_distances_stay_what_they_were() -> None:
    near_N2 = np.random.default_rng(0).standard_normal((QUERIES // 2, WIDTH))
    hidden_ND = np.concatenate([near_N2, near_N2 + 0.2 * np.random.default_rng(1).standard_normal(near_N2.shape)])
    kept = kept_states(features(hidden_ND))
    assert kept.shape == (QUERIES, width_kept(WIDTH)) == (QUERIES, 2 * SUMS)
    before, after = distances(hidden_ND.astype(np.float32)), distances(kept[:, :SUMS])
    ratio = after / before
    assert ratio.std() < 0.1 * ratio.mean()
    back = features_of(np.ones(QUERIES, np.int64), np.ones(QUERIES, np.float32), kept)
    np.testing.assert_array_equal(np.concatenate([back.hidden_last_ND, back.hidden_mean_ND], axis=1), kept)


def test_units_that_are_a_hundred_times_larger_do_not_drown_the_others() -> None:
    hidden_ND = np.random.default_rng(0).standard_normal((QUERIES, WIDTH))
    loud_ND = hidden_ND.copy()
    loud_ND[:, :3] = 300.0 * np.random.default_rng(1).standard_normal((QUERIES, 3))
    quiet, loud = (distances(kept_states(features(states))[:, :SUMS]) for states in (hidden_ND, loud_ND))
    np.testing.assert_allclose(loud, quiet, rtol=0.2)


def test_narrow_states_are_kept_and_none_are_none() -> None:
    narrow = np.random.default_rng(0).uniform(0.5, 1.0, (QUERIES, 6))
    kept = kept_states(features(narrow))
    assert kept.shape == (QUERIES, 12)
    scale = np.median(narrow, axis=1, keepdims=True)
    np.testing.assert_allclose(kept[:, :6], narrow / scale, rtol=1e-4)
    assert kept_states(features(narrow[:, :0])).shape == (QUERIES, width_kept(0)) == (QUERIES, 0)
