"""The law of lengths of a menu: what few answers say of the median, cut ones too."""

from __future__ import annotations

import numpy as np
import pytest

from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import Observed, fit_factors, law, law_scale
from clear_ray.estimation.length_law import length_law

TOKENS_K = token_grid(100_000, points=32)
SCALE = law_scale(TOKENS_K)


def median_of(survival_K: np.ndarray) -> float:
    return float(np.interp(0.5, 1.0 - survival_K, TOKENS_K))


def seen(count: int, *, median: float, cut_at: int = 10**6) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths of a log-logistic law of shape 2, and whether each ended."""
    share = np.random.default_rng(0).random(count)
    length = np.ceil(median * np.sqrt(share / (1.0 - share))).astype(np.int64)
    return np.minimum(length, cut_at), length <= cut_at


def test_with_nothing_seen_it_has_the_scale_that_is_believed() -> None:
    none = np.zeros(0, np.int64)
    survival_K = length_law(none, none.astype(bool), TOKENS_K, scale_tokens=SCALE)
    assert median_of(survival_K) == pytest.approx(SCALE, rel=0.1)
    assert (np.diff(survival_K) <= 0).all()


@pytest.mark.parametrize("cut_at", [10**6, 4_000, 1_500])
def test_the_median_is_found_by_cut_answers_too(cut_at: int) -> None:
    tokens_M, is_ended_M = seen(400, median=2_000, cut_at=cut_at)
    survival_K = length_law(tokens_M, is_ended_M, TOKENS_K, scale_tokens=SCALE)
    assert median_of(survival_K) == pytest.approx(2_000, rel=0.15)


def test_after_a_few_answers_a_short_ceiling_is_no_bargain() -> None:
    """Three of nine answers ended; the uninformed law has a tenth end within a quarter of the shortest of these."""
    tokens_M = np.array([2_100, 3_000, 3_900, *[4_300] * 6])
    is_ended_M = np.array([True] * 3 + [False] * 6)
    observed = Observed(np.arange(9), tokens_M, is_ended_M, np.where(is_ended_M, 1.0, np.nan))
    lengths_K = length_law(tokens_M, is_ended_M, TOKENS_K, scale_tokens=SCALE)
    short = int(np.searchsorted(TOKENS_K, 525))

    def ended_within(survival_K: np.ndarray | None) -> float:
        fitted = fit_factors(np.zeros((9, 0)), observed, tokens_K=TOKENS_K, law_survival_K=survival_K)
        return float(1.0 - fitted.incidence(np.zeros((1, 0)), tokens_K=TOKENS_K).survival_NK[0, short])

    assert 1.0 - law(TOKENS_K)[1][short] > 0.1
    assert ended_within(None) > 3 * ended_within(lengths_K)
    assert ended_within(lengths_K) < 0.02
