"""Rollouts of a model -> a fitted head (docs/method.md, section 5): of what is right, or, without a scorer, of what ends.

Each sample is a batch run of its own under `<run_dir>/sample-NN`, with equal ceilings and its share of the budget: the same
engines, ledger and resume as any run. The probe features are read once more, this time with their hidden states. Run
again, a calibration goes on where it stopped; the rollouts and features stay beside the head for later fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data import ActorPoolStrategy

from clear_ray.batch.run import run
from clear_ray.cluster.engines import engine_workers
from clear_ray.cluster.joining import joined_cluster, quiet_data
from clear_ray.cluster.room import settled
from clear_ray.config.run import RunConfig
from clear_ray.config.scoring import VoteKind
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError
from clear_ray.estimation.factors import Label
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.head import Head, save_head
from clear_ray.estimation.prior import PriorHead
from clear_ray.report.live import Display
from clear_ray.run_folder.locations import refuse_passing, with_absolute_paths
from clear_ray.stages.features import ReadFeatures
from clear_ray.stages.probe import call_rows
from clear_ray.storage import Folder, inside, open_folder, reading_errors, writing_errors
from clear_ray.tasks import canonical, extract
from clear_ray.tasks.agreement import agreeing

_FEATURES_FILE = re.compile(r"\w*[0-9a-f]{32}_\d{6}[\w-]*\.parquet")
"""What Ray Data calls a file that it writes."""


UNSCORED = "there is no scorer: the head has learned which answers end by themselves, not which are right"
AGREED = (
    "there is no scorer: the head has learned which answers agree with others to the same query, not which are right"
)
_SAID_OF: Mapping[Label, tuple[str, ...]] = {"verdict": (), "agreement": (AGREED,), "ended": (UNSCORED,)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted head, and what it was fitted on.

    Attributes:
        head: The head; saved in `head_dir`.
        head_dir: Its folder.
        queries: Queries that it was fitted on: those with a gold answer, or all where nothing is scored.
        rollouts: Answers sampled.
        spent_tokens: Tokens they cost.
        warnings: What is amiss with the verdicts that it learned from, see `RunReport`, or that there were none.
    """

    head: Head
    head_dir: str
    queries: int
    rollouts: int
    spent_tokens: int
    warnings: tuple[str, ...] = ()


def calibrate(
    config: RunConfig,
    *,
    head_dir: str,
    samples: int = 4,
    kind: str = "competing_risks",
    created_by: str = "",
    encoder: str | None = None,
    engine: str | None = None,
    display: Display | None = None,
) -> Calibration:
    """Sample rollouts of a model, fit a head on them and save it.

    Args:
        config: Queries, the engine, and the budget of the whole calibration. With a scorer and gold answers the head learns
            which answers are right; without a scorer, which of several answers to a query agree (`scoring.agreement`), or
            else which end by themselves within `allocation.max_tokens`.
        head_dir: Local folder to write the head to.
        samples: Answers to each query; 1 is enough for greedy decoding, which would repeat itself.
        kind: Which model of curves; see `estimation.fit`.
        created_by: Command to name in the head's card.
        encoder: Local folder of an encoder to read the questions with, in place of the model's hidden states.
        engine: Which of several engines it is for, by its name.
        display: Display that is told of the progress of each sample's run.

    Raises:
        ConfigError: There is a scorer and no gold answer, several engines of which none is named, too few queries, features
            that are those of another, or a folder for the head that would go with its job.
        SchemaError: The input is refused.
        StorageError: The run folder's disk is full or broken, or closed to this user; the answers sampled are kept.
    """
    config = with_absolute_paths(_of_one_engine(config, engine))
    folder = open_folder(config.run_dir)
    refuse_passing(open_folder(head_dir), "--head-dir")
    with reading_errors(folder):
        _refuse_other_features(config, folder)
    with writing_errors(config.run_dir), joined_cluster(), quiet_data():
        sampled = [_sample(config, number, samples, display) for number in range(samples)]
        label = _label(config, samples)
        rollouts = _judged(pa.concat_tables([table for table, _ in sampled]), label)
        model = _read_features(config, folder)
        features = pq.read_table(folder.child(_features_name(config)).path, filesystem=folder.filesystem)
    head = fit_head(
        rollouts,
        features,
        kind=kind,
        seed=config.seed,
        model_name=model.name,
        model_fingerprint=model.fingerprint,
        cap_tokens=config.allocation.max_tokens,
        created_by=created_by,
        encoder=encoder,
        probe_layers=config.estimate.layers,
        label=label,
    )
    said = dict.fromkeys(warning for _, warnings in sampled for warning in warnings)
    return _saved(head, head_dir, rollouts, warnings=(*_SAID_OF[label], *said))


