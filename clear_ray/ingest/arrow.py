"""Arrow files and streams, as `datasets.save_to_disk` and Feather write them, a record batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.parquet import missing_columns
from clear_ray.ingest.shapes import check_unread
from clear_ray.ingest.source import SourceBatch, holding_columns, wanted_columns

FILE, STREAM = b"ARROW1", b"\xff\xff\xff\xff"
"""What the two forms begin with."""
_MOST_ROWS = 2_048


def read_arrow(filesystem: pafs.FileSystem, path: str, *, origin: str, columns: ColumnsConfig) -> Iterator[SourceBatch]:
    """Yield the rows of an Arrow file or stream; arguments as of `parquet.read_parquet`."""
    first_row = 1
    try:
        with filesystem.open_input_file(path) as source:
            for batch in _batches(source):
                batch.validate(
                    full=True
                )  # Arrow trusts the offsets in such a file, and reads where a damaged one leads it
                if first_row == 1 and (refusal := missing_columns(batch.schema.names, origin, columns)):
                    raise refusal
                check_unread(holding_columns(batch), columns, where=origin)
                names = batch.schema.names
                wanted = wanted_columns(names, columns)
                left_behind = [name for name in names if name not in wanted]
                for start in range(0, batch.num_rows, _MOST_ROWS):
                    some = batch.slice(start, _MOST_ROWS).select(wanted)
                    yield SourceBatch.from_arrow(
                        some, origin=origin, first_row=first_row, columns=columns, left_behind=left_behind
                    )
                    first_row += some.num_rows
    except SchemaError as error:
        yield SourceBatch.unreadable(error, origin=origin)
    except (OSError, ValueError, pa.ArrowException) as error:
        where = origin if first_row == 1 else f"{origin}, after row {first_row - 1}"
        refusal = SchemaError("the Arrow file cannot be read", where, str(error), "Write the file again.")
        yield SourceBatch.unreadable(refusal, origin=origin)


def _batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    start = source.read(len(FILE))
    source.seek(0)
    if start != FILE:
        with pa.ipc.open_stream(source) as stream:
            yield from stream
        return
    with pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
