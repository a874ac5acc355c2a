"""Stage 1: a thin caller that has prompts read by the engine workers and hands on curve parameters.

Reads the columns of `records.QUERY_SCHEMA`; writes those of `records.estimate_schema`. Every row comes out exactly once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clear_ray.engine.base import Prompt, read_prompt
from clear_ray.records import estimate_schema
from clear_ray.stages.roster import Roster

_MOST_TRIES = 3
CARRIED = ("index", "query_id", "task", "weight", "max_tokens")


class Probe:
    """Callable for `map_batches`: one call, one prefill on the least busy worker.

    Args:
        workers: Handles of `EngineWorker` actors.
        is_worker_death: Tells a dead or unreachable engine, which is tried again, from an error of its own.
    """

    def __init__(self, workers: Sequence[Any], is_worker_death: Callable[[BaseException], bool]) -> None:
        self._roster = Roster(workers, is_worker_death)
        self._is_worker_death = is_worker_death

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield the estimates of one batch of queries."""
        query_ids, prompts = batch["query_id"].to_pylist(), prompts_of(batch)
        for tries in range(1, _MOST_TRIES + 1):
            try:
                async with self._roster.worker() as worker:
                    columns = await worker.probe.remote(query_ids, prompts)
                break
            except Exception as error:
                if tries == _MOST_TRIES or not self._is_worker_death(error):
                    raise
        yield estimate_table(batch, columns)


def prompts_of(batch: pa.Table) -> list[Prompt]:
    """Return each row's prompt as text or as a conversation."""
    return [
        read_prompt(prompt, is_conversation=is_conversation)
        for prompt, is_conversation in zip(
            batch["prompt"].to_pylist(), batch["is_conversation"].to_pylist(), strict=True
        )
    ]


def estimate_table(batch: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """Join what the probe found to the columns that are carried along."""
    grid_points = columns["success_K"].shape[1]
    schema = estimate_schema(grid_points)
    arrays = []
    for field in schema:
        if field.name in CARRIED:
            arrays.append(batch[field.name].combine_chunks())
        elif pa.types.is_fixed_size_list(field.type):
            flat = np.ascontiguousarray(columns[field.name], np.float32).ravel()
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), grid_points))
        else:
            arrays.append(pa.array(columns[field.name]).cast(field.type))
    return pa.table(arrays, schema=schema)
