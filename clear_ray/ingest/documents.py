"""JSON that is no lines: one array of objects, or objects written over many lines; one object in memory at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.jsonl import LAYOUTS, MAX_LINE_BYTES, Layout, Readable
from clear_ray.ingest.requests import is_request
from clear_ray.ingest.source import SourceBatch
from clear_ray.ingest.values import shown

_BLOCK_BYTES = 1024 * 1024
_BATCH_CHARACTERS = 1_000_000
_SPACE = re.compile(r"[ \t\r\n]*")
_AROUND = 20
_REMEDY = "Write a JSON array of objects, or one JSON object per line."
_decode = json.JSONDecoder().raw_decode


def is_document(start: bytes) -> bool:
    """Whether a file's first bytes begin an array, or an object that goes on in the next line."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if text[:1] == b"[":
        return True
    first = text.partition(b"\n")[0].rstrip()
    return text[:1] == b"{" and b"\n" in text and first[-1:] in (b"{", b"[", b",") and first != text.rstrip()


def read_document(stream: Readable, *, origin: str, columns: ColumnsConfig, layout: Layout) -> Iterator[SourceBatch]:
    """Yield the objects of a JSON document as rows; arguments as of `jsonl.read_jsonl`."""
    is_openai = LAYOUTS[layout]
    number = 1
    elements = _elements(_Text(stream, origin))
    while True:
        rows, size = [], 0
        refusal: SchemaError | None = None
        try:
            for row, characters in elements:
                rows.append(row)
                size += characters
                if size >= _BATCH_CHARACTERS:
                    break
        except SchemaError as error:
            refusal = error
        if is_openai is None:
            is_openai = next((is_request(row) for row in rows if isinstance(row, dict)), None)
        if rows:
            numbers = range(number, number + len(rows))
            yield SourceBatch(rows, origin, numbers, "row", columns, bool(is_openai))
        if refusal is not None:
            yield SourceBatch.unreadable(refusal, origin=origin)
        if refusal is not None or size < _BATCH_CHARACTERS:
            return
        number += len(rows)


class _Text:
    """The decoded text of a stream: what was read of it last, and how far that has been taken."""

    def __init__(self, stream: Readable, origin: str) -> None:
        self._stream, self._origin = stream, origin
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer = ""
        self.at = 0
        self.is_at_end = False
        self._lines_dropped = 0

    @property
    def left(self) -> int:
        """Characters that were read and not taken."""
        return len(self.buffer) - self.at

    def more(self, characters: int = 1) -> None:
        """Read on, by at least so many characters or to the end; what was taken is dropped."""
        self._lines_dropped += self.buffer.count("\n", 0, self.at)
        read = [self.buffer[self.at :]]
        self.at = 0
        wanted = characters
        while wanted > 0 and not self.is_at_end:
            try:
                block = self._stream.read(max(_BLOCK_BYTES, wanted))
                read.append(self._decoder.decode(block, final=not block))
            except UnicodeDecodeError as error:
                around = repr(error.object[max(error.start - _AROUND, 0) : error.start + _AROUND])
                raise SchemaError("a byte is not UTF-8", self.place(), around, "Save the file as UTF-8.") from None
            except (OSError, pa.ArrowException) as error:
                remedy = "Make the file again, or copy it again: its end or its compression is damaged."
                raise SchemaError("the file cannot be read", self.place(), str(error), remedy) from None
            wanted -= len(read[-1])
            self.is_at_end = not block
        self.buffer = "".join(read)

    def skip_space(self, also: str = "") -> str:
        """Take spaces, and at most one character of `also`; return what comes next, empty at the end."""
        taken = False
        while True:
            self.at = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            following = self.buffer[self.at : self.at + 1]
            if following and following in also and not taken:
                self.at += 1
                taken = True
            elif following or self.is_at_end:
                return following
            else:
                self.more()

    def place(self, at: int | None = None) -> str:
        """Return file and line of a position in the buffer."""
        line = self._lines_dropped + self.buffer.count("\n", 0, self.at if at is None else at) + 1
        return f"{self._origin}:{line}"

    def around(self, at: int | None = None) -> str:
        """Return some characters about a position in the buffer, as they are shown."""
        at = self.at if at is None else at
        return repr(self.buffer[max(at - _AROUND, 0) : at + _AROUND])


def _elements(text: _Text) -> Iterator[tuple[dict[str, Any] | SchemaError, int]]:
    """Yield each element of an array, or each of the values that follow each other, with its length in characters."""
    is_array, is_first = text.skip_space() == "[", True
    if is_array:
        text.at += 1
    while True:
        following = text.skip_space(also="" if is_first else ",")
        if not following:
            if is_array:
                raise SchemaError("the array is not closed", text.place(), "", "Its end may be missing: copy it again.")
            return
        if is_array and following == "]":
            text.at += 1
            if text.skip_space():
                raise SchemaError("something stands after the array", text.place(), text.around(), _REMEDY)
            return
        yield _element(text)
        is_first = False


def _element(text: _Text) -> tuple[dict[str, Any] | SchemaError, int]:
    while True:
        try:
            value, end = _decode(text.buffer, text.at)
        except RecursionError:
            raise SchemaError("the JSON is nested too deep", text.place(), text.around(), "Flatten it.") from None
        except json.JSONDecodeError as error:
            if text.is_at_end or text.left > MAX_LINE_BYTES:
                what = f"bad JSON: {error.msg}"
                raise SchemaError(what, text.place(error.pos), text.around(error.pos), _REMEDY) from None
        except ValueError as error:  # an integer of more digits than Python converts
            raise SchemaError("a number cannot be read", text.place(), str(error), "Write it as a string.") from None
        else:
            if end < len(text.buffer) or text.is_at_end:  # a number at the end of what was read may go on
                break
        text.more(text.left)
    start, text.at = text.at, end
    if not isinstance(value, dict):
        what = f"the element is no JSON object but a {type(value).__name__}"
        return SchemaError(what, text.place(start), shown(value), _REMEDY), end - start
    return value, end - start
