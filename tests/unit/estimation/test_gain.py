"""What is told of a run's gain beforehand: by a few answers, by curves, by nothing."""

from __future__ import annotations

import numpy as np
import pytest

from clear_ray.estimation.gain import Gain, SampledAnswer, gain_by_curves, gain_by_sample, least_gain


def answers(tokens: list[float], right: list[float | None] | None = None, cut: bool = False) -> list[SampledAnswer]:
    said = right if right is not None else [1.0] * len(tokens)
    return [SampledAnswer(t, not cut, None if cut else r) for t, r in zip(tokens, said, strict=True)]


def told(sampled: list[SampledAnswer], average: float, *, queries: int = 500, cap: float = 1_000.0) -> Gain:
    return gain_by_sample(sampled, queries=queries, average=average, cap=cap)


def test_no_gain_is_expected_where_answers_are_short_and_alike() -> None:
    short = answers([50.0, 52.0, 48.0, 51.0, 49.0, 50.0, 53.0, 47.0])
    ample = told(short, 80.0)
    assert not ample.is_expected
    assert ample.low <= 0.0 <= ample.high < 0.2
    assert ample.uniform > 0.6
    assert told(short, 25.0).is_expected, "half of what they take, which equal ceilings waste"


def test_a_gain_is_expected_where_answers_differ_and_tokens_are_scarce() -> None:
    mixed = answers([8.0, 900.0, 15.0, 700.0, 30.0, 500.0, 20.0, 800.0], [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    found = told(mixed, 60.0)
    assert found.is_expected
    assert found.chance > 0.8
    assert found.expected > 0.08


def test_nothing_is_to_be_gained_where_nothing_is_ever_right() -> None:
    hopeless = answers([300.0] * 30, [0.0] * 30)
    found = told(hopeless, 100.0)
    assert found.expected < 0.02
    assert found.high < 0.1


def test_cut_answers_say_that_answers_are_long() -> None:
    cut, ended = told(answers([100.0] * 12, cut=True), 50.0), told(answers([20.0] * 12), 50.0)
    assert cut.uniform < 0.1 < 0.6 < ended.uniform


def test_the_more_answers_the_narrower_the_interval_and_none_are_an_answer_too() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (0, 4, 48):
        tokens = np.exp(rng.normal(3.0, 0.2, count)).tolist()
        found = told(answers(tokens), 60.0, queries=5_000)
        assert found.low <= found.expected <= found.high
        widths.append(found.high - found.low)
    assert widths[0] > 1.5 * widths[2]
    assert widths == sorted(widths, reverse=True)


def test_without_a_scorer_every_answer_that_ends_counts_as_right() -> None:
    ended = [SampledAnswer(20.0, True, 1.0)] * 6
    by_endings = gain_by_sample(ended, queries=500, average=80.0, cap=200.0, is_judged=False)
    assert by_endings.uniform > gain_by_sample(ended, queries=500, average=80.0, cap=200.0).uniform


def test_a_verdict_that_is_not_known_says_neither() -> None:
    unknown = told([SampledAnswer(20.0, True, None)] * 20, 80.0)
    assert (
        told(answers([20.0] * 20, [0.0] * 20), 80.0).uniform
        < unknown.uniform
        < told(answers([20.0] * 20), 80.0).uniform
    )


@pytest.mark.parametrize(
    ("price", "ceilings", "is_expected"), [(80.0, 30.0, True), (30.5, 30.0, False), (0.0, 0.0, False)]
)
def test_curves_promise_a_part_of_what_the_price_buys(price: float, ceilings: float, is_expected: bool) -> None:
    found = gain_by_curves(price, ceilings, queries=200)
    assert found.is_expected is is_expected
    assert found.low <= found.expected <= min(found.high, (price - ceilings) / 200)
    assert found.uniform == pytest.approx(ceilings / 200)


def test_answers_behind_curves_that_promise_little_widen_what_is_told() -> None:
    mixed = answers([8.0, 900.0, 15.0, 700.0, 30.0, 500.0, 20.0, 800.0], [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    alone = gain_by_curves(31.0, 30.0, queries=200)
    both = gain_by_curves(31.0, 30.0, mixed, queries=200, average=60.0, cap=1_000.0)
    assert both.high > alone.high
    assert both.expected > alone.expected


def test_what_is_worth_the_name_grows_with_what_equal_ceilings_bring() -> None:
    assert [float(least_gain(share)) for share in (0.0, 0.05, 0.8)] == [0.005, 0.005, pytest.approx(0.04)]


def test_the_same_sample_tells_the_same() -> None:
    assert told(answers([20.0, 300.0]), 50.0) == told(answers([20.0, 300.0]), 50.0)
