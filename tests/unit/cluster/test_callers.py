"""Calls reach the callers in their order, a few at a time, and the next one goes where one came back from."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.cluster.callers import Callers
from clear_ray.errors import EngineError
from clear_ray.stages.granted import GrantedCall
from tests.unit.local_actors import Method


@dataclass
class Caller:
    """A caller whose calls come back when the test says so."""

    begun: list[int] = field(default_factory=list)
    open: list[Future[pa.Table]] = field(default_factory=list)

    @property
    def generate(self) -> Method:
        def begin(call: GrantedCall) -> Future[pa.Table]:
            self.begun.append(int(call.index_M[0]))
            self.open.append(Future())
            return self.open[-1]

        return Method(begin)

    def answer(self, number: int = 0) -> None:
        self.open.pop(number).set_result(pa.table({"index": [self.begun[-1]]}))


def call(index: int) -> GrantedCall:
    return GrantedCall(1, np.array([index]), np.array([4]), ("",), np.zeros(1, np.int32))


def some(references: list[Any], *, num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """What `ray.wait` does."""
    when = FIRST_COMPLETED if num_returns < len(references) else "ALL_COMPLETED"
    done, not_done = wait(references, timeout, when)
    return list(done), list(not_done)


def callers_of(handles: list[Caller], rows_each: int) -> Callers:
    return Callers(list(handles), rows_each, some, Future.result)


def test_calls_go_out_in_order_as_others_come_back() -> None:
    one, two = Caller(), Caller()
    callers = callers_of([one, two], 2)
    for index in range(7):
        callers.send([call(index)], rows=1)
    assert (one.begun, two.begun, len(callers)) == ([0, 2], [1, 3], 7)
    two.answer()
    two.answer()
    assert len(list(callers.come_back())) == 2
    assert two.begun == [1, 3, 4, 5]
    one.answer()
    assert len(list(callers.come_back())) == 1
    assert one.begun == [0, 2, 6]
    assert (len(callers), callers.open_rows, callers.waiting_rows) == (4, 4, 0)
    callers.send([call(7)], rows=1)
    assert (callers.open_rows, callers.waiting_rows) == (4, 1)


def test_a_call_larger_than_a_caller_may_hold_goes_out_alone() -> None:
    one = Caller()
    callers = callers_of([one], 2)
    callers.send([GrantedCall(1, np.arange(3), np.full(3, 4), ("",) * 3, np.zeros(3, np.int32))], rows=3)
    callers.send([call(3)], rows=1)
    assert (one.begun, callers.open_rows, callers.waiting_rows) == ([0], 3, 1)
    one.answer()
    assert [int(found.index_M[0]) for found, _ in callers.come_back()] == [0]
    assert one.begun == [0, 3]


def test_nothing_comes_back_before_a_call_does() -> None:
    one = Caller()
    callers = callers_of([one], 3)
    assert list(callers.come_back()) == []
    callers.send([call(0)], rows=1)
    assert list(callers.come_back(0.01)) == []
    assert len(callers) == 1


def test_a_call_that_fails_is_raised() -> None:
    one = Caller()
    callers = callers_of([one], 1)
    callers.send([call(0)], rows=1)
    one.open[0].set_exception(EngineError("engines died of each of 9 prompts in a row"))
    with pytest.raises(EngineError, match="9 prompts"):
        list(callers.come_back())


def test_calls_of_an_engine_that_is_busy_keep_none_of_another_waiting() -> None:
    small, large = Caller(), Caller()
    callers = Callers([small, large], [2, 1], some, Future.result, engine_of=[0, 1])
    for index, engine in enumerate([1, 1, 1, 0, 0, 0]):
        callers.send([replace(call(index), engine=engine)], rows=1, engine=engine)
    assert (large.begun, small.begun, callers.waiting_rows) == ([0], [3, 4], 3)
    small.answer()
    assert len(list(callers.come_back())) == 1
    assert (large.begun, small.begun) == ([0], [3, 4, 5])
    large.answer()
    assert len(list(callers.come_back())) == 1
    assert (large.begun, len(callers)) == ([0, 1], 4)


def test_calls_are_made_when_there_is_room_for_them_and_those_sent_before_go_first() -> None:
    one, made = Caller(), list[int]()

    def making(index: int) -> GrantedCall:
        made.append(index)
        return call(index)

    callers = callers_of([one], 2)
    callers.send(map(making, range(5)), rows=5)
    callers.send([call(5)], rows=1)
    assert (one.begun, made, callers.waiting_rows, len(callers)) == ([0, 1], [0, 1, 2], 4, 6)
    while len(callers):
        one.answer()
        assert len(list(callers.come_back())) == 1
    assert (one.begun, made) == (list(range(6)), list(range(5)))
