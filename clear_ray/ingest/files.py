"""From the input settings to the files, and from each file to the reader of its format."""

from __future__ import annotations

import codecs
import fnmatch
import io
import lzma
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from clear_ray.config.input import InputConfig
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.ingest.arrow import FILE, STREAM, read_arrow
from clear_ray.ingest.documents import is_document, read_document
from clear_ray.ingest.jsonl import Layout, Readable, read_jsonl
from clear_ray.ingest.parquet import read_parquet
from clear_ray.ingest.source import SourceBatch
from clear_ray.ingest.tables import is_table, read_table
from clear_ray.ingest.unfolding import unfolded
from clear_ray.redaction import without_secrets, without_secrets_inside
from clear_ray.storage import Folder, open_location

_ENDINGS = re.compile(
    r"\.(parquet|pq|arrow|feather|(jsonl|json|ndjson|csv|tsv|tab)(\.(gz|zst|zstd|bz2|lz4|xz))?)$", re.IGNORECASE
)
_SHOWN_ENDINGS = ".jsonl, .json, .ndjson, .csv, .tsv (also .gz, .zst, .bz2, .lz4, .xz), .parquet, .pq or .arrow"
_TABLES = re.compile(r"\.(csv|tsv|tab)(\.\w+)?$", re.IGNORECASE)
_COMPRESSION = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}
_XZ = b"\xfd7zXZ\0"
_UNPACK = "Unpack it; gzip, zstd, bzip2, lz4 and xz are read as they are."
_ELSEWHERE = ("hf", "http", "https")
_SPLIT = re.compile(r"(?:\A|/)(train|test|validation|valid|val|dev)(?=[-_./]|\Z)[^/]*(?:/[^/]*)?\Z", re.IGNORECASE)
_OF_DATASETS = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""Files beside those with rows in a folder that the library `datasets` wrote."""
_OTHERS = {
    b"7z\xbc\xaf": ("is a 7z archive", _UNPACK),
    b"PK\x03\x04": ("is a ZIP archive or a workbook", f"{_UNPACK} Save a workbook as CSV in UTF-8."),
    b"Obj\x01": ("is an Avro file", "Write it as Parquet or JSON lines."),
    b"ORC": ("is an ORC file", "Write it as Parquet or JSON lines."),
    b"SQLite format": ("is a database", "Write its rows as JSON lines, CSV or Parquet."),
    b"\x93NUMPY": ("is an array of NumPy", "Write its rows as JSON lines, CSV or Parquet."),
    b"%PDF": ("is a PDF", "Write its text as JSON lines."),
    b"version https://": ("is a pointer of Git LFS, not what it points to", "Fetch that with `git lfs pull`."),
    b"<!DOCTYPE html": ("is a page of HTML", "Download the file itself: this may be a page about it, or of an error."),
    b"<!doctype html": ("is a page of HTML", "Download the file itself: this may be a page about it, or of an error."),
    b"<html": ("is a page of HTML", "Download the file itself: this may be a page about it, or of an error."),
    b"FEA1": ("is Feather of version 1", "Write it as Parquet, or as Feather of version 2."),
}
"""What files of other formats begin with, what they are, and what to do."""
_LONGEST_START = max(16, *map(len, _OTHERS))
_PARQUET, _BOM = b"PAR1", b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PEEK_BYTES = 64 * 1024
_MOST_NAMES = 5


def read_input(config: InputConfig, *, run_folder: Folder | None = None) -> Iterator[SourceBatch]:
    """Return the rows of the files that `config.path` names, in the order of their sorted paths.

    The format of a file is told by its first bytes and its first line, and of a table by its name, too. A file that cannot
    be read comes as a batch that holds the error, so that checking can go on with the next one.

    Args:
        config: Path, format and columns; `config.tasks` is not read here.
        run_folder: Where the run writes: no file in it is an input, though it may lie in a folder that is one.

    Raises:
        ConfigError: No path is given, its scheme is not one that is opened, or it leads into the run folder.
        SchemaError: There is no such file, or no file matches.
    """
    if not config.path:
        raise ConfigError(
            "no input file is given", "input.path", "", "Name a file of JSON, CSV or Parquet, a folder or a URI."
        )
    filesystem, found, left_out = _find(config.path)
    paths = [path for path in found if run_folder is None or not run_folder.holds(filesystem, path)]
    if run_folder is not None and not paths:
        remedy = "Keep the input beside it, or name a new run_dir: a run replaces what is in its folder."
        raise ConfigError("the input lies in the run folder", "input.path", without_secrets(config.path), remedy)
    said = [_said_of(left_out), _said_of_splits(paths)]
    return _read_files(filesystem, paths, config, said="\n".join(filter(None, said)))


def _said_of_splits(paths: list[str]) -> str:
    """Return the line that says that splits of a data set are read as one input; empty for one split, or none."""
    found = {match[1] for path in paths if (match := _SPLIT.search(path))}
    return f"reading the splits {', '.join(sorted(found))} as one input" if len(found) > 1 else ""


def _said_of(left_out: list[str]) -> str:
    """Return the line that names files of a folder that are not read; empty for none."""
    names = sorted(path.rpartition("/")[2] for path in left_out)
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    shown_names = ", ".join(names[:_MOST_NAMES])
    return f"not read, for the ends of their names: {shown_names}{more}" if names else ""


def _read_files(
    filesystem: pafs.FileSystem, paths: list[str], config: InputConfig, *, said: str
) -> Iterator[SourceBatch]:
    for k, path in enumerate(paths):
        yield SourceBatch([], path, [], said="" if k else said)  # a file without rows is a source too, and can be named
        try:
            yield from _read_file(filesystem, path, config)
        except (OSError, pa.ArrowException) as error:
            refusal = SchemaError("the file cannot be read", path, str(error), "Check its name and permissions.")
            yield SourceBatch.unreadable(refusal, origin=path)


def _read_file(filesystem: pafs.FileSystem, path: str, config: InputConfig) -> Iterator[SourceBatch]:
    if _is_device(filesystem, path):
        remedy = "Write what it gives into a file: an input is read more than once."
        refusal = SchemaError("this is neither a file nor a folder but a pipe or device", path, "", remedy)
        yield SourceBatch.unreadable(refusal, origin=path)
        return
    with filesystem.open_input_stream(path, compression=None) as stream:
        start = stream.read(_LONGEST_START)
    other = next((said for magic, said in _OTHERS.items() if start.startswith(magic)), None)
    is_arrow, is_xz = start.startswith((FILE, STREAM)), start.startswith(_XZ)
    if other is not None:
        yield SourceBatch.unreadable(SchemaError(f"the file {other[0]}", path, "", other[1]), origin=path)
    elif (start := start[:4]) == _PARQUET and config.format in ("auto", "parquet"):
        yield from read_parquet(filesystem, path, origin=path, columns=config.columns)
    elif is_arrow and config.format == "auto":
        yield from read_arrow(filesystem, path, origin=path, columns=config.columns)
    elif start == _PARQUET or config.format == "parquet":
        found = "is a Parquet file" if start == _PARQUET else "is not a Parquet file"
        refusal = SchemaError(f"the file {found}", path, repr(start), f"input.format says {config.format}; try auto.")
        yield SourceBatch.unreadable(refusal, origin=path)
    else:
        compression = next((name for magic, name in _COMPRESSION.items() if start.startswith(magic)), None)
        with filesystem.open_input_stream(path, compression=compression) as stream:
            yield from _read_text(_Unpacked(stream) if is_xz else stream, path, config)


class _Peeked:
    """A stream whose first bytes have been looked at."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.start = b""
        while len(self.start) < _PEEK_BYTES and (block := stream.read(_PEEK_BYTES - len(self.start))):
            self.start += block
        self._unread = self.start

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
            return block
        return self._stream.read(size)


