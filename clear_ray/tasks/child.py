"""The near end of a process that runs other people's code, so that it can neither hang nor harm this one.

Requests and replies are lines of JSON. Both go over one socket, which is the standard input and output of the process: of a
pair of pipes only a read can be given up after a time, and a process that no longer reads would block the write.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_SECONDS = 300.0  # enough for a module that reads a model from a slow disk while it is imported
_BARE = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
_PIECE_BYTES = 1 << 16
_SHORTEST_SECONDS = 1e-3  # a socket takes 0 for "do not wait at all"


class Child:
    """Starts a process when it is first asked, and again after one has ended. Any thread may ask; they take turns.

    Args:
        program: File of Python that answers each line of its input with one of its output.
        greeting: Makes the first request to every new process; its reply says that the process is up.
        settings: Environment variables besides this process's own.
        is_silent: Throw away what the process writes to its standard error; otherwise it goes where this process's goes.
        is_bare: Give it none of this process's environment but what finds libraries and the language.
    """

    def __init__(
        self,
        program: Path,
        *,
        greeting: Callable[[], dict[str, Any]] = dict,
        settings: dict[str, str] | None = None,
        is_silent: bool = False,
        is_bare: bool = False,
    ) -> None:
        self._program, self._greeting, self._settings, self._is_silent = program, greeting, settings or {}, is_silent
        self._inherited = _BARE if is_bare else None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        """Return the reply to a request.

        Args:
            request: What the program understands.
            seconds: How long the reply may take, once the process is up and it is this request's turn; None for no limit.

        Raises:
            ConnectionError: The process ended over it; the text says how.
            TimeoutError: It took longer, and the process has been ended.
            ChildProcessError: The process does not start; the text says why.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()  # it ended while no request waited: that is not this request's doing
            if self._process is None:
                self._start()
            try:
                return self._exchange(request, seconds)
            except ConnectionError as error:
                raise ConnectionResetError(self._end()) from error
            except BaseException:  # whatever it was, the next reply would be the one to this request
                self._end()
                raise

    def close(self) -> None:
        """End the process; another request starts a new one."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._socket, far_end = socket.socketpair()
        try:
            with far_end:
                self._process = subprocess.Popen(  # noqa: S603 (our own file, no user text)
                    [sys.executable, "-P", str(self._program)],
                    stdin=far_end.fileno(),
                    stdout=far_end.fileno(),
                    stderr=subprocess.DEVNULL if self._is_silent else None,
                    env=_environment(self._inherited) | self._settings,
                    start_new_session=True,  # so that what the process starts can be ended with it
                )
            reply = self._exchange(self._greeting(), START_SECONDS)
        except TimeoutError as error:
            self._end()
            raise ChildProcessError(f"not up after {START_SECONDS:.0f} seconds") from error
        except OSError as error:
            raise ChildProcessError(self._end() or str(error)) from error
        except BaseException:
            self._end()
            raise
        if "error" in reply:
            self._end()
            raise ChildProcessError(reply["error"])

    def _exchange(self, request: dict[str, Any], seconds: float | None) -> dict[str, Any]:
        if self._socket is None:
            raise ConnectionResetError("the process has no socket")
        deadline = None if seconds is None else time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        reply = bytearray()
        while not reply.endswith(b"\n"):
            if deadline is not None:
                self._socket.settimeout(max(deadline - time.monotonic(), _SHORTEST_SECONDS))
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                raise ConnectionResetError("the process closed its output")
            reply += piece
        decoded: dict[str, Any] = json.loads(reply)
        return decoded

    def _end(self) -> str:
        """End the process with what it has started; return how it ended, or nothing if there is none."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
        process, self._process = self._process, None
        if process is None:
            return ""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        return f"exit code {code}" if code >= 0 else _signal_name(-code)


def _environment(inherited: tuple[str, ...] | None) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if inherited is None or name in inherited}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals between the named ones
        return f"signal {number}"
