"""How many calls go at once: the law against servers of known limits, in simulated time, and each of its rules."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.engine.endpoint.limit import (
    LONGEST_WAIT_SECONDS,
    OUTAGE_FAULTS,
    CallLimit,
    RatePerMinute,
    SentCall,
    jittered,
)


@dataclass
class Simulated:
    """A server that answers a call after `seconds`, unless `takes` says that it is one too many."""

    takes: Callable[[float, int], bool]
    seconds: float = 1.0
    retry_after: float | None = None
    answered: int = 0
    limited: int = 0
    sent_at: list[float] = field(default_factory=list)
    now: float = 0.0
    running: int = 0
    ends: list[tuple[float, int, SentCall, bool]] = field(default_factory=list)

    def run(self, limit: CallLimit, *, until: float) -> None:
        now, ends = self.now, self.ends
        while now < until:
            while (wait := limit.wait_seconds(now)) == 0.0:
                taken = self.takes(now, self.running)
                self.running += taken
                self.sent_at.append(now)
                due = now + (self.seconds if taken else 0.01)
                heapq.heappush(ends, (due, len(self.sent_at), limit.send(now), taken))
            due = now + wait
            if ends and ends[0][0] <= due:
                now, _, call, is_taken = heapq.heappop(ends)
                if is_taken:
                    self.running -= 1
                    self.answered += 1
                    limit.answered(call, now)
                else:
                    self.limited += 1
                    limit.limited(call, now, self.retry_after)
            else:
                now = due
        self.now = now


def limit_of(*, first: int = 20, most: int = 1_000) -> CallLimit:
    return CallLimit(first=first, most=most, rng=random.Random(7))


@pytest.mark.parametrize("most_at_once", [3, 16, 64, 400])
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_it_finds_a_limit_of_calls_at_once_and_stays_near_it(most_at_once: int, retry_after: float | None) -> None:
    server = Simulated(lambda _, running: running < most_at_once, seconds=0.5, retry_after=retry_after)
    server.run(limit_of(), until=200.0)
    ideal = most_at_once * 200.0 / 0.5
    assert server.answered >= 0.9 * ideal
    first_burst = max(0, 20 - most_at_once)
    assert server.limited - first_burst <= 0.02 * len(server.sent_at)


def bucket(per_second: float, burst: float) -> Callable[[float, int], bool]:
    left, at = burst, 0.0

    def takes(now: float, _: int) -> bool:
        nonlocal left, at
        left, at = min(burst, left + (now - at) * per_second), now
        left -= (is_taken := left >= 1.0)
        return is_taken

    return takes


@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_it_finds_a_limit_of_calls_a_second(retry_after: float | None) -> None:
    server = Simulated(bucket(40.0, 40.0), seconds=0.5, retry_after=retry_after)
    server.run(limit_of(), until=300.0)
    assert server.answered >= 0.9 * 40.0 * 300.0
    assert server.limited <= 0.02 * len(server.sent_at)


@pytest.mark.parametrize("seconds", [4.0, 20.0])
@pytest.mark.parametrize("burst", [1.0, 10.0])
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_long_calls_find_a_limit_of_calls_a_second_too(seconds: float, burst: float, retry_after: float | None) -> None:
    """They would come back in step, and be sent again in step: more than the burst is turned away, whatever the rate."""
    server = Simulated(bucket(10.0, burst), seconds=seconds, retry_after=retry_after)
    server.run(limit_of(), until=75.0 * seconds)
    assert server.answered >= (0.85 if burst > 1.0 else 0.7) * 10.0 * server.now
    assert server.limited <= 0.02 * len(server.sent_at)


def test_it_follows_a_limit_that_moves() -> None:
    server = Simulated(lambda now, running: running < (80 if now < 100.0 or now > 200.0 else 10))
    limit, answered = limit_of(), []
    for until in (100.0, 200.0, 300.0):
        server.answered = 0
        server.run(limit, until=until)
        answered.append(server.answered)
    assert answered[0] >= 0.9 * 80 * 100
    assert answered[1] >= 0.9 * 10 * 100
    assert answered[2] >= 0.5 * 80 * 100


def test_it_starts_slowly_and_doubles_while_all_are_answered() -> None:
    limit = limit_of(first=4)
    calls = [limit.send(0.0) for _ in range(4)]
    assert limit.wait_seconds(0.0) == math.inf
    for call in calls:
        limit.answered(call, 1.0)
    assert limit.limit == 8


def test_calls_of_one_storm_cut_the_limit_once() -> None:
    limit = limit_of(first=100)
    calls = [limit.send(0.0) for _ in range(100)]
    for call in reversed(calls):
        limit.limited(call, 1.0, None)
    assert limit.limit == 90


@given(st.integers(1, 200), st.lists(st.sampled_from(["503", "reset", "timeout"]), min_size=1, max_size=50))
def test_errors_never_make_the_limit_smaller(first: int, faults: list[str]) -> None:
    limit = limit_of(first=first)
    for place, _ in enumerate(faults):
        limit.failed(limit.send(float(place)), float(place) + 0.5)
    assert limit.limit == first


@given(st.floats(0.0, 10_000.0), st.integers(0, 1_000))
def test_retry_after_is_kept_to_the_second(seconds: float, seed: int) -> None:
    limit = CallLimit(first=5, most=5, rng=random.Random(seed))
    limit.limited(limit.send(10.0), 10.0, seconds)
    wait = limit.wait_seconds(10.0)
    assert seconds <= wait + 1e-9
    assert wait <= seconds + 1.0
    assert seconds <= jittered(seconds, random.Random(seed)) <= seconds + 1.0


def test_what_was_kept_back_goes_out_over_the_time_of_a_call() -> None:
    limit = limit_of(first=10)
    calls = [limit.send(0.0) for _ in range(10)]
    for call in calls[:-1]:
        limit.answered(call, 2.0)
    limit.limited(calls[-1], 2.0, 5.0)
    now, sent = 2.0, []
    while len(sent) < limit.limit and math.isfinite(wait := limit.wait_seconds(now)):
        now += wait
        limit.send(now)
        sent.append(now)
    assert sent[0] >= 7.0
    assert sent[-1] - sent[0] == pytest.approx(2.0 * (len(sent) - 1) / limit.limit, rel=0.2)


def test_limited_without_a_word_it_waits_longer_each_time() -> None:
    limit, now, waits = limit_of(first=1), 1.0, []
    for _ in range(12):
        limit.limited(limit.send(now), now + 0.01, None)
        waits.append(limit.wait_seconds(now + 0.01))
        now += 0.02 + waits[-1]
    assert waits[0] == 0.0
    assert 0.5 <= waits[1] <= 0.7
    assert all(after >= 1.5 * before for before, after in itertools.pairwise(waits[1:8]))
    assert max(waits) <= LONGEST_WAIT_SECONDS + 1.0


def test_an_endpoint_that_is_down_is_tried_by_one_call_at_a_time() -> None:
    limit, now = limit_of(first=50), 1.0
    calls = [limit.send(now) for _ in range(40)]
    for call in calls[:OUTAGE_FAULTS]:
        limit.failed(call, 2.0)
    assert limit.is_down
    # Those under way may hang: they do not keep the trial back.
    now = 2.0 + limit.wait_seconds(2.0)
    trial = limit.send(now)
    assert limit.wait_seconds(now) == math.inf
    limit.failed(trial, now)
    longer = limit.wait_seconds(now)
    assert longer >= 1.0
    trial = limit.send(now + longer)
    limit.answered(trial, now + longer + 1.0)
    assert not limit.is_down
    assert limit.limit >= 50
    assert limit.wait_seconds(now + longer + 1.0) == 0.0


def test_it_does_not_grow_while_it_is_not_used() -> None:
    limit = limit_of(first=20)
    for second in range(100):
        limit.answered(limit.send(float(second)), second + 0.5)
    assert limit.limit == 20


@given(st.floats(1.0, 1e6), st.lists(st.floats(0.0, 500.0), min_size=1, max_size=60))
def test_a_pace_is_kept(per_minute: float, amounts: list[float]) -> None:
    pace, now, gone = RatePerMinute(per_minute), 100.0, 0.0
    for amount in amounts:
        now += pace.wait_seconds(now, amount)
        # More than a second's worth may go at once only when all before it is paid off.
        assert gone <= (now - 100.0) * per_minute / 60.0 + max(per_minute / 60.0, 1.0) + 1e-6 * per_minute
        pace.take(now, amount)
        gone += amount


def test_a_pace_takes_back_what_was_not_used() -> None:
    pace = RatePerMinute(60.0)
    pace.take(0.0, 1.0)
    assert pace.wait_seconds(0.0, 1.0) == pytest.approx(1.0)
    pace.take(0.0, -0.5)
    assert pace.wait_seconds(0.0, 1.0) == pytest.approx(0.5)
