"""Limits that a process puts on itself before it runs a program that a model wrote. Imports nothing of clear_ray.

In force on every Linux: processor time, memory, size and number of files, no core dumps, an empty environment, a working
folder of its own that is deleted afterwards, a session of its own of which nothing outlives the program.

Where the kernel lets this user make name spaces (`unshare`): no network at all, not even this machine's, and no sight of
other processes. Where it has Landlock (Linux 5.13): no file can be written outside the working folder, and none be read but
Python's own, the system's libraries and a few devices; since Linux 6.7 it forbids TCP, too. `enclose` says what is in force.

It does not hold off a program that attacks the kernel, and where neither of the two is available a program may read what this
user may read and write where this user may write. Processes that a program starts are limited each, not together.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import sysconfig

_NEW_USER, _NEW_NETWORK, _NEW_IPC, _NEW_PROCESSES = 0x10000000, 0x40000000, 0x08000000, 0x20000000
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT, _ADOPT_ORPHANS = 38, 1, 36
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_PATH_BENEATH, _ASK_VERSION = 1, 1
_WITH_NETWORK, _BIND_AND_CONNECT = 4, 3
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14)
_READABLE = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/etc/ld.so.cache",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_LINUX = sys.platform == "linux"
_MIB = 1 << 20


def limit(
    *,
    seconds: float,
    memory_bytes: int,
    is_apart: bool,
    file_bytes: int = 16 * _MIB,
    files: int = 64,
    processes: int = 64,
) -> None:
    """Limit this process and whatever it starts; the limits cannot be raised again.

    Args:
        seconds: Processor time, after which the kernel ends the process.
        memory_bytes: Address space.
        file_bytes: Size of any one file that is written.
        is_apart: Whether it is in a user name space of its own; elsewhere its user's other processes would count, too.
        files: Open files.
        processes: Processes and threads, unless the user is root, for whom no such limit holds.
    """
    limits = {
        resource.RLIMIT_CPU: max(int(seconds + 0.999), 1),
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
    }
    if is_apart:
        limits[resource.RLIMIT_NPROC] = processes
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def enclose(folder: str) -> dict[str, bool]:
    """Shut this process, which must have one thread, off from network and files; return what is in force.

    What the process forks next is in a process name space of its own, whose end takes all that is in it.

    Args:
        folder: The only place where files may be written.
    """
    if not _LINUX:
        return {"network": False, "files": False, "processes": False}
    libc = ctypes.CDLL(None, use_errno=True)
    apart = _NEW_USER | _NEW_NETWORK | _NEW_IPC
    is_apart = libc.unshare(apart | _NEW_PROCESSES) == 0
    version = _landlocked(libc, folder)
    return {"network": is_apart or version >= _WITH_NETWORK, "files": version > 0, "processes": is_apart}


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Have what this process's children leave behind become its own children, so that it can end them."""
    if _LINUX:
        ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)


def _landlocked(libc: ctypes.CDLL, folder: str) -> int:
    """Give up all files but the folder and what Python needs; return the version of Landlock in force, 0 for none."""
    version = int(libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION))
    if version < 1:
        return 0
    everything = _ALL_OF_VERSION[min(version, 3)]
    words = (everything, _BIND_AND_CONNECT) if version >= _WITH_NETWORK else (everything,)
    handled = (ctypes.c_uint64 * len(words))(*words)
    ruleset = libc.syscall(_CREATE_RULESET, handled, ctypes.sizeof(handled), 0)
    if ruleset < 0:
        return 0
    try:
        reading = _EXECUTE | _READ_FILE | _READ_DIR
        roots = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *_READABLE}
        rules = [(path, reading) for path in roots] + [(path, _READ_FILE | _WRITE_FILE) for path in _DEVICES]
        for path, rights in [*rules, (folder, everything)]:
            _allow(libc, ruleset, path, rights)
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return 0
        return version if libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))

    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = os.path.isdir(path)
        rule = PathBeneath(rights if is_folder else rights & _ON_FILES, place)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)
