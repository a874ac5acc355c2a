from __future__ import annotations

from math import isnan
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.report.plots import OUTCOMES
from clear_ray.report.rows import READ_OF_ALL, gather, outcome
from clear_ray.run_folder.completions import completion_views
from clear_ray.storage import open_folder
from tests.unit.report.samples import completions


def test_each_row_is_counted_once() -> None:
    rows = list(completions(5_000))
    found = gather(iter(rows), most_rows=500)
    assert found.rows == found.abandoned + found.funded == 5_000
    assert found.failed == sum(row["status"] == "failed" for row in rows)
    assert list(found.first) == rows[:500]
    assert (len(found.points), len(found.nearest), len(found.failed_first)) == (2_000, 50, min(50, found.failed))
    assert {point.outcome for point in found.points} <= set(OUTCOMES)


def test_the_sample_of_marks_is_even_and_the_same_each_time() -> None:
    def rows() -> list[dict[str, object]]:
        base = next(row for row in completions() if row["status"] == "completed")
        return [base | {"max_tokens": number, "spent_tokens": 1} for number in range(20_000)]

    points = gather(rows(), most_rows=0).points
    assert points == gather(rows(), most_rows=0).points
    # Of 2,000 marks drawn evenly from 20,000, a quarter holds 500 with a deviation of 19: five of them are 95.
    for quarter in range(4):
        inside = sum(5_000 * quarter <= point.granted_tokens < 5_000 * (quarter + 1) for point in points)
        assert abs(inside - 500) < 95


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=120))
def test_the_nearest_abandoned_rows_are_those_that_sorting_would_give(prices: list[float]) -> None:
    base = next(row for row in completions() if row["status"] == "abandoned")
    rows = [base | {"index": index, "reservation_price": price} for index, price in enumerate(prices)]
    # A NaN counts as the lowest; ties stay in the order of the rows, because sorting is stable.
    ranked = sorted(
        rows, key=lambda row: float("inf") if isnan(row["reservation_price"]) else -row["reservation_price"]
    )
    assert [row["index"] for row in gather(rows, most_rows=0).nearest] == [row["index"] for row in ranked[:50]]


def test_every_way_to_end_has_its_word() -> None:
    def ended(**fields: object) -> str:
        return outcome({"status": "completed", "finish_reason": "stop", "correct": None} | fields)

    assert ended() == "ended"
    assert ended(correct=1.0) == ended(correct=0.5, finish_reason="length") == "correct"
    assert ended(correct=0.25) == "wrong"
    assert ended(correct=0.0, finish_reason="length") == ended(finish_reason="length") == "cut off"
    assert ended(status="failed") == "failed"
    assert ended(status="abandoned") == "abandoned"


def test_rows_of_a_run_folder_may_be_views_of_which_few_columns_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(list(completions(199)))
    folder = open_folder(str(tmp_path))
    folder.child("completions").make()
    pq.write_table(table.slice(100), tmp_path / "completions/a.parquet")
    pq.write_table(table.slice(0, 100), tmp_path / "completions/b.parquet")
    rows = [dict.fromkeys(COMPLETION_SCHEMA.names) | row for row in table.to_pylist()]
    assert gather(completion_views(folder, READ_OF_ALL), most_rows=20) == gather(rows, most_rows=20)
    view = next(completion_views(folder, ["status"]))
    assert (view["status"], view["query_id"], dict(view)) == (rows[0]["status"], rows[0]["query_id"], rows[0])
