"""How many threads of torch are worth their cores.

Decoding waits for memory, and its passes are hundreds of small operations at whose ends all threads wait for the slowest.
So more threads soon bring little, most of all where what the system calls cores are halves of one, and whatever else
runs there (Ray, callers, a market) holds all of them up. No table of machines tells: the model is timed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

from clear_ray.engine.trial import Way, make_cache, make_runner

WORTH_DOUBLING = 1.4
"""How many times faster a pass has to be for twice the threads; 2 would be perfect."""
_PASSES = 2
_POSITIONS = 64


def threads_worth_having(cores: int, seconds_of: Callable[[int], float]) -> int:
    """Return the number of threads below which halving them costs too much.

    Args:
        cores: Most threads that there may be.
        seconds_of: How long a pass takes with a number of threads.
    """
    threads, seconds = cores, seconds_of(cores)
    while threads > 1:
        half = threads // 2
        half_seconds = seconds_of(half)
        if half_seconds > WORTH_DOUBLING * seconds:
            break
        threads, seconds = half, half_seconds
    return threads


def pass_seconds(model: Any, rows: int, way: Way = "slots") -> Callable[[int], float]:
    """Return what times a decoding pass with a number of threads, which torch keeps.

    Args:
        model: As for `SlotRunner`, on CPU.
        rows: Answers that run at once.
        way: How they run.
    """
    cache: Any = make_cache(way)
    runner: Any = make_runner(model, way)
    cache.reserve(rows, _POSITIONS, kept_rows=0)

    # A slot holds something at every position; a cache of the model's own is written one token after the other.
    positions = itertools.repeat(_POSITIONS - 1) if way == "slots" else itertools.count()

    @torch.inference_mode()
    def seconds_of(threads: int) -> float:
        torch.set_num_threads(threads)
        seconds = []
        for _ in range(1 + _PASSES):
            started = time.perf_counter()
            runner.decode(cache, [0] * rows, [next(positions)] * rows)
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return seconds_of
