"""The number of engines follows from the work, the rate, the deadline and the bounds, and from nothing else."""

import math
import random

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from clear_ray.cluster.scaling import RateMeter, Work, planned_work, workers_wanted
from clear_ray.config.durations import seconds_of

MANY = 10_000
works = st.builds(
    Work,
    run_tokens=st.floats(0, 1e9),
    round_tokens=st.floats(0, 1e9),
    batch_tokens=st.floats(1, 1e6),
)
rates = st.floats(0.1, 1e5)
seconds = st.floats(0.0, 1e5)
counts = st.integers(1, 500)
PLENTY = {"round_tokens": 1e12, "batch_tokens": 1.0}  # a round that fills any number of engines


def wanted(work: Work, **changes: object) -> int:
    settings = {"workers": 1, "tokens_per_second": 100.0, "start_seconds": 10.0, "seconds_left": None}
    return workers_wanted(work, **(settings | {"least": 1, "most": MANY} | changes))  # type: ignore[arg-type]


@given(works, counts, st.none() | rates, seconds, st.none() | st.floats(-1e5, 1e5), counts, counts)
def test_the_bounds_are_kept(
    work: Work, workers: int, rate: float | None, start: float, left: float | None, one: int, other: int
) -> None:
    least, most = sorted((one, other))
    found = wanted(
        work, workers=workers, tokens_per_second=rate, start_seconds=start, seconds_left=left, least=least, most=most
    )
    assert least <= found <= most
    assert found <= max(least, math.ceil(work.round_tokens / work.batch_tokens)), "an engine that nothing fills"


@given(st.floats(1, 1e9), counts, rates, seconds, st.floats(1.0, 1e5))
def test_a_deadline_is_met_with_the_fewest(tokens: float, workers: int, rate: float, start: float, left: float) -> None:
    found = wanted(
        Work(tokens, **PLENTY), workers=workers, tokens_per_second=rate, start_seconds=start, seconds_left=left
    )

    def made(count: int) -> float:
        """Tokens until the deadline if their number is changed to `count` now."""
        kept = min(count, workers)
        return rate * (kept * left + max(count - kept, 0) * max(left - start, 0.0))

    if found < MANY and tokens > workers * rate * start:
        assert made(found) >= tokens * (1 - 1e-9)
    if found > 1 and found < MANY:
        assert made(found - 1) < tokens * (1 + 1e-9)


@given(st.floats(1, 1e9), st.floats(1, 1e9), counts, rates, seconds, st.none() | st.floats(1.0, 1e5))
def test_more_work_never_calls_for_fewer(
    one: float, other: float, workers: int, rate: float, start: float, left: float | None
) -> None:
    fewer, more = (
        wanted(Work(tokens, **PLENTY), workers=workers, tokens_per_second=rate, start_seconds=start, seconds_left=left)
        for tokens in sorted((one, other))
    )
    assert fewer <= more


@given(st.floats(1, 1e9), counts, rates, seconds, st.floats(1.0, 1e5), st.floats(1.0, 1e5))
def test_more_time_never_calls_for_more(
    tokens: float, workers: int, rate: float, start: float, one: float, other: float
) -> None:
    early, late = (
        wanted(Work(tokens, **PLENTY), workers=workers, tokens_per_second=rate, start_seconds=start, seconds_left=left)
        for left in sorted((one, other))
    )
    assert late <= early


@given(st.floats(1, 1e9), rates, st.floats(1.0, 1e4))
def test_without_a_deadline_each_works_as_long_as_it_takes_to_start(tokens: float, rate: float, start: float) -> None:
    found = wanted(Work(tokens, **PLENTY), tokens_per_second=rate, start_seconds=start)
    assume(1 < found < MANY)
    assert tokens / (found * rate) >= start * (1 - 1e-9)
    assert tokens / ((found + 1) * rate) < start * (1 + 1e-9)


