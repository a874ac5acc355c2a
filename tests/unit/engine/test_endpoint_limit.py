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
    OUTAGE_FAULTS,
    CallLimit,
    RatePerMinute,
    SentCall,
    jittered,
)
from clear_ray.engine.endpoint.sought import SoughtLimit


@dataclass
class Simulated:
    """A server that answers a call after `seconds` (log-normal about that), unless `takes` says that it is one too many."""

    takes: Callable[[float, int], bool]
    seconds: float = 1.0
    sigma: float = 0.0
    retry_after: float | None = None
    answered: int = 0
    limited: int = 0
    sent_at: list[float] = field(default_factory=list)
    now: float = 0.0
    running: int = 0
    ends: list[tuple[float, int, SentCall, bool]] = field(default_factory=list)

    def run(self, limit: CallLimit, *, until: float) -> None:
        now, ends, lot = self.now, self.ends, random.Random(len(self.sent_at))
        while now < until:
            while (wait := limit.wait_seconds(now)) == 0.0:
                taken = self.takes(now, self.running)
                self.running += taken
                self.sent_at.append(now)
                due = now + (self.seconds * math.exp(self.sigma * lot.gauss(0.0, 1.0)) if taken else 0.01)
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
@pytest.mark.parametrize("seconds", [0.5, 4.0, 20.0])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize(("per_second", "burst"), [(10.0, 10.0), (10.0, 100.0), (40.0, 40.0)])
def test_it_finds_a_limit_of_calls_a_second_however_long_calls_take(
    per_second: float, burst: float, sigma: float, seconds: float, retry_after: float | None
) -> None:
    server = Simulated(bucket(per_second, burst), seconds=seconds, sigma=sigma, retry_after=retry_after)
    limit = limit_of()
    server.run(limit, until=max(200.0, 20.0 * seconds))
    assert server.answered >= 0.85 * (per_second * (server.now - seconds) + burst)
    assert server.limited <= 0.02 * len(server.sent_at)


@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_it_finds_a_limit_of_calls_a_second_that_saves_nothing_up(retry_after: float | None) -> None:
    """Two calls that go out together are one too many, however few they are over a minute."""
    server = Simulated(bucket(10.0, 1.0), seconds=4.0, sigma=0.5, retry_after=retry_after)
    server.run(limit_of(), until=300.0)
    assert server.answered >= 0.6 * 10.0 * server.now
    assert server.limited <= 0.02 * len(server.sent_at)


