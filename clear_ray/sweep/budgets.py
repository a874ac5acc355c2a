"""A sweep: every policy at every budget on the same recorded rollouts, as rows, a summary and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.estimate import PROBED_SETS
from clear_ray.errors import ConfigError
from clear_ray.estimation.factorised import DEFAULT_SETS, fit_coordinates
from clear_ray.estimation.feature_sets import FEATURE_SETS, FeatureSet, checked_sets
from clear_ray.estimation.head import save_head
from clear_ray.sweep.estimates import Training, estimate, fit_for, training_apart, training_by_folds, untaught
from clear_ray.sweep.figure import write_figure
from clear_ray.sweep.on_ray import REAL_POLICIES, RealRuns
from clear_ray.sweep.policies import LEARNING, NEEDED, POLICIES, UNTAUGHT, Contest, mean_outcome
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.rows import DRAWS, Judge, Row, share_of_way, table
from clear_ray.sweep.votes import read_votes
from clear_ray.tasks import Kind

BUDGETS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320)
SWEEP, TABLE, FIGURES = "sweep.json", "sweep.txt", ("sweep.png", "sweep.svg")


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, and what they come to.

    Attributes:
        rows: One a policy and budget.
        summary: Share of the way from uniform to the in-sample oracle by policy and budget, and how many times the tokens
            an equal ceiling needs for the same accuracy.
        facts: Which rollouts, which training, how many queries, samples, seeds and bootstrap draws.
    """

    rows: tuple[Row, ...]
    summary: dict[str, Any]
    facts: dict[str, Any]

    def write(self, output: str) -> None:
        """Write `sweep.json`, `sweep.txt` and the figure; the JSON last, so that it stands for all."""
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        title = f"{self.facts['queries']} queries, {self.facts['samples']} samples each"
        for name in FIGURES:
            write_figure(self.rows, folder / name, title=title)
        (folder / TABLE).write_text(table(self.rows) + "\n", encoding="utf-8")
        document = {"rows": [asdict(row) for row in self.rows], "summary": self.summary, **self.facts}
        (folder / SWEEP).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def sweep(
    rollouts_path: str,
    features_path: str,
    *,
    train: str | None = None,
    folds_path: str | None = None,
    budgets: Sequence[float] = BUDGETS,
    policies: Sequence[str] | None = None,
    seeds: int = 1,
    on_ray: str | None = None,
    model: str | None = None,
    agreement: Kind | None = None,
) -> Sweep:
    """Replay recorded rollouts under every policy and budget, through the policy and ledger code of real runs.

    Args:
        rollouts_path: Parquet of the rollouts to judge on; all queries with the same number of samples.
        features_path: Parquet of their probe features; or names of feature sets that need no probe, with commas: `text`
            (with `ngrams`), `length`, `task`.
        train: Folder with `rollouts.parquet` and `features.parquet` of other queries to fit heads on.
        folds_path: JSON of folds instead, for cross-fitting on the same queries; at most one of the two. Without either only
            the policies in `UNTAUGHT` are played.
        budgets: Average tokens a query.
        policies: Names out of `POLICIES`; all that can be played if not given.
        seeds: How many fits and orders of breaking ties to average over.
        on_ray: Folder for run folders: also run `clear_ray` and `uniform_refunds` on Ray, on as many samples as seeds.
        model: Model whose answers to read, where the file holds those of several models.
        agreement: How final answers are read that `learning_without_gold` compares, by their text; it asks no query again
            if not given.

    Raises:
        SchemaError: A file cannot be read, or training and evaluation overlap.
        ConfigError: Unknown policy, no budget, two ways of training, or a policy that needs one and none is given.
    """
    sets, probed_path = _read_sets(features_path)
    has_training = train is not None or folds_path is not None
    policies = policies or (POLICIES if has_training else UNTAUGHT)
    _check(budgets, policies, seeds, train, folds_path)
    recording = read_recording(rollouts_path, probed_path, model=model)
    training = _training(recording, train, folds_path, rollouts_path, probed_path)
    vote_NS = None if agreement is None else read_votes(rollouts_path, recording, agreement, model=model)
    contests = [replace(_contest(recording, training, policies, sets, seed), vote_NS=vote_NS) for seed in range(seeds)]
    judge = Judge(recording)
    rows = tuple(
        judge.row(policy, budget, mean_outcome([contest.play(policy, budget) for contest in contests]))
        for budget in budgets
        for policy in policies
    )
    if on_ray is not None and training is not None:
        rows += _real_rows(recording, training, judge, rollouts_path, features_path, budgets, policies, seeds, on_ray)
    named = {"rollouts": rollouts_path, "train": train, "folds": folds_path, "agreement": agreement, "seeds": seeds}
    return Sweep(rows, _summary(rows, judge, recording), {**named, **_facts(recording, training, sets)})


def _facts(recording: Recording, training: Training | None, sets: Sequence[str]) -> dict[str, Any]:
    return {
        "queries_adjusted": 0 if training is None else training.adjusted,
        "features": list(sets),
        "queries": len(recording),
        "samples": recording.samples,
        "bootstrap_draws": DRAWS,
    }


