"""What a loss of power can leave of a folder, by the letter of POSIX.

Until its own sync, a file keeps any prefix of what was appended to it, perhaps with zeros up to its new length; and until a
folder's own sync, each name that was made, removed or given to another file is there or not, whatever became of the others.
The real code runs on a real folder. Only `os.fsync` is stood in for: what a file or folder holds at that moment is what is
known to be on disk from then on, and all states between that and what it holds now are what a loss of power may leave.
"""

from __future__ import annotations

import itertools
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from clear_ray.storage import Folder, open_folder

Tree = dict[str, "Tree | bytes"]
Site = tuple[tuple[str, int], ...]
"""Where in our own code a sync was asked for: file and line of the two innermost frames."""
MOST_STATES = 20_000


class Disk:
    """A folder whose power can be cut.

    Args:
        root: The folder; what it holds now is on disk.
        ignored: A call of `os.fsync` that does nothing, as if its line had been deleted.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, ignored: Site | None = None) -> None:
        self.root = root
        self.sites: set[Site] = set()
        self._ignored = ignored
        self._held: dict[int, int] = {}  # inode -> descriptor: as long as it is open, the number means this file
        self._durable: dict[int, dict[str, int] | bytes] = {}
        self._expected: Callable[[Folder], None] | None = None
        self._root_inode = root.stat().st_ino
        self._look_around()
        for inode in self._held:
            self._durable[inode] = self._now(inode)
        monkeypatch.setattr(os, "fsync", self._sync)

    def close(self) -> None:
        """Let go of all files."""
        for descriptor in self._held.values():
            os.close(descriptor)

    def whenever_it_is_cut(self, expected: Callable[[Folder], None]) -> None:
        """Check what a loss of power leaves now, and before every sync from here on: `expected` raises if that is wrong."""
        self._expected = expected
        self.cut()

    def cut(self) -> None:
        """Check every state that a loss of power may leave now."""
        if self._expected is None:
            return
        for state in self._states():
            with tempfile.TemporaryDirectory(dir=self.root.parent) as left:
                _lay_out(state, Path(left))
                self._expected(open_folder(left))

    def _sync(self, descriptor: int) -> None:
        self.cut()
        site = _site(sys._getframe(1))
        self.sites.add(site)
        self._look_around()
        inode = os.fstat(descriptor).st_ino
        if site != self._ignored and inode in self._held:
            self._durable[inode] = self._now(inode)

    def _look_around(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            inode = path.stat().st_ino
            if inode not in self._held:
                self._held[inode] = os.open(path, os.O_RDONLY)

    def _now(self, inode: int) -> dict[str, int] | bytes:
        descriptor = self._held[inode]
        status = os.fstat(descriptor)
        if not stat.S_ISDIR(status.st_mode):
            return os.pread(descriptor, status.st_size, 0)
        with os.scandir(descriptor) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def _states(self) -> Iterator[Tree]:
        self._look_around()
        states = self._left_of(self._root_inode)
        if len(states) > MOST_STATES:
            pytest.fail(f"{len(states)} states: let the scenario sync more often, or do less")
        for state in states:
            assert isinstance(state, dict)
            yield state

    def _left_of(self, inode: int) -> list[Tree | bytes]:
        now = self._now(inode)
        durable = self._durable.get(inode, type(now)())
        if isinstance(now, bytes):
            assert isinstance(durable, bytes)
            return list(_contents(durable, now))
        assert isinstance(durable, dict)
        choices: list[list[tuple[str, Tree | bytes | None]]] = []
        for name in sorted({*durable, *now}):
            found = {durable.get(name), now.get(name)}
            left = [state for each in found if each is not None for state in self._left_of(each)]
            choices.append([(name, state) for state in (*left, *([None] if None in found else []))])
        return [{n: state for n, state in chosen if state is not None} for chosen in itertools.product(*choices)]


def _contents(durable: bytes, now: bytes) -> Iterator[bytes]:
    yield durable
    if now == durable:
        return
    if now.startswith(durable):
        torn = now[: (len(durable) + len(now) + 1) // 2]
        yield torn
        yield torn + b"\0" * (len(now) - len(torn))
    yield now


def _site(frame: FrameType | None) -> Site:
    places: list[tuple[str, int]] = []
    while frame is not None and len(places) < 2:
        if "/clear_ray/" in (name := frame.f_code.co_filename) and "/tests/" not in name:
            places.append((name.rpartition("/clear_ray/")[2], frame.f_lineno))
        frame = frame.f_back
    return tuple(places)


def _lay_out(tree: Tree, folder: Path) -> None:
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).mkdir()
            _lay_out(content, folder / name)


def play(scenario: Callable[[Disk], None], folder: Path, *, ignored: Site | None = None) -> set[Site]:
    """Run a scenario on a disk of its own and return where syncs were asked for.

    Raises:
        AssertionError: A loss of power leaves something that the scenario does not allow.
    """
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(folder, patch, ignored=ignored)
        try:
            scenario(disk)
            disk.cut()
        finally:
            disk.close()
    return disk.sites
