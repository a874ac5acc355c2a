"""The ledger's memory: an append-only journal of checksummed records.

One record a line: eight hex digits of CRC-32, a space, a JSON object, a newline. A record is on disk before `append`
returns. A crash can tear only the end: reading stops at the last whole record, and the next append goes after it.

In a local run folder the journal is one file, `journal.jsonl`. Object stores cannot append, so behind a URI every
append is an object of its own, `journal/000000000000.jsonl` and so on; group commit in `market.py` keeps them few.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO

from clear_ray.errors import ResumeError, StorageError
from clear_ray.ledger.lock import in_use, lock_file
from clear_ray.storage import Folder, deleted_meanwhile, read_many, reading_errors, sync_path

Record = dict[str, Any]
_ENCODER = json.JSONEncoder(separators=(",", ":"))

JOURNAL = "journal.jsonl"

FIRST_SEGMENT = "journal/000000000000.jsonl"
"""Behind a URI, where every append is an object of its own."""


_QUIET_LOOKS, _MOST_LOOKS, _LOOK_SECONDS = 3, 60, 1.0


class Journal:
    """Append-only records of one run folder.

    Args:
        folder: The run folder. An existing journal is continued; a torn last record is cut off first.

    Raises:
        ResumeError: A record before the last one is damaged, or another process goes on writing the journal.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._segments = folder.child("journal")
        names = _segment_names(self._segments)
        self._next_segment = len(names)
        self._descriptor: int | None = None
        self._is_torn = False
        if folder.is_local:
            folder.make()
            self._descriptor = os.open(f"{folder.path}/{JOURNAL}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                lock_file(self._descriptor, folder)
                with open(f"{folder.path}/{JOURNAL}", "rb") as file:
                    os.ftruncate(self._descriptor, sum(map(len, _whole_lines(file, file.name, is_last=True))))
                # A writer that was killed before its sync left records in memory alone, and from here on they are acted on.
                os.fsync(self._descriptor)
                sync_path(folder.path)
            except BaseException:
                self.close()
                raise
        elif names:
            last = BytesIO(self._segments.read(names[-1]))
            whole = _whole_lines(last, f"{self._segments.path}/{names[-1]}", is_last=True)
            self._segments.write(names[-1], b"".join(whole))

    def append(self, records: Sequence[Record]) -> None:
        """Write records and wait until they would survive a crash of this machine.

        Raises:
            ResumeError: Another process has written to the journal (behind a URI).
            StorageError: The run folder was deleted or moved meanwhile (on a local disk), or an append before this one
                failed and what it had written of its records could not be cut off.
        """
        content = b"".join(_encode(record) for record in records)
        if self._descriptor is None:
            name = f"{self._next_segment:012d}.jsonl"
            if self._segments.exists(name):
                raise in_use(self._folder)
            self._segments.write(name, content)
            self._next_segment += 1
            return
        if self._is_torn:
            raise StorageError(
                "the journal ends in the middle of a record that could not be cut off",
                f"{self._folder.path}/{JOURNAL}",
                remedy="Mend the disk, then run the same command again: the torn end is cut off then.",
            )
        before = os.fstat(self._descriptor).st_size
        if not self._is_in_place(self._descriptor):
            raise deleted_meanwhile(self._folder.path)
        try:
            written = 0
            while written < len(content):
                written += os.write(self._descriptor, content[written:])
            os.fsync(self._descriptor)
        except OSError:  # a full disk took part of it: what comes later must not follow a torn record
            self._is_torn = True
            os.ftruncate(self._descriptor, before)
            self._is_torn = False
            raise

    def _is_in_place(self, descriptor: int) -> bool:
        """Tell whether the folder still holds the file that is written: a deleted one takes records without complaint."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(f"{self._folder.path}/{JOURNAL}"))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release the file; nothing may be appended after."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def wait_until_unused(folder: Folder) -> None:
    """Return once no process writes the journal of a run folder; at once where there is none.

    Behind a URI no lock tells: it is taken for unused once some looks in a row have found nothing new in it.

    Raises:
        ResumeError: Another process goes on writing it.
        StorageError: This user may not write it, or its disk is broken.
    """
    if not folder.is_local:
        _wait_until_quiet(folder)
        return
    with reading_errors(folder):
        is_there = folder.exists(JOURNAL)
        descriptor = os.open(f"{folder.path}/{JOURNAL}", os.O_WRONLY) if is_there else None
    if descriptor is not None:
        try:
            lock_file(descriptor, folder)
        finally:
            os.close(descriptor)


def _wait_until_quiet(folder: Folder) -> None:
    """Return once the actors of a driver that was killed have stopped writing objects."""
    seen = quiet_looks = 0
    for _ in range(_MOST_LOOKS):
        with reading_errors(folder):
            segments = len(_segment_names(folder.child("journal")))
        quiet_looks = quiet_looks + 1 if segments == seen else 0
        if not segments or quiet_looks == _QUIET_LOOKS:
            return
        seen = segments
        time.sleep(_LOOK_SECONDS)
    raise in_use(folder)


def read_journal(folder: Folder) -> Iterator[Record]:
    """Yield the whole records of a run folder's journal, oldest first; nothing if there is none.

    Raises:
        ResumeError: A record before the last one is damaged.
        StorageError: The journal cannot be read.
    """
    with reading_errors(folder):
        for place, file, is_last in _files(folder):
            for line in _whole_lines(file, place, is_last=is_last):
                yield json.loads(line[9:])


def _files(folder: Folder) -> Iterator[tuple[str, BinaryIO, bool]]:
    """Yield each file of a journal with its place, and whether it is the last; objects some at a time, in order."""
    if folder.is_local:
        if folder.exists(JOURNAL):
            with open(f"{folder.path}/{JOURNAL}", "rb") as file:
                yield file.name, file, True
        return
    segments = folder.child("journal")
    names = _segment_names(segments)
    contents = chain.from_iterable(read_many(segments.read, names))
    for name, content in zip(names, contents, strict=True):
        yield f"{segments.path}/{name}", BytesIO(content), name == names[-1]


def _segment_names(segments: Folder) -> list[str]:
    return [path.removeprefix(f"{segments.path}/") for path in segments.files(".jsonl")]


def _encode(record: Record) -> bytes:
    body = _ENCODER.encode(record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _whole_lines(file: BinaryIO, place: str, *, is_last: bool) -> Iterator[bytes]:
    """Yield the whole records of a file, one in memory at a time; only the end of the last file may be torn.

    Another process may go on writing it. What has no newline yet is the end, whatever comes after it a moment later; and a
    line that is not sound may be a torn end, cut off and written over between two looks, so it is looked at once more.
    """
    number, start, seen = 1, 0, b""
    while line := file.readline():
        if line.endswith(b"\n") and _is_sound(line):
            yield line
            number, start = number + 1, start + len(line)
            continue
        if is_last and not (line.endswith(b"\n") and file.read(1)):
            return
        if not is_last or line == seen:
            raise ResumeError(
                "a record of the journal is damaged",
                f"{place}:{number}",
                line[:40].decode(errors="replace"),
                "Restore the file from a copy; a ledger with a hole in it proves nothing.",
            )
        seen = line
        file.seek(0, os.SEEK_END)  # forgets what was read ahead
        file.seek(start)


def _is_sound(line: bytes) -> bool:
    return len(line) > 10 and line[8:9] == b" " and line[:8] == b"%08x" % zlib.crc32(line[9:-1])
