"""Stage 1 on Ray Data: every prompt is read once, and what runs before have read is not read again.

Where prompts are few and only measured, no model runs, and the driver asks an engine for their lengths itself: the
processes of a pipeline would take longer to start.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clear_ray.batch.generate import direct_text_of
from clear_ray.batch.report import SAMPLE_QUERIES
from clear_ray.batch.scale import is_sketched_run, is_spread
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.errors import BudgetError
from clear_ray.run_folder.estimates import (
    ESTIMATES,
    ESTIMATES_WHOLE,
    Estimates,
    estimated_already,
    read_estimates,
)
from clear_ray.stages.probe import Probe, SelectDue, call_rows, with_added_columns
from clear_ray.stages.probe_files import WriteEstimates
from clear_ray.storage import Folder


def probe(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    rows: int,
    told: Callable[[int], None],
    *,
    is_measured: bool = False,
) -> Estimates:
    """Have every query's prompt read once; what runs before have read is not read again.

    Args:
        folder: The run folder.
        config: Configuration of the run.
        engines: The engines, which are up.
        rows: Queries of the batch.
        told: Function that hears how many prompts have been read.
        is_measured: See `Probe`.
    """
    tokens_K = np.asarray(engines.head.tokens_K, np.int64)
    if not folder.exists(ESTIMATES_WHOLE):
        if is_measured and not is_spread(rows):
            _measure_few(folder, config, engines, rows)
        else:
            _probe_the_rest(folder, config, engines, rows, told, is_measured=is_measured)
        folder.child(ESTIMATES).sync()
        folder.write(ESTIMATES_WHOLE, json.dumps({"rows": rows}).encode())
    most_curves = SAMPLE_QUERIES if is_sketched_run(config, rows) else None
    estimates = read_estimates(folder, tokens_K, config.seed, most_curves=most_curves)
    if estimates.queries != rows:
        raise BudgetError(
            f"{rows} queries came in and {estimates.queries} estimates came out",
            folder.path,
            remedy="Delete the run folder and run again; if it comes back, please report it.",
        )
    return estimates


def _measure_few(folder: Folder, config: RunConfig, engines: EngineActors, rows: int) -> None:
    """Write the estimates of all queries that are missing, as one file."""
    is_estimated_N, kept = estimated_already(folder, rows)
    if is_estimated_N.all():
        return
    queries, into = folder.child("queries"), folder.child(ESTIMATES).child(uuid4().hex[:8])
    tables = [pq.read_table(path, filesystem=queries.filesystem) for path in queries.files(".parquet")]
    due = SelectDue(~is_estimated_N)(pa.concat_tables(with_added_columns(table) for table in tables))

    async def measured() -> list[pa.Table]:
        stage = Probe(engines.workers, tuple(engines.head.tokens_K), direct_text_of(config), is_measured=True)
        return [table async for table in stage(due)]

    with ThreadPoolExecutor(1) as threads:  # a notebook has a loop of its own in this thread
        found = threads.submit(asyncio.run, measured()).result()
    WriteEstimates(into)(pa.concat_tables(found))
    _delete_late(folder, {*kept, *into.files()})


def _probe_the_rest(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    rows: int,
    told: Callable[[int], None],
    *,
    is_measured: bool,
) -> None:
    """Write the estimates that are missing, a file for every block of queries, into a folder of this run's own.

    Ray Data's checkpoints would do the same with up to ten more actors, each with a CPU of its own.
    """
    import ray.data

    is_estimated_N, kept = estimated_already(folder, rows)
    if is_estimated_N.all():
        return
    queries, estimates = folder.child("queries"), folder.child(ESTIMATES)
    due = ray.data.read_parquet(queries.path, filesystem=queries.filesystem, file_extensions=["parquet"])
    if kept:
        due = due.map_batches(SelectDue(~is_estimated_N), batch_format="pyarrow")
    into = estimates.child(uuid4().hex[:8])
    into.make()
    counts = (
        due.repartition(target_num_rows_per_block=config.dispatch.block_rows)
        .map_batches(
            Probe,
            fn_constructor_args=(engines.workers, tuple(engines.head.tokens_K), direct_text_of(config)),
            fn_constructor_kwargs={"is_measured": is_measured},
            batch_size=call_rows(config, rows),
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2 * config.engine.workers),
        )
        .map_batches(WriteEstimates(into), batch_size=None, batch_format="pyarrow")
        .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    read = int(is_estimated_N.sum())
    for count in counts:
        read += int(pc.sum(count["rows"]).as_py() or 0)
        told(read)
    _delete_late(folder, {*kept, *into.files()})


def _delete_late(folder: Folder, ours: set[str]) -> None:
    """Delete the estimates that a killed run has written meanwhile."""
    for path in set(folder.child(ESTIMATES).files()) - ours:
        folder.filesystem.delete_file(path)
