"""Stage 1 on Ray Data: every prompt is read once, and what runs before have read is not read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import uuid4

import numpy as np
import pyarrow.compute as pc

from clear_ray.batch.generate import direct_text_of
from clear_ray.batch.report import SAMPLE_QUERIES
from clear_ray.batch.scale import is_sketched_run
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
from clear_ray.stages.probe import Probe, SelectDue, call_rows
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
    written = {*kept, *into.files()}
    for path in set(estimates.files()) - written:  # a killed run's, written meanwhile
        folder.filesystem.delete_file(path)
