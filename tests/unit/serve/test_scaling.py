"""How many replicas: the rule, what it is fed with, and both together in a simulation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from clear_ray.serve.scaling import GRANTS, OUTSTANDING, RATE, Outstanding, TokenPolicy, TokenRate, wanted_replicas
from clear_ray.serve.settings import ServeConfig


@pytest.mark.parametrize(
    ("tokens", "grants", "rate", "present", "wanted"),
    [
        (0, 0, 0.0, 3, 1),  # nothing to do
        (0, 0, 50.0, 3, 1),
        (1_000, 10, 50.0, 1, 1),  # 20 seconds of work
        (1_001, 10, 50.0, 1, 2),
        (5_000, 10, 50.0, 1, 5),
        (5_000, 3, 50.0, 1, 3),  # more than one for each grant could not help
        (5_000, 10, 0.0, 2, 2),  # their speed is unknown
    ],
)
def test_replicas_are_tokens_over_rate_and_time(
    tokens: int, grants: int, rate: float, present: int, wanted: int
) -> None:
    found = wanted_replicas(
        outstanding_tokens=tokens, grants=grants, tokens_per_second=rate, target_seconds=20.0, present=present
    )
    assert found == wanted


def test_the_rate_is_that_of_the_busiest_seconds() -> None:
    rate = TokenRate(mean_seconds=5, memory_seconds=60)
    for tenth in range(100):
        rate.add(10, tenth / 10)  # 100 a second for ten seconds
    assert rate.tokens_per_second() == 100.0
    for second in range(10, 40):
        rate.add(3, float(second))  # one short query at a time
    assert rate.tokens_per_second() == 100.0
    for second in range(40, 120):
        rate.add(30, float(second))
    assert rate.tokens_per_second() == 30.0  # a minute later the engine is slower, for whatever reason


def test_no_rate_is_known_before_a_whole_mean() -> None:
    rate = TokenRate(mean_seconds=5)
    assert rate.tokens_per_second() == 0.0
    for second in range(5):
        rate.add(100, second + 0.9)
        assert rate.tokens_per_second() == 0.0
    rate.add(1, 5.0)
    assert rate.tokens_per_second() == 100.0


def test_what_is_outstanding_returns_to_nothing() -> None:
    outstanding = Outstanding()
    outstanding.open(100)
    outstanding.open(50)
    outstanding.bring(30, 0.0)
    assert (outstanding.tokens, outstanding.grants) == (120, 2)
    outstanding.close(70)
    outstanding.close(50)
    assert (outstanding.tokens, outstanding.grants) == (0, 0)


def context(reports: list[dict[str, float]], *, queued: float = 0.0, target: int | None = None) -> SimpleNamespace:
    metrics = {
        name: {number: report[name] for number, report in enumerate(reports)} for name in (OUTSTANDING, GRANTS, RATE)
    }
    return SimpleNamespace(
        aggregated_metrics=metrics, total_queued_requests=queued, target_num_replicas=target or len(reports)
    )


def test_those_that_wait_for_a_replica_count_like_those_that_have_one() -> None:
    report = {OUTSTANDING: 400.0, GRANTS: 4.0, RATE: 100.0}
    policy = TokenPolicy(target_seconds=4.0)
    assert policy(context([report]))[0] == 1
    assert policy(context([report], queued=12))[0] == 4
    assert policy(context([]))[0] == 1  # before the first report
    assert policy(SimpleNamespace(aggregated_metrics=None, total_queued_requests=None, target_num_replicas=1))[0] == 1


def test_replicas_rise_with_the_load_keep_still_and_fall_again() -> None:
    """Queries of 100 tokens on replicas of 100 tokens a second each: 0.5, then 3, then 0.5 queries a second."""
    policy, tokens_per_second, target_seconds = TokenPolicy(target_seconds=10.0), 100.0, 10.0
    replicas, backlog, trace = 1, 0.0, []
    rate = TokenRate()
    for second in range(600):
        backlog += 100 * (3.0 if 200 <= second < 400 else 0.5)
        brought = min(backlog, tokens_per_second * replicas)
        backlog -= brought
        rate.add(int(brought / replicas), float(second))
        reports = [
            {OUTSTANDING: backlog / replicas, GRANTS: backlog / 100 / replicas, RATE: rate.tokens_per_second()}
        ] * replicas
        if second % 5 == 0:  # it takes a replica a while to start
            replicas, _ = policy(context(reports))
        trace.append((replicas, backlog))
    quiet, busy, after = trace[20:200], trace[260:400], trace[460:]
    assert {replicas for replicas, _ in quiet} == {1}
    # In the busy time what is outstanding takes target_seconds and no more, once there are replicas for it.
    assert all(backlog / (tokens_per_second * replicas) <= target_seconds + 5 for replicas, backlog in busy)
    assert 2 <= sum(replicas for replicas, _ in busy) / len(busy) <= 4
    assert {replicas for replicas, _ in after} == {1}


def test_scaling_goes_up() -> None:
    assert ServeConfig.parse({"scaling": {"max_workers": 3}}).scaling is not None
    with pytest.raises(Exception, match=r"below engine\.workers"):
        ServeConfig.parse({"engine": {"kind": "transformers", "workers": 2}, "scaling": {"max_workers": 1}})
