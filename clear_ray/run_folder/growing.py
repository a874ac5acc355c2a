"""A batch whose estimates are still being written: what a price can be cleared over so far.

It has a row for every query from the start. One whose estimate is not known has a ceiling of 0, so it is offered nothing.

Shapes: N queries of the batch, K grid points.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.estimation.curves_on_disk import GrowingCurves
from clear_ray.rounds.batch import Batch
from clear_ray.run_folder.estimates import CURVE_COLUMNS, ESTIMATES, Estimates, read_batch, read_estimates, tie_breaks
from clear_ray.run_folder.parquet import damaged, read_columns
from clear_ray.storage import Folder

_COLUMNS = [*CURVE_COLUMNS, "prompt_tokens", "entropy", "error"]


class GrowingBatch:
    """See the module.

    Args:
        folder: The run folder.
        tokens_K: Token grid of the curves.
        cost_N: What a token of each query takes from the budget, by its input.
        seed: Seed of the run.

    Attributes:
        batch: All queries; changes in place as they become known.
        is_known_N: Which are known.
        prompt_tokens_N: Length of their prompts, tokens; 0 of others.
    """

    def __init__(self, folder: Folder, tokens_K: NDArray[np.int64], cost_N: NDArray[np.float64], seed: int) -> None:
        queries = len(cost_N)
        self._folder, self._tokens_K, self._seed = folder, tokens_K, seed
        self._curves = GrowingCurves(tokens_K, queries)
        self.is_known_N, self.prompt_tokens_N = np.zeros(queries, bool), np.zeros(queries, np.int64)
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
        try:
            rows = pq.read_table(path, filesystem=self._folder.filesystem, columns=_COLUMNS)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's doing
                raise
            raise damaged(self._folder, path.removeprefix(f"{self._folder.path}/"), error) from error
        index_B, batch = rows["index"].to_numpy(), self.batch
        known = read_batch(rows, self._tokens_K, batch.tie_break_N[index_B])
        self._curves.put(index_B, known.curves)
        batch.weight_N[index_B], batch.max_tokens_N[index_B] = known.weight_N, known.max_tokens_N
        self.is_known_N[index_B], self.prompt_tokens_N[index_B] = True, rows["prompt_tokens"].to_numpy()
        self._is_read_N[index_B] = ~np.isnan(rows["entropy"].to_numpy())
        errors = zip(index_B.tolist(), rows["error"].to_pylist(), strict=True)
        failed = {index: error for index, error in errors if error}
        self._error_of_index |= failed
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

    def whole(self) -> Estimates:
        """Return the estimates of all queries, or of those that are known where a run ends before all are.

        Raises:
            ResumeError: A file of them, or of the queries, is damaged.
        """
        if not self.is_known_N.all():
            return self._known()
        return read_estimates(self._folder, self._tokens_K, self._seed, name=ESTIMATES, batch=self.batch)

    def _known(self) -> Estimates:
        task_names, task_N = self._tasks()
        return replace(
            self.so_far(),
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
