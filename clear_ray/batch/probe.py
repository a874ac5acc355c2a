"""Stage 1 on Ray Data: every prompt is read once, and what runs before have read is not read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from uuid import uuid4

import numpy as np
import pyarrow.compute as pc

from clear_ray.batch.generate import direct_text_of
from clear_ray.batch.reading import reading, with_new_callers
from clear_ray.batch.report import SAMPLE_QUERIES
from clear_ray.batch.size_limits import is_sketched_run
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.estimation.head import HeadCard
from clear_ray.run_folder.estimates import (
    Estimates,
    estimated_already,
    estimates_name,
    lost_estimates,
    read_estimates,
)
from clear_ray.stages.first_tokens import FirstTokenFee
from clear_ray.stages.gate import Gate
from clear_ray.stages.probe import Probe, homes_of
from clear_ray.stages.probe_files import ProbeToFiles
from clear_ray.storage import Folder


def probe(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    head: HeadCard,
    rows: int,
    told: Callable[[int], None],
    *,
    gate: Gate,
    number: int = 0,
    has_states: bool = False,
    fee: FirstTokenFee | None = None,
) -> Estimates:
    """Have every query's prompt read once by an engine; what runs before have read is not read again.

    Args:
        folder: The run folder.
        config: Configuration of the run.
        engines: The workers of the engine, which may be loading their models still.
        head: Card of their head.
        rows: Queries of the batch.
        told: Function that hears how many prompts have been read.
        gate: Opens when they are up and may be asked.
        number: Place of the engine, where there are several.
        has_states: Whether to keep what a run learns on of the model's own numbers.
        fee: What calls for first tokens are charged, where that is what is kept.
    """
    tokens_K, name = np.asarray(head.tokens_K, np.int64), estimates_name(number)
    if not folder.exists(f"{name}.json"):
        due = partial(_probe_what_is_due, folder, config, engines, head, rows, told)
        with_new_callers(partial(due, gate=gate, name=name, has_states=has_states, fee=fee))
        folder.child(name).sync()
        folder.write(f"{name}.json", json.dumps({"rows": rows}).encode())
    estimates = read_estimates(folder, tokens_K, config.seed, most_curves=most_curves(config, rows), name=name)
    if estimates.queries != rows:
        raise lost_estimates(folder, rows, estimates.queries)
    return estimates


def most_curves(config: RunConfig, queries: int) -> int | None:
    """Return of how many queries the driver holds curves once all are read; None: of all."""
    return SAMPLE_QUERIES if is_sketched_run(config, queries) else None


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


def _probe_what_is_due(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    head: HeadCard,
    rows: int,
    told: Callable[[int], None],
    *,
    gate: Gate,
    name: str,
    has_states: bool,
    fee: FirstTokenFee | None,
) -> None:
    """Have the estimates that are missing written into a folder of this run's own, a file for some calls.

    Ray Data's checkpoints would do the same with up to ten more actors, each with a CPU of its own.
    """
    is_estimated_N, kept = estimated_already(folder, rows, name)
    if is_estimated_N.all():
        return
    due, estimates = np.flatnonzero(~is_estimated_N), folder.child(name)
    blocks = np.split(due, range(config.dispatch.block_rows, len(due), config.dispatch.block_rows))
    into = estimates.child(uuid4().hex[:8])
    homes, calls = homes_of(config, rows, workers=len(engines)), 2 * len(engines)
    told_once = (tuple(head.tokens_K), direct_text_of(config), gate, homes, has_states, fee)
    caller = partial(ProbeToFiles, partial(Probe, engines.workers, *told_once), folder, into, homes=homes, calls=calls)
    read = int(is_estimated_N.sum())
    for found in reading(caller, blocks, lists_at_once=calls):
        read += int(pc.sum(found["rows"]).as_py() or 0)
        told(read)
    written = {*kept, *into.files()}
    for path in set(estimates.files()) - written:  # a killed run's, written meanwhile
        folder.filesystem.delete_file(path)
