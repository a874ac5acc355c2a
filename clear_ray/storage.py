"""Files of a run folder, on a local disk or behind a URI.

A location is a path, or a URI that pyarrow knows (`s3://`, `gs://`, `file://`, …) or fsspec (`memory://`, `az://`, …).
Only these schemes are opened; a plain path is always local.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from clear_ray.errors import ConfigError, StorageError, own_error
from clear_ray.redaction import without_secrets, without_secrets_inside

_ARROW_SCHEMES = {"s3", "gs", "gcs", "hdfs", "viewfs", "file", "abfs", "abfss"}
_FSSPEC_SCHEMES = {"memory", "az", "oss", "ssh", "sftp"}
_GCS_RETRY_SECONDS = 120
_MISREAD_BY_RAY = re.compile(r"[?\x00-\x1f\x7f]")
_LEFT_AS_WRITTEN = re.compile(r"\$\{\w+\}|\$\(|\{\{|(?<![^/])\$[A-Za-z_]\w*|(?<![^/])%\w+%|\A[A-Za-z]:\\")
_MISTYPED_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")

_READ_AT_ONCE, _READERS, _LOCAL_READERS = 256, 16, 2
Content = TypeVar("Content")

_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP}
_DENIED = {errno.EACCES, errno.EPERM}
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG} | _DENIED


@contextmanager
def writing_errors(location: str) -> Iterator[None]:
    """Raise what was raised in a worker of Ray as if it had been raised here, and what the disk says as a StorageError.

    Raises:
        ClearRayError: As it was raised.
        StorageError: The disk of the run folder is full, read-only or broken, or this user may not do what a run does there.
    """
    try:
        yield
    except Exception as error:
        if (ours := own_error(error)) is not None:
            if ours is error:
                raise
            raise ours from error
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno in DISK_ERRORS):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        what, where = "the run folder cannot be written", without_secrets(location)
        value = os.strerror(cause.errno or 0)
        if cause.errno in _DENIED:  # to something that need not lie in the run folder
            what, where = "this user lacks a permission", str(cause.filename or where)
            value = value if cause.filename else str(cause)
        remedy = "Mend that, then run the same command again: what was settled is kept."
        raise StorageError(what, where, value, remedy) from error


def deleted_meanwhile(location: str) -> StorageError:
    """Return the error of a run whose folder was taken away from under it."""
    return StorageError(
        "the run folder was deleted or moved while a run was writing to it",
        without_secrets(location),
        remedy="Put it back and run again to go on, or delete what is left of it to begin anew.",
    )


@contextmanager
def reading_errors(folder: Folder) -> Iterator[None]:
    """Raise as a StorageError what keeps a run folder from being read: permissions, a broken disk, a store out of reach.

    Raises:
        StorageError: It is so.
    """
    try:
        yield
    except OSError as error:
        remedy = "Make sure that it can be reached and that this user may read and write it."
        where, value = str(error.filename or folder.path), os.strerror(error.errno) if error.errno else str(error)
        raise StorageError("the run folder cannot be read", where, value, remedy) from error


@dataclass(frozen=True)
class Folder:
    """A folder in some file system.

    Attributes:
        filesystem: pyarrow's view of it.
        path: Path within that file system, without a trailing slash.
        is_local: Whether it is a folder of this machine's own disk.
    """

    filesystem: pafs.FileSystem
    path: str
    is_local: bool

    @property
    def identity(self) -> str:
        """The same for all spellings of one folder, and only for those."""
        return os.path.realpath(self.path) if self.is_local else f"{self.filesystem.type_name} {self.path}"

    def holds(self, filesystem: pafs.FileSystem, path: str) -> bool:
        """Whether a file or folder is this folder or lies in it, however either is spelled."""
        own, other = self.identity, Folder(filesystem, path, isinstance(filesystem, pafs.LocalFileSystem)).identity
        return other == own or other.startswith(f"{own}/")

    def child(self, name: str) -> Folder:
        """Return the folder `name` inside this one; it need not exist."""
        return Folder(self.filesystem, f"{self.path}/{name}", self.is_local)

    def make(self) -> None:
        """Create the folder and its parents if they are missing; on a local disk a loss of power does not undo it."""
        above = (Path(self.path), *Path(self.path).parents) if self.is_local else ()
        missing = list(takewhile(lambda folder: not os.path.isdir(folder), above))
        self.filesystem.create_dir(self.path, recursive=True)
        for folder in missing:
            sync_path(folder.parent)

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file or folder `name` in it, is there."""
        path = f"{self.path}/{name}" if name else self.path
        return bool(self.filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    def files(self, suffix: str = "") -> list[str]:
        """Return the paths of all files below the folder that end in `suffix`, sorted; none if it is missing."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(f.path for f in found if f.type == pafs.FileType.File and f.path.endswith(suffix))

    def read(self, name: str) -> bytes:
        """Return the whole content of a file."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as one step: a reader sees the old content or the new, never half of it.

        Raises:
            StorageError: The folder was deleted or moved meanwhile.
        """
        self.make()
        target = f"{self.path}/{name}"
        if not self.is_local:  # object stores show an object only once it is whole
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        partial = f"{target}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_path(self.path)
        except FileNotFoundError as error:  # it was made a moment ago
            raise deleted_meanwhile(self.path) from error
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Return once the folder and all below it would survive the loss of power, where that is up to this machine."""
        if self.is_local:
            self._sync_below()
            sync_path(Path(self.path).parent)

    def _sync_below(self) -> None:
        for parent, _, names in os.walk(self.path):
            for path in (*(f"{parent}/{name}" for name in names), parent):
                sync_path(path)

    def delete(self, name: str) -> None:
        """Remove the folder `name` inside this one with everything in it, if it is there."""
        if self.exists(name):
            self.filesystem.delete_dir(f"{self.path}/{name}")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Folder]:
        """Yield a folder to fill, which then stands in the place of the folder `name` inside this one.

        On a local disk it takes that place in one step, whole, and a loss of power does not undo it. An object store cannot
        rename folders: there it grows in place after the old one is gone, and something that is written later has to say that
        it is whole.
        """
        growing = f"{name}.partial" if self.is_local else name
        self.delete(growing)
        yield self.child(growing)
        if self.is_local:
            self.child(growing)._sync_below()
            self.delete(name)
            self.filesystem.move(f"{self.path}/{growing}", f"{self.path}/{name}")
            sync_path(self.path)

    def refuse_links(self) -> None:
        """Make sure that what is written into this folder stays in it: a local folder may be a link, but hold none.

        Raises:
            ConfigError: There is a symbolic link in it.
        """
        if not self.is_local:
            return
        for parent, folders, files in os.walk(self.path):
            for path in (Path(parent, name) for name in (*folders, *files)):
                if path.is_symlink():
                    remedy = "Remove it, or name a new run_dir: what a run writes stays in its folder."
                    raise ConfigError("the run folder holds a link", str(path), os.readlink(path), remedy)


