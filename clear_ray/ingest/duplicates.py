"""Ids given twice: found by 64-bit hashes held in memory, confirmed by the ids on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from clear_ray.storage import Folder

_SUSPECTS_AT_ONCE = 1_000  # bounds the ids in memory when a file holds everything twice


def find_duplicates(
    hashes_N: npt.NDArray[np.int64], *, folder: Folder, file_rows: Sequence[int]
) -> Iterator[tuple[str, int, int]]:
    """Yield each id that comes again, with the index of its first and of this appearance, in input order.

    Equal hashes of different ids are no duplicates: the ids themselves, read back, decide.

    Args:
        hashes_N: Hash of the id of every query, in order.
        folder: Where the queries were written.
        file_rows: Rows of each of its files, in order.
    """
    order_N = np.argsort(hashes_N, kind="stable")
    is_repeat = hashes_N[order_N[1:]] == hashes_N[order_N[:-1]]
    suspects = np.sort(order_N[1:][is_repeat])
    for start in range(0, len(suspects), _SUSPECTS_AT_ONCE):
        chunk = suspects[start : start + _SUSPECTS_AT_ONCE]
        members = np.flatnonzero(np.isin(hashes_N[: chunk[-1] + 1], hashes_N[chunk]))
        first_of: dict[str, int] = {}
        for index, query_id in _ids(members, folder, file_rows):
            first = first_of.setdefault(query_id, index)
            if first != index and index >= chunk[0]:  # earlier ones came out with their own chunk
                yield query_id, first, index


def _ids(members: npt.NDArray[np.intp], folder: Folder, file_rows: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield the members with their ids, one file in memory at a time."""
    first_index = 0
    for path, rows in zip(folder.files(".parquet"), file_rows, strict=True):
        inside = members[(members >= first_index) & (members < first_index + rows)]
        if len(inside):
            with folder.filesystem.open_input_file(path) as source:
                ids = pq.read_table(source, columns=["query_id"], use_threads=False)["query_id"]
            yield from zip(inside.tolist(), ids.take(inside - first_index).to_pylist(), strict=True)
        first_index += rows
