"""Completions of a run that is done, in the order of the input, in a file as others read it: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.errors import ConfigError, ResumeError
from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.run_folder.completions import completion_batches
from clear_ray.run_folder.manifest import SUMMARY, read_manifest
from clear_ray.storage import Folder, sync_path

Batches = Iterator[pa.RecordBatch]
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str).encode


def export(folder: Folder, target: Path) -> int:
    """Write all completions of a run into a file, whose name says how; it appears whole or not at all.

    Args:
        folder: The run folder.
        target: A file that ends in `.jsonl`, `.csv` or `.parquet`; an older one is replaced.

    Returns:
        How many they are.

    Raises:
        ConfigError: The name says no format.
        ResumeError: The run is not done.
    """
    write = _WRITERS.get(target.suffix.lower())
    if write is None:
        raise ConfigError("the name says no format", "--to", target.name, f"End it in {', '.join(_WRITERS)}.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        with partial.open("wb") as sink:
            rows = write(finished(folder), sink)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(partial, target)
        sync_path(target.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)
    return rows


def finished(folder: Folder) -> Batches:
    """Return the completions of a run that is done, some at a time.

    Raises:
        ConfigError: There is no run in this folder.
        ResumeError: It is not done.
    """
    if not folder.exists(SUMMARY):
        if read_manifest(folder) is None:
            raise ConfigError(
                "there is no run in this folder", folder.path, remedy="Name the run_dir of a run that is done."
            )
        remedy = "Go on with it (`clear-ray resume`), or end it with what there is (`clear-ray cancel`)."
        raise ResumeError("the run is not done", folder.path, remedy=remedy)
    return completion_batches(folder)


def json_lines(batch: pa.RecordBatch) -> Iterator[str]:
    """Yield completions as JSON lines."""
    for row in batch.to_pylist():
        yield f"{_encode(row)}\n"


def _write_jsonl(batches: Batches, sink: BinaryIO) -> int:
    rows = 0
    for batch in batches:
        sink.write("".join(json_lines(batch)).encode())
        rows += len(batch)
    return rows


def _write_csv(batches: Batches, sink: BinaryIO) -> int:
    rows = 0
    with open(os.dup(sink.fileno()), "w", encoding="utf-8", newline="") as text:
        writer = csv.writer(_Whole(text), lineterminator="\r\n")
        writer.writerow(COMPLETION_SCHEMA.names)
        for batch in batches:
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            rows += len(batch)
    return rows


class _Whole:
    """Takes the place of characters that UTF-8 cannot write, of which a model's answer may hold some."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text

    def write(self, line: str) -> Any:
        """Write a line."""
        return self._text.write(line.encode("utf-8", "replace").decode())


def _write_parquet(batches: Batches, sink: BinaryIO) -> int:
    rows = 0
    with pq.ParquetWriter(sink, COMPLETION_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch.select(COMPLETION_SCHEMA.names).cast(COMPLETION_SCHEMA))
            rows += len(batch)
    return rows


_WRITERS: dict[str, Callable[[Batches, BinaryIO], int]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
