"""A context that is entered meanwhile is left in the end, and what fails in it is raised where it is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clear_ray.cluster.gpu_requests import GpuClaim
from clear_ray.cluster.meanwhile import meanwhile


def test_it_is_entered_beside_its_user_and_left_after_it() -> None:
    may_begin, told = threading.Event(), []

    @contextmanager
    def slow() -> Iterator[str]:
        may_begin.wait()
        told.append("entered")
        yield "value"
        told.append("left")

    with meanwhile(slow()) as waited_for:
        told.append("user")
        may_begin.set()
        assert waited_for() == "value"
        assert waited_for() == "value"
    assert told == ["user", "entered", "left"]


def test_what_fails_in_it_is_raised_where_it_is_waited_for_and_nowhere_else() -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise OSError("no Ray here")
        yield

    with meanwhile(broken()):
        pass
    with pytest.raises(OSError, match="no Ray here"), meanwhile(broken()) as waited_for:
        waited_for()


def test_it_is_left_when_its_user_fails_before_it_waits() -> None:
    left = []

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            left.append(str(error))
            raise

    with pytest.raises(ValueError, match="refused"), meanwhile(noted()):
        raise ValueError("refused")
    assert left == ["refused"]


def test_gpus_that_are_claimed_early_are_asked_for_once_there_is_a_market() -> None:
    asked: list[list[int]] = []

    @contextmanager
    def gpus(holder: str, num_gpus: tuple[float, ...]) -> Iterator[object]:
        assert (holder, num_gpus) == ("market", (0.5, 1.0))
        yield asked.append

    claim = GpuClaim(gpus)
    claim.num_gpus = (0.5, 1.0)
    claim(0, 3)
    assert asked == []
    with claim.made("market"):
        claim(1, 5)
    claim(0, 0)
    assert asked == [[3, 0], [3, 5]], "when the market is gone its request ends with it"
