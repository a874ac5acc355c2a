from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.redaction import printable, without_secrets, without_secrets_inside
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
    ("location", "shown"),
    [
        ("s3://bucket/a/b.jsonl", "s3://bucket/a/b.jsonl"),
        ("s3://KEY:HIDDEN@bucket/a", "s3://bucket/a"),
        ("s3://KEY:HID/DEN@bucket/a", "s3://bucket/a"),
        ("s3://KEY:HID?DEN@bucket/a", "s3://bucket/a"),
        ("s3:/KEY:HIDDEN@bucket/a", "s3:/bucket/a"),
        ("memory://KEY:HIDDEN@bucket/*.jsonl?token=HIDDEN", "memory://bucket/*.jsonl"),
        ("s3://bucket?token=HID@DEN", "s3://bucket"),
        ("s3://bucket/user@date/a", "s3://bucket/user@date/a"),
        ("hdfs://host:8020/user@date/a", "hdfs://host:8020/user@date/a"),
        ("hdfs://host:8020", "hdfs://host:8020"),
        ("/data/user@date/what?.jsonl", "/data/user@date/what?.jsonl"),
        ("runs/a: b@c", "runs/a: b@c"),
        ("", ""),
    ],
)
def test_a_location_loses_its_keys_and_nothing_else(location: str, shown: str) -> None:
    assert without_secrets(location) == shown
    assert without_secrets_inside(f"it said '{location}', twice") == (
        f"it said '{shown}', twice" if "://" in location else f"it said '{location}', twice"
    )
