"""The ledger's memory: an append-only journal of checksummed records.

One record a line: eight hex digits of CRC-32, a space, a JSON object, a newline. A record is on disk before `append`
returns. A crash can tear only the end: reading stops at the last whole record, and the next append goes after it.

In a local run folder the journal is one file, `journal.jsonl`. Object stores cannot append, so behind a URI every
append is an object of its own, `journal/000000000000.jsonl` and so on; group commit in `market.py` keeps them few.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from clear_ray.errors import ResumeError
from clear_ray.storage import Folder

Record = dict[str, Any]
_FILE = "journal.jsonl"


class Journal:
    """Append-only records of one run folder.

    Args:
        folder: The run folder. An existing journal is continued; a torn last record is cut off first.

    Raises:
        ResumeError: A record before the last one is damaged.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._segments = folder.child("journal")
        names = _segment_names(self._segments)
        self._next_segment = len(names)
        self._descriptor: int | None = None
        if folder.is_local:
            folder.make()
            self._descriptor = os.open(f"{folder.path}/{_FILE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, len(_whole(folder, _FILE, is_last=True)))
        elif names:
            self._segments.write(names[-1], _whole(self._segments, names[-1], is_last=True))

    def append(self, records: Sequence[Record]) -> None:
        """Write records and wait until they would survive a crash of this machine."""
        content = b"".join(_encode(record) for record in records)
        if self._descriptor is None:
            self._segments.write(f"{self._next_segment:012d}.jsonl", content)
            self._next_segment += 1
            return
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
            os.fsync(self._descriptor)
        except OSError:  # a full disk took part of it: what comes later must not follow a torn record
            os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        """Release the file; nothing may be appended after."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_journal(folder: Folder) -> Iterator[Record]:
    """Yield the whole records of a run folder's journal, oldest first; nothing if there is none.

    Raises:
        ResumeError: A record before the last one is damaged.
    """
    if folder.is_local:
        names = [_FILE] if folder.exists(_FILE) else []
    else:
        folder = folder.child("journal")
        names = _segment_names(folder)
    for name in names:
        for line in _whole(folder, name, is_last=name == names[-1]).splitlines():
            yield json.loads(line[9:])


def _segment_names(segments: Folder) -> list[str]:
    return [path.removeprefix(f"{segments.path}/") for path in segments.files(".jsonl")]


def _encode(record: Record) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _whole(folder: Folder, name: str, *, is_last: bool) -> bytes:
    """Return the whole records of a file; only the end of the last file may be torn."""
    content = folder.read(name)
    good = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not (line.endswith(b"\n") and _is_sound(line)):
            if not is_last or good + len(line) < len(content):
                raise ResumeError(
                    "a record of the journal is damaged",
                    f"{folder.path}/{name}:{number}",
                    line[:40].decode(errors="replace"),
                    "Restore the file from a copy; a ledger with a hole in it proves nothing.",
                )
            break
        good += len(line)
    return content[:good]


def _is_sound(line: bytes) -> bool:
    return len(line) > 10 and line[8:9] == b" " and line[:8] == b"%08x" % zlib.crc32(line[9:-1])
