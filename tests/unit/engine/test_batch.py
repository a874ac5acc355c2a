"""Turns at the model, the thread of a batch, and the bounds that memory sets."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from clear_ray.engine import Grant
from clear_ray.engine.batch import BatchThread, FairLock, RunningGrant
from clear_ray.engine.loading import cache_capacity_tokens, container_rooms
from clear_ray.errors import EngineError
from tests.unit.engine.tiny import slot_batch, tiny_model


def test_a_caller_that_asks_again_comes_after_those_that_wait() -> None:
    turns, order = FairLock(), []

    def take(name: str) -> None:
        with turns:
            order.append(name)

    with turns:
        other = threading.Thread(target=take, args=("probe",))
        other.start()
        while turns._asked < 2:
            time.sleep(0.001)
    take("batch")
    other.join()
    assert order == ["probe", "batch"]


def test_a_turn_is_given_back_when_the_model_fails() -> None:
    turns = FairLock()
    with pytest.raises(ValueError, match="model"), turns:
        raise ValueError("model")
    with turns:
        pass


def test_a_closed_thread_fails_what_is_open_and_gives_the_model_back() -> None:
    model = tiny_model()
    ended: list[RunningGrant | EngineError] = []
    thread = BatchThread(slot_batch(model, end_token_ids=frozenset()), model_turns=FairLock())
    thread.submit([RunningGrant(Grant("q", "", 10**6), [5, 6], ended.append)])
    thread.close()
    assert [type(item) for item in ended] == [EngineError]
    with pytest.raises(EngineError, match="closed"):
        thread.submit([])
    thread.close()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_batch_that_breaks_fails_every_open_answer() -> None:
    ended: list[RunningGrant | EngineError] = []
    both = threading.Semaphore(0)

    def on_end(item: RunningGrant | EngineError) -> None:
        ended.append(item)
        both.release()

    # The last token of a prompt is read by the pass that all answers share: one unknown to the model breaks all.
    thread = BatchThread(slot_batch(tiny_model()), model_turns=FairLock())
    thread.submit([RunningGrant(Grant("a", "", 10**6), [5], on_end), RunningGrant(Grant("b", "", 4), [10**6], on_end)])
    assert all(both.acquire(timeout=60) for _ in range(2))
    assert all(isinstance(item, EngineError) and "IndexError" in str(item) for item in ended)
    with pytest.raises(EngineError, match="the language model failed"):
        thread.submit([])
    thread.close()


def test_a_container_leaves_what_its_limit_leaves(tmp_path: Path) -> None:
    assert container_rooms(tmp_path) == []
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert container_rooms(tmp_path) == [450]
    (tmp_path / "memory.max").write_text("max\n")
    assert container_rooms(tmp_path) == []
    (tmp_path / "memory").mkdir()
    older = {
        "memory.limit_in_bytes": "5000",
        "memory.usage_in_bytes": "4500",
        "memory.stat": "inactive_file 1\ntotal_inactive_file 40\n",
    }
    for name, text in older.items():
        (tmp_path / "memory" / name).write_text(text)
    assert container_rooms(tmp_path) == [540]


def test_the_cache_is_sized_by_memory_and_by_what_a_token_takes() -> None:
    wide, narrow = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float32)
    # Keys and values, 2 layers, 2 heads of width 8, in bytes.
    bytes_wide, bytes_narrow = 2 * 2 * 2 * 8 * 8, 2 * 2 * 2 * 8 * 4
    room = cache_capacity_tokens(wide) * bytes_wide
    assert 0 < room < 2**46
    # Memory moves between two readings on a machine that others use.
    assert cache_capacity_tokens(narrow) * bytes_narrow == pytest.approx(room, rel=0.5)


def test_a_turn_that_pauses_lets_in_what_has_asked_and_nothing_later() -> None:
    lock, order = FairLock(), []
    asks = threading.Event()

    def other() -> None:
        asks.set()
        with lock:
            order.append("other")

    with lock:
        beside = threading.Thread(target=other)
        beside.start()
        asks.wait(timeout=10)
        while lock._asked < 2:
            time.sleep(0.001)
        lock.pause()
        order.append("after the pause")
        lock.pause()  # nothing has asked: it goes on at once
    beside.join(timeout=10)
    assert order == ["other", "after the pause"]
