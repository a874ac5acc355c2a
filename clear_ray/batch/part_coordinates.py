"""Coordinates of a batch whose prompts are still being read: a part has them before the law hears that it is known.

    a part is read --> its estimates on disk --the map, in a task--> its coordinates on disk --> known

**One map.** It is fitted in a task once the first part is read, on 5,000 prompts of the whole batch: all of them are on disk,
and how many tokens one has that is not read yet is guessed by its letters. A part is no sample of the kinds of query: it is
made of stretches of the input. The map is written to the run folder before anything is mapped by it, and all parts are mapped
by what is written there, whichever start of the run maps them.

**A file for a file.** Each file of `estimates/` has one of the same name in `coordinates/`, whole or not at all. A resumed
run takes up what has both, and has the rest mapped. When all is known `coordinates.json` says so, as of a batch that was
read first.

The driver reads numbers alone, and is never kept waiting by a map: tasks run beside it, one at a time, each of all that has
been read meanwhile, so that files of `queries/` are read a few times and not once a part.

Shapes: N queries of the batch, P coordinates, K of the queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from clear_ray.batch.coordinates import (
    COORDINATES,
    COORDINATES_MAP,
    COORDINATES_WHOLE,
    MOST_SAMPLED,
    points_of,
    read_words,
    rows_where,
    table_of,
)
from clear_ray.batch.reading import PartsRead
from clear_ray.engine.base import Features
from clear_ray.estimation.factorised import Coordinates, fit_coordinates
from clear_ray.estimation.states import features_of
from clear_ray.run_folder.estimates import ESTIMATES
from clear_ray.run_folder.parquet import damaged, told_if_damaged
from clear_ray.storage import Folder

_CPUS = 0.1
"""A task is as long as a part is; reserving a whole CPU could wait for ever on a machine whose engines have them all."""

_MOST_LENGTHS = 1_000
"""So many lengths that are known say how many letters a token has."""

BeginTask = Callable[..., Future[Any]]
"""Begins a function with its arguments elsewhere, and returns what will have its result."""


def begin_on_ray(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Begin a function in a task of Ray; its own errors come back as themselves."""
    task: Any = ray.remote(num_cpus=_CPUS)(function)
    future: Future[Any] = task.remote(*arguments).future()
    return future