@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_it_finds_a_limit_of_calls_a_minute(retry_after: float | None) -> None:
    """They are counted from minute to minute: all may be gone after seconds, and nothing helps until the next."""
    counted: dict[int, int] = {}

    def takes(now: float, _: int) -> bool:
        counted[int(now // 60.0)] = counted.get(int(now // 60.0), 0) + 1
        return counted[int(now // 60.0)] <= 600

    server = Simulated(takes, seconds=4.0, sigma=0.5, retry_after=retry_after)
    server.run(limit_of(), until=600.0)
    assert server.answered >= 0.95 * 6_000
    assert server.limited <= 0.03 * len(server.sent_at)


def test_a_limit_of_calls_at_once_is_not_taken_for_one_of_calls_a_second() -> None:
    limit = limit_of()
    server = Simulated(lambda _, running: running < 32, seconds=4.0, sigma=0.5, retry_after=1.0)
    server.run(limit, until=200.0)
    assert limit.limit == 32
    assert limit.per_second is None or limit.per_second > 32 / 4.0


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


def test_it_follows_a_limit_of_calls_a_second_that_moves() -> None:
    buckets = [bucket(80.0, 80.0), bucket(10.0, 10.0), bucket(80.0, 80.0)]
    server = Simulated(lambda now, running: buckets[int(now // 100.0)](now, running), seconds=2.0, sigma=0.5)
    limit, answered = limit_of(), []
    for until in (100.0, 200.0, 299.0):
        server.answered = 0
        server.run(limit, until=until)
        answered.append(server.answered)
    assert answered[0] >= 0.9 * 80 * 100
    assert answered[1] >= 0.85 * 10 * 100
    assert answered[2] >= 0.5 * 80 * 100


def sent_apart(limit: CallLimit, now: float, calls: int) -> list[SentCall]:
    """Send calls as soon as they may go."""
    sent = []
    for _ in range(calls):
        now += limit.wait_seconds(now)
        sent.append(limit.send(now))
    return sent


def test_it_starts_slowly_and_doubles_while_all_are_taken() -> None:
    limit = limit_of(first=4)
    calls = sent_apart(limit, 10.0, 4)
    assert calls[-1].sent_at == pytest.approx(10.75)  # evenly in a second
    assert limit.wait_seconds(10.8) == pytest.approx(0.2)  # the first is taken when it is a second old
    assert limit.wait_seconds(11.8) == 0.0
    assert limit.limit == 8


def test_calls_of_one_storm_cut_the_limit_once() -> None:
    limit = limit_of(first=100)
    calls = sent_apart(limit, 0.0, 100)
    for call in reversed(calls[50:]):
        limit.limited(call, 1.0, None)
    assert limit.limit == 99


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


def test_after_a_refusal_one_call_goes_alone_and_the_others_apart() -> None:
    limit = limit_of(first=10)
    calls = sent_apart(limit, 0.0, 10)
    for call in calls[:-1]:
        limit.answered(call, 2.0)
    limit.limited(calls[-1], 2.0, 5.0)
    assert limit.wait_seconds(2.0) >= 5.0
    trial = limit.send(2.0 + limit.wait_seconds(2.0))
    waits = limit.wait_seconds(trial.sent_at)
    assert waits > 0.0
    sent = sent_apart(limit, trial.sent_at + waits, 5)
    gaps = [after.sent_at - before.sent_at for before, after in itertools.pairwise(sent)]
    assert gaps == pytest.approx([1.0 / limit.limit] * 4, rel=0.2)


def test_a_call_that_is_taken_where_one_was_turned_away_shows_a_limit_of_calls_a_second() -> None:
    limit = limit_of(first=20)
    *_, last = sent_apart(limit, 0.0, 11)
    limit.limited(last, last.sent_at + 0.01, 1.0)
    assert limit.limit == 10
    assert limit.per_second is None
    trial = limit.send(last.sent_at + 0.01 + limit.wait_seconds(last.sent_at + 0.01))
    assert trial.under_way == 11
    limit.wait_seconds(trial.sent_at + 1.0)
    assert limit.limit >= 20
    assert limit.per_second is not None
    assert 10 / (trial.sent_at) < limit.per_second < 20


def test_no_more_go_than_may_whatever_a_trial_shows() -> None:
    limit, now = limit_of(first=1, most=1), 0.0
    for _ in range(5):
        now += limit.wait_seconds(now)
        limit.limited(limit.send(now), now + 0.01, None)
        now += 0.01 + limit.wait_seconds(now + 0.01)
        limit.answered(limit.send(now), now + 0.5)
        now += 0.5
        assert limit.limit == 1


def test_a_limit_that_was_given_back_is_found_again_and_tried_ever_more_seldom() -> None:
    sought = SoughtLimit(20.0, most=100.0, step=1.0, step_share=0.01)
    sought.cut(10.0, 0.0)
    sought.give_back(20.0, 1.0)
    waits = []
    for now in (2.0, 3.0, 4.0):
        sought.cut(10.0, now)
        sought.answers_due = 0
        waits.append(sought.due_at - now)
    assert waits == [1.0, 4.0, 16.0]


@pytest.mark.parametrize("told", [0.0, 0.001])
def test_told_to_come_at_once_it_still_waits_longer_each_time(told: float) -> None:
    limit, now, waits = limit_of(first=1), 1.0, []
    for _ in range(8):
        limit.limited(limit.send(now), now + 0.01, told)
        waits.append(limit.wait_seconds(now + 0.01))
        now += 0.02 + waits[-1]
    assert min(waits) >= 0.25
    assert waits[-1] >= 4.0


def test_calls_that_were_sent_before_a_cut_do_not_undo_it() -> None:
    limit = limit_of(first=20)
    calls = sent_apart(limit, 10.0, 20)
    limit.limited(calls[-1], 12.0, 20.0)
    cut = limit.limit
    for call in calls[:-1]:
        limit.wait_seconds(14.0)
        limit.answered(call, 14.5)
    assert limit.limit == cut


def test_limited_without_a_word_it_waits_longer_each_time() -> None:
    limit, now, waits = limit_of(first=1), 1.0, []
    for _ in range(12):
        limit.limited(limit.send(now), now + 0.01, None)
        waits.append(limit.wait_seconds(now + 0.01))
        now += 0.02 + waits[-1]
    assert all(after >= 1.5 * before for before, after in itertools.pairwise(waits[2:5]))
    assert 4.0 <= waits[-1] <= 5.0


def test_told_the_same_again_and_again_it_waits_longer_than_it_is_told() -> None:
    limit, now, waits = limit_of(first=1), 1.0, []
    for _ in range(8):
        limit.limited(limit.send(now), now + 0.01, 1.0)
        waits.append(limit.wait_seconds(now + 0.01))
        now += 0.02 + waits[-1]
    assert max(waits[:3]) <= 1.2
    assert 4.0 <= waits[-1] <= 5.0


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
