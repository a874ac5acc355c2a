"""The answers of a run that is done, read again in the order of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.storage import Folder


def completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one in the order of the input, with one batch of them in memory."""
    for batch in completion_batches(folder):
        yield from batch.to_pylist()


class CompletionView(Mapping[str, Any]):
    """One completion of which few columns are mostly asked for: all others are read when the first of them is.

    Args:
        few: Those columns.
        batch: Rows of `COMPLETION_SCHEMA`.
        place: The row's place among them.
    """

    __slots__ = ("_batch", "_few", "_place", "_whole")

    def __init__(self, few: dict[str, Any], batch: pa.RecordBatch, place: int) -> None:
        self._few, self._batch, self._place = few, batch, place
        self._whole: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        """Return a column's value."""
        return self._few[name] if name in self._few else self._row()[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all columns."""
        return iter(self._batch.schema.names)

    def __len__(self) -> int:
        """Return how many columns there are."""
        return int(self._batch.num_columns)

    def _row(self) -> dict[str, Any]:
        if self._whole is None:
            (self._whole,) = self._batch.slice(self._place, 1).to_pylist()
        return self._whole


def completion_views(folder: Folder, few: Sequence[str]) -> Iterator[CompletionView]:
    """Yield what `completion_rows` does as views, which cost a tenth where few columns are looked at.

    Args:
        folder: The run folder.
        few: Columns that are looked at in every row.
    """
    for batch in completion_batches(folder):
        for place, row in enumerate(batch.select(list(few)).to_pylist()):
            yield CompletionView(row, batch, place)


def completion_batches(folder: Folder) -> Iterator[pa.RecordBatch]:
    """Yield completions some at a time, in the order of the input; a column that an older run lacks is null."""
    firsts = {path: _first_index(folder, path) for path in folder.child("completions").files(".parquet")}
    for path in sorted(firsts, key=lambda path: firsts[path]):
        with folder.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024):
                for name in COMPLETION_SCHEMA.names:
                    if name not in batch.schema.names:
                        batch = batch.append_column(name, pa.nulls(len(batch), COMPLETION_SCHEMA.field(name).type))
                yield batch.select(COMPLETION_SCHEMA.names)


def _first_index(folder: Folder, path: str) -> int:
    with folder.filesystem.open_input_file(path) as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1, columns=["index"]):
            return int(batch["index"][0].as_py())
    return -1
