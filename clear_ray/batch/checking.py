"""What a run refuses before it loads a model, in the order in which it does; told without Ray, and nothing is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.pricing import check_minimum_service, token_costs
from clear_ray.config.run import RunConfig
from clear_ray.engine.checking import check_engine, engine_notes
from clear_ray.estimation.encoder import encoder_folder
from clear_ray.estimation.head import ANY_MODEL, Head
from clear_ray.estimation.resolve import resolve_head
from clear_ray.ingest import InputDigest
from clear_ray.ledger.identity import check_journal
from clear_ray.run_folder.estimates import read_costs
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.run_folder.manifest import check_same_run, describe_config, describe_input, read_manifest
from clear_ray.run_folder.status import read_summary
from clear_ray.storage import open_folder, writing_errors
from clear_ray.tasks import Survey, survey_queries


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
        StorageError: The run folder cannot be read.
    """
    config = with_absolute_paths(config)
    folder, manifest = open_folder(config.run_dir), None
    with writing_errors(config.run_dir):
        folder.refuse_links()
        if folder.is_local:  # what a store says can wait for the run: here it may be out of reach, or closed
            manifest = read_manifest(folder)
    if manifest is not None:
        check_same_run(manifest, describe_config(config), folder)
        if read_summary(folder) is None:
            check_journal(folder, manifest.get("run_id", ""))
    load_scorer_of(config)
    head = head_of(config)
    with tempfile.TemporaryDirectory(prefix="clear_ray_") as scratch:
        is_named = bool(config.input.path or config.input.tasks or config.input.retry_of)
        is_taken_in = manifest is not None and not is_named
        into = folder if is_taken_in else open_folder(scratch)
        digest = take_in(None, config, into, manifest if is_taken_in else None)
        survey = survey_queries(into.child("queries"), config.scoring.scorer)
        if manifest is not None:
            check_same_run(manifest, describe_input(digest), folder)
        if not is_taken_in:
            check_minimum_service(config, token_costs(config, read_costs(into, digest.rows)), into)
        digest = replace(digest, notices=(*digest.notices, *engine_notes(config.engine)))
    check_engine(
        config.engine,
        probe_layers=head.card.probe_layers,
        check_model=head.check_model,
        is_for_any_model=head.card.model_fingerprint == ANY_MODEL,
    )
    return Checked(digest, survey)


def head_of(config: RunConfig) -> Head:
    """Return the head that a configuration names.

    Raises:
        ConfigError: There is none, it is for another number of layers, or there is no such encoder.
    """
    if config.estimate.encoder is not None:
        encoder_folder(config.estimate.encoder)
    return resolve_head(config.estimate.head, cap_tokens=config.allocation.max_tokens, layers=config.estimate.layers)
