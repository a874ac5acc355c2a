"""Programs of models are run with limits, and can neither harm this machine nor pass their tests by leaving early."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from clear_ray.tasks.code_scorer import judge_code, sandbox_in_force
from clear_ray.tasks.programs import completed, read_program
from clear_ray.tasks.programs import tests_of as suite_of
from clear_ray.tasks.verdict import BAD_GOLD, NO_ANSWER, NO_GOLD, RIGHT, TIMED_OUT, WRONG, Verdict

FORCE = sandbox_in_force()
ADD = "def add(a, b):\n    return a + b\n"


def judged(program: str, tests: str = "assert True", *, seconds: float = 1.0, memory_mib: int = 512) -> Verdict:
    return judge_code(f"```python\n{program}\n```", tests, None, seconds=seconds, memory_mib=memory_mib)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("x = 1", RIGHT),
        ("raise KeyError('k')", WRONG),
        ("import sys; sys.exit(0)", WRONG),
        ("import os; os._exit(0)", WRONG),
        ("import os; os.kill(os.getpid(), 9)", TIMED_OUT),
        ("import os; os.write(3, b'right')", WRONG),
        ("import atexit; atexit.register(print, 1)", RIGHT),
        ("while True: pass", TIMED_OUT),
        ("import time; time.sleep(1000)", TIMED_OUT),
        ("x = 'a' * (1 << 34)", WRONG),
        ("x = [0]\nwhile True: x += x", WRONG),
        ("def f(n): return f(n + 1)\nf(0)", WRONG),
        ("import ctypes; ctypes.string_at(0)", WRONG),
        ("print('x' * 10**8)", RIGHT),
        ("with open('big', 'wb') as f:\n    f.write(b'0' * (1 << 26))", WRONG),
        ("fs = [open('/dev/null') for _ in range(1000)]", WRONG),
        ("import os\nassert not [n for n in os.environ if 'KEY' in n or n == 'HOME']", RIGHT),
        ("import sys\nsys.stdin.read()", RIGHT),
        ("class E(BaseException):\n    def __str__(self): raise ValueError\nraise E", WRONG),
        ("import collections, itertools, math, re, heapq, functools, typing, json, random, string", RIGHT),
    ],
)
def test_what_a_program_does_is_its_own_verdict(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "word")
    verdict = judged(program)
    assert (verdict.reason, verdict.score) == (reason, float(reason == RIGHT))
    assert judged("x = 1").score == 1.0


def test_a_process_that_is_left_behind_ends(tmp_path: Path) -> None:
    name = f"clear_ray_left_behind_{os.getpid()}"
    program = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    open('{name}', 'w')\n    time.sleep(1000)\n"
    before = time.monotonic()
    assert judged(program).reason == RIGHT
    assert time.monotonic() - before < 60
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            assert name not in os.readlink(entry)
        except OSError:
            continue


def test_a_bomb_of_processes_ends() -> None:
    assert judged("import os\nwhile True:\n    os.fork()", seconds=0.5).reason in (TIMED_OUT, WRONG)
    assert judged("x = 1").score == 1.0


@pytest.mark.parametrize("address", ["('127.0.0.1', 1)", "('192.0.2.1', 80)"])
def test_no_program_reaches_a_network_where_that_can_be_shut_off(address: str) -> None:
    program = f"import socket\ntry:\n    socket.create_connection({address}, timeout=0.2)\n"
    program += "except OSError as error:\n    raise SystemExit(error.errno)"
    said = judged(program).answer or ""
    if FORCE["network"]:
        assert any(f"SystemExit: {number}" in said for number in (1, 13, 101))
    else:
        assert said.startswith("SystemExit")


def test_no_program_reads_or_writes_files_where_that_can_be_shut_off(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("word")
    reads, writes = judged(f"open({str(secret)!r}).read()"), judged(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert {reads.reason, writes.reason} == ({WRONG} if FORCE["files"] else {RIGHT})
    assert (tmp_path / "new").exists() is not FORCE["files"]
    assert judged("open('own', 'w').write('x')\nassert open('own').read() == 'x'").reason == RIGHT


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged("open('own', 'w').write('x')").reason == RIGHT
    assert not list(Path("/tmp").glob("clear_ray_code_*/own"))  # noqa: S108


CASES = json.dumps({"inputs": ["1 2\n", "5 6\n"], "outputs": ["3\n", "11"]})
CALLS = json.dumps({"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [1, 2]]})
HUMAN = "def check(candidate):\n    assert candidate(1, 2) == 3\n"


@pytest.mark.parametrize(
    ("program", "tests", "metadata", "reason"),
    [
        ("print(sum(map(int, input().split())))", CASES, None, RIGHT),
        ("if __name__ == '__main__':\n    print(sum(map(int, input().split())))", CASES, None, RIGHT),
        ("print(3)", CASES, None, WRONG),
        ("print(sum(map(int, input().split())))\nraise SystemExit(1)", CASES, None, WRONG),
        ("print(sum(map(int, input().split())))\nraise SystemExit", CASES, None, RIGHT),
        (ADD, CALLS, None, RIGHT),
        ("def add(a, b): return 3", CALLS, None, WRONG),
        ("class Solution:\n    def add(self, a, b): return a + b", CALLS, None, RIGHT),
        (ADD, HUMAN, '{"entry_point": "add"}', RIGHT),
        (ADD, HUMAN + "check(add)\n", None, RIGHT),
        (ADD, '["assert add(1, 2) == LIMIT"]', '{"test_setup_code": "LIMIT = 3"}', RIGHT),
        (ADD, '{"ground_truth": "assert add(1, 2) == 3"}', None, RIGHT),
    ],
)
def test_published_shapes_of_tests(program: str, tests: str, metadata: str | None, reason: str) -> None:
    assert judge_code(f"```python\n{program}\n```", tests, metadata, seconds=2).reason == reason


def test_what_cannot_be_judged_says_why() -> None:
    assert judge_code("```python\nx\n```", None, None) == Verdict(None, NO_GOLD)
    assert judge_code("```python\nx\n```", HUMAN, None) == Verdict(None, BAD_GOLD)
    assert judge_code("no program", "assert True", None) == Verdict(0.0, NO_ANSWER)
    verdict = judged(ADD, "assert add(1, 2) == 4, 'that is 3'")
    assert verdict.answer == "AssertionError: that is 3"


def test_a_conversations_last_message_begins_the_program() -> None:
    asked = json.dumps([{"role": "user", "content": "Go on:\n```python\ndef add(a, b):\n"}])
    assert judge_code("    return a + b", HUMAN, None, prompt=asked, is_conversation=True).score == 1.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```\nand\n```python\ndef f(): pass\n```\nand\n```python\nf()\n```", "def f(): pass\n"),
        ("```python\na = 1\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```js\nvar a\n```", ""),
        ("a = 1", "a = 1"),
        ("Here:\n\ndef f():\n    pass\n\nThat is all of it.", "def f():\n    pass\n\n"),
        ("just words here", ""),
        ("```python\nthis is not python\n```", "this is not python\n"),
        ("```python\ndef f():\n    pass", "def f():\n    pass\n"),
    ],
)
def test_the_program_of_a_text(text: str, program: str) -> None:
    assert read_program(text) == program


def test_a_program_that_defines_what_is_tested_is_not_put_behind_the_prompt() -> None:
    assert completed(ADD, ADD, "def add(a, b):\n", "add") == ADD
    assert completed("", "    return 1", "def add(a, b):", "add") == "def add(a, b):\n    return 1"


def test_tests_without_an_entry_point_are_no_tests() -> None:
    assert suite_of(HUMAN, None, "") is None
    assert suite_of(HUMAN, '{"entry_point": "__import__(\'os\')"}', "") is None
    assert suite_of("", None, "") is None
    assert suite_of('{"inputs": [], "outputs": []}', None, "") is None
