"""JSON lines, as they come: blocks of bytes in, batches of rows out; a bad line becomes an error with its number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import pyarrow as pa

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.requests import is_request
from clear_ray.ingest.source import SourceBatch
from clear_ray.ingest.values import shown

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is refused: it is a file that is not JSON lines more often than it is a query."""

_BLOCK_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_ONE_LINE = "Write one JSON object per line."
_decode = json.JSONDecoder().decode
Layout = Literal["auto", "jsonl", "openai"]
LAYOUTS: dict[Layout, bool | None] = {"auto": None, "jsonl": False, "openai": True}


class Readable(Protocol):
    """What a reader of text needs of a stream."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


def read_jsonl(
    stream: Readable,
    *,
    origin: str,
    columns: ColumnsConfig,
    layout: Layout,
) -> Iterator[SourceBatch]:
    """Yield the rows of JSON lines; blank lines count but yield nothing.

    Args:
        stream: The uncompressed bytes.
        origin: The file as errors name it.
        columns: Which column holds what.
        layout: `auto` takes the file for the OpenAI batch format if its first object looks like a request.
    """
    first_number = 1
    is_openai = LAYOUTS[layout]
    blocks = _line_blocks(stream)
    while True:
        try:
            lines = next(blocks, None)
        except (OSError, pa.ArrowException) as error:  # a truncated archive, a lost connection
            where = origin if first_number == 1 else f"{origin}, after line {first_number - 1}"
            remedy = "Make the file again, or copy it again: its end or its compression is damaged."
            yield SourceBatch.unreadable(
                SchemaError("the file cannot be read", where, str(error), remedy), origin=origin
            )
            return
        if lines is None:
            return
        if first_number == 1:
            lines[0] = lines[0].removeprefix(_BOM)
        rows: list[dict[str, Any] | SchemaError] = []
        numbers: list[int] = []
        for number, line in enumerate(lines, first_number):
            if line and not line.isspace():
                rows.append(_row(line, f"{origin}:{number}"))
                numbers.append(number)
        first_number += len(lines)
        if is_openai is None:
            is_openai = next((is_request(row) for row in rows if isinstance(row, dict)), None)
        is_whole = len(lines[-1]) <= MAX_LINE_BYTES
        yield SourceBatch(rows, origin, numbers, "line", columns, bool(is_openai), is_whole)
        if not is_whole:
            return


def _line_blocks(stream: Readable) -> Iterator[list[bytes]]:
    """Yield lists of whole lines; a line over the limit is cut there, comes last and ends the reading."""
    pending: list[bytes] = []
    pending_bytes = 0
    block, failure = stream.read(_BLOCK_BYTES), None
    while block:
        try:
            following = stream.read(_BLOCK_BYTES)
        except (OSError, pa.ArrowException) as error:  # what was read before is good
            following, failure = b"", error
        head, newline, rest = block.rpartition(b"\n")
        if (
            newline and not following and failure is None
        ):  # the last line may have no end: it is one of these all the same
            head, rest = (block if rest else head), b""
        if newline:
            yield b"".join([*pending, head]).split(b"\n")
            pending, pending_bytes = [rest], len(rest)
        else:
            pending.append(block)
            pending_bytes += len(block)
            if pending_bytes > MAX_LINE_BYTES:
                break
        if failure is not None:
            raise failure
        block = following
    if pending_bytes:
        yield b"".join(pending).split(b"\n")


def _row(line: bytes, place: str) -> dict[str, Any] | SchemaError:
    if len(line) > MAX_LINE_BYTES:
        return SchemaError(
            f"a line is longer than {MAX_LINE_BYTES // 2**20} MiB; the rest of the file was not read",
            place,
            f"{line[:40]!r}…",
            _ONE_LINE,
        )
    try:
        row = _decode(line.decode())
    except UnicodeDecodeError as error:
        around = line[max(error.start - 20, 0) : error.start + 20]
        return SchemaError(f"byte {error.start + 1} is not UTF-8", place, repr(around), "Save the file as UTF-8.")
    except json.JSONDecodeError as error:
        if b"\0" in line:
            return SchemaError("the line holds a NUL byte", place, "", "Remove it; the file may be damaged or UTF-16.")
        around_text = error.doc[max(error.pos - 20, 0) : error.pos + 20]
        return SchemaError(f"bad JSON at character {error.pos + 1}: {error.msg}", place, repr(around_text), _ONE_LINE)
    except RecursionError:
        return SchemaError("the JSON is nested too deep", place, f"{line[:40]!r}…", "Flatten it.")
    except ValueError as error:  # an integer of more digits than Python converts
        return SchemaError("a number cannot be read", place, str(error), "Write it as a string.")
    if not isinstance(row, dict):
        return SchemaError(f"the line is no JSON object but a {type(row).__name__}", place, shown(row), _ONE_LINE)
    return row
