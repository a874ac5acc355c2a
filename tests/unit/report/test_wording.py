from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.report.wording import (
    UNKNOWN,
    answers,
    count,
    duration,
    expected,
    per_thousand,
    percent,
    plural,
    printable,
)
from tests.unit.report.samples import HOSTILE


@given(st.text(), st.integers(1, 50))
def test_printable_text_steers_no_terminal_and_keeps_its_length(text: str, most: int) -> None:
    shown = printable(text, most=most)
    assert shown.isprintable()
    assert len(shown) == min(len(text), most)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_become_one_line_that_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) == 1
    assert shown.encode("utf-8")


def test_printable_keeps_plain_text_and_what_it_is_told_to_keep() -> None:
    assert printable("größe 7 = \N{GREEK SMALL LETTER TAU}") == "größe 7 = \N{GREEK SMALL LETTER TAU}"
    assert printable("a\nb\tc", keep="\n") == "a\nb\N{REPLACEMENT CHARACTER}c"


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
