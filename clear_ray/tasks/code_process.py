"""The far end of the `code` scorer: run as a program of its own, importing nothing of clear_ray but the file beside it.

Reads one JSON request a line, writes one JSON reply a line. Requests:

    {}                                        -> what of the sandbox is in force here: {"network", "files", "processes"}
    {"program", "tests", "cases", "seconds", "memory_bytes"} -> {"reason": "right" | "wrong" | "time-out", "said": why}

Each program gets processes of its own, forked from this one, which is small and knows nothing:

    this process -> (shuts itself off, see `sandbox`) -> (first of its name space) -> (limits, then the program and its tests)

A program has passed when the word that is given it before its tests comes back after them: to leave by `sys.exit(0)` or
`os._exit(0)` is to fail. It runs in one interpreter with its tests, so one that sets out to forge that word can; no program
that only tries to solve its task does. Standard output of `cases` is compared here, where no program can reach.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WALL_TIMES_CPU = 3.0
MOST_OUTPUT = 4 << 20
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_LONGEST_SAID = 300
_RIGHT, _WRONG, _TIMED_OUT = "right", "wrong", "time-out"


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sandbox = _beside("sandbox")


def judge(request: dict[str, Any]) -> dict[str, str]:
    """Run a program with its tests, or on each of its inputs until one fails."""
    left = float(request["seconds"])
    if not request["cases"]:
        reply, _, _ = run(request["program"], request["tests"], "", left, request["memory_bytes"])
        return reply
    for number, (given, wanted) in enumerate(request["cases"], 1):
        started = time.monotonic()
        reply, output, _ = run(request["program"], None, given, left, request["memory_bytes"])
        left = max(left - (time.monotonic() - started) / WALL_TIMES_CPU, 0.1)
        if reply["reason"] == _RIGHT and output.split() != wanted.split():
            reply = {"reason": _WRONG, "said": f"case {number}: {_short(output)!r} instead of {_short(wanted)!r}"}
        if reply["reason"] != _RIGHT:
            return reply
    return {"reason": _RIGHT, "said": ""}


def run(
    program: str, tests: str | None, given: str, seconds: float, memory_bytes: int
) -> tuple[dict[str, str], str, dict[str, bool]]:
    """Run one program; return what came of it, what it printed if it has no tests, and what of the sandbox was in force."""
    folder = tempfile.mkdtemp(prefix="clear_ray_code_")
    word = secrets.token_hex(16)
    try:
        Path(folder, ".stdin").write_text(given, encoding="utf-8", errors="surrogatepass")
        told, telling = os.pipe()
        words, giving = os.pipe()
        os.write(giving, word.encode())
        os.close(giving)
        printed, printing = os.pipe()
        child = os.fork()
        if child == 0:
            _begin(program, tests, folder, seconds, memory_bytes, words, telling, printing)
        for end in (telling, words, printing):
            os.close(end)
        said, output, is_late = _listen(told, printed, seconds * WALL_TIMES_CPU + 1)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        _end_orphans()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    force, _, rest = said.partition(b"\n")
    in_force = json.loads(force) if force.startswith(b"{") else dict.fromkeys(("network", "files", "processes"), False)
    return _reply(rest, word, status, is_late=is_late, has_tests=tests is not None), output, in_force


def _begin(
    program: str,
    tests: str | None,
    folder: str,
    seconds: float,
    memory_bytes: int,
    words: int,
    telling: int,
    printing: int,
) -> None:
    """Become the program, in a process that never returns from here."""
    code = 70
    try:
        os.setsid()
        sandbox.die_with_parent()
        os.chdir(folder)
        source = os.open(".stdin", os.O_RDONLY)
        os.unlink(".stdin")
        in_force = sandbox.enclose(folder)
        os.write(telling, json.dumps(in_force).encode() + b"\n")
        for _ in range(2):  # the first is the first of its name space, to which the kernel passes few signals
            inner = os.fork()
            if inner:
                _, status = os.waitpid(inner, 0)
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
            sandbox.die_with_parent()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(source, 0)
        os.dup2(printing if tests is None else nothing, 1)
        os.dup2(nothing, 2)
        keep = (telling, words)
        for end in range(3, 256):
            if end not in keep:
                with suppress(OSError):
                    os.close(end)
        os.environ.clear()
        os.environ.update(_ONE_THREAD)
        sandbox.limit(seconds=seconds, memory_bytes=memory_bytes, is_apart=in_force["processes"])
        code = _play(program, tests, words, telling)
    finally:
        os._exit(code)


def _play(program: str, tests: str | None, words: int, telling: int) -> int:
    """Run the program, then its tests; tell what came of it."""
    sys.setrecursionlimit(10_000)
    sys.argv[:] = ["program.py"]
    names: dict[str, Any] = {"__name__": "__main__" if tests is None else "program", "__builtins__": __builtins__}
    sys.stdin = open(0, encoding="utf-8", errors="replace")  # noqa: SIM115 - as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    try:
        exec(compile(program, "program.py", "exec"), names)  # noqa: S102 - what all of this is for
        if tests is not None:
            exec(compile(tests, "tests.py", "exec"), names)  # noqa: S102
    except SystemExit as stop:
        if tests is not None or stop.code not in (None, 0):
            os.write(telling, f"SystemExit: {stop.code}".encode(errors="replace"))
            return 1
    except BaseException as error:
        os.write(telling, _described(error).encode(errors="replace"))
        return 1
    with suppress(Exception):
        sys.stdout.flush()
    os.write(telling, os.read(words, 64))
    return 0


def _listen(told: int, printed: int, seconds: float) -> tuple[bytes, str, bool]:
    """Return what was told and printed until both ended, or the time was over."""
    parts: dict[int, bytearray] = {told: bytearray(), printed: bytearray()}
    open_ends = [told, printed]
    deadline = time.monotonic() + seconds
    is_late = False
    while open_ends:
        ready, _, _ = select.select(open_ends, [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            is_late = True
            break
        for end in ready:
            piece = os.read(end, 1 << 16)
            parts[end] += piece
            if not piece:
                open_ends.remove(end)
        if len(parts[told]) + len(parts[printed]) > MOST_OUTPUT:
            break
    for end in (told, printed):
        os.close(end)
    return bytes(parts[told]), parts[printed].decode(errors="replace"), is_late


def _reply(told: bytes, word: str, status: int, *, is_late: bool, has_tests: bool) -> dict[str, str]:
    if told.decode(errors="replace") == word and not is_late:
        return {"reason": _RIGHT, "said": ""}
    code = os.waitstatus_to_exitcode(status)
    if is_late or code == -signal.SIGXCPU or code & 0xFF in (-signal.SIGXCPU & 0xFF, -signal.SIGKILL & 0xFF):
        return {"reason": _TIMED_OUT, "said": "it took too long"}
    said = told.decode(errors="replace")[:_LONGEST_SAID]
    where = "before its tests did" if has_tests else "early"
    return {"reason": _WRONG, "said": said or f"it ended {where}"}


def _described(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {_short(text)}" if text else type(error).__name__


def _short(text: str) -> str:
    return " ".join(text[:_LONGEST_SAID].split())[:_LONGEST_SAID]


def _end_orphans() -> None:
    """End what a program has left running that the end of its name space, if it had one, did not take."""
    for _ in range(100):
        try:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
        except OSError:
            return
        if not children:
            return
        for child in map(int, children):
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def main() -> None:
    """Answer requests until the input ends."""
    requests, replies = os.fdopen(os.dup(0), encoding="ascii"), os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sandbox.adopt_orphans()
    for line in requests:
        request = json.loads(line)
        try:
            if request:
                reply: dict[str, Any] = judge(request)
            else:
                _, _, reply = run("", "", "", 5.0, 1 << 30)
        except Exception as error:
            reply = {"reason": "failed", "said": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
