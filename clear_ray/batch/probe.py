"""Stage 1 on Ray Data: every prompt is read once, and what runs before have read is not read again."""

from __future__ import annotations

import json
from uuid import uuid4

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy

from clear_ray.batch.generate import direct_text_of
from clear_ray.batch.pricing import is_sketched_run
from clear_ray.batch.report import SAMPLE_QUERIES
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
from clear_ray.storage import Folder


def probe(folder: Folder, config: RunConfig, engines: EngineActors, rows: int) -> Estimates:
    """Stage 1: have every query's prompt read once; what runs before have read is not read again."""
    tokens_K = np.asarray(engines.head.tokens_K, np.int64)
    if not folder.exists(ESTIMATES_WHOLE):
        _probe_the_rest(folder, config, engines, rows)
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


def _probe_the_rest(folder: Folder, config: RunConfig, engines: EngineActors, rows: int) -> None:
    """Write the estimates that are missing, a file for every block of queries, into a folder of this run's own.

    Ray Data's checkpoints would do the same with up to ten more actors, each with a CPU of its own.
    """
    is_estimated_N, kept = estimated_already(folder, rows)
    if is_estimated_N.all():
        return
    queries, estimates = folder.child("queries"), folder.child(ESTIMATES)
    due = ray.data.read_parquet(queries.path, filesystem=queries.filesystem, file_extensions=["parquet"])
    if kept:
        due = due.map_batches(SelectDue(~is_estimated_N), batch_format="pyarrow")
    target = estimates.child(uuid4().hex[:8])
    (
        due.repartition(target_num_rows_per_block=config.dispatch.block_rows)
        .map_batches(
            Probe,
            fn_constructor_args=(engines.workers, tuple(engines.head.tokens_K), direct_text_of(config)),
            batch_size=call_rows(config, rows),
            batch_format="pyarrow",
            num_cpus=0.1,
            compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2 * config.engine.workers),
        )
        .write_parquet(target.path, filesystem=folder.filesystem)
    )
    for path in set(estimates.files()).difference(kept, target.files()):  # a killed run's, written meanwhile
        folder.filesystem.delete_file(path)