def _training(
    recording: Recording, train: str | None, folds_path: str | None, rollouts_path: str, probed_path: str | None
) -> Training | None:
    if train is not None:
        return training_apart(recording, train=train)
    if folds_path is None:
        return None
    features_path = _probed(probed_path)
    return training_by_folds(recording, rollouts_path=rollouts_path, features_path=features_path, folds_path=folds_path)


def _contest(
    recording: Recording, training: Training | None, policies: Sequence[str], sets: Sequence[str], seed: int
) -> Contest:
    if training is None:
        curves = untaught(recording)
    else:
        kinds = dict.fromkeys(["competing_risks", *(kind for policy in policies for kind in NEEDED.get(policy, ()))])
        curves = estimate(recording, training, kinds=kinds, seed=seed)
    x_NP = _coordinates(recording, sets) if set(policies) & set(LEARNING) else None
    return Contest(recording, curves, seed, x_NP=x_NP)


def _coordinates(recording: Recording, sets: Sequence[str]) -> NDArray[np.float64]:
    """Return the coordinates of the queries, fitted on all their prompts and on no answer."""
    known = recording.features, recording.rollouts.prompts
    return fit_coordinates(*known, sets=sets, tasks=recording.task_N.tolist())(*known, recording.task_N.tolist())


def _read_sets(features: str) -> tuple[tuple[FeatureSet, ...], str | None]:
    """Return which feature sets are read, and the file of probe features, if it is one that was named."""
    words = features.replace(",", " ").split()
    if not words or not set(words) <= set(FEATURE_SETS) - PROBED_SETS:
        return checked_sets(DEFAULT_SETS), features
    return checked_sets([*words, "ngrams"] if "text" in words else words), None


def _probed(path: str | None) -> str:
    if path is None:
        raise ConfigError(
            "a head is fitted on probe features",
            "sweep: features",
            remedy="Give --features a file, or leave out --folds.",
        )
    return path


def _real_rows(
    recording: Recording,
    training: Training,
    judge: Judge,
    rollouts_path: str,
    features_path: str,
    budgets: Sequence[float],
    policies: Sequence[str],
    seeds: int,
    folder: str,
) -> tuple[Row, ...]:
    head_dir = str(Path(folder) / "head")
    save_head(fit_for(recording, training, kind="competing_risks", seed=0), head_dir)
    real = RealRuns(recording, rollouts_path=rollouts_path, features_path=features_path, head=head_dir, folder=folder)
    return tuple(
        judge.row(f"{policy}_on_ray", budget, real.play(policy, budget, samples=range(seeds)))
        for budget in budgets
        for policy in policies
        if policy in REAL_POLICIES
    )


def _summary(rows: Sequence[Row], judge: Judge, recording: Recording) -> dict[str, Any]:
    oracle = {row.average_budget: row.accuracy for row in rows if row.policy == "oracle"}
    most = float(recording.length_NS.mean())
    share: dict[str, dict[str, float]] = {}
    multiple: dict[str, dict[str, float | None]] = {}
    for row in rows:
        # The figure is at the budget: a policy that leaves tokens unspent is not forgiven them.
        even = judge.uniform_accuracy(min(row.average_budget, most))
        key = f"{row.average_budget:g}"
        if row.average_budget in oracle:
            way = share_of_way(row.accuracy, uniform=even, oracle=oracle[row.average_budget])
            share.setdefault(row.policy, {})[key] = way
        tokens = judge.uniform_tokens(row.accuracy)
        multiple.setdefault(row.policy, {})[key] = None if tokens == float("inf") else tokens / row.tokens_per_query
    return {"share_of_way_to_oracle": share, "uniform_tokens_for_same_accuracy": multiple}


def _check(
    budgets: Sequence[float], policies: Sequence[str], seeds: int, train: str | None, folds_path: str | None
) -> None:
    if train is not None and folds_path is not None:
        raise ConfigError(
            "give either other rollouts to train on, or folds for cross-fitting",
            "sweep: train, folds",
            remedy="Leave one of --train and --folds out.",
        )
    for policy in policies:
        if policy not in POLICIES:
            raise ConfigError("no such policy", "sweep: policies", policy, f"Use some of {', '.join(POLICIES)}.")
        if train is None and folds_path is None and policy not in UNTAUGHT:
            raise ConfigError(
                "this policy needs a head that was fitted beforehand",
                "sweep: policies",
                policy,
                f"Give --train or --folds, or use some of {', '.join(UNTAUGHT)}.",
            )
    if not policies or not budgets or min(budgets) <= 0:
        raise ConfigError(
            "a sweep needs policies, and budgets above 0",
            "sweep: budgets",
            str(list(budgets)),
            remedy="Give --budgets such as 16,32,64 and --policies such as clear_ray,uniform.",
        )
    if seeds < 1:
        raise ConfigError(
            "a sweep needs at least one seed", "sweep: seeds", str(seeds), remedy="Give --seeds 1 or more."
        )
