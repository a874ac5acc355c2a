"""A file on its way in: a multipart body that is written to disk as it comes, with flat memory."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from clear_ray.serve.errors import ApiError
from clear_ray.storage import sync_path

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MOST_FIELD_BYTES = 65_536
_MOST_FIELDS = 32
_STALL_SECONDS = 60.0


class _Form:
    """What a multipart body holds, as far as it has come: small fields in memory, the part `file` on disk."""

    def __init__(self, sink: BinaryIO, boundary: bytes, most_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.bytes = 0
        self.is_whole = False
        self._sink, self._most_bytes = sink, most_bytes
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value, self._field = b"", b"", b""
        self._name = ""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._take,
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self.parser = MultipartParser(boundary, callbacks)

    def _begin(self) -> None:
        self._headers, self._field, self._name = {}, b"", ""

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file":
            if self.filename is not None:
                raise ApiError(400, "The form has two files.", param="file")
            # Browsers write %22 for the quotes in a name, requests a whole name in the way of headers.
            name = options.get(b"filename", b"").decode(errors="replace").replace("%22", '"')
            self.filename = name or _extended(disposition) or "file"

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.bytes += end - start
            if self.bytes > self._most_bytes:
                raise ApiError(
                    413, f"The file has more than {self._most_bytes:,} bytes.", param="file", code="too_large"
                )
            self._sink.write(memoryview(data)[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > _MOST_FIELD_BYTES or len(self.fields) >= _MOST_FIELDS:
            raise ApiError(
                413, "The form has fields that are too long, or too many.", param=self._name, code="too_large"
            )

    def _end(self) -> None:
        if self._name and self._name != "file":
            self.fields[self._name] = self._field.decode(errors="replace")

    def _finish(self) -> None:
        self.is_whole = True


async def receive(
    body: AsyncIterator[bytes], content_type: str, target: Path, *, most_bytes: int
) -> tuple[dict[str, str], str | None, int]:
    """Write the part `file` of a multipart body to disk.

    Args:
        body: The body as it comes.
        content_type: Its header, which names the boundary.
        target: Where the file goes; it is there and whole when this returns, and not at all if it raises.
        most_bytes: Most that the file may have.

    Returns:
        The other fields; the file's name, None without a file; and its length.

    Raises:
        ApiError: 400 for a body that is no form, or ends early; 408 for one that stands still; 413 for a file that is too
            long.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "Send a form: multipart/form-data with the parts `file` and `purpose`.", param="file")
    partial = target.with_name(f"{target.name}.partial")
    try:
        with partial.open("wb") as sink:
            form = _Form(sink, boundary, most_bytes)
            try:
                while (chunk := await _next_chunk(body)) is not None:
                    form.parser.write(chunk)
            except MultipartParseError as error:
                raise ApiError(400, f"The form cannot be read: {error}.", param="file") from error
            if not form.is_whole:
                raise ApiError(400, "The form ends early.", param="file")
            await asyncio.to_thread(_sync, sink)  # 200 MB take seconds, in which others are served
        os.replace(partial, target)
        await asyncio.to_thread(sync_path, target.parent)
    finally:
        partial.unlink(missing_ok=True)
    return form.fields, form.filename, form.bytes


def _extended(disposition: bytes) -> str:
    """Return the name in `filename*=utf-8''...`; empty if there is none."""
    found = re.search(rb"filename\*=utf-8'[^';]*'([^;\s]+)", disposition, re.IGNORECASE)
    return unquote(found[1].decode("ascii", "replace")) if found else ""


def _sync(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


async def _next_chunk(body: AsyncIterator[bytes]) -> bytes | None:
    """Return what comes next of a body, None at its end; a client that stands still does not hold its place for ever."""
    try:
        async with asyncio.timeout(_STALL_SECONDS):
            return await anext(body, None)
    except TimeoutError:
        message = f"Nothing came of the body for {_STALL_SECONDS:g} seconds."
        raise ApiError(408, message, code="slow_body", headers={"Connection": "close"}) from None


def expiry_of(
    fields: dict[str, Any], created_at: int, *, default_seconds: int | None, name: str = "expires_after"
) -> int | None:
    """Return when something expires: what `expires_after` says, an anchor and seconds, or the default.

    Args:
        fields: Fields of a form, where it is written `expires_after[seconds]`, or of a JSON body, where it is an object.
        created_at: Unix seconds.
        default_seconds: How long it is kept if nothing is said; None for ever.
        name: Name of the field.

    Raises:
        ApiError: 400 for another anchor, or seconds out of range.
    """
    given = fields.get(name)
    asked = given if isinstance(given, dict) else {}
    asked = asked | {part: fields[f"{name}[{part}]"] for part in ("anchor", "seconds") if f"{name}[{part}]" in fields}
    if not asked:
        if given is not None:
            raise ApiError(400, f"{name} is an object of anchor and seconds.", param=name, code="invalid_type")
        return None if default_seconds is None else created_at + default_seconds
    if asked.get("anchor") != "created_at":
        raise ApiError(400, f"{name}.anchor is `created_at`.", param=f"{name}.anchor", code="invalid_value")
    told = asked.get("seconds")
    seconds = str(int(told) if isinstance(told, float) and told.is_integer() else told)
    if not seconds.isascii() or not seconds.isdigit() or not 3_600 <= int(seconds[:12]) <= 2_592_000:
        message = f"{name}.seconds lies between 3600 and 2592000."
        raise ApiError(400, message, param=f"{name}.seconds", code="invalid_value")
    return created_at + int(seconds)
