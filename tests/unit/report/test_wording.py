from __future__ import annotations

import math

import pytest

from clear_ray.report.wording import (
    UNKNOWN,
    answers,
    count,
    duration,
    expected,
    per_thousand,
    percent,
    plural,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, UNKNOWN), (0.0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
        (192.0, "3 min 12 s"), (3_599.7, "1 h 00 min"), (93_784.0, "26 h 03 min"),
    ],
)  # fmt: skip
def test_durations_read_in_their_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_prices_and_answers_read_without_exponents_or_false_digits() -> None:
    assert [per_thousand(price) for price in (None, math.inf, 0.0, 0.0031, 1.5)] == [
        UNKNOWN,
        UNKNOWN,
        "0",
        "3.1",
        "1,500",
    ]
    assert [answers(number) for number in (None, math.nan, 12.0, 12.54, 0.125)] == [
        UNKNOWN,
        UNKNOWN,
        "12",
        "12.5",
        "0.12",
    ]
    assert (expected(12.0), expected(math.nan), percent(0.1549), count(4_800)) == ("12.0", UNKNOWN, "15.5 %", "4,800")
    assert (plural(1, "query"), plural(2, "query"), plural(3, "round")) == ("1 query", "2 queries", "3 rounds")
