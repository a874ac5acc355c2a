"""For calibration only: have prompts read and keep the raw features, hidden states included."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.stages.probe import prompts_of


class ReadFeatures:
    """Callable for `map_batches`: the columns that a head is fitted on.

    Args:
        workers: Handles of `EngineWorker` actors.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers
        self._calls = 0

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield query_id, prompt_tokens, entropy, hidden_last and hidden_mean (float16) of one batch."""
        worker = self._workers[self._calls % len(self._workers)]
        self._calls += 1
        features = await worker.features.remote(batch["query_id"].to_pylist(), prompts_of(batch))
        columns = {
            "query_id": batch["query_id"].combine_chunks(),
            "prompt_tokens": pa.array(features.prompt_tokens_N),
            "entropy": pa.array(features.entropy_N),
        }
        for name, values in (("hidden_last", features.hidden_last_ND), ("hidden_mean", features.hidden_mean_ND)):
            columns[name] = state_column(values)
        yield pa.table(columns)


def state_column(states_ND: NDArray[np.float32]) -> pa.Array:
    """Return hidden states as a column of float16 lists; of empty ones where the engine shows no states."""
    queries, width = states_ND.shape
    if width == 0:  # Arrow has no lists of the fixed size 0
        return pa.array([[]] * queries, pa.list_(pa.float16()))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(states_ND, np.float16).ravel()), width)
