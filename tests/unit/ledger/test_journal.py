"""What a crash can do to the journal, at every byte."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clear_ray.errors import ResumeError, StorageError
from clear_ray.ledger import journal as journal_module
from clear_ray.ledger.journal import Journal, Record, read_journal, wait_until_unused
from clear_ray.ledger.lock import alone_with
from clear_ray.storage import Folder, inside, open_folder

RECORDS: list[Record] = [
    {"round": 1, "price": 0.25},
    {"op": "reserve", "i": 0, "a": 1, "t": 7, "r": 1},
    {"op": "settle", "i": 0, "a": 1, "t": 5, "r": 1},
]


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield open_folder(str(tmp_path / "run"))
        return
    uri = f"memory://journal-{tmp_path.name}"
    if request.param == "s3":
        uri = inside(request.getfixturevalue("bucket"), f"journal-{tmp_path.name}")
    opened = open_folder(uri)
    yield opened
    if opened.exists():
        opened.filesystem.delete_dir(opened.path)


def write(folder: Folder, *batches: list[Record]) -> None:
    journal = Journal(folder)
    for batch in batches:
        journal.append(batch)
    journal.close()


def test_what_is_appended_is_read_back_in_order(folder: Folder) -> None:
    assert list(read_journal(folder)) == []
    write(folder, RECORDS[:2], [], RECORDS[2:])
    assert list(read_journal(folder)) == RECORDS
    write(folder, [{"round": 2}])  # opened again: it goes on after what is there
    assert list(read_journal(folder)) == [*RECORDS, {"round": 2}]


def test_records_are_on_disk_when_append_returns(folder: Folder) -> None:
    journal = Journal(folder)
    for count, record in enumerate(RECORDS, 1):
        journal.append([record])
        assert list(read_journal(folder)) == RECORDS[:count]  # while it is open for writing
    journal.close()
    journal.close()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5), st.none() | st.integers() | st.floats(allow_nan=False) | st.text(), max_size=4
        ),
        max_size=5,
    )
)
def test_any_json_survives(tmp_path: Path, records: list[Record]) -> None:
    folder = open_folder(str(tmp_path))
    (tmp_path / "journal.jsonl").unlink(missing_ok=True)
    write(folder, records)
    assert list(read_journal(folder)) == records


def test_a_tail_torn_at_any_byte_is_cut_off_and_written_after(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    folder = open_folder(str(tmp_path))
    write(folder, RECORDS[:2])
    whole = len(file.read_bytes())
    write(folder, RECORDS[2:])
    content = file.read_bytes()
    for length in range(whole, len(content)):
        file.write_bytes(content[:length])
        assert list(read_journal(folder)) == RECORDS[:2], f"torn after {length} bytes"
        write(folder, [{"round": 9}])
        assert list(read_journal(folder)) == [*RECORDS[:2], {"round": 9}], f"torn after {length} bytes"
    file.write_bytes(content)
    assert list(read_journal(folder)) == RECORDS


def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder, RECORDS)
    torn = (tmp_path / "journal.jsonl").read_bytes()[:-4]
    (tmp_path / "journal.jsonl").write_bytes(torn)
    assert list(read_journal(folder)) == RECORDS[:2]
    assert (tmp_path / "journal.jsonl").read_bytes() == torn


def test_damage_before_the_last_record_is_refused_at_its_line(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder, RECORDS)
    file = tmp_path / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines[:-1], 1):
        start = sum(map(len, lines[: number - 1]))
        for at in range(len(line) - 1):
            damaged = bytearray(b"".join(lines))
            damaged[start + at] ^= 0x01
            file.write_bytes(damaged)
            for read in (lambda: list(read_journal(folder)), lambda: Journal(folder).close()):
                with pytest.raises(ResumeError, match="damaged") as refused:
                    read()
                assert refused.value.where == f"{file}:{number}"
                assert refused.value.remedy


def test_a_hole_is_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder, RECORDS)
    file = tmp_path / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(ResumeError, match="damaged"):
        list(read_journal(folder))


def test_behind_a_uri_every_append_is_an_object_of_its_own(tmp_path: Path) -> None:
    folder = open_folder(f"memory://segments-{tmp_path.name}")
    write(folder, RECORDS[:1], RECORDS[1:])
    names = [Path(path).name for path in folder.child("journal").files()]
    assert names == ["000000000000.jsonl", "000000000001.jsonl"]
    first = folder.child("journal").read(names[0])
    folder.child("journal").write(names[0], first[:-3])  # an object that lost its end, with another after it
    with pytest.raises(ResumeError, match="damaged"):
        list(read_journal(folder))
    folder.filesystem.delete_dir(folder.path)


def test_a_full_disk_leaves_no_torn_record_behind(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder, RECORDS[:2])
    journal = Journal(folder)
    size = os.path.getsize(tmp_path / "journal.jsonl")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # room for a part of a record only
    try:
        with pytest.raises(OSError, match="large"):
            journal.append(RECORDS[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.path.getsize(tmp_path / "journal.jsonl") == size
    journal.append(RECORDS[2:])
    journal.close()
    assert list(read_journal(folder)) == RECORDS


def test_nothing_follows_a_torn_record_that_could_not_be_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(str(tmp_path))
    journal, write_some = Journal(folder), os.write
    journal.append(RECORDS[:1])

    def write_half(descriptor: int, content: bytes) -> int:
        write_some(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(journal_module.os, "write", write_half)
        broken.setattr(journal_module.os, "ftruncate", fail)
        with pytest.raises(OSError, match="Input/output"):
            journal.append(RECORDS[1:2])
    for _ in range(2):
        with pytest.raises(StorageError, match=r"could not be cut off.*run the same command again"):
            journal.append(RECORDS[1:2])
    assert list(read_journal(folder)) == RECORDS[:1]
    journal.close()
    write(folder, RECORDS[1:])  # a new market cuts it off
    assert list(read_journal(folder)) == RECORDS


class Scenes(io.RawIOBase):
    """A file that others write to: what it holds at each look, and from the last one on."""

    def __init__(self, *contents: bytes) -> None:
        self._now, self._later = b"", list(contents)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (len(self._now) if whence == os.SEEK_END else 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._later:
            self._now = self._later.pop(0)
        part = self._now[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def test_what_is_being_written_is_not_called_damaged() -> None:
    lines = [journal_module._encode(record) for record in RECORDS]
    whole = b"".join(lines)

    def read(*contents: bytes) -> list[bytes]:
        return list(journal_module._whole_lines(io.BufferedReader(Scenes(*contents)), "journal", is_last=True))

    for length in range(len(lines[0]), len(whole)):
        assert read(whole[:length], whole) == lines
        assert read(whole[:length], whole[:length], whole) in (lines[:1], lines[:2], lines), "it had found the end"
    # A torn end is read, then cut off and written over, and the rest of other records is read after it.
    other = [journal_module._encode({"op": "reserve", "i": number, "a": 1, "t": 40, "r": 1}) for number in range(3)]
    for length in range(1, len(lines[1])):
        assert read(lines[0] + lines[1][:length], b"".join([lines[0], *other])) == [lines[0], *other]
    damaged = lines[0] + lines[1][:-5] + b"x" + lines[1][-4:] + lines[2]
    with pytest.raises(ResumeError, match="damaged") as refused:
        read(damaged)
    assert refused.value.where == "journal:2"


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another in its place"])
def test_a_journal_that_is_no_longer_in_its_folder_takes_nothing(tmp_path: Path, again: bool) -> None:
    folder = open_folder(str(tmp_path / "run"))
    journal = Journal(folder)
    journal.append(RECORDS[:1])
    (tmp_path / "run").rename(tmp_path / "away")
    if again:
        write(folder, RECORDS)
    with pytest.raises(StorageError, match=r"deleted or moved.*Put it back"):
        journal.append(RECORDS[1:])
    journal.close()
    assert list(read_journal(open_folder(str(tmp_path / "away")))) == RECORDS[:1]


def test_the_end_of_the_last_object_may_be_torn(tmp_path: Path) -> None:
    folder = open_folder(f"memory://torn-{tmp_path.name}")
    write(folder, RECORDS[:1], RECORDS[1:])
    segments = folder.child("journal")
    segments.write("000000000001.jsonl", segments.read("000000000001.jsonl")[:-3])
    assert list(read_journal(folder)) == RECORDS[:2]
    write(folder, RECORDS[2:])
    assert list(read_journal(folder)) == RECORDS
    folder.filesystem.delete_dir(folder.path)


def test_one_process_at_a_time_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ledger.lock._PATIENCE_SECONDS", 0.2)
    folder = open_folder(str(tmp_path))
    wait_until_unused(folder)  # there is none yet
    journal = Journal(folder)
    journal.append(RECORDS[:1])
    for use in (lambda: Journal(folder), lambda: wait_until_unused(folder)):
        with pytest.raises(ResumeError, match="another run") as refused:
            use()
        assert refused.value.where == str(tmp_path)
    assert list(read_journal(folder)) == RECORDS[:1]  # whoever only reads may
    journal.append(RECORDS[1:])
    journal.close()
    wait_until_unused(folder)
    write(folder, [{"round": 2}])
    assert list(read_journal(folder)) == [*RECORDS, {"round": 2}]


def test_one_driver_at_a_time_takes_a_folder_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ledger.lock._PATIENCE_SECONDS", 0.2)
    (tmp_path / "link").symlink_to(tmp_path)
    new = open_folder(str(tmp_path / "new"))
    with alone_with(new):
        for same in (new, open_folder(str(tmp_path / "link" / "new"))):
            with pytest.raises(ResumeError, match="another run"), alone_with(same):
                pass
        with alone_with(open_folder(str(tmp_path / "other"))):
            pass
    with alone_with(new):
        pass
    assert not new.exists()


def test_one_driver_at_a_time_goes_on_with_a_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ledger.lock._PATIENCE_SECONDS", 0.2)
    with alone_with(open_folder("memory://bucket/run")):
        with pytest.raises(ResumeError, match="another run"), alone_with(open_folder("memory://bucket/run/")):
            pass
        with alone_with(open_folder("memory://bucket/other")):
            pass


def test_a_writer_gets_the_journal_as_soon_as_the_other_has_died(tmp_path: Path) -> None:
    code = "import sys; from clear_ray.ledger.journal import Journal; from clear_ray.storage import open_folder;"
    code += "journal = Journal(open_folder(sys.argv[1])); journal.append([{'round': 1}]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        timer = threading.Timer(0.3, other.kill)
        timer.start()
        write(open_folder(str(tmp_path)), [{"round": 2}])  # waits
        timer.cancel()
        assert other.wait() == -signal.SIGKILL
    assert list(read_journal(open_folder(str(tmp_path)))) == [{"round": 1}, {"round": 2}]


def test_behind_a_uri_a_writer_that_is_not_alone_stops(tmp_path: Path) -> None:
    folder = open_folder(f"memory://alone-{tmp_path.name}")
    first, second = Journal(folder), Journal(folder)
    second.append(RECORDS[:1])
    with pytest.raises(ResumeError, match="another run"):
        first.append(RECORDS[1:])
    second.append(RECORDS[1:])
    assert list(read_journal(folder)) == RECORDS
    folder.filesystem.delete_dir(folder.path)
