from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.errors import UtilityError
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid

hazards = hnp.arrays(np.float64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=12), elements=st.floats(0.0, 0.5))


def from_hazards(hazard_2NK: np.ndarray) -> Curves:
    right, wrong = hazard_2NK[0], hazard_2NK[-1]
    survival = np.cumprod(1 - right - wrong, axis=1)
    before = np.concatenate([np.ones((len(right), 1)), survival[:, :-1]], axis=1)
    tokens_K = np.arange(1, right.shape[1] + 1) * 3
    return curves_from_incidence(np.cumsum(before * right, axis=1), survival_NK=survival, tokens_K=tokens_K)


@given(hazards)
def test_curves_are_monotone_and_bounded(hazard_2NK: np.ndarray) -> None:
    curves = from_hazards(hazard_2NK)
    assert (np.diff(curves.success_NK, axis=1) >= 0).all()
    assert (np.diff(curves.survival_NK, axis=1) <= 0).all()
    assert (np.diff(curves.spend_NK, axis=1) >= 0).all()
    assert (curves.spend_NK <= curves.tokens_K + 1e-3).all()
    assert (curves.success_NK + curves.survival_NK <= 1 + 1e-5).all()
    assert (curves.beta_N > 0).all()
    assert (curves.threshold_tokens_N >= 0).all()
    assert np.array_equal(curves.solvability_N, curves.success_NK[:, -1])


@given(hazards, st.randoms(use_true_random=False))
def test_take_and_concatenate_are_inverse(hazard_2NK: np.ndarray, random: object) -> None:
    curves = from_hazards(hazard_2NK)
    order = np.random.default_rng(0).permutation(len(curves))
    parts = [curves.take([row]) for row in order]
    again = Curves.concatenate(parts).take(np.argsort(order))
    for name in ("success_NK", "spend_NK", "survival_NK", "threshold_tokens_N", "solvability_N", "beta_N"):
        assert np.array_equal(getattr(again, name), getattr(curves, name))


def test_spend_is_the_mean_of_the_cut_length() -> None:
    # Everyone ends evenly over 1..10: E[min(L, 10)] of the continuous law is 5.
    tokens_K = np.arange(1, 11)
    survival = (1 - tokens_K / 10)[None]
    curves = curves_from_incidence(0.5 * (1 - survival), survival_NK=survival, tokens_K=tokens_K)
    assert curves.spend_NK[0, -1] == pytest.approx(5.0)
    assert curves.spend_NK[0, 4] == pytest.approx(5 - 0.5 * 5 * 0.5)


@settings(max_examples=30)
@given(st.floats(20, 120), st.floats(0.05, 0.5), st.floats(0.2, 1.0))
def test_moments_recover_a_shifted_erlang(threshold: float, beta: float, solvability: float) -> None:
    tokens_K = np.arange(1, 1000)
    x = np.maximum(tokens_K - threshold, 0.0)
    arrived = (1 - (1 + beta * x) * np.exp(-beta * x))[None]
    curves = curves_from_incidence(solvability * arrived, survival_NK=1 - arrived, tokens_K=tokens_K)
    assert curves.threshold_tokens_N[0] == pytest.approx(threshold, abs=1.5)
    assert curves.beta_N[0] == pytest.approx(beta, rel=0.1)
    assert curves.solvability_N[0] == pytest.approx(solvability, rel=1e-3)


@given(st.integers(1, 5000), st.integers(2, 60))
def test_grid_rises_to_the_cap(cap_tokens: int, points: int) -> None:
    grid = token_grid(cap_tokens, points=points)
    assert grid[-1] == cap_tokens
    assert grid[0] == min(4, cap_tokens)
    assert (np.diff(grid) > 0).all()
    assert len(grid) <= points


def test_refusals() -> None:
    grid = token_grid(10)
    flat = np.full((1, len(grid)), 0.6)
    with pytest.raises(UtilityError, match="add up to more than 1"):
        curves_from_incidence(flat, survival_NK=flat, tokens_K=grid)
    with pytest.raises(UtilityError, match="disagree in shape"):
        curves_from_incidence(flat[:, 1:], survival_NK=flat, tokens_K=grid)
    with pytest.raises(UtilityError, match="not finite"):
        curves_from_incidence(flat * np.nan, survival_NK=flat, tokens_K=grid)
    with pytest.raises(UtilityError, match="at least 1"):
        token_grid(0)
    with pytest.raises(UtilityError, match="no curves"):
        Curves.concatenate([])
    one, other = (
        curves_from_incidence(0.1 * np.ones((1, len(g))), survival_NK=0.5 * np.ones((1, len(g))), tokens_K=g)
        for g in (grid, token_grid(20))
    )
    with pytest.raises(UtilityError, match="different token grids"):
        Curves.concatenate([one, other])
