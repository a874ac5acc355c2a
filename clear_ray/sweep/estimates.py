"""Estimates for a recording from heads that have not seen the queries they are asked about.

Either the heads are fitted on other rollouts (`train`), or each query is estimated by a head fitted on the other folds.
That training and evaluation never overlap, by query or by prompt, is checked here.

Shapes: N queries, K grid points.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.errors import ConfigError, SchemaError
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid
from clear_ray.estimation.diagnostics import prior_incidence
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.head import Head
from clear_ray.estimation.observations import Counts, count
from clear_ray.estimation.prior import PriorHead
from clear_ray.sweep.recording import Recording, read_recording, read_table


@dataclass(frozen=True, eq=False)
class Training:
    """What heads may be fitted on.

    Attributes:
        rollouts: Rollouts as a table.
        features: Probe features as a table.
        recording: The same rollouts.
        folds: Query id to fold, if the evaluated queries are among them; None if they are other queries.
        adjusted: Queries left out of training, or moved to another fold, because their prompt is evaluated too.
    """

    rollouts: pa.Table
    features: pa.Table
    recording: Recording
    folds: Mapping[str, int] | None
    adjusted: int = 0


def training_apart(recording: Recording, *, train: str) -> Training:
    """Return other rollouts to train on: a folder with `rollouts.parquet` and `features.parquet`.

    Small tasks repeat themselves under other seeds: a training query with a prompt that is evaluated is left out.

    Raises:
        SchemaError: A query is in both, nothing is left to train on, or a file cannot be read.
    """
    paths = str(Path(train) / "rollouts.parquet"), str(Path(train) / "features.parquet")
    other = read_recording(*paths)
    shared = set(other.rollouts.query_ids) & set(recording.rollouts.query_ids)
    if shared:
        raise SchemaError(
            f"{len(shared)} queries are in training and evaluation",
            train,
            min(shared),
            remedy="Train on other queries, or give --folds.",
        )
    evaluated = set(recording.rollouts.prompts)
    is_apart_N = np.array([prompt not in evaluated for prompt in other.rollouts.prompts])
    if not is_apart_N.any():
        raise SchemaError(
            "every prompt of the training rollouts is evaluated",
            train,
            remedy="Train on other queries, or give --folds.",
        )
    rollouts = read_table(paths[0])
    kept = set(np.asarray(other.rollouts.query_ids)[is_apart_N].tolist())
    rollouts = rollouts.filter(pa.array([query_id in kept for query_id in rollouts["query_id"].to_pylist()]))
    return Training(rollouts, read_table(paths[1]), other.take(is_apart_N), None, int((~is_apart_N).sum()))


def training_by_folds(recording: Recording, *, rollouts_path: str, features_path: str, folds_path: str) -> Training:
    """Return the evaluated rollouts themselves, to be fitted fold by fold; the file's `fold` maps query ids to folds.

    Queries with the same prompt all go into the fold of the first of them.

    Raises:
        ConfigError: The file cannot be read.
        SchemaError: A query has no fold, or there is only one fold.
    """
    try:
        given: dict[str, int] = json.loads(Path(folds_path).read_text(encoding="utf-8"))["fold"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the folds cannot be read: {error!r}",
            "folds",
            folds_path,
            remedy="Give a JSON file of query id and fold number.",
        ) from error
    fold_of_prompt: dict[str, int] = {}
    folds: dict[str, int] = {}
    for query_id, prompt in zip(recording.rollouts.query_ids, recording.rollouts.prompts, strict=True):
        if query_id not in given:
            raise SchemaError(
                "a query has no fold", folds_path, query_id, remedy="Give each query of the rollouts a fold."
            )
        folds[query_id] = fold_of_prompt.setdefault(prompt, given[query_id])
    if len(set(fold_of_prompt.values())) < 2:
        raise SchemaError(
            "cross-fitting needs at least two folds", folds_path, remedy="Put the queries into two folds or more."
        )
    moved = sum(fold != given[query_id] for query_id, fold in folds.items())
    return Training(read_table(rollouts_path), read_table(features_path), recording, folds, moved)


def estimate(recording: Recording, training: Training, *, kinds: Iterable[str], seed: int) -> dict[str, Curves]:
    """Return curves for every query of the recording, by kind of estimate.

    Args:
        recording: The queries asked about.
        training: What the heads are fitted on.
        kinds: Kinds of `estimation.fit`, and `task_prior`: the mean curve of the query's task.
        seed: Seed of the fits.
    """
    known = recording.features, recording.rollouts.prompts, recording.rollouts.query_ids
    curves = {}
    for kind in kinds:
        if kind == "task_prior":
            curves[kind] = _task_curves(recording, training)
            continue
        curves[kind] = fit_for(recording, training, kind=kind, seed=seed).curves(*known)
    return curves


def untaught(recording: Recording) -> dict[str, Curves]:
    """Return the curves of the prior in place of a head's, for policies that read nothing of them but the token grid."""
    known = recording.features, recording.rollouts.prompts, recording.rollouts.query_ids
    return {"competing_risks": PriorHead(cap_tokens=recording.cap_tokens).curves(*known)}


def fit_for(recording: Recording, training: Training, *, kind: str, seed: int) -> Head:
    """Return a head that has seen none of the queries it will be asked about; cross-fitted if it was trained by folds."""
    return fit_head(
        training.rollouts,
        training.features,
        kind=kind,
        seed=seed,
        folds=training.folds,
        cap_tokens=recording.cap_tokens,
        diagnostic_folds=0,
    )


def _task_curves(recording: Recording, training: Training) -> Curves:
    """Return each query's mean curve of its task over training queries."""
    tokens_K = token_grid(recording.cap_tokens)
    counts = count(recording.rollouts, tokens_K=tokens_K)
    task_N, evaluated = recording.task_N, slice(None)
    if training.folds is not None:
        fold_N = np.array([training.folds[query_id] for query_id in recording.rollouts.query_ids])
    else:
        other = training.recording
        counts = _joined(counts, count(other.rollouts, tokens_K=tokens_K))
        task_N = np.concatenate([task_N, other.task_N])
        fold_N = np.repeat([0, 1], [len(recording), len(other)])
        evaluated = slice(len(recording))
    found = prior_incidence(counts, fold_N=fold_N, labels=task_N.tolist())
    return curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=tokens_K).take(
        np.arange(len(task_N))[evaluated]
    )


def _joined(one: Counts, other: Counts) -> Counts:
    def both(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(one, name), getattr(other, name)])

    return replace(one, right_NK=both("right_NK"), wrong_NK=both("wrong_NK"), at_risk_NK=both("at_risk_NK"))
