"""What does each step from the paper's policy to ours buy, on the same recorded answers?

Static steps clear once and count the budget as caps, as the paper does, so they leave tokens unspent; every row is compared
with the uniform cap that generates as many tokens as it did. The last steps spend what early finishers return. What is
read while answers run is added in the manner of `inflight.py`, for any number of stops, beside the same without it.

    python benchmarks/ablations.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from inflight import BUDGETS as RUNNING_BUDGETS
from inflight import VARIANTS, Study
from loops import loop_end
from numpy.typing import NDArray

from clear_ray.allocation import ShiftedErlang, allocate
from clear_ray.config.allocation import AllocationConfig
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.estimates import estimate, training_by_folds
from clear_ray.sweep.policies import Contest, MakeOffers, RuleOffers
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.rows import Judge, Row, table

DATA = Path(__file__).parents[1] / "tests" / "data" / "rollouts"
BUDGETS = (16, 24, 32, 48, 96)
ONCE = AllocationConfig(max_rounds=1)


def without_loops(recording: Recording) -> Recording:
    """Return the recording in which every answer is stopped, as wrong, once it has shown itself to be in a loop."""
    table = pq.read_table(DATA / "rollouts.parquet", columns=["query_id", "sample", "token_ids"])
    answers = table.sort_by([("query_id", "ascending"), ("sample", "ascending")])["token_ids"].to_pylist()
    ends = [loop_end(tokens) or len(tokens) for tokens in answers]
    length_NS = np.minimum(recording.length_NS, np.reshape(ends, recording.length_NS.shape))
    is_cut_NS = length_NS < recording.length_NS
    return replace(
        recording,
        length_NS=length_NS,
        is_stopped_NS=recording.is_stopped_NS | is_cut_NS,
        is_right_NS=recording.is_right_NS & ~is_cut_NS,
    )


def steps(contest: Contest) -> dict[str, tuple[MakeOffers, AllocationConfig | None]]:
    cap_N, erlang = contest.cap_N, contest.curves["shifted_erlang"]

    def erlang_of(generated_M: NDArray[np.int64], index: NDArray[np.int64], room_M: NDArray[np.int64]) -> ShiftedErlang:
        left_M = np.maximum(erlang.threshold_tokens_N[index] - generated_M, 0.0)
        return ShiftedErlang(left_M, erlang.solvability_N[index], erlang.beta_N[index], max_tokens_N=room_M)

    def risks(basis: str) -> MakeOffers:
        return lambda key: BatchOffers(contest.batch("competing_risks", key), basis=basis)  # type: ignore[arg-type]

    return {
        "paper": (lambda key: RuleOffers(allocate, contest.surge, cap_N, key), ONCE),
        "+ solvability": (lambda key: RuleOffers(allocate, erlang_of, cap_N, key), ONCE),
        "+ competing risks": (risks("ceilings"), ONCE),
        "+ expected spend": (risks("expected_spend"), ONCE),
        "+ re-clearing": (risks("expected_spend"), None),
        "ceilings, re-clearing": (risks("ceilings"), None),
        "paper, re-clearing": (lambda key: RuleOffers(allocate, contest.surge, cap_N, key), None),
    }


def while_running(study: Study, judge: Judge) -> list[dict[str, Any]]:
    """Return rows of pricing answers again at checkpoints, reading nothing of them or everything."""
    rows: list[dict[str, Any]] = []
    for policy, variant in (("checkpoints, nothing read", "static"), ("+ in-flight, all read", "everything")):
        accuracy_BN = study.accuracy_BN(study.prices_JR(VARIANTS[variant]))
        for budget, accuracy_N in zip(RUNNING_BUDGETS, accuracy_BN, strict=True):
            low, high = judge.interval(accuracy_N)
            found = {"accuracy": float(accuracy_N.mean()), "low": low, "high": high}
            rows.append({"policy": policy, "average_budget": budget, **found})
    return rows


def main() -> None:
    paths = str(DATA / "rollouts.parquet"), str(DATA / "features.parquet")
    recording = read_recording(*paths)
    training = training_by_folds(
        recording, rollouts_path=paths[0], features_path=paths[1], folds_path=str(DATA / "split.json")
    )
    kinds = ("competing_risks", "shifted_erlang", "regressed_threshold")
    contest = Contest(recording, estimate(recording, training, kinds=kinds, seed=0))
    stopped = Contest(without_loops(recording), contest.curves)
    judge = Judge(recording)
    rows: list[Row] = []
    for budget in BUDGETS:
        tokens = budget * len(recording)
        for name, (make, allocation) in steps(contest).items():
            rows.append(judge.row(name, budget, contest.run(make, tokens, allocation=allocation)))
        make = steps(stopped)["ceilings, re-clearing"][0]
        rows.append(judge.row("ceilings, loops stopped", budget, stopped.run(make, tokens)))
    folds = training.folds or {}
    fold_N = np.array([folds[name] for name in recording.rollouts.query_ids])
    running = while_running(Study(recording, contest.curves["competing_risks"], fold_N), judge)
    print(json.dumps({"figure": "ablations", "rows": [asdict(row) for row in rows] + running}))
    print(table(rows))
    for row in running:
        print("{policy:<24}{average_budget:>7g}{accuracy:>16.3f}  [{low:.3f}, {high:.3f}]".format(**row))


if __name__ == "__main__":
    main()
