"""How alike the answers to one query are: kinds average to the curve, and what is learned is what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.likeness import Likeness, Tried, curves_of_kinds, kind_scores, kind_weights, learn_likeness

PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
TOKENS_K = np.arange(2, 202, 4)


def curves(queries: int, *, solvability: float = 0.6) -> Curves:
    """Log-normal lengths around 50 tokens, all of which end; right ones alike at every length."""
    ended_K = ndtr(np.log(TOKENS_K / 50.0) / 0.5)
    ended_NK = np.tile(ended_K, (queries, 1))
    return curves_from_incidence(solvability * ended_NK, survival_NK=1.0 - ended_NK, tokens_K=TOKENS_K)


def drawn(queries: int, rho: float, *, trust: float, seed: int, attempts: int = 3) -> Tried:
    """Attempts whose lengths are alike by rho, and whose solvability is a beta of weight `trust`; asked until solved."""
    rng = np.random.default_rng(seed)
    solvability = rng.beta(0.6 * trust, 0.4 * trust, queries)
    rows: list[tuple[int, int, bool, bool]] = []
    for query in range(queries):
        z = rng.normal()
        for _ in range(attempts):
            score = np.sqrt(rho) * z + np.sqrt(1 - rho) * rng.normal()
            length = max(int(np.exp(0.5 * score) * 50), 1)
            is_right = bool(rng.random() < solvability[query])
            rows.append((query, min(length, 150), length <= 150, is_right and length <= 150))
            if is_right:
                break
    query, tokens, ended, right = (np.array(column) for column in zip(*rows, strict=True))
    return Tried(query, tokens, ended, right)


@PROPERTY
@given(st.floats(0.05, 0.85), st.floats(0.05, 0.95))
def test_the_kinds_of_a_query_average_to_its_curve(rho: float, solvability: float) -> None:
    whole, kinds = curves(2, solvability=solvability), 7
    parts, share_Z = curves_of_kinds(whole, rho, kinds), kind_scores(kinds)[1]
    for name in ("success_NK", "survival_NK"):
        table = getattr(parts, name).astype(float).reshape(kinds, 2, -1)
        assert np.abs(np.tensordot(share_Z, table, 1) - getattr(whole, name)).max() < 0.025


def test_one_kind_is_the_curve_itself() -> None:
    whole = curves(3)
    assert curves_of_kinds(whole, 0.0, Likeness(rho=0.0).kinds) is whole


def test_a_cut_answer_speaks_for_a_query_of_long_ones_and_a_short_one_for_short_ones() -> None:
    tried = Tried(np.array([0, 1]), np.array([120, 15]), np.array([False, True]), np.array([False, False]))
    score_Z, _ = kind_scores(7)
    weight_ZN = kind_weights(curves(3), 0.6, 7, tried)
    mean_N = score_Z @ weight_ZN
    assert mean_N[0] > 0.5
    assert mean_N[1] < -0.5
    assert mean_N[2] == pytest.approx(0.0, abs=1e-12)
    assert weight_ZN.sum(axis=0) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("rho", [0.1, 0.7])
def test_the_likeness_of_lengths_is_learned_from_repeated_attempts(rho: float) -> None:
    found = learn_likeness(curves(400), drawn(400, rho, trust=4.0, seed=1))
    assert found.rho == pytest.approx(rho, abs=0.2)


@pytest.mark.parametrize(("trust", "most", "least"), [(1.0, 2.0, 0.5), (64.0, 32.0, 8.0)])
def test_how_far_failures_count_is_learned_from_repeated_attempts(trust: float, most: float, least: float) -> None:
    found = learn_likeness(curves(800), drawn(800, 0.3, trust=trust, seed=2))
    assert least <= found.trust <= most


def test_nothing_is_learned_where_no_query_was_asked_twice() -> None:
    tried = Tried(np.arange(5), np.full(5, 20), np.ones(5, bool), np.zeros(5, bool))
    assert learn_likeness(curves(5), tried) == Likeness()


@PROPERTY
@given(st.integers(0, 1_000))
def test_wrong_answers_before_an_attempt_are_those_of_its_query(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tried = Tried(rng.integers(0, 4, 20), rng.integers(1, 9, 20), rng.random(20) < 0.7, rng.random(20) < 0.3)
    for place, before in enumerate(tried.wrong_before_P):
        same = (tried.query_P[:place] == tried.query_P[place]) & tried.is_ended_P[:place] & ~tried.is_right_P[:place]
        assert before == same.sum()