def read_many(
    read: Callable[[str], Content], names: Sequence[str], *, is_local: bool = False
) -> Iterator[list[Content]]:
    """Yield what `read` returns for each name, in order, some hundreds at a time: a store far away takes long to answer.

    Args:
        read: Reads one file.
        names: Of the files.
        is_local: Whether they are of this machine's own disk, where more threads only wait for each other.
    """
    with ThreadPoolExecutor(_LOCAL_READERS if is_local else _READERS) as readers:
        for first in range(0, len(names), _READ_AT_ONCE):
            yield list(readers.map(read, names[first : first + _READ_AT_ONCE]))


def sync_path(path: str | Path) -> None:
    """Have a file's content, or a folder's list of names, on disk.

    A folder that this user may not list, or whose file system syncs files alone, is left as it is: there is no remedy.
    """
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def open_location(location: str) -> tuple[pafs.FileSystem, str, bool]:
    """Return the file system of a path or URI, the path within it, and whether it is local.

    Raises:
        ConfigError: The scheme is unknown or its library is not installed, or there can be no such name.
    """
    _refuse_unusable(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        if _MISTYPED_SCHEME.match(location):
            raise ConfigError(
                "this is neither a path nor a URI",
                without_secrets(location),
                remedy="Write scheme://…, or ./… for a local file.",
            )
        try:
            return pafs.LocalFileSystem(), _from_one_slash(str(Path(location).expanduser().absolute())), True
        except RuntimeError as error:
            raise ConfigError("this home folder is not known", location, str(error), "Write the path out.") from error
    scheme = scheme.lower()
    location = f"{scheme}://{rest}"
    try:
        if "#" in location:
            raise ValueError("a part after # would be left out")
        if ".." in rest.partition("?")[0].split("/"):
            raise ValueError("a URI is not a path in which .. leads upwards")
        if scheme in _ARROW_SCHEMES:
            if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in location:  # left alone it tries for 15 minutes
                location += f"{'&' if '?' in location else '?'}retry_limit_seconds={_GCS_RETRY_SECONDS}"
            filesystem, path = pafs.FileSystem.from_uri(location)
            if not path.strip("/"):
                raise ValueError("it names no folder")
            is_local = isinstance(filesystem, pafs.LocalFileSystem)
            return filesystem, _from_one_slash(path) if is_local else path, is_local
        if scheme in _FSSPEC_SCHEMES:
            import fsspec

            # Memory has neither users nor settings: what a store would take for them is no part of the path here either.
            inner, path = fsspec.url_to_fs(without_secrets(location) if scheme == "memory" else location)
            return pafs.PyFileSystem(pafs.FSSpecHandler(inner)), path.rstrip("/"), False
    except (pa.ArrowException, ImportError, OSError, ValueError) as error:
        shown = without_secrets(location)
        # The library's own error may hold the location whole, so it does not travel on.
        raise ConfigError(
            "this location cannot be opened",
            shown,
            without_secrets_inside(str(error).replace(location, shown)),
            "Check its spelling, and that its library is installed.",
        ) from None
    known = ", ".join(sorted(_ARROW_SCHEMES | _FSSPEC_SCHEMES))
    raise ConfigError("unknown scheme", without_secrets(location), scheme, f"Use a local path or one of: {known}.")


def is_plain_path(location: str) -> bool:
    """Whether a location is a path of this machine and no URI, nor one that was mistyped."""
    return "://" not in location and not _MISTYPED_SCHEME.match(location)


def _from_one_slash(path: str) -> str:
    """Return an absolute path with one slash before it: after two, which POSIX allows, Ray reads the name of a host."""
    return f"/{path.lstrip('/')}"


def _refuse_unusable(location: str) -> None:
    """Refuse what no file system takes for a name, before each library does so in its own way."""
    try:
        is_usable = b"\0" not in location.encode()
    except UnicodeEncodeError:
        is_usable = False
    if not is_usable:
        what = "a location holds neither NUL nor half a character"
        raise ConfigError(what, without_secrets(location), remedy="Check its spelling and encoding.")


def inside(location: str, name: str) -> str:
    """Return the location of `name` in the folder at a path or URI, whose query stays at the end."""
    path, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def open_folder(location: str) -> Folder:
    """Return the folder at a path or URI; it need not exist.

    Raises:
        ConfigError: The scheme is unknown or its library is not installed, there is something else than a folder, it
            cannot be reached, or Ray would read another name.
    """
    filesystem, path, is_local = open_location(location)
    path = path.rstrip("/")
    remedy = "Name a folder, which need not exist."
    if not path:
        raise ConfigError("the root of a file system is no folder of its own", without_secrets(location), remedy=remedy)
    if _MISREAD_BY_RAY.search(path):  # it would find no file there, and say nothing
        what = "the name of a run folder has neither question marks nor control characters"
        raise ConfigError(
            what, without_secrets(location), remedy="Name or rename it without: Ray reads paths like URIs."
        )
    if is_local and (found := _LEFT_AS_WRITTEN.search(location)):
        what = "no variable is filled in here, and no drive is known: a folder of that very name would be made"
        raise ConfigError(what, path, found[0], "Write the path out; ~ is the home folder.")
    try:
        there = next((one for one in (Path(path), *Path(path).parents) if one.exists()), Path("/"))
        is_taken = is_local and not there.is_dir()
    except OSError as error:  # a name too long, a folder above it that this user may not enter
        raise ConfigError("the folder cannot be reached", path, os.strerror(error.errno or 0), remedy) from error
    if is_taken:
        raise ConfigError("a file stands where a folder should be", str(there), remedy=remedy)
    return Folder(filesystem, path, is_local)