def _of_one_engine(config: RunConfig, name: str | None) -> RunConfig:
    """Return the settings of a run that asks one engine, once, in a folder of its own if there are several.

    Raises:
        ConfigError: There are several and none is named, or none of that name.
    """
    if config.engines is None and name is None:
        return config
    if config.engines is None:
        raise ConfigError("the configuration has one engine", "--engine", str(name), "Leave it out.")
    known = ", ".join(config.engines)
    if name is None or name not in config.engines:
        what, remedy = f"a head is fitted for one engine, and there are {known}", f"Name one of {known}."
        raise ConfigError(what, "--engine", name or "", remedy)
    (named,) = (each for each in config.named_engines if each.name == name)
    one = {
        "run_dir": inside(config.run_dir, name),
        "engine": named.config.model_dump(),
        "prices": named.prices.model_dump() if named.prices is not None else None,
        "estimate": {"layers": config.estimate.layers},
        "allocation": config.allocation.model_dump() | {"objective": "correct", "attempts": None, "votes_by": None},
        "scaling": {},
    }
    return RunConfig.parse(config.model_dump(exclude={"engines"}) | one)


def _label(config: RunConfig, samples: int) -> Label:
    """Return what says that an answer is right: the first that there is of a scorer, other answers, and its end."""
    if config.scoring.scorer is not None:
        return "verdict"
    return "agreement" if config.scoring.agreement is not None and samples > 1 else "ended"


def _judged(rollouts: pa.Table, label: Label) -> pa.Table:
    """Return rollouts whose `correct` is what the label says; only several samples together say which agree."""
    results = rollouts["result"].to_pylist()
    rollouts = rollouts.drop_columns(["result"])
    if label != "agreement":
        return rollouts
    is_right = agreeing(rollouts["query_id"].to_pylist(), results)
    return rollouts.set_column(rollouts.column_names.index("correct"), "correct", pa.array(is_right))


def fit_recorded(
    rollouts_path: str,
    features_path: str,
    *,
    head_dir: str,
    folds_path: str | None = None,
    kind: str = "competing_risks",
    seed: int = 0,
    model_fingerprint: str = "",
    created_by: str = "",
    encoder: str | None = None,
) -> Calibration:
    """Fit a head on rollouts that exist already, and save it; needs no cluster.

    Args:
        rollouts_path: Parquet; columns as in `estimation.fit.fit_head`.
        features_path: Parquet of the same queries' probe features.
        head_dir: Local folder to write the head to.
        folds_path: JSON whose `fold` maps query ids to folds: the head is cross-fitted, so that no query is estimated
            by a head that has seen it.
        kind: Which model of curves.
        seed: Seed of the fit.
        model_fingerprint: Fingerprint of the model that the rollouts come from; empty fits any.
        created_by: Command to name in the head's card.
        encoder: Local folder of an encoder to read the questions with, in place of the recorded hidden states.

    Raises:
        SchemaError: A column or a query's features are missing.
        ConfigError: A file cannot be read, or there are too few queries.
    """
    try:
        rollouts, features = pq.read_table(rollouts_path), pq.read_table(features_path)
        folds = json.loads(Path(folds_path).read_text())["fold"] if folds_path else None
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"recorded rollouts cannot be read: {error}",
            rollouts_path,
            remedy="Give whole Parquet files of rollouts and of their features.",
        ) from error
    names = set(rollouts["model"].to_pylist()) if "model" in rollouts.column_names else {""}
    head = fit_head(
        rollouts,
        features,
        kind=kind,
        seed=seed,
        folds=folds,
        model_name=", ".join(sorted(names)),
        model_fingerprint=model_fingerprint,
        created_by=created_by,
        encoder=encoder,
    )
    return _saved(head, head_dir, rollouts)


def _saved(head: Head, head_dir: str, rollouts: pa.Table, *, warnings: tuple[str, ...] = ()) -> Calibration:
    """Save a head that was fitted on these rollouts, and return what it came from."""
    save_head(head, head_dir)
    return Calibration(
        head=head,
        head_dir=head_dir,
        queries=len(set(rollouts["query_id"].to_pylist())),
        rollouts=len(rollouts),
        spent_tokens=int(np.sum(rollouts["output_tokens"].to_numpy())),
        warnings=warnings,
    )


def diagnostics_lines(diagnostics: Mapping[str, float]) -> list[str]:
    """Return held-out figures as aligned lines."""
    return [f"  {name:<34}{value:10.4f}" for name, value in diagnostics.items()]


