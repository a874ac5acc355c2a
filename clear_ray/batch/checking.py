"""What a run refuses before it loads a model, in the order in which it does; no Ray is joined, and nothing is written."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import ray

from clear_ray.batch.earlier_runs import store_errors
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.pricing import check_minimum_service, check_one_call, least_call, token_costs
from clear_ray.batch.streamed import streaming_notes
from clear_ray.cluster.connection import reach
from clear_ray.cluster.room import refuse_no_place
from clear_ray.config.run import RunConfig
from clear_ray.engine.checking import check_engine, engine_notes
from clear_ray.estimation.encoder import encoder_folder
from clear_ray.estimation.head import ANY_MODEL, Head
from clear_ray.estimation.resolve import resolve_head
from clear_ray.ingest import InputDigest
from clear_ray.ledger.identity import check_journal
from clear_ray.ledger.lock import refuse_in_use
from clear_ray.run_folder.estimates import read_costs
from clear_ray.run_folder.locations import refuse_passing, with_absolute_paths
from clear_ray.run_folder.manifest import check_same_run, describe_config, describe_input, read_manifest
from clear_ray.run_folder.status import read_summary
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks import Survey, survey_queries

_OF_LABELS = {
    "ended": "the head has learned which answers end by themselves, not which are right, and so does the price",
    "agreement": "the head has learned which answers agree with others, not which are right, and so does the price",
}
"""What is said of a head by what it has learned."""
_AGREEMENT = (
    "scoring.agreement is not used: answers are compared by a run with one engine that learns, at a temperature above 0, and "
    "where allocation.objective is vote"
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found beside nothing to refuse.

    Attributes:
        digest: What the input holds; its notices are those of the model, too.
        survey: What its gold answers look like.
    """

    digest: InputDigest
    survey: Survey


def check_run(config: RunConfig) -> Checked:
    """Return what the input of a run holds, after everything about it was checked that needs no loaded model.

    Raises:
        SchemaError: The input is refused.
        ConfigError: A setting is refused, or the run folder holds something else or a link.
        ResumeError: The run folder belongs to another configuration or input.
        EngineError: A file of the model is missing or damaged.
        StorageError: The run folder cannot be read, or not be written.
        ClusterError: The Ray cluster that a run would join does not answer, or does not let us in.
    """
    config = with_absolute_paths(config)
    folder, manifest = open_folder(config.run_dir), None
    refuse_passing(folder, "run_dir")
    with writing_errors(config.run_dir):
        folder.refuse_links()
        if folder.is_local:  # what a store says can wait for the run: here it may be out of reach, or closed
            manifest = read_manifest(folder)
    if manifest is not None:
        check_same_run(manifest, describe_config(config), folder)
        if read_summary(folder) is None:
            check_journal(folder, manifest.get("run_id", ""))
    load_scorer_of(config)
    heads = heads_of(config)
    with tempfile.TemporaryDirectory(prefix="clear_ray_") as scratch:
        is_named = bool(config.input.path or config.input.tasks or config.input.retry_of)
        is_taken_in = manifest is not None and not is_named
        into = folder if is_taken_in else open_folder(scratch)
        digest = take_in(None, config, into, manifest if is_taken_in else None)
        survey = survey_queries(into.child("queries"), config.scoring.scorer)
        if manifest is not None:
            check_same_run(manifest, describe_input(digest), folder)
        hardly = least_call(config, into)
        if not is_taken_in:
            cost_N = read_costs(into, digest.rows)
            check_one_call(config, cost_N, into)
            check_minimum_service(config, token_costs(config, cost_N, of=min), into)
        notes = (*notes_of(config, heads), *streaming_notes(config, digest.rows), *([hardly] if hardly else []))
        digest = replace(digest, notices=(*digest.notices, *notes))
    check_surroundings(config, folder)
    for named, head in zip(config.named_engines, heads, strict=True):
        check_engine(
            named.config,
            probe_layers=head.card.probe_layers,
            check_model=head.check_model,
            is_for_any_model=head.card.model_fingerprint == ANY_MODEL,
        )
    return Checked(digest, survey)


def check_surroundings(config: RunConfig, folder: Folder) -> None:
    """Refuse what a run finds around it: a folder in use or closed to this user, no cluster, no GPU. Nothing is started.

    Raises:
        ResumeError: Another run is writing to the folder.
        StorageError: This user may not write to it.
        ConfigError: The cluster has no place for the engines, or the store of heads is closed to this user, or would go with
            the job.
        ClusterError: It does not answer, or does not let us in.
    """
    if folder.is_local:
        refuse_in_use(folder)
        with writing_errors(config.run_dir):
            refuse_closed(folder)
    store = None if config.estimate.store is None else open_folder(config.estimate.store)
    if store is not None and store.is_local:
        refuse_passing(store, "estimate.store")
        with store_errors(config.estimate.store or ""):
            refuse_closed(store)
    if not ray.is_initialized():
        control_store = reach(os.environ.get("RAY_ADDRESS"))
        refuse_no_place([named.config for named in config.named_engines], control_store=control_store)


def refuse_closed(folder: Folder) -> None:
    """Raise OSError if its disk is read-only, or PermissionError if this user may not make or write a folder here."""
    there = next(path for path in (Path(folder.path), *Path(folder.path).parents) if path.exists())
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def notes_of(config: RunConfig, heads: tuple[Head, ...]) -> tuple[str, ...]:
    """Return what is to be said of a run's engines and heads before it begins, a line each; errors as of `engine_notes`."""
    said = tuple(note for label, note in _OF_LABELS.items() if any(head.card.label == label for head in heads))
    if config.scoring.agreement is not None and config.scoring.scorer is None and config.votes_by is None:
        said = (*said, _AGREEMENT)
    if config.engines is None:
        return (*engine_notes(config.engine), *said)
    notes = [f"{name}: {note}" for name, engine in config.engines.items() for note in engine_notes(engine)]
    return (*notes, *menu_notes(config), *said)


def menu_notes(config: RunConfig) -> list[str]:
    """Return what of several engines a user would not expect."""
    several, notes = config.named_engines, []
    for before, after in pairwise(several):
        costs = [(named.prices.read_parts, named.prices.token_parts) for named in (before, after) if named.prices]
        if costs[0] != costs[1] and all(cheap <= dear for cheap, dear in zip(costs[1], costs[0], strict=True)):
            notes.append(
                f"{after.name} is cheaper than {before.name} and stands after it: a query is asked of engines in their order"
            )
    unknown = [named.name for named in several if named.is_unknown]
    if unknown and config.scoring.scorer is None and config.votes_by is None:
        notes.append(
            f"no scorer says which answers are right, so nothing is learned of how much better one of {', '.join(unknown)} "
            "is than another: dear ones are asked for what cheap ones do not finish"
        )
    return notes


def heads_of(config: RunConfig) -> tuple[Head, ...]:
    """Return the heads of a run's engines; errors as of `head_of`."""
    if config.engines is None:
        return (head_of(config),)
    estimate = config.estimate
    return tuple(
        head_of(config.model_copy(update={"estimate": estimate.model_copy(update={"head": named.head})}))
        for named in config.named_engines
    )


def head_of(config: RunConfig) -> Head:
    """Return the head that a configuration names.

    Raises:
        ConfigError: There is none, it is for another number of layers, or there is no such encoder.
    """
    if config.estimate.encoder is not None:
        encoder_folder(config.estimate.encoder)
    return resolve_head(config.estimate.head, cap_tokens=config.allocation.max_tokens, layers=config.estimate.layers)
