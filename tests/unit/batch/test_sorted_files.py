"""Rows of few queries are written in order by the driver itself, of each file the columns that are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.sorted_files import write_sorted
from clear_ray.storage import open_folder


def test_rows_of_all_sources_are_turned_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"index": [5, 1], "text": ["e", "b"], "long": ["x", "y"]}), tmp_path / "in/one.parquet")
    pq.write_table(pa.table({"index": [3], "text": [None], "long": ["z"]}), tmp_path / "in/two.parquet")
    pq.write_table(pa.table({"index": [2, 4, 0]}), tmp_path / "in/other.parquet")
    paths = [str(tmp_path / "in" / name) for name in ("one.parquet", "two.parquet")]

    class Marked:
        reads = ("index", "text")

        def __call__(self, table: pa.Table) -> pa.Table:
            assert table.column_names == ["index", "text"]
            return pa.table({"index": table["index"], "text": pc.fill_null(table["text"].cast(pa.string()), "-")})

    def odd_out(table: pa.Table) -> pa.Table:
        kept = table.filter(pc.not_equal(table["index"], 4))
        return kept.append_column("text", pa.repeat("?", len(kept)))

    target = open_folder(str(tmp_path / "out"))
    sources = [(paths, Marked()), ([str(tmp_path / "in/other.parquet")], odd_out), ([], Marked())]
    write_sorted(sources, target, by=["index"], is_few=True)
    (file,) = (tmp_path / "out").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 5]
    assert [row["text"] for row in rows] == ["?", "b", "?", "-", "e"]


def test_rows_that_do_not_fit_are_put_in_order_over_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.batch.sorted_files._MOST_BYTES", 4_000)
    monkeypatch.setattr("clear_ray.batch.sorted_files._MOST_STORED_BYTES", 2_500)
    monkeypatch.setattr("clear_ray.batch.sorted_files._FILE_ROWS", 300)
    monkeypatch.setattr("clear_ray.batch.sorted_files._ROWS_AT_ONCE", 7)
    drawn = np.random.default_rng(3)
    index, sample = drawn.permutation(np.repeat(np.arange(1_000), 2)), np.zeros(2_000, np.int64)
    for value in range(1_000):
        sample[np.flatnonzero(index == value)] = drawn.permutation(2)
    (tmp_path / "in").mkdir()
    paths = []
    for number, places in enumerate(np.array_split(np.arange(2_000), 40)):
        paths.append(str(tmp_path / f"in/{number}.parquet"))
        text = [f"{i}/{s}" for i, s in zip(index[places], sample[places], strict=True)]
        pq.write_table(pa.table({"index": index[places], "sample": sample[places], "text": text}), paths[-1])
    target = open_folder(str(tmp_path / "out"))
    write_sorted(
        [(paths[:25], lambda table: table), (paths[25:], lambda table: table)],
        target,
        by=["index", "sample"],
        is_few=True,
    )
    files = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [(row["index"], row["sample"]) for row in rows] == [(i, s) for i in range(1_000) for s in (0, 1)]
    assert all(row["text"] == f"{row['index']}/{row['sample']}" for row in rows)
    assert len(files) == 7
    assert max(pq.read_metadata(file).num_rows for file in files) < 400


def test_long_rows_lie_in_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.batch.sorted_files._FILE_BYTES", 100_000)
    pq.write_table(pa.table({"index": list(range(400)), "text": ["x" * 2_000] * 400}), tmp_path / "in.parquet")
    target = open_folder(str(tmp_path / "out"))
    write_sorted([([str(tmp_path / "in.parquet")], lambda table: table)], target, by=["index"], is_few=True)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [i for file in files for i in pq.read_table(file)["index"].to_pylist()] == list(range(400))
    assert max(pq.read_table(file).nbytes for file in files) < 120_000
