"""Stage 1: every prompt is read once, and what runs before have read is not read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from clear_ray.run_folder.estimates import Estimates, estimated_already, estimates_name, read_estimates
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
    number: int = 0,
) -> Estimates:
    """Have every query's prompt read once by an engine; what runs before have read is not read again.

    Args:
        folder: The run folder.
        config: Configuration of the run.
        engines: The workers of the engine, which are up.
        rows: Queries of the batch.
        callers: Callers that have the prompts read.
        told: Function that hears how many prompts have been read.
        is_measured: See `Probe`.
        number: Place of the engine, where there are several.
    """
    tokens_K, name = np.asarray(engines.head.tokens_K, np.int64), estimates_name(number)
    if not folder.exists(f"{name}.json"):
        blank = ProbeCall(
            np.zeros(0, np.int64),
            folder.child(name).child(uuid4().hex[:8]),
            "",
            tuple(engines.head.tokens_K),
            rows_a_call=call_rows(config, rows, workers=len(engines)),
            calls_at_once=2 * len(engines),
            direct_text=direct_text_of(config),
            is_measured=is_measured,
        )
        _probe_the_rest(folder, blank, config.dispatch.block_rows, rows, callers, told, name=name)
        folder.child(name).sync()
        folder.write(f"{name}.json", json.dumps({"rows": rows}).encode())
    most_curves = SAMPLE_QUERIES if is_sketched_run(config, rows) else None
    estimates = read_estimates(folder, tokens_K, config.seed, most_curves=most_curves, name=name)
    if estimates.queries != rows:
        raise BudgetError(
            f"{rows} queries came in and {estimates.queries} estimates came out",
            folder.path,
            remedy="Delete the run folder and run again; if it comes back, please report it.",
        )
    return estimates


def together(found: Sequence[Estimates]) -> Estimates:
    """Return the estimates of a run's engines as one: a prompt fails that none of them can read."""
    first, *others = found
    if not others:
        return first
    unread = set(first.error_of_index).intersection(*(estimates.error_of_index for estimates in others))
    errors = {index: first.error_of_index[index] for index in sorted(unread)}
    return replace(without_unread(first), others=tuple(map(without_unread, others)), error_of_index=errors)


def without_unread(estimates: Estimates) -> Estimates:
    """Return the estimates of one of several engines with no room for a prompt that it cannot read, or not answer."""
    most_N = np.maximum(estimates.max_tokens_N, 0)
    most_N[list(estimates.error_of_index)] = 0
    return replace(estimates, max_tokens_N=most_N, batch=replace(estimates.batch, max_tokens_N=most_N))


def _probe_the_rest(
    folder: Folder,
    blank: ProbeCall,
    block_rows: int,
    rows: int,
    callers: ProbeCallers,
    told: Callable[[int], None],
    *,
    name: str,
) -> None:
    """Write the estimates that are missing, a file for every block of queries, into a folder of this run's own."""
    is_estimated_N, kept = estimated_already(folder, rows, name)
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
    for path in set(folder.child(name).files()) - written:  # a killed run's, written meanwhile
        folder.filesystem.delete_file(path)


def rows_each(config: RunConfig, rows: int, *, workers: int) -> int:
    """Return how many queries a caller has in open calls: a block more than what its engines read at once."""
    return config.dispatch.block_rows + 2 * workers * call_rows(config, rows, workers=workers)
