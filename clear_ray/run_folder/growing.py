"""A batch whose estimates are still being written: what a price can be cleared over so far.

It has a row for every query from the start. One whose estimate is not known has a ceiling of 0, so it is offered nothing. Of
a very large batch the curves in a window are held, and of other queries a few numbers each.

Shapes: N queries of the batch, K grid points.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.estimation.curves_on_disk import CurvesInWindow, GrowingCurves
from clear_ray.estimation.window import Window
from clear_ray.rounds.batch import Batch
from clear_ray.run_folder.estimates import (
    CURVE_COLUMNS,
    Estimates,
    even_sample,
    read_batch,
    read_batches,
    read_estimates,
    tie_breaks,
)
from clear_ray.run_folder.parquet import damaged, read_columns, told_if_damaged
from clear_ray.storage import Folder

_COLUMNS = [*CURVE_COLUMNS, "prompt_tokens", "entropy", "error"]


class GrowingBatch:
    """See the module.

    Args:
        folder: The run folder.
        tokens_K: Token grid of the curves.
        cost_N: What a token of each query takes from the budget, by its input.
        seed: Seed of the run.
        most_held: Of how many queries curves are held at most; of all if not given.

    Attributes:
        batch: All queries; changes in place as they become known.
        is_known_N: Which are known; likewise.
        window: Which of these have their curves in `batch`; None if all have.
        prompt_tokens_N: Length of their prompts, tokens; 0 of others.
    """

    def __init__(
        self,
        folder: Folder,
        tokens_K: NDArray[np.int64],
        cost_N: NDArray[np.float64],
        seed: int,
        *,
        most_held: int | None = None,
    ) -> None:
        queries = len(cost_N)
        self._folder, self._tokens_K, self._seed = folder, tokens_K, seed
        self._files: list[str] = []
        self.is_known_N, self.prompt_tokens_N = np.zeros(queries, bool), np.zeros(queries, np.int64)
        self._curves: GrowingCurves | CurvesInWindow
        self.window: Window | None = None
        if most_held is None or most_held >= queries:
            self._curves = GrowingCurves(tokens_K, queries)
        else:
            self._curves = CurvesInWindow(tokens_K, queries, most_held)
            self.window = self._curves.window
        self._is_read_N, self._error_of_index = np.zeros(queries, bool), dict[int, str]()
        self.batch = Batch(
            self._curves.curves,
            weight_N=np.ones(queries),
            max_tokens_N=np.zeros(queries, np.int64),
            tie_break_N=tie_breaks(queries, seed),
            cost_N=cost_N,
        )

    def read(self, path: str) -> list[int]:
        """Take up a file of estimates, of queries that are not known yet; return those that could not be read.

        Raises:
            ResumeError: It is damaged.
        """
        with told_if_damaged(self._folder, path.removeprefix(f"{self._folder.path}/")):
            rows = pq.read_table(path, filesystem=self._folder.filesystem, columns=_COLUMNS)
        index_B, batch = rows["index"].to_numpy(), self.batch
        known = read_batch(rows, self._tokens_K, batch.tie_break_N[index_B])
        self._curves.put(index_B, known.curves)
        batch.weight_N[index_B], batch.max_tokens_N[index_B] = known.weight_N, known.max_tokens_N
        self.is_known_N[index_B], self.prompt_tokens_N[index_B] = True, rows["prompt_tokens"].to_numpy()
        self._is_read_N[index_B] = ~np.isnan(rows["entropy"].to_numpy())
        errors = zip(index_B.tolist(), rows["error"].to_pylist(), strict=True)
        failed = {index: error for index, error in errors if error}
        self._error_of_index |= failed
        self._files.append(path)
        return list(failed)

    def so_far(self) -> Estimates:
        """Return what stands in place of the estimates until all are there: the batch, and the length of what was read."""
        queries = len(self.is_known_N)
        return Estimates(
            batch=self.batch,
            sample=np.arange(queries),
            task_names=("all",),
            task_N=np.zeros(queries, np.int32),
            prompt_tokens_N=self.prompt_tokens_N,
            max_tokens_N=self.batch.max_tokens_N,
            tie_break_N=self.batch.tie_break_N,
            error_of_index={},
        )

    def whole(self, most_curves: int | None = None) -> Estimates:
        """Return the estimates of all queries, or of those that are known where a run ends before all are.

        Args:
            most_curves: As for `read_estimates`; of all that are held if not given.

        Raises:
            ResumeError: A file of them, or of the queries, is damaged.
        """
        queries = len(self.is_known_N)
        most_curves = None if most_curves is None or most_curves >= queries else most_curves
        batch = self.batch if self.window is None and most_curves is None else None
        if self.is_known_N.all():
            return read_estimates(self._folder, self._tokens_K, self._seed, most_curves=most_curves, batch=batch)
        sample = np.arange(queries) if most_curves is None else even_sample(queries, most_curves, self._seed)
        if batch is None:
            tie_break_S = self.batch.tie_break_N[sample]
            batch = read_batches(self._folder, self._files, self._tokens_K, sample, tie_break_S)
        return self._known(batch, sample)

    def _known(self, batch: Batch, sample: NDArray[np.int64]) -> Estimates:
        task_names, task_N = self._tasks()
        return replace(
            self.so_far(),
            batch=batch,
            sample=sample,
            task_names=task_names,
            task_N=task_N,
            error_of_index=self._error_of_index,
            is_read_N=self._is_read_N,
            is_known_N=self.is_known_N,
        )

    def _tasks(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Return the tasks of the batch, and that of every query, shape (N,), as the input names them."""
        task_N = np.zeros(len(self.is_known_N), np.int32)
        place_of: dict[str, int] = {}
        for path in self._folder.child("queries").files(".parquet"):
            rows = read_columns(self._folder, path, ["index", "task"])
            if isinstance(rows, Exception):
                raise damaged(self._folder, path.removeprefix(f"{self._folder.path}/"), rows) from rows
            tasks = rows["task"].fill_null("all").combine_chunks().dictionary_encode()
            places = [place_of.setdefault(name, len(place_of)) for name in tasks.dictionary.to_pylist()]
            task_N[rows["index"].to_numpy()] = np.array(places, np.int32)[tasks.indices.to_numpy()]
        return tuple(place_of), task_N
