"""How much of an engine stands empty."""

from __future__ import annotations

import pytest

from clear_ray.stages.occupancy import Occupancy


def test_the_idle_share_is_a_mean_over_the_time_since_it_was_asked() -> None:
    now = 0.0
    occupancy = Occupancy(4, clock=lambda: now)
    now = 1.0
    occupancy.enter(4)
    now = 3.0
    occupancy.leave(7)
    occupancy.leave(5)
    now = 4.0
    assert occupancy.idle_share() == pytest.approx((1 * 1 + 2 * 0 + 1 * 0.5) / 4)
    assert (occupancy.queries, occupancy.tokens) == (2, 12)
    now = 6.0
    assert occupancy.idle_share() == pytest.approx(0.5)
    assert occupancy.idle_share() == pytest.approx(0.5)  # no time has passed: what it is now


def test_more_than_fit_leave_nothing_idle() -> None:
    now = 0.0
    occupancy = Occupancy(2, clock=lambda: now)
    occupancy.enter(5)
    now = 2.0
    assert occupancy.idle_share() == 0.0