class _Unpacked:
    """A stream of xz, which Arrow does not unpack."""

    def __init__(self, stream: Readable) -> None:
        self._file = lzma.LZMAFile(io.BufferedReader(_Raw(stream)))  # noqa: SIM115 - it ends with the stream

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        try:
            return self._file.read(size)
        except (lzma.LZMAError, EOFError) as error:
            raise OSError(f"it is damaged as xz: {error}") from None


class _Raw(io.RawIOBase):
    """A stream as the standard library takes it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class _FromUtf16:
    """A stream of UTF-16, as Windows writes it, read as UTF-8."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-16")()
        self._unread = b""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        is_at_end = False
        while not self._unread and not is_at_end:
            block = self._stream.read(_PEEK_BYTES)
            is_at_end = not block
            try:
                self._unread = self._decoder.decode(block, final=is_at_end).encode()
            except UnicodeError as error:
                raise OSError(f"it begins as UTF-16 and is none: {error}") from None
        block, self._unread = self._unread[:size], self._unread[size:]
        return block


def _read_text(stream: Readable, path: str, config: InputConfig) -> Iterator[SourceBatch]:
    """Yield the rows of uncompressed text: a table, a JSON document, or JSON lines."""
    try:
        peeked = _Peeked(stream)
        if peeked.start.startswith(_UTF16):
            peeked = _Peeked(_FromUtf16(peeked))
    except (OSError, pa.ArrowException) as error:  # a damaged archive
        remedy = "Make the file again, or copy it again: its end or its compression is damaged."
        yield SourceBatch.unreadable(SchemaError("the file cannot be read", path, str(error), remedy), origin=path)
        return
    if peeked.start[257:262] == b"ustar":
        refusal = SchemaError("the file is a tar archive", path, "", "Unpack it, and name the file or folder inside.")
        yield SourceBatch.unreadable(refusal, origin=path)
        return
    layout: Layout = config.format if config.format in ("jsonl", "openai") else "auto"
    start = peeked.start
    is_json = start.removeprefix(_BOM).lstrip()[:1] in (b"{", b"[")
    is_named_table = bool(_TABLES.search(path)) and not is_json
    if config.format == "csv" or (config.format == "auto" and (is_named_table or is_table(start, config.columns))):
        yield from read_table(peeked, origin=path, columns=config.columns)
    elif is_document(start):
        yield from unfolded(read_document(peeked, origin=path, columns=config.columns, layout=layout))
    else:
        yield from unfolded(read_jsonl(peeked, origin=path, columns=config.columns, layout=layout))