@given(works, counts, counts)
def test_nothing_is_added_before_the_rate_is_known(work: Work, workers: int, most: int) -> None:
    assert wanted(work, workers=workers, tokens_per_second=None, least=1, most=most) <= workers


@given(works, counts, rates, seconds, st.none() | st.floats(-1e5, 1e5))
@example(Work(5e-324, 1.0, 1.0), 2, 0.5, 1.0, 5e-324)
def test_none_is_added_that_would_come_too_late_to_help(
    work: Work, workers: int, rate: float, start: float, left: float | None
) -> None:
    assume(work.run_tokens <= workers * rate * start)
    assert wanted(work, workers=workers, tokens_per_second=rate, start_seconds=start, seconds_left=left) <= workers


def test_a_missed_deadline_calls_for_all() -> None:
    work = Work(1e6, **PLENTY)  # 10,000 s of one engine
    assert wanted(work, seconds_left=-5.0, most=16) == 16
    assert wanted(work, seconds_left=1_010.0) == 10  # 9.99 after those that begin in 10 s
    assert wanted(work, seconds_left=20_000.0) == 1
    assert wanted(work) == 1_000


def test_what_is_scarce_will_all_be_spent_and_what_is_not_as_expected() -> None:
    scarce = planned_work(expected_tokens=600.0, queries=30, slots=8, available_tokens=1_000, is_scarce=True)
    ample = planned_work(expected_tokens=600.0, queries=30, slots=8, available_tokens=1_000, is_scarce=False)
    assert scarce == Work(1_000.0, 600.0, 160.0)
    assert ample == Work(600.0, 600.0, 160.0)
    assert ample.after(250.0) == Work(350.0, 350.0, 160.0)
    assert scarce.after(5_000.0) == Work(0.0, 0.0, 160.0)


@pytest.mark.parametrize("mean", [20, 200])
def test_the_rate_is_found_though_tokens_are_seen_late(mean: int) -> None:
    """Engines whose number grows, 16 answers at once, exponential lengths, each token 0.05 s: 320 tokens a second."""
    slots, rng, meter = 16, random.Random(7), RateMeter()
    true = slots / 0.05
    begun: list[float] = []
    ends: list[tuple[float, int]] = []
    for engine in range(3):
        for _ in range(slots):
            at = 30.0 * mean * 0.05 * engine
            begun.append(at)
            while at < 120 * mean * 0.05:
                length = math.ceil(rng.expovariate(1 / mean))
                at += length * 0.05
                ends.append((at, length))
    ends.sort()
    tokens = 0
    for at, length in ends:
        tokens += length
        workers = 1 + min(int(at / (30.0 * mean * 0.05)), 2)
        meter.note(seconds=at, workers=workers, tokens=tokens, batch_tokens=float(slots * mean))
        if meter.is_measured:
            assert 0.5 * true < (meter.tokens_per_second or 0) < 1.3 * true
    assert meter.tokens_per_second == pytest.approx(true, rel=0.1)


def test_the_rate_is_the_hint_until_two_batches_have_ended() -> None:
    meter = RateMeter(50.0)
    for second in range(12):
        meter.note(seconds=second, workers=2, tokens=40.0 * second, batch_tokens=100.0)  # 20 a second each
        assert meter.is_measured == (second >= 10), second
        assert meter.tokens_per_second == (20.0 if second >= 10 else 50.0)
    meter.begin()
    meter.note(seconds=100.0, workers=2, tokens=480.0, batch_tokens=100.0)
    assert meter.tokens_per_second == 20.0


@pytest.mark.parametrize(
    ("text", "found"), [("90s", 90), ("45m", 2_700), ("2h", 7_200), ("1h30m", 5_400), (" 1.5 h ", 5_400), ("1m 5s", 65)]
)
def test_durations_are_read(text: str, found: float) -> None:
    assert seconds_of(text) == found


@pytest.mark.parametrize("text", ["", "2", "0h", "-1h", "h", "1d", "30m1h", "٢h", "1e3s", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        seconds_of(text)
