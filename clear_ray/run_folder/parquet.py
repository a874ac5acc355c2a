"""Reading files that a killed process may have left torn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.errors import ResumeError
from clear_ray.storage import Folder


def read_columns(folder: Folder, path: str, columns: list[str]) -> pa.Table | Exception:
    """Return columns of a file, or what is wrong with its content; what is wrong with its disk or store is raised."""
    try:
        with folder.filesystem.open_input_file(path) as source:
            return pq.ParquetFile(source).read(columns=columns, use_threads=False)
    except pa.ArrowInvalid as error:
        return error
    except OSError:  # a broken page, or a store that did not answer, which must not look like one
        with folder.filesystem.open_input_stream(path) as stream:
            content = BytesIO(stream.read())
    try:
        return pq.ParquetFile(content).read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return error


@contextmanager
def told_if_damaged(folder: Folder, name: str) -> Iterator[None]:
    """Say of what cannot be read in here that it is damaged; what is wrong with its disk or store is raised as it is."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's doing
            raise
        raise damaged(folder, name, error) from error


def damaged(folder: Folder, name: str, error: Exception) -> ResumeError:
    """Return the error that says that a file of a run folder is damaged."""
    return ResumeError(
        "the file is damaged",
        f"{folder.path}/{name}",
        " ".join(str(error).split()),
        "Restore it from a copy, or name a new run_dir.",
    )
