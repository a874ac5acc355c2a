"""The pipeline of Ray Data that is stage 1, and parts of a batch that it reads in order, each once it is wanted.

Where the price is cleared while prompts are read, the pipeline has all parts from the start, and its caller waits at a gate
before each of them. The driver opens the gate a part further, and hears of files of estimates, while it plays rounds.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.cluster.engines import is_worker_death
from clear_ray.errors import own_error
from clear_ray.stages.gate import Gate
from clear_ray.stages.probe_files import CALLS_A_FILE, ProbeToFiles

_MOST_TRIES = 4
_PATIENCE_SECONDS = 5.0


def with_new_callers(work: Callable[[], None]) -> None:
    """Do what is left of a caller's work; a few times, should the caller die.

    Ray would start it again itself, and repeat its calls without end.
    """
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            work()
        except Exception as error:
            is_death = is_worker_death(error) and own_error(error) is None
            if not is_death or not tries_left:
                raise
        else:
            return


def reading(
    caller: partial[ProbeToFiles], blocks: Sequence[NDArray[np.int64]], *, lists_at_once: int
) -> Iterator[pa.Table]:
    """Have prompts read by a pipeline of Ray Data; yield what `ProbeToFiles` does.

    Numbers alone pass through it; the caller looks their prompts up. So it starts no process to read them, and one less.

    Args:
        caller: `ProbeToFiles` with its arguments.
        blocks: Numbers of queries.
        lists_at_once: Lists of queries that the caller has at a time.
    """
    import ray.data

    numbers = ray.data.from_blocks([pa.table({"index": block}) for block in blocks])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that max_restarts has no name of its own among the arguments
        found = numbers.map_batches(
            ProbeToFiles,
            fn_constructor_args=caller.args,
            fn_constructor_kwargs=caller.keywords,
            batch_size=CALLS_A_FILE * caller.keywords["homes"].stretch,
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=lists_at_once),
            max_restarts=0,  # else Ray says on stderr, in C++, that it may be unable to start the actor again
        )
    yield from found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


class PartsRead:
    """See the module. A caller that dies is replaced a few times, and asked for what has not come back.

    Args:
        pipeline: Has parts read, and yields what `ProbeToFiles` does; it is told how many parts have come back.
        gate: The one at which its caller waits.
    """

    def __init__(self, pipeline: Callable[[Sequence[NDArray[np.int64]], int], Iterable[pa.Table]], gate: Gate) -> None:
        self._pipeline, self._gate = pipeline, gate
        self._news: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self._allowed = self._back = 0
        # A daemon, which is not waited for long: it ends when there is no gate any more.
        self._thread = threading.Thread(target=self._read, name="clear_ray reading", daemon=True)
        self._parts: Sequence[NDArray[np.int64]] = ()

    def __len__(self) -> int:
        """Return how many parts are wanted and have not come back; 0 once none will."""
        return self._allowed - self._back if self._thread.is_alive() or not self._news.empty() else 0

    def take_up(self, files: Sequence[str]) -> list[str]:
        """Return which files of starts before are there at once: all."""
        return list(files)

    def begin(self, parts: Sequence[NDArray[np.int64]]) -> None:
        """Start the pipeline of some parts, of which none is read yet."""
        self._gate.close()
        self._parts = parts
        self._thread.start()

    def allow(self, parts: int) -> None:
        """Let so many parts be read, the first ones."""
        if parts > self._allowed:
            self._allowed = parts
            self._gate.open_to(parts)

    def come_back(self, seconds: float) -> list[str]:
        """Return the files of parts that are back, after waiting for the first.

        Args:
            seconds: How long to wait for it.

        Raises:
            Exception: As a call raised it, or, of a caller that died, once it has been replaced too often.
        """
        files: list[str] = []
        while True:
            try:
                news = self._news.get(timeout=seconds) if seconds > 0.0 and not files else self._news.get_nowait()
            except queue.Empty:
                return files
            if isinstance(news, Exception):
                raise news
            files.append(news)
            self._back += 1

    def end(self, files: Sequence[str]) -> None:
        """Note that these are the files of all queries."""

    def close(self) -> None:
        """End the pipeline."""
        self._gate.remove()
        self._thread.join(_PATIENCE_SECONDS)

    def _read(self) -> None:
        left = {int(part[0]): part for part in self._parts}

        def read_left() -> None:
            for found in self._pipeline(list(left.values()), len(self._parts) - len(left)) if left else ():
                for first, file in zip(found["first"].to_pylist(), found["file"].to_pylist(), strict=True):
                    if left.pop(first, None) is not None:
                        self._news.put(file)

        try:
            with_new_callers(read_left)
        except Exception as error:
            self._news.put(error)
