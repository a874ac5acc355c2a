"""Stage 1: every prompt is read once, and what runs before have read is not read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import numpy as np

from clear_ray.batch.generate import direct_text_of
from clear_ray.batch.report import SAMPLE_QUERIES
from clear_ray.batch.scale import is_sketched_run
from clear_ray.cluster.callers import ProbeCallers
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
from clear_ray.stages.probe import call_rows
from clear_ray.stages.probe_files import ProbeCall
from clear_ray.storage import Folder

_LOOK_SECONDS = 1.0  # so often the driver hears signals


def probe(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    rows: int,
    callers: ProbeCallers,
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
        callers: Callers that have the prompts read.
        told: Function that hears how many prompts have been read.
        is_measured: See `Probe`.
    """
    tokens_K = np.asarray(engines.head.tokens_K, np.int64)
    if not folder.exists(ESTIMATES_WHOLE):
        blank = ProbeCall(
            np.zeros(0, np.int64),
            folder.child(ESTIMATES).child(uuid4().hex[:8]),
            "",
            tuple(engines.head.tokens_K),
            rows_a_call=call_rows(config, rows),
            calls_at_once=2 * config.engine.workers,
            direct_text=direct_text_of(config),
            is_measured=is_measured,
        )
        _probe_the_rest(folder, blank, config.dispatch.block_rows, rows, callers, told)
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
    folder: Folder, blank: ProbeCall, block_rows: int, rows: int, callers: ProbeCallers, told: Callable[[int], None]
) -> None:
    """Write the estimates that are missing, a file for every block of queries, into a folder of this run's own."""
    is_estimated_N, kept = estimated_already(folder, rows)
    due = np.flatnonzero(~is_estimated_N)
    if not len(due):
        return
    blank.into.make()
    for first in range(0, len(due), block_rows):
        callers.send(replace(blank, index_M=due[first : first + block_rows], name=f"block-{first // block_rows:06d}"))
    read = rows - len(due)
    while len(callers):
        for _, count in callers.come_back(_LOOK_SECONDS):
            read += count
            told(read)
    written = {*kept, *blank.into.files()}
    for path in set(folder.child(ESTIMATES).files()) - written:  # a killed run's, written meanwhile
        folder.filesystem.delete_file(path)


def rows_each(config: RunConfig, rows: int) -> int:
    """Return how many queries a caller has in open calls: a block more than what its engines read at once."""
    return config.dispatch.block_rows + 2 * config.engine.workers * call_rows(config, rows)
