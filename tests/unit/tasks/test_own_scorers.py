"""A user's scorer may do anything to its own process; the answers before and after get the scores they always got."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clear_ray.config.scoring import ScoringConfig
from clear_ray.errors import ClearRayError
from clear_ray.tasks import Scorer, load_scorer, scorer_process
from clear_ray.tasks.child import Child

MODULE = """
import os, pathlib, signal, subprocess, sys, time

def exits(text, gold, metadata):
    os._exit(int(text)) if text.isdigit() else None
    return 0.5

def segfaults(text, gold, metadata):
    os.kill(os.getpid(), signal.SIGSEGV) if text == "poison" else None
    return 0.5

def sleeps(text, gold, metadata):
    time.sleep(1000) if text == "poison" else None
    return 0.5

def starts_another(text, gold, metadata):
    if text != "poison":
        return 0.5
    pathlib.Path(gold).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
    time.sleep(1000)

def prints(text, gold, metadata):
    print('{"score": 1}')
    os.write(1, b'{"score": 1}\\n')
    subprocess.run(["echo", '{"score": 1}'], check=True)
    return 0.5

def reads(text, gold, metadata):
    return float(sys.stdin.read() == "")

def says(text, gold, metadata):
    return {"text": text, "gold": gold, "metadata": metadata} == {"text": text, "gold": "g\\n\\ud800", "metadata": None}

def length(text, gold, metadata):
    return len(text) / 1e7

def raises(text, gold, metadata):
    raise KeyError("missing")

def leaves(text, gold, metadata):
    sys.exit("enough")

def has_no_text(text, gold, metadata):
    class Silent(Exception):
        def __str__(self):
            raise ValueError
    raise Silent

def nan(text, gold, metadata):
    return float("nan")

def infinite(text, gold, metadata):
    return float("inf")

def none(text, gold, metadata):
    return None

def number(text, gold, metadata):
    return os.getpid()/2**40

