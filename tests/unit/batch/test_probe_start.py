"""What is asked of engines before the run is open, and what is raised when it cannot be opened."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from pathlib import Path

import pytest

from clear_ray.batch.probe_start import opened_meanwhile
from clear_ray.errors import EngineError, ResumeError, own_error
from clear_ray.stages.gate import Gate
from clear_ray.storage import open_folder


def test_calls_begin_when_the_run_is_open_and_not_before(tmp_path: Path) -> None:
    folder, is_up, order = open_folder(str(tmp_path)), threading.Event(), list[str]()

    def open_run(gate: Gate) -> str:
        assert is_up.wait(10)
        order.append("open")
        gate.open()
        return "lesson"

    async def call(gate: Gate) -> None:
        asyncio.get_running_loop().call_later(0.2, is_up.set)
        await gate.passed()
        order.append("call")

    with opened_meanwhile(folder, open_run) as (gate, found):
        asyncio.run(call(gate))
        assert found() == "lesson"
    assert order == ["open", "call"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refusal", [ResumeError("another model", "run_dir"), OSError(errno.ENOSPC, "no space left")])
def test_what_keeps_the_run_from_being_opened_is_raised_and_nothing_is_asked(
    tmp_path: Path, refusal: Exception
) -> None:
    asked = []

    def open_run(gate: Gate) -> None:
        del gate
        raise refusal

    def probe() -> None:
        with opened_meanwhile(open_folder(str(tmp_path)), open_run) as (gate, _):
            asyncio.run(gate.passed())
            asked.append("prompt")

    with pytest.raises(type(refusal)) as raised:
        probe()
    assert (raised.value, asked, list(tmp_path.iterdir())) == (refusal, [], [])
    assert own_error(raised.value) in (refusal, None), "what the probe said does not hide the reason"


def test_an_interrupted_run_does_not_wait_for_its_model(tmp_path: Path) -> None:
    has_given_up = threading.Event()

    def load(gate: Gate) -> None:
        while gate.is_there():
            time.sleep(0.01)
        has_given_up.set()
        raise EngineError("the model is no longer waited for")

    with pytest.raises(KeyboardInterrupt), opened_meanwhile(open_folder(str(tmp_path)), load):
        raise KeyboardInterrupt
    assert has_given_up.is_set()


def test_a_failed_probe_of_an_open_run_says_so_itself(tmp_path: Path) -> None:
    def probe() -> None:
        with opened_meanwhile(open_folder(str(tmp_path)), Gate.open) as (_, found):
            found()
            raise EngineError("engines died of each prompt")

    with pytest.raises(EngineError, match="engines died"):
        probe()


def test_the_gate_of_a_killed_run_is_not_that_of_the_next(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    Gate(folder).open()
    is_up = threading.Event()
    with opened_meanwhile(folder, lambda _: is_up.wait(10)) as (gate, _):
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(gate.passed(), 0.2))
        is_up.set()