class GrowingCoordinates:
    """What the driver holds: the coordinates of the queries that are known.

    Args:
        folder: The run folder.
        queries: Number of queries, N.
        sets: Names out of `estimation.feature_sets.FEATURE_SETS`.
        seed: Which prompts the map is fitted on, where there are many.
    """

    def __init__(self, folder: Folder, queries: int, *, sets: Sequence[str], seed: int) -> None:
        self.sets, self.seed, self.queries = tuple(sets), seed, queries
        self._folder = folder
        self._x_NP = np.zeros((queries, 0), np.float32)
        self._has_any = False

    @property
    def has_map(self) -> bool:
        """Whether the map is on disk."""
        return self._folder.exists(COORDINATES_MAP)

    def keep_map(self, content: bytes) -> None:
        """Write the map; nothing is mapped before."""
        self._folder.write(COORDINATES_MAP, content)

    def has(self, file: str) -> bool:
        """Return whether the queries of a file of estimates have coordinates on disk."""
        return self._folder.child(COORDINATES).exists(_name_of(self._folder, file))

    def read(self, file: str) -> None:
        """Take up the coordinates of the queries of a file of estimates.

        Raises:
            ResumeError: They are damaged.
        """
        child, name = self._folder.child(COORDINATES), _name_of(self._folder, file)
        with told_if_damaged(self._folder, f"{COORDINATES}/{name}"):
            rows = pq.read_table(f"{child.path}/{name}", filesystem=child.filesystem).combine_chunks()
        x_BP = points_of(rows)
        if not self._has_any:  # zeros take no memory before something is written there
            self._x_NP, self._has_any = np.zeros((self.queries, x_BP.shape[1]), np.float32), True
        self._x_NP[rows["index"].to_numpy()] = x_BP

    def of(self, index_K: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the coordinates of some queries that are known, shape (K, P)."""
        return self._x_NP[index_K].astype(np.float64)

    def end(self, files: Sequence[str]) -> None:
        """Note on disk that all queries have coordinates.

        Args:
            files: Their files of estimates; what a task of a start before has written of others is removed.
        """
        child = self._folder.child(COORDINATES)
        for path in set(child.files()) - {f"{child.path}/{_name_of(self._folder, file)}" for file in files}:
            self._folder.filesystem.delete_file(path)
        child.sync()
        whole = {"rows": self.queries, "features": list(self.sets), "seed": self.seed}
        self._folder.write(COORDINATES_WHOLE, json.dumps(whole).encode())


class MappedParts:
    """Parts that are read, and come back once they have coordinates; see `PartsRead`.

    Args:
        parts: Has them read.
        coordinates: Where their coordinates are taken up.
        folder: The run folder.
        begin_task: Begins a task.
    """

    def __init__(
        self, parts: PartsRead, coordinates: GrowingCoordinates, folder: Folder, begin_task: BeginTask = begin_on_ray
    ) -> None:
        self._parts, self._coordinates, self._folder, self._begin_task = parts, coordinates, folder, begin_task
        self._waiting: list[str] = []
        self._mapped: list[str] = []
        self._task: Future[Any] | None = None
        self._is_open = False

    def __len__(self) -> int:
        """Return how many parts are wanted and have not come back."""
        return len(self._parts) + len(self._waiting) + len(self._mapped)

    def take_up(self, files: Sequence[str]) -> list[str]:
        """Return which files of estimates of starts before have coordinates; the others come back once they do."""
        has_map = self._coordinates.has_map
        done = [file for file in files if has_map and self._coordinates.has(file)]
        for file in done:
            self._coordinates.read(file)
        self._waiting += [file for file in files if file not in done]
        return done

    def begin(self, parts: Sequence[NDArray[np.int64]]) -> None:
        """See `PartsRead`."""
        self._parts.begin(parts)

    def allow(self, parts: int) -> None:
        """See `PartsRead`."""
        self._is_open = True
        self._parts.allow(parts)

    def come_back(self, seconds: float) -> list[str]:
        """See `PartsRead`; what a task raises is raised here."""
        files = self._parts.come_back(seconds if self._task is None else 0.0)
        self._waiting += files
        self._send()
        if self._task is None or not wait((self._task,), timeout=0.0 if files else seconds).done:
            return []
        found, self._task = self._task.result(), None
        if not self._mapped:
            self._coordinates.keep_map(found)
            self._send()
            return []
        done, self._mapped = self._mapped, []
        for file in done:
            self._coordinates.read(file)
        self._send()
        return done

    def end(self, files: Sequence[str]) -> None:
        """Note that all has been read and mapped."""
        self._coordinates.end(files)

    def close(self) -> None:
        """End the pipeline; a task that is under way ends by itself, and what it writes is of the same map."""
        self._parts.close()

    def _send(self) -> None:
        """Begin a task if none is under way and there is something to do: the map, once the first part is whole."""
        if self._task is not None or not self._waiting:
            return
        how = self._coordinates
        if how.has_map:
            self._mapped, self._waiting = self._waiting, []
            self._task = self._begin_task(map_parts, self._folder, tuple(self._mapped), how.sets)
        elif self._is_open and not len(self._parts):
            files = tuple(self._waiting)
            self._task = self._begin_task(fit_map, self._folder, files, how.sets, how.seed, how.queries)


def fit_map(folder: Folder, files: Sequence[str], sets: tuple[str, ...], seed: int, queries: int) -> bytes:
    """Return a map that is fitted on a sample of so many queries; runs in a task.

    Args:
        folder: The run folder.
        files: Files of estimates, of the queries whose lengths are known.
        sets: What the map reads.
        seed: Of the sample.
        queries: Number of queries, N.

    Raises:
        ResumeError: A file of estimates or queries is damaged.
    """
    known, rng = _lengths_in(folder, files), np.random.default_rng(seed)
    known_K, tokens_K = (known[name].to_numpy() for name in ("index", "prompt_tokens"))
    sample = np.sort(rng.permutation(queries)[:MOST_SAMPLED])
    rows, texts, tasks = _read(folder, np.union1d(sample, rng.permutation(known_K)[:_MOST_LENGTHS]))
    tokens = guessed_tokens(np.array([len(text) for text in texts]), rows, known_K, tokens_K)
    place = np.searchsorted(rows, sample)
    texts, tasks = ([words[row] for row in place] for words in (texts, tasks))
    fitted = fit_coordinates(_features(tokens[place]), texts, sets=sets, tasks=tasks, seed=seed)
    content: bytes = save({name: np.ascontiguousarray(array) for name, array in fitted.arrays().items()})
    return content


def map_parts(folder: Folder, files: Sequence[str], sets: tuple[str, ...]) -> None:
    """Write the coordinates of the queries of some files of estimates, by the map in the run folder; runs in a task.

    Raises:
        ResumeError: The map, or a file of estimates or queries, is damaged.
    """
    fitted = _map_in(folder, sets)
    parts = [_lengths_in(folder, [file]) for file in files]
    index, texts, tasks = _read(folder, np.sort(np.concatenate([part["index"].to_numpy() for part in parts])))
    for file, part in zip(files, parts, strict=True):
        place = np.searchsorted(index, part["index"].to_numpy())
        words = ([column[row] for row in place] for column in (texts, tasks))
        points_BP = fitted(_features(part["prompt_tokens"].to_numpy()), *words)
        sink = BytesIO()
        pq.write_table(table_of(part["index"].combine_chunks(), points_BP), sink, use_dictionary=False)
        parent, _, name = _name_of(folder, file).rpartition("/")
        target = folder.child(COORDINATES)
        (target.child(parent) if parent else target).write(name, sink.getvalue())


def guessed_tokens(
    letters_B: NDArray[np.int64], index_B: NDArray[np.int64], known_K: NDArray[np.int64], tokens_K: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the length of prompts, tokens: as it is known, or else by their letters, as the known ones have them.

    Args:
        letters_B: Letters of some queries.
        index_B: These queries, rising.
        known_K: Queries whose lengths are known; some of them are among these.
        tokens_K: Their lengths.
    """
    is_known_B = np.isin(index_B, known_K)
    order = np.argsort(known_K)
    tokens_B = tokens_K[order][np.searchsorted(known_K[order], index_B[is_known_B])]
    by_letters_B2 = np.stack([np.ones(len(letters_B)), letters_B], axis=1)
    line, *_ = np.linalg.lstsq(by_letters_B2[is_known_B], tokens_B.astype(np.float64), rcond=None)
    found = np.maximum(np.rint(by_letters_B2 @ line), 1).astype(np.int64)
    found[is_known_B] = tokens_B
    return found


def _map_in(folder: Folder, sets: tuple[str, ...]) -> Coordinates:
    content = folder.read(COORDINATES_MAP)
    try:
        return Coordinates.restore(sets, load(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise damaged(folder, COORDINATES_MAP, error) from error


def _lengths_in(folder: Folder, files: Sequence[str]) -> pa.Table:
    """Return index and length of the prompts of some files of estimates, in the order of the queries."""
    columns = ["index", "prompt_tokens"]
    with told_if_damaged(folder, ESTIMATES):
        rows = pa.concat_tables([pq.read_table(file, filesystem=folder.filesystem, columns=columns) for file in files])
    return rows.sort_by("index").combine_chunks()


def _read(folder: Folder, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Return these queries, which are rising, with their texts and labels."""
    with told_if_damaged(folder, "queries"):
        rows = rows_where(folder, folder.child("queries").files(".parquet"), index)
    return index, *read_words(rows)


def _features(prompt_tokens_B: NDArray[np.int64]) -> Features:
    rows = len(prompt_tokens_B)
    nothing, unknown = np.zeros((rows, 0), np.float32), np.full(rows, np.nan, np.float32)
    return features_of(prompt_tokens_B.astype(np.int64), unknown, nothing)


def _name_of(folder: Folder, file: str) -> str:
    """Return the name of a file of estimates below their folder, which is that of its coordinates."""
    return file.removeprefix(f"{folder.child(ESTIMATES).path}/")
