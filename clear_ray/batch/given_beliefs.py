"""Beliefs that were there before a run, of a head or of earlier runs, read where they are needed and of those queries alone.

Shapes: B queries that are read, K grid points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.errors import ResumeError
from clear_ray.estimation.hazards import Incidence
from clear_ray.run_folder.estimates import ESTIMATES, grid_of, rows_of_queries
from clear_ray.storage import Folder


@dataclass(frozen=True)
class GivenRows:
    """Rows by query, which lie in a run folder.

    Attributes:
        folder: The run folder.
        name: `estimates` of a head, or what earlier runs have left.
    """

    folder: Folder
    name: str = ESTIMATES

    def of(self, index: NDArray[np.int64]) -> Incidence:
        """Return what is believed of the queries at `index`, in that order.

        Raises:
            ResumeError: A file is damaged.
        """
        if self.name == ESTIMATES:
            rows = rows_of_queries(self.folder, self.name, index, ["success_K", "survival_K"])
            right_BK, survival_BK = (grid_of(rows, name).astype(np.float64) for name in ("success_K", "survival_K"))
        else:
            rows = self._earlier_rows(index)
            right_BK, survival_BK = np.hsplit(grid_of(rows, "believed").astype(np.float64), 2)
        return Incidence(right_BK, (1.0 - right_BK - survival_BK).clip(0.0), survival_BK)

    def _earlier_rows(self, index: NDArray[np.int64]) -> pa.Table:
        try:
            return rows_of_queries(self.folder, self.name, index, ["believed"])
        except ResumeError as error:  # unlike estimates it costs nothing to make anew
            remedy = f"Delete {self.name} and {self.name}.json in the run folder, and run again."
            raise ResumeError(error.what, error.where, error.value, remedy) from error
