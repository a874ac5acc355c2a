"""A block of estimates is one file, however often it is written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.stages.probe_files import WriteEstimates
from clear_ray.storage import open_folder


def test_a_block_that_is_made_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    write = WriteEstimates(open_folder(str(tmp_path)))
    first, second = (pa.table({"index": pa.array(indices, pa.int64())}) for indices in ([4, 5, 6], [7]))
    counts = [write(block)["rows"].to_pylist() for block in (first, second, first)]
    assert counts == [[3], [1], [3]]
    assert [pq.read_table(path)["index"].to_pylist() for path in sorted(tmp_path.iterdir())] == [[4, 5, 6], [7]]


def test_an_empty_block_leaves_no_file(tmp_path: Path) -> None:
    empty = pa.table({"index": pa.array([], pa.int64())})
    assert WriteEstimates(open_folder(str(tmp_path)))(empty)["rows"].to_pylist() == [0]
    assert not list(tmp_path.iterdir())