def dies_later(text, gold, metadata):
    if text == "poison":
        pathlib.Path(gold).write_text(str(os.getpid()))
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {os.getpid()}"])
    return 0.5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of scorers in the working folder; one for every test, for each has processes of its own."""
    name = f"of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def await_death(process_id: str) -> None:
    """Wait until a process is gone, or only its parent still has to hear of it."""
    status, deadline = Path(f"/proc/{process_id}/stat"), time.monotonic() + 60
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def process_of(scorer: Scorer) -> float | None:
    return scorer("", None, None)


@pytest.mark.parametrize(
    ("function", "poison", "ending"), [("exits", "3", "exit code 3"), ("segfaults", "poison", "SIGSEGV")]
)
def test_an_answer_that_kills_the_process_fails_alone(module: str, function: str, poison: str, ending: str) -> None:
    scorer = load_scorer(f"{module}:{function}")
    assert scorer("fine", None, None) == 0.5
    for _ in range(2):
        with pytest.raises(ClearRayError, match=rf"{module}:{function}: the scorer's process died \(got {ending}\)"):
            scorer(poison, None, None)
        assert scorer("fine", None, None) == 0.5


def test_an_answer_that_takes_too_long_fails_alone(module: str) -> None:
    scorer = load_scorer(f"{module}:sleeps", timeout_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(ClearRayError, match=r"took too long \(got more than 1 seconds\).*scoring\.timeout_seconds"):
        scorer("poison", None, None)
    assert time.monotonic() - began > 0.9
    assert scorer("fine", None, None) == 0.5


def test_what_a_scorer_started_ends_with_it(module: str, tmp_path: Path) -> None:
    scorer, told = load_scorer(f"{module}:starts_another", timeout_seconds=5.0), tmp_path / "pid"
    with pytest.raises(ClearRayError, match="too long"):
        scorer("poison", str(told), None)
    await_death(told.read_text())


def test_a_process_that_died_between_two_answers_costs_neither(module: str, tmp_path: Path) -> None:
    scorer, told = load_scorer(f"{module}:dies_later"), tmp_path / "pid"
    assert scorer("poison", str(told), None) == 0.5
    await_death(told.read_text())
    assert scorer("fine", None, None) == 0.5


@pytest.mark.parametrize("function", ["prints", "reads", "says"])
def test_the_functions_own_input_and_output_are_not_the_protocols(module: str, function: str) -> None:
    scorer = load_scorer(f"{module}:{function}")
    for _ in range(3):
        assert scorer("ä\n\u2028\ud800", "g\n\ud800", None) == (0.5 if function == "prints" else 1.0)


def test_a_long_answer_arrives_whole(module: str) -> None:
    assert load_scorer(f"{module}:length")("x" * 5_000_000, None, None) == 0.5


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", r"the scorer raised KeyError \(got 'missing'\)"),
        ("leaves", r"the scorer raised SystemExit \(got enough\)"),
        ("has_no_text", r"the scorer raised Silent \(got its text raised ValueError\)"),
        ("nan", r"no number from 0 to 1 \(got nan\)"),
        ("infinite", r"no number from 0 to 1 \(got inf\)"),
    ],
)
def test_what_is_raised_or_returned_amiss_is_named_and_the_process_stays(module: str, function: str, said: str) -> None:
    number = load_scorer(f"{module}:number")
    before = process_of(number)
    with pytest.raises(ClearRayError, match=said):
        load_scorer(f"{module}:{function}")("fine", None, None)
    assert process_of(number) == before


def test_a_copy_asks_the_same_process_with_the_same_limit(module: str) -> None:
    scorer = load_scorer(f"{module}:number", timeout_seconds=7.0)
    copy = pickle.loads(pickle.dumps(scorer))  # noqa: S301
    assert process_of(copy) == process_of(scorer) != process_of(load_scorer(f"{module}:number"))
    assert copy.__reduce__() == scorer.__reduce__()
    assert load_scorer(f"{module}:none")("fine", None, None) is None


def test_any_thread_may_ask(module: str) -> None:
    scorer = load_scorer(f"{module}:length")
    lengths = [1_000 * k for k in range(8)]
    scores: dict[int, float | None] = {}
    threads = [
        threading.Thread(target=lambda length=length: scores.update({length: scorer("x" * length, None, None)}))
        for length in lengths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {length: length / 1e7 for length in lengths}


def test_a_module_that_is_gone_when_the_process_starts_is_named(module: str, tmp_path: Path) -> None:
    scorer = load_scorer(f"{module}:none")
    (tmp_path / f"{module}.py").write_text("raise OSError('no such model')")
    with pytest.raises(ClearRayError, match=r"process does not start \(got OSError: no such model\)"):
        scorer("fine", None, None)


def test_our_own_functions_are_called_here() -> None:
    scorer = load_scorer("clear_ray.tasks.recorded:score_recorded", timeout_seconds=1e-9)
    assert scorer("a", "b", json.dumps({"right": []})) == 0.0
    with pytest.raises(ClearRayError, match="the scorer raised KeyError"):
        scorer("a", "b", "{}")


def test_the_limit_is_the_settings(module: str) -> None:
    assert load_scorer(f"{module}:none").__reduce__()[1] == (f"{module}:none", ScoringConfig().timeout_seconds)


def test_a_process_whose_caller_died_ends_by_itself(module: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", scorer_process.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as orphan:
        assert orphan.stdin
        greeting = {"scorer": f"{module}:sleeps", "path": [os.getcwd(), *sys.path], "seconds": 0.1}
        orphan.stdin.write(json.dumps(greeting) + "\n" + json.dumps({"arguments": ["poison", None, None]}) + "\n")
        orphan.stdin.close()
        assert orphan.wait(60) == -signal.SIGALRM


def test_a_program_that_ends_at_once_is_no_answer(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit(4)")
    with pytest.raises(ChildProcessError, match="exit code 4"):
        Child(program, is_silent=True).ask({})
