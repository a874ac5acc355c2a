"""CSV and TSV: a header of column names, then a row a line; cells may hold line ends where they stand in quotes.

Cells stay text, so that `007` is no number 7; only columns that are numbers by their meaning become numbers. An empty cell
is null.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.jsonl import MAX_LINE_BYTES, Readable
from clear_ray.ingest.shapes import is_known
from clear_ray.ingest.source import SourceBatch

_BLOCK_BYTES = 1024 * 1024
_BATCH_ROWS, _BATCH_CHARACTERS = 2_048, 1_000_000
_DELIMITERS = (",", "\t", ";", "|")
_QUOTES = "Put cells with quotes, line ends or delimiters into quotes, and double the quotes in them."
_SEPARATOR = re.compile(r"""\A"?sep=([,;\t|])"?\s*\Z""", re.IGNORECASE)
"""A first line in which Excel is told the delimiter."""
_NUMBERS = ("weight", "cost", "max_tokens")


def is_table(start: bytes, columns: ColumnsConfig) -> bool:
    """Whether a file's first line is a header with the name of a column that a query may need."""
    first, newline, rest = start.removeprefix(codecs.BOM_UTF8).partition(b"\n")
    if _SEPARATOR.match(first.decode(errors="replace")):
        first, newline, _ = rest.partition(b"\n")
    try:
        header = first.decode().strip()
        if not newline or not header or header[0] in "{[":
            return False
        names = set(_cells(header, _delimiter_of(header)))
    except (UnicodeDecodeError, csv.Error):
        return False
    return any(map(is_known, names)) or bool(names & set(columns.model_dump().values()))


def read_table(stream: Readable, *, origin: str, columns: ColumnsConfig) -> Iterator[SourceBatch]:
    """Yield the rows of a table; the delimiter is a comma, a tab or a semicolon, whichever parts the header most.

    Args:
        stream: The uncompressed bytes.
        origin: The file as errors name it.
        columns: Which column holds what.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _lines(stream, origin)
    try:
        header = next((line for line in lines if line.strip()), None)
        if header is None:
            return
        if told := _SEPARATOR.match(header):
            header = next((line for line in lines if line.strip()), "")
        delimiter = told[1] if told else _delimiter_of(header)
        names = [name.strip() for name in _cells(header, delimiter)]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise SchemaError(f"column {twice!r} is there twice", f"{origin}:1", "", "Rename one of them.")
        wanted = {getattr(columns, setting) for setting in _NUMBERS}
        numeric = {name for name in names if name in wanted or name.lower() in wanted}
        yield from _batches(csv.reader(lines, delimiter=delimiter, strict=True), names, numeric, origin, columns)
    except SchemaError as error:
        yield SourceBatch.unreadable(error, origin=origin)
    except csv.Error as error:
        yield SourceBatch.unreadable(SchemaError("the header is no CSV", origin, str(error), _QUOTES), origin=origin)


def _batches(
    cells: Any, names: list[str], numeric: set[str], origin: str, columns: ColumnsConfig
) -> Iterator[SourceBatch]:
    rows: list[dict[str, Any] | SchemaError] = []
    numbers: list[int] = []
    size = row_number = 0
    try:
        for found in cells:
            if not found:  # a blank line
                continue
            row_number += 1
            if not any(found):  # delimiters alone, as sheets write rows that were cleared
                continue
            rows.append(_row(found, names, numeric, f"{origin} row {row_number}"))
            numbers.append(row_number)
            size += sum(map(len, found))
            if len(rows) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
                yield SourceBatch(rows, origin, numbers, "row", columns)
                rows, numbers, size = [], [], 0
    except csv.Error as error:
        where = f"{origin}:{cells.line_num + 1}"
        raise SchemaError("this is no CSV from here on", where, str(error), _QUOTES) from None
    if rows:
        yield SourceBatch(rows, origin, numbers, "row", columns)


def _row(cells: list[str], names: list[str], numeric: set[str], place: str) -> dict[str, Any] | SchemaError:
    if (len(cells) > len(names) and any(cells[len(names) :])) or len(cells) < len(names):
        what = f"the row has {len(cells)} cells and the header {len(names)}"
        return SchemaError(what, place, "", "Put cells that hold the delimiter or a line end into quotes.")
    row: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=False) if name}
    for name in numeric & row.keys():
        row[name] = _number(row[name])
    return row


def _number(cell: str | None) -> Any:
    """Return a cell as the number it is; as it stands if it is none, for its column to refuse."""
    if cell is None:
        return None
    try:
        return int(cell) if cell.strip().lstrip("+-").isdigit() else float(cell)
    except ValueError:
        return cell


def _delimiter_of(header: str) -> str:
    return max(_DELIMITERS, key=lambda delimiter: _parts(header, delimiter))


def _parts(header: str, delimiter: str) -> int:
    """Return into how many cells a delimiter parts a header; 0 if quoted names stand beside another one."""
    try:
        return len(_cells(header, delimiter))
    except csv.Error:
        return 0


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter, strict=True))


def _lines(stream: Readable, origin: str) -> Iterator[str]:
    """Yield the lines of a text with their ends; what is no text ends the reading with its line."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, number, is_at_end = "", 0, False
    while not is_at_end:
        try:
            block = stream.read(_BLOCK_BYTES)
            rest += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            around = repr(error.object[max(error.start - 20, 0) : error.start + 20])
            where = f"{origin}, after line {number}"
            raise SchemaError("a byte is not UTF-8", where, around, "Save the file as UTF-8.") from None
        except (OSError, pa.ArrowException) as error:
            remedy = "Make the file again, or copy it again: its end or its compression is damaged."
            raise SchemaError("the file cannot be read", f"{origin}, after line {number}", str(error), remedy) from None
        is_at_end = not block
        *whole, rest = rest.split("\n")
        for line in [*whole, rest] if is_at_end else whole:
            number += 1
            if "\0" in line:
                what, remedy = "the line holds a NUL byte", "Remove it; the file may be damaged or UTF-16."
                raise SchemaError(what, f"{origin}:{number}", "", remedy)
            yield f"{line}\n"
        if len(rest) > MAX_LINE_BYTES:
            what = f"a line is longer than {MAX_LINE_BYTES // 2**20} MiB"
            raise SchemaError(what, f"{origin}:{number + 1}", f"{rest[:40]!r}…", "Is this a table?")
