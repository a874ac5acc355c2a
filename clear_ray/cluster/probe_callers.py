"""The caller of stage 1 where the price is cleared while it reads: an actor that is told which queries to have read next.

Where all are read first, Ray Data sends a caller all of them (`batch.probe`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clear_ray.cluster.callers import Wait
from clear_ray.cluster.engines import CALLS_IN_FLIGHT, is_worker_death
from clear_ray.errors import own_error
from clear_ray.stages.homes import Homes
from clear_ray.stages.probe import Probe
from clear_ray.stages.probe_files import ProbeToFiles
from clear_ray.storage import Folder

_MOST_TRIES = 4


class ProbeActor(ProbeToFiles):
    """`ProbeToFiles` as an actor; arguments as there, but the probe comes in Ray's pickle, as in `GenerateActor`."""

    def __init__(self, pickled: bytes, folder: Folder, into: Folder, *, homes: Homes, calls: int) -> None:
        super().__init__(ray.cloudpickle.loads(pickled), folder, into, homes=homes, calls=calls)


@dataclass(frozen=True, slots=True)
class StartsProbe:
    """Starts a caller of stage 1, which writes to a folder of its own.

    Attributes:
        probe: What makes the probe, in the caller's process.
        folder: The run folder.
        estimates: Folder of all estimates.
        homes: See `ProbeToFiles`.
        calls: See `ProbeToFiles`.
    """

    probe: Callable[[], Probe]
    folder: Folder
    estimates: Folder
    homes: Homes
    calls: int

    def __call__(self) -> Any:
        """Return the handle of a new one."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        pickle: Any = ray.cloudpickle
        # max_restarts=0: one that is started again would read again what it was asked for, without end.
        actor: Any = ray.remote(ProbeActor).options(
            num_cpus=0, max_restarts=0, max_concurrency=CALLS_IN_FLIGHT, scheduling_strategy=here
        )
        into = self.estimates.child(uuid4().hex[:8])
        return actor.remote(pickle.dumps(self.probe), self.folder, into, homes=self.homes, calls=self.calls)


class ProbeCalls:
    """Parts of a batch on their way to a caller of stage 1, in order, and the files that came of them.

    A caller that dies is replaced a few times, and asked again for what has not come back.

    Args:
        start: Starts a caller.
        most_open: Parts that it has at a time.
        wait: As of `cluster.callers.Callers`.
        get: Likewise.
        kill: Ends a caller.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        most_open: int,
        wait: Wait = ray.wait,
        get: Callable[[Any], Any] = ray.get,
        kill: Callable[[Any], object] = ray.kill,
    ) -> None:
        self._start, self._most_open = start, most_open
        self._wait, self._get, self._kill = wait, get, kill
        self._caller, self._tries_left = start(), _MOST_TRIES - 1
        self._waiting: deque[NDArray[np.int64]] = deque()
        self._open: dict[Any, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Return how many parts have not come back."""
        return len(self._waiting) + len(self._open)

    def send(self, index: NDArray[np.int64]) -> None:
        """Have some queries read after those that were sent before."""
        self._waiting.append(index)
        self._fill()

    def come_back(self, seconds: float) -> list[str]:
        """Return the files of parts that are back, after waiting for the first.

        Args:
            seconds: How long to wait for it.

        Raises:
            Exception: As a call raised it, or, of a caller that died, once it has been replaced too often.
        """
        if not self._open:
            return []
        references = list(self._open)
        back, _ = self._wait(references, num_returns=1, timeout=seconds)
        if back:
            back, _ = self._wait(references, num_returns=len(references), timeout=0)
        files, has_died = [], False
        for reference in back:
            try:
                files.append(str(self._get(reference)))
            except Exception as error:
                is_death = is_worker_death(error) and own_error(error) is None
                if not is_death or not self._tries_left:
                    raise
                has_died = True
            else:
                del self._open[reference]
        if has_died:
            self._begin_again()
        self._fill()
        return files

    def close(self) -> None:
        """End the caller."""
        self._kill(self._caller)

    def _begin_again(self) -> None:
        """Replace a caller that died; one that can merely not be reached writes where nothing is looked for."""
        self._tries_left -= 1
        self.close()
        self._caller = self._start()
        self._waiting.extendleft(reversed(self._open.values()))
        self._open.clear()

    def _fill(self) -> None:
        while self._waiting and len(self._open) < self._most_open:
            index = self._waiting.popleft()
            self._open[self._caller.read.remote(index)] = index
