"""How many threads the passes of an engine on CPU get."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clear_ray.engine.threads import PassThreads


class Machine:
    """Passes that take as long as a machine needs for them, by its own clock."""

    def __init__(self, most: int, seconds_of: dict[int, float]) -> None:
        self.seconds_of, self.now, self.set_to = seconds_of, 0.0, 0
        self.threads = PassThreads(most, first=min(most, 4), set_threads=self._set, clock=lambda: self.now)
        self.taken: list[int] = []

    def _set(self, threads: int) -> None:
        self.set_to = threads

    def passes(self, count: int, rows: int = 8) -> float:
        """Make so many passes; return what they took."""
        began = self.now
        for _ in range(count):
            with self.threads.timed(rows):
                self.taken.append(self.set_to)
                self.now += self.seconds_of[self.set_to] * rows
        return self.now - began


@pytest.mark.parametrize(
    ("cores", "seconds_of", "expected"),
    [
        (1, {1: 1.0}, 1),
        (2, {2: 0.55, 1: 1.0}, 2),
        (2, {2: 0.95, 1: 1.0}, 1),  # another process has the second core
        (8, {8: 0.40, 4: 0.42, 2: 0.55, 1: 1.0}, 4),  # memory is the limit
        (6, {6: 0.20, 4: 0.30, 3: 0.39, 2: 0.5, 1: 1.0}, 6),
        (64, {64: 9.0, 32: 4.0, 16: 1.0, 8: 0.3, 4: 0.31, 2: 0.6, 1: 1.2}, 4),  # four cores of a large machine
    ],
)
def test_threads_are_taken_while_doubling_them_pays(cores: int, seconds_of: dict[int, float], expected: int) -> None:
    machine = Machine(cores, seconds_of)
    machine.passes(200)
    assert machine.threads.threads == expected
    assert max(machine.taken) <= cores


def test_a_core_that_comes_free_is_taken_and_given_up_again() -> None:
    machine = Machine(2, {1: 1.0, 2: 1.0})
    machine.passes(100)
    assert machine.threads.threads == 1
    machine.seconds_of[2] = 0.55
    machine.passes(100)
    assert machine.threads.threads == 2
    machine.seconds_of[2] = 1.0
    machine.passes(100)
    assert machine.threads.threads == 1


def test_a_number_that_costs_much_is_hardly_tried_again() -> None:
    machine = Machine(2, {1: 1.0, 2: 20.0})  # threads that spin beside a busy process
    machine.passes(10)
    assert machine.threads.threads == 1
    machine.taken.clear()
    machine.passes(1_000)
    assert machine.taken.count(2) <= 2


def test_passes_of_different_sizes_are_not_compared() -> None:
    machine = Machine(2, {1: 1.0, 2: 0.6})
    for rows in (8, 32, 8, 32, 8, 32, 8, 32):
        machine.passes(1, rows=rows)
    assert machine.threads.threads == 2, "nothing was learned"
    machine.passes(10)
    assert machine.threads.threads == 2


def test_prompts_are_read_with_many_threads_however_few_answers_take() -> None:
    machine = Machine(16, {16: 1.0, 8: 0.9, 4: 0.8, 2: 0.7, 1: 0.6})
    machine.threads = PassThreads(16, first=4, reading=8, set_threads=machine._set, clock=lambda: machine.now)
    machine.threads.set_for_reading()
    assert machine.set_to == 8
    machine.passes(100)
    assert machine.threads.threads == 1
    machine.threads.set_for_reading()
    assert machine.set_to == 8


def test_threads_that_wait_are_told_to_sleep_before_torch_is_imported() -> None:
    code = (
        "import os, sys\n"
        "class Torch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise SystemExit(os.environ.get('OMP_WAIT_POLICY'))\n"
        "from clear_ray.config.engine import TransformersConfig\n"
        "from clear_ray.engine.build import build_engine\n"
        "sys.meta_path.insert(0, Torch())\n"
        "build_engine(TransformersConfig(kind='transformers', model='none'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.stderr.strip() == "PASSIVE"
