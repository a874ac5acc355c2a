"""The answers of a run that is done, read again in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.storage import Folder


def completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one in the order of the input, with one batch of them in memory."""
    for batch in completion_batches(folder):
        yield from batch.to_pylist()


def completion_batches(folder: Folder) -> Iterator[pa.RecordBatch]:
    """Yield completions some at a time, in the order of the input."""
    firsts = {path: _first_index(folder, path) for path in folder.child("completions").files(".parquet")}
    for path in sorted(firsts, key=lambda path: firsts[path]):
        with folder.filesystem.open_input_file(path) as source:
            yield from pq.ParquetFile(source).iter_batches(batch_size=1_024)


def _first_index(folder: Folder, path: str) -> int:
    with folder.filesystem.open_input_file(path) as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1, columns=["index"]):
            return int(batch["index"][0].as_py())
    return -1
