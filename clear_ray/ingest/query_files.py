"""Writes `queries/`: numbered Parquet files that appear as a whole folder or not at all.

On a local disk the files grow in `queries.partial/` beside it, and one rename publishes them. An object store has no
rename of folders: there an older folder goes first, the files are written in place and removed on failure, and
`_input.json`, written last, says that the folder is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.errors import ConfigError, StorageError
from clear_ray.ingest.digest import DIGEST_FILE, InputDigest
from clear_ray.ingest.normalise import NormalRow
from clear_ray.records import QUERY_COLUMNS_ADDED, QUERY_SCHEMA
from clear_ray.storage import DISK_ERRORS, Folder, sync_path

_FILE_ROWS = 16_384
_FILE_CHARACTERS = 4_000_000  # long prompts make shorter files, of which a few copies are held while one is written
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class QueryFiles:
    """The files of a `queries/` folder while they are being written.

    Args:
        queries: The folder to publish; an older one is replaced.

    Raises:
        ConfigError: The folder cannot be written; so for every method below.
        StorageError: Its disk is full or broken; likewise.
    """

    def __init__(self, queries: Folder) -> None:
        self._queries = queries
        path = f"{queries.path}.partial" if queries.is_local else queries.path
        self.folder = Folder(queries.filesystem, path, queries.is_local)
        self.file_rows: list[int] = []
        self.rows = 0
        self._digest = hashlib.sha256()
        self._pending: list[tuple[object, ...]] = []
        self._pending_characters = 0
        parents = Path(path).parents if queries.is_local else ()
        self._made_folders = [parent for parent in parents if not parent.exists()]  # innermost first
        with _writing(queries):
            _delete(self.folder)
            self.folder.make()

    @property
    def sha256(self) -> str:
        """SHA-256 over the rows that are on disk: for each, a JSON array of the columns without index, and a comma."""
        return self._digest.hexdigest()

    def add(self, row: NormalRow) -> None:
        """Append a query."""
        self._pending.append(tuple(row))  # plain tuples of plain values cost the garbage collector nothing
        self._pending_characters += len(row.prompt) + len(row.metadata or "") + len(row.gold or "")
        self.rows += 1
        if len(self._pending) >= _FILE_ROWS or self._pending_characters >= _FILE_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last file, if anything."""
        if not self._pending:
            return
        told = [_without_added(row) for row in self._pending]
        self._digest.update(f"{_encode(told)[1:-1]},".encode())
        count = len(self._pending)
        columns = [range(self.rows - count, self.rows), *zip(*self._pending, strict=True)]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, QUERY_SCHEMA, strict=True)]
        sink = pa.BufferOutputStream()
        table = pa.Table.from_arrays(arrays, schema=QUERY_SCHEMA)
        pq.write_table(table, sink, compression="zstd", use_dictionary=["task"])  # the other columns hardly repeat
        with _writing(self._queries):
            self.folder.write(f"part-{len(self.file_rows):06d}.parquet", sink.getvalue().to_pybytes())
        self.file_rows.append(count)
        self._pending.clear()
        self._pending_characters = 0

    def publish(self, digest: InputDigest) -> None:
        """Write the digest and let the folder appear."""
        with _writing(self._queries):
            self.folder.write(DIGEST_FILE, json.dumps(asdict(digest), indent=2).encode())
            if self.folder.path != self._queries.path:
                _delete(self._queries)
                self._queries.filesystem.move(self.folder.path, self._queries.path)
                sync_path(Path(self._queries.path).parent)

    def discard(self) -> None:
        """Remove everything that was made; a failure to do so must not hide the error that led here."""
        with contextlib.suppress(OSError):
            _delete(self.folder)
            for parent in self._made_folders:
                parent.rmdir()


def _without_added(row: tuple[object, ...]) -> tuple[object, ...]:
    """Return a row as older versions knew it, if it is such a one: the same input has the same digest for ever."""
    if row[-1] is None and row[-2] is None:  # n and choice came last
        row = row[:-2]
    own = len(QUERY_SCHEMA) - 1 - len(QUERY_COLUMNS_ADDED)
    return row[:own] if all(value is None for value in row[own:]) else row


def _delete(folder: Folder) -> None:
    if folder.exists():
        folder.filesystem.delete_dir(folder.path)


@contextlib.contextmanager
def _writing(queries: Folder) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        is_disk = isinstance(error, OSError) and error.errno in DISK_ERRORS
        refusal = StorageError if is_disk else ConfigError
        what, said = "the queries cannot be written", os.strerror(error.errno or 0) if is_disk else str(error)
        raise refusal(what, queries.path, said, "Check space and permissions.") from error
