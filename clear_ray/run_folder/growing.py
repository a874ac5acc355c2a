"""A batch whose estimates are still being written: what a price can be cleared over so far.

It has a row for every query from the start. One whose estimate is not known has a ceiling of 0, so it is offered nothing.

Shapes: N queries of the batch, K grid points.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.estimation.curves_on_disk import GrowingCurves
from clear_ray.rounds.batch import Batch
from clear_ray.run_folder.estimates import CURVE_COLUMNS, ESTIMATES, Estimates, read_batch, read_estimates, tie_breaks
from clear_ray.run_folder.parquet import damaged
from clear_ray.storage import Folder

_COLUMNS = [*CURVE_COLUMNS, "prompt_tokens", "error"]


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
        has_failed_B = np.array([bool(error) for error in rows["error"].to_pylist()], bool)
        failed: list[int] = index_B[has_failed_B].tolist()
        return failed

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
        """Return the estimates of all queries, once all are there.

        Raises:
            ResumeError: A file of them is damaged.
        """
        return read_estimates(self._folder, self._tokens_K, self._seed, name=ESTIMATES, batch=self.batch)
