"""Rows of few queries are written in order by the driver itself, also of files that versions with fewer columns began."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clear_ray.batch.sorted_files import write_sorted
from clear_ray.storage import open_folder


def test_rows_of_all_sources_are_turned_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"index": [5, 1], "text": ["e", "b"]}), tmp_path / "in/new.parquet")
    pq.write_table(pa.table({"index": [3]}), tmp_path / "in/old.parquet")
    pq.write_table(pa.table({"index": [2, 4, 0]}), tmp_path / "in/other.parquet")
    paths = [str(tmp_path / "in" / name) for name in ("new.parquet", "old.parquet")]

    def marked(table: pa.Table) -> pa.Table:
        return pa.table({"index": table["index"], "text": pc.fill_null(table["text"], "-")})

    def odd_out(table: pa.Table) -> pa.Table:
        kept = table.filter(pc.not_equal(table["index"], 4))
        return kept.append_column("text", pa.repeat("?", len(kept)))

    target = open_folder(str(tmp_path / "out"))
    sources = [(paths, marked), ([str(tmp_path / "in/other.parquet")], odd_out), ([], marked)]
    write_sorted(sources, target, by=["index"], is_few=True)
    (file,) = (tmp_path / "out").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 5]
    assert [row["text"] for row in rows] == ["?", "b", "?", "-", "e"]