def _find(location: str) -> tuple[pafs.FileSystem, list[str], list[str]]:
    """Return the file system of a file, folder or glob, the paths of its files, sorted, and what else a folder holds."""
    scheme = location.partition("://")[0].lower()
    if scheme in _ELSEWHERE and "://" in location:
        remedy = "Download it first, and name the file or folder that it is then."
        raise ConfigError("unknown scheme", without_secrets(location), scheme, remedy)
    base, pattern = _split_glob(location)
    filesystem, path, _ = open_location(base)
    path, place = path.rstrip("/"), without_secrets(location)
    try:
        if pattern and not _is_there(filesystem, f"{path}/{'/'.join(pattern)}"):
            paths = sorted(set(_matches(filesystem, path, pattern)))
            if not paths:
                remedy = "Check the pattern; a leading dot or underscore is matched only if it is written."
                raise SchemaError("no file matches", place, "", remedy)
            return filesystem, paths, []
        path = "/".join([path, *pattern])
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise SchemaError("there is no such file", place, "", "Check input.path.")
        if info.type != pafs.FileType.Directory:
            return filesystem, [path], []
        listed = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, SchemaError):
            raise
        said = without_secrets_inside(str(error).replace(location, place))
        raise SchemaError("the input cannot be listed", place, said, "Check input.path.") from None
    there = sorted(f.path for f in listed if f.is_file and not _is_hidden(f.path, path))
    there = [file for file in there if file.rpartition("/")[2] not in _OF_DATASETS]
    paths = [file for file in there if _ENDINGS.search(file)]
    if not paths:
        raise SchemaError("the folder holds no input file", place, "", f"Files in it must end in {_SHOWN_ENDINGS}.")
    return filesystem, paths, [file for file in there if not _ENDINGS.search(file)]


def _split_glob(location: str) -> tuple[str, list[str]]:
    """Split a location before the first segment with a wildcard; in a URI `?` starts the query instead."""
    magic = "*?["
    query = ""
    if "://" in location:
        magic = "*["
        location, mark, rest = location.partition("?")
        query = mark + rest
    segments = location.split("/")
    first = next((k for k, segment in enumerate(segments) if any(c in segment for c in magic)), len(segments))
    base = "/".join(segments[:first])
    if not base and first < len(segments):
        base = "/" if location.startswith("/") else "."
    return base + query, segments[first:]


def _matches(filesystem: pafs.FileSystem, folder: str, pattern: list[str]) -> Iterator[str]:
    """Yield the files below `folder` that fit the pattern; only folders that can hold one are listed."""
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        yield from _matches(filesystem, folder, rest or ["*"])
    for entry in filesystem.get_file_info(pafs.FileSelector(folder or "/", allow_not_found=True)):
        is_folder = entry.type == pafs.FileType.Directory
        if entry.base_name.startswith((".", "_")) and not head.startswith((".", "_")):
            continue
        if head == "**":
            if is_folder:
                yield from _matches(filesystem, entry.path, pattern)
        elif fnmatch.fnmatchcase(entry.base_name, head):
            if rest and is_folder:
                yield from _matches(filesystem, entry.path, rest)
            elif not rest and not is_folder:
                yield entry.path


def _is_there(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a path with wildcard characters is a file's very name."""
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def _is_device(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether a local path is something that blocks or never ends when it is read."""
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    return is_local and bool(filesystem.get_file_info(path).type == pafs.FileType.Unknown)


def _is_hidden(path: str, folder: str) -> bool:
    return any(part.startswith((".", "_")) for part in path[len(folder) :].split("/"))
