"""How many recorded answers does one budget buy, against the uniform caps that spend the same tokens?

Whole runs in one process: `Rounds`, the ledger, the line of the market and the recorded rollouts are those of
`clear-ray run`; only Ray is not there. Every query's curve comes from a head that was fitted on the other folds.

    python benchmarks/replay_accuracy.py                 all samples at 16, 32, 48, 96 and 192 tokens a query
    python benchmarks/replay_accuracy.py --on-ray 32     the same at one budget by `clear_ray.run`, to compare with
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clear_ray.calibrate import fit_recorded
from clear_ray.estimation.head import load_head
from clear_ray.estimation.prior import PriorHead
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.on_ray import RealRuns
from clear_ray.sweep.policies import Contest
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.rows import Judge, Row, table

DATA = Path(__file__).parents[1] / "tests" / "data" / "rollouts"
BUDGETS = (16, 32, 48, 96, 192)
PLAYED = ("clear_ray", "uniform", "uniform_refunds", "proportional", "smallest_threshold", "oracle")


def cross_fitted_head(folder: Path) -> str:
    head_dir = folder / "head"
    fit_recorded(
        str(DATA / "rollouts.parquet"),
        str(DATA / "features.parquet"),
        head_dir=str(head_dir),
        folds_path=str(DATA / "split.json"),
    )
    return str(head_dir)


def contest(recording: Recording, head_dir: str) -> Contest:
    known = recording.features, recording.rollouts.prompts, recording.rollouts.query_ids
    prior = PriorHead(cap_tokens=recording.cap_tokens).curves(*known)
    return Contest(recording, {"competing_risks": load_head(head_dir).curves(*known), "prior": prior})


def in_process(recording: Recording, head_dir: str) -> list[Row]:
    held, judge = contest(recording, head_dir), Judge(recording)
    rows = []
    for budget in BUDGETS:
        outcomes = {policy: held.play(policy, budget) for policy in PLAYED}
        outcomes["clear_ray, prior"] = held.run(
            lambda key: BatchOffers(held.batch("prior", key)), budget_tokens=budget * len(recording)
        )
        rows += [judge.row(policy, budget, outcome) for policy, outcome in outcomes.items()]
    return rows


def on_ray(recording: Recording, head_dir: str, budget: int, folder: Path, samples: int) -> list[Row]:
    """Run the first samples for real, and the same in this process."""
    chosen = np.arange(samples)
    real = RealRuns(
        recording,
        rollouts_path=str(DATA / "rollouts.parquet"),
        features_path=str(DATA / "features.parquet"),
        head=head_dir,
        folder=str(folder / "runs"),
    )
    held, judge = contest(recording, head_dir), Judge(recording)
    simulated = held.run(
        lambda key: BatchOffers(held.batch("competing_risks", key)), budget * len(recording), samples=chosen
    )
    return [
        judge.row("clear_ray, on Ray", budget, real.play("clear_ray", budget, samples=chosen.tolist())),
        judge.row("clear_ray, in process", budget, simulated),
    ]


def main(arguments: list[str]) -> None:
    recording = read_recording(str(DATA / "rollouts.parquet"), str(DATA / "features.parquet"))
    with tempfile.TemporaryDirectory(prefix="clear_ray_") as name:
        head_dir = cross_fitted_head(Path(name))
        if arguments[:1] == ["--on-ray"]:
            samples = int(arguments[2]) if len(arguments) > 2 else 1
            rows = on_ray(recording, head_dir, int(arguments[1]), Path(name), samples)
        else:
            rows = in_process(recording, head_dir)
    print(json.dumps({"figure": "replay_accuracy", "queries": len(recording), "rows": [asdict(row) for row in rows]}))
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
