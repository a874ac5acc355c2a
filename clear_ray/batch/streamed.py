"""Stage 1 beside stage 2: the first price is cleared when a part of the batch is read, and the rest is read meanwhile.

    reads: a part   the next part        the next ...               all are read
    asks:          |clear| its answers  |clear| of both ...        |clear| as ever

What is read, when, and what it may spend is `rounds.widening`'s law. Input is refused as ever: all of it was checked and is
on disk before the first prompt is read. An estimate is on disk, whole and synced, before the driver hears of it. A run that
is gone on with takes up the files that are there; the clearings made over a part are in `grants/` like all others.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.batch.learning import DEFAULT_FEATURES
from clear_ray.batch.part_coordinates import GrowingCoordinates, MappedParts
from clear_ray.batch.reading import PartsRead, reading
from clear_ray.batch.size_limits import most_held
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.estimation.head import HeadCard
from clear_ray.rounds.widening import Widening, is_large
from clear_ray.run_folder.estimates import ESTIMATES, ESTIMATES_WHOLE, estimated_already, lost_estimates
from clear_ray.run_folder.growing import GrowingBatch
from clear_ray.stages.gate import Gate
from clear_ray.stages.homes import Homes
from clear_ray.stages.probe import Probe, homes_of
from clear_ray.stages.probe_files import CALLS_A_FILE, ProbeToFiles
from clear_ray.storage import Folder

_PARTS_ASTRAY = 16
"""So many parts later than those that are missing may have been read when a start ended."""


def is_streamed_run(config: RunConfig, queries: int) -> bool:
    """Return whether a run of so many queries clears its first price over a part of them."""
    held = most_held(config, queries)
    learns_on_a_sample = held is not None and config.estimate.learns  # one of all queries
    if config.allocation.streamed is not None:
        return config.allocation.streamed and not learns_on_a_sample
    is_wanted = is_large(queries, slots=most_slots(config), most_held=held)
    return is_wanted and not learns_on_a_sample and not config.keeps_from_streaming


def streaming_notes(config: RunConfig, queries: int) -> tuple[str, ...]:
    """Return what is to be said of a run that is to clear its first price over a part of its queries, and does not."""
    if not config.allocation.streamed or is_streamed_run(config, queries):
        return ()
    what = f"a run that learns, and is priced from sketches, reads all of its {queries:,} queries first"
    return (f"allocation.streamed has no effect: {what}",)


def is_read(folder: Folder) -> bool:
    """Return whether the estimates of all queries are there."""
    return folder.exists(ESTIMATES_WHOLE)


def most_slots(config: RunConfig) -> int:
    """Return how many answers the engines may run at once, if as many are added as may be."""
    return config.most_workers * config.engine.max_batch


class StreamedProbe:
    """Reads the prompts of a batch a part at a time, as far as is wanted.

    Args:
        folder: The run folder, with the queries.
        growing: The batch, of which nothing is known yet.
        parts: Has them read, and mapped where the run learns.
        homes: Where queries are at home.
        slots: Answers that the engines may run at once.
        seed: Of the order.
        most_held: Of how many queries curves are held at once; of all if not given.
        coordinates: Those of the known queries, where the run learns.

    Attributes:
        coordinates: See above.
        growing: The batch as far as it is known.
        widening: How much is known, and wanted.
        place_N: Place of each query in the order of reading, shape (N,).
    """

    def __init__(
        self,
        folder: Folder,
        growing: GrowingBatch,
        parts: PartsRead | MappedParts,
        *,
        homes: Homes,
        slots: int,
        seed: int,
        most_held: int | None = None,
        coordinates: GrowingCoordinates | None = None,
    ) -> None:
        queries = len(growing.is_known_N)
        self.growing, self.coordinates = growing, coordinates
        self._folder, self._parts, self._homes = folder, parts, homes
        self._order_N = homes.spread(queries, seed=seed)
        self.place_N = np.empty(queries, np.int64)
        self.place_N[self._order_N] = np.arange(queries)
        self.widening = Widening(queries, slots, most_held)
        self._rows_of_parts: deque[int] = deque()
        self._sent = self._sent_parts = 0
        self._files: set[str] = set()
        self._failed: list[int] = []
        self._is_over = self._has_news = self._is_open = False

    def begin(self) -> None:
        """Take up what starts before have read, and start what is to read the rest, once it is opened.

        Raises:
            ResumeError: A file of estimates is damaged.
        """
        is_estimated_N, kept = estimated_already(self._folder, len(self.place_N), ESTIMATES, place_N=self.place_N)
        self._take_up(self._parts.take_up(kept))
        rest, rows = self._order_N[~is_estimated_N[self._order_N]], CALLS_A_FILE * self._homes.stretch
        parts = np.split(rest, range(rows, len(rest), rows)) if len(rest) else []
        self._rows_of_parts.extend(map(len, parts))
        self._sent = int(is_estimated_N.sum())
        self._has_news = True
        self._parts.begin(parts)

    def open(self) -> None:
        """Have the next part read. The engines are up from here on."""
        self._is_open = True
        self._send()

    def look(self, seconds: float) -> list[int] | None:
        """Return which of the queries that have become known cannot be read; None if none has become known.

        Args:
            seconds: How long to wait for the next part.

        Raises:
            BudgetError: Not every query has an estimate; a defect.
            Exception: As the caller raised it.
        """
        for path in self._parts.come_back(0.0 if self._has_news else seconds):
            self._take(path)
        self._send()
        if self.widening.is_whole and not self._is_over:
            self._end()
        elif not self.widening.is_whole and not self._rows_of_parts and not len(self._parts):
            raise lost_estimates(self._folder, len(self.place_N), self.widening.known)
        if not self._has_news:
            return None
        failed, self._failed, self._has_news = self._failed, [], False
        return failed

    def note_clearing(self) -> None:
        """Note that the price was cleared, whatever came of it, and have more read."""
        self.widening.note_clearing()
        self._send()

    def _take_up(self, kept: Sequence[str]) -> None:
        """Take up files of starts before; where they are of another order, and no sample, all is read before it is priced."""
        for path in kept:
            self._take(path)
        astray = _PARTS_ASTRAY * CALLS_A_FILE * self._homes.stretch
        if kept and self.place_N[self.growing.is_known_N].max() >= 2 * self.widening.known + astray:
            self.widening.wanted = len(self.place_N)

    def _take(self, path: str) -> None:
        self._failed += self.growing.read(path)
        self._files.add(path)
        self.widening.known = int(self.growing.is_known_N.sum())
        self._has_news = True

    def _send(self) -> None:
        if not self._is_open:
            return
        wanted = self.widening.wanted
        # Ray Data may have had another part read, and a shorter one: then what was sent for has come, and does not do.
        is_short = self.widening.known < wanted and not len(self._parts)
        while self._rows_of_parts and (is_short or self._sent < wanted):
            self._sent += self._rows_of_parts.popleft()
            self._sent_parts += 1
            is_short = False
        self._parts.allow(self._sent_parts)

    def _end(self) -> None:
        """Note on disk that all is read; what a caller of a start before has written since is not looked at."""
        estimates = self._folder.child(ESTIMATES)
        for path in set(estimates.files()) - self._files:
            self._folder.filesystem.delete_file(path)
        estimates.sync()
        self._parts.end(sorted(self._files))
        self._folder.write(ESTIMATES_WHOLE, json.dumps({"rows": len(self.place_N)}).encode())
        self._is_over = True


@contextmanager
def streamed_probe(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    head: HeadCard,
    cost_N: NDArray[np.float64],
    open_run: Callable[[], object],
) -> Iterator[StreamedProbe]:
    """Start stage 1 while engines load their models, open the run once they are up, and begin to read.

    Args:
        folder: The run folder, with the queries.
        config: Configuration of the run.
        engines: The workers of the engine.
        head: Card of their head.
        cost_N: What a token of each query takes from the budget.
        open_run: Called once the engines are up, before anything is asked of them.
    """
    homes, calls, gate = homes_of(config, len(cost_N), workers=len(engines)), 2 * len(engines), Gate(folder)
    probe = partial(Probe, engines.workers, tuple(head.tokens_K), "", None, homes)

    def pipeline(parts: Sequence[NDArray[np.int64]], back: int) -> Iterator[pa.Table]:
        into = folder.child(ESTIMATES).child(uuid4().hex[:8])
        caller = partial(ProbeToFiles, probe, folder, into, homes=homes, calls=calls, gate=gate, begun=back)
        return reading(caller, parts, lists_at_once=1 + -(-calls // CALLS_A_FILE))

    read, seed, held = PartsRead(pipeline, gate), config.seed, most_held(config, len(cost_N))
    parts, coordinates = _mapped(folder, config, read, len(cost_N)) if config.estimate.learns else (read, None)
    growing = GrowingBatch(folder, np.asarray(head.tokens_K, np.int64), cost_N, seed, most_held=held)
    slots = most_slots(config)
    reader = StreamedProbe(
        *(folder, growing, parts),
        homes=homes,
        slots=slots,
        seed=seed,
        most_held=held,
        coordinates=coordinates,
    )
    reader.begin()
    try:
        open_run()
        reader.open()
        yield reader
    finally:
        parts.close()


def _mapped(
    folder: Folder, config: RunConfig, parts: PartsRead, queries: int
) -> tuple[MappedParts, GrowingCoordinates]:
    """Return parts that come back once they have coordinates, and those."""
    features = config.estimate.features or DEFAULT_FEATURES
    coordinates = GrowingCoordinates(folder, queries, sets=features, seed=config.seed)
    return MappedParts(parts, coordinates, folder), coordinates
