from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import Tabulated
from clear_ray.errors import UtilityError
from tests.unit.allocation.curves import PROPERTY, tables


def envelope_by_all_pairs(spend: np.ndarray, success: np.ndarray, at: float) -> float:
    """The envelope at one spend, as the best mixture of two points."""
    points = [(0.0, 0.0), *zip(spend, success, strict=True)]
    best = max((p for c, p in points if c <= at), default=0.0)
    for (c1, p1), (c2, p2) in itertools.product(points, points):
        if c1 <= at < c2:
            best = max(best, p1 + (p2 - p1) * (at - c1) / (c2 - c1))
    return best


@PROPERTY
@given(tables())
def test_demand_walks_the_concave_envelope(utility: Tabulated) -> None:
    """Vertices bought along falling prices lie on the envelope, and the prices are its slopes."""
    for row in range(len(utility)):
        one = utility.take(slice(row, row + 1))
        ceiling = one.max_tokens_N
        cap = np.minimum(utility.tokens_NK[row], ceiling)
        spend = np.array([one.spend(c)[0] for c in cap])
        success = np.array([one.utility(c)[0] for c in cap])
        for price in np.unique(one.breakpoints[one.breakpoints > 0.0]):
            bought = one.demand(price)
            at = float(one.spend(bought)[0])
            assert one.utility(bought)[0] == pytest.approx(envelope_by_all_pairs(spend, success, at), abs=1e-12)
            before = one.demand(np.nextafter(price, np.inf))
            climb = one.utility(bought)[0] - one.utility(before)[0]
            assert climb == pytest.approx(price * (at - one.spend(before)[0]), rel=1e-9)


@PROPERTY
@given(tables(), st.integers(0, 50))
def test_continued_curve_is_conditional(utility: Tabulated, start: int) -> None:
    start_N = np.full(len(utility), start)
    start_N[::2] = 0
    later = utility.continued(start_N)
    survival = utility._survival(start_N.astype(float))
    for further in (0, 1, 2, 7, 30, 60):
        together = np.minimum(start_N + further, utility.max_tokens_N)
        capped = np.minimum(further, later.max_tokens_N)
        gained = utility.utility(together) - utility.utility(start_N)
        expected = np.where(later.max_tokens_N > 0, gained / np.where(survival > 0, survival, 1), 0.0)
        limit = np.where(start_N == 0, np.inf, utility.weight_N)
        np.testing.assert_allclose(later.utility(capped), np.minimum(expected, limit), atol=1e-12)
        assert np.all(later.spend(capped) <= capped + 1e-9)
    unchanged = utility.take(slice(0, None, 2))
    np.testing.assert_allclose(later.take(slice(0, None, 2)).demand(0.01), unchanged.demand(0.01))


@PROPERTY
@given(tables(), st.integers(0, 20), st.integers(0, 20))
def test_continuing_twice_is_continuing_once(utility: Tabulated, first: int, second: int) -> None:
    """Where the survival does not change in between, one start or two make the same curve."""
    caps = Tabulated(utility.tokens_NK[0], utility.success_NK)
    twice = caps.continued(first).continued(second)
    once = caps.continued(first + second)
    further = np.full(len(caps), 9.0)
    is_running = (once.max_tokens_N > 0) & (twice.max_tokens_N > 0)
    np.testing.assert_allclose(twice.utility(further)[is_running], once.utility(further)[is_running], atol=1e-9)


def test_continued_by_hand() -> None:
    """Survival 1, 0.5 and 0.25 over three cells of ten tokens."""
    utility = Tabulated([10, 20, 30], [[0.2, 0.4, 0.5]], [[10.0, 15.0, 17.5]])
    later = utility.continued([10])
    np.testing.assert_allclose(later.utility([10.0]), [(0.4 - 0.2) / 0.5])
    np.testing.assert_allclose(later.spend([20.0]), [(17.5 - 10.0) / 0.5])
    assert later.max_tokens_N[0] == 20
    assert later.demand(0.0)[0] == 20
    assert utility.continued([30]).demand(0.0)[0] == 0
    assert utility.continued(0) is utility, "a batch that begins is not held twice"


def test_continued_uses_a_survival_column_where_there_is_one() -> None:
    money = Tabulated([10, 20], [[0.2, 0.4]], [[0.5, 0.6]], survival_NK=[[0.4, 0.1]])
    np.testing.assert_allclose(money.continued([10]).utility([10.0]), [0.2 / 0.4])
    np.testing.assert_allclose(money.continued([5]).utility([15.0]), [0.3 / 0.7])


def test_a_start_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(UtilityError, match="query 0"):
        Tabulated([10], [[0.5]]).continued([np.nan])


def test_success_that_costs_nothing_after_the_start_joins_the_step_before() -> None:
    """Nobody runs on past the first point, but success is still counted there: the last point is bought."""
    utility = Tabulated([10, 20], [[0.2, 0.3]], [[8.0, 8.0]])
    assert utility.demand(utility.reservation_price)[0] == 20
    assert utility.reservation_price[0] == pytest.approx(0.3 / 8.0)


def test_rounding_of_float32_is_levelled() -> None:
    success = np.array([[0.3, np.nextafter(np.float32(0.3), 0, dtype=np.float32), 1.0000001]], dtype=np.float32)
    utility = Tabulated([1, 2, 3], success)
    assert np.all(np.diff(utility.success_NK) >= 0.0)
    assert utility.success_NK.max() <= 1.0


def test_a_survival_of_another_shape_is_refused() -> None:
    with pytest.raises(UtilityError, match="shape"):
        Tabulated([1, 2], [[0.1, 0.2]] * 2, survival_NK=[[1.0, 0.5]])