def _sample(config: RunConfig, number: int, samples: int, display: Display | None) -> tuple[pa.Table, tuple[str, ...]]:
    """Run every query once and return its rollouts, and what its report warns of.

    With a scorer, queries without a gold answer that it can read are left out.
    """
    settings = config.model_dump() | {
        "run_dir": inside(config.run_dir, f"sample-{number:02d}"),
        "budget": config.part_of_budget(samples),
        "budget_rate": None,
        "sample": number,
        "allocation": config.allocation.model_dump() | {"policy": "uniform"},
        # Not of the answers: they serve heads for any number of layers.
        "estimate": {},  # equal ceilings heed no estimate, and another head or depth keeps the answers
    }
    result = run(None, RunConfig.parse(settings), display=display)
    folder = open_folder(result.run_dir)
    completions = pq.read_table(folder.child("completions").path, filesystem=folder.filesystem)
    prompts = pq.read_table(
        folder.child("queries").files(".parquet"),
        filesystem=folder.filesystem,
        columns=["query_id", "prompt", "is_conversation"],
    )
    rows = completions.join(prompts, "query_id")
    usable = rows.filter(pc.equal(rows["status"], "completed"))
    is_right = pc.equal(usable["finish_reason"], "stop")
    if config.scoring.scorer is not None:
        usable = usable.filter(pc.is_valid(usable["correct"]))
        is_right = pc.greater_equal(usable["correct"], 0.5)
    if not len(usable):
        said = " ".join(result.report.warnings)
        if config.scoring.scorer is None:
            raise ConfigError("no query was answered", "budget", said, "Give a budget that pays for answers.")
        remedy = "Give the queries a gold column that the scorer reads, or leave the scorer out."
        raise ConfigError("no query has a gold answer", "input", said, remedy)
    rollouts = pa.table(
        {
            "query_id": usable["query_id"],
            "task": usable["task"],
            "prompt": usable["prompt"],
            "sample": pa.array(np.full(len(usable), number, np.int64)),
            "output_tokens": usable["spent_tokens"],
            "finish_reason": usable["finish_reason"],
            "correct": is_right,
            "max_tokens": usable["max_tokens"],
            "result": pa.array(_results(usable, config.scoring.agreement), pa.string()),
        }
    )
    return rollouts, result.report.warnings


def _results(rows: pa.Table, kind: VoteKind | None) -> list[str | None]:
    """Return what each whole answer comes to, equal ones written the same; None where nothing is compared."""
    if kind is None:
        return [None] * len(rows)
    found: list[str | None] = []
    for row in rows.select(["text", "finish_reason", "prompt", "is_conversation"]).to_pylist():
        result = None
        if row["finish_reason"] == "stop":
            result = extract(row["text"], kind, prompt=row["prompt"], is_conversation=row["is_conversation"])
        found.append(None if result is None else canonical(result, kind))
    return found


def _read_features(config: RunConfig, folder: Folder) -> ModelCard:
    """Write the folder of features, unless it is there, and return the model's card."""
    name = _features_name(config)
    queries = folder.child("sample-00").child("queries")
    prior = PriorHead(cap_tokens=config.allocation.max_tokens, probe_layers=config.estimate.layers)
    with engine_workers(settled(config.engine), prior, run_dir=config.run_dir) as engines:
        if not folder.exists(f"{name}.json"):
            folder.delete(name)
            rows = ray.data.read_parquet(queries.files(".parquet"), filesystem=queries.filesystem)
            rows.map_batches(
                ReadFeatures,
                fn_constructor_args=(engines.workers.handles,),
                batch_size=call_rows(config, rows.count(), workers=config.engine.workers),
                batch_format="pyarrow",
                num_cpus=0.1,
                compute=ActorPoolStrategy(size=1),
            ).write_parquet(folder.child(name).path, filesystem=folder.filesystem)
            folder.child(name).sync()
            folder.write(f"{name}.json", b"{}")
        return engines.model


def _refuse_other_features(config: RunConfig, folder: Folder) -> None:
    """Make sure that the folder of features, which is replaced unless it is whole, is a calibration's."""
    name = _features_name(config)
    for path in [] if folder.exists(f"{name}.json") else folder.child(name).files():
        if not _FEATURES_FILE.fullmatch(path.rpartition("/")[2]):
            what = "a calibration would replace this file, and wrote none such"
            raise ConfigError(what, path, remedy="Move it, or name a new run_dir.")


def _features_name(config: RunConfig) -> str:
    """Return the name of the folder of features; beside it, under the same name, a file says that it is whole."""
    layers = config.estimate.layers
    return "features" if layers is None else f"features-{layers}-layers"
