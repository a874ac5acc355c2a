"""What does a minimum service cost, and what does it bring?

Whole runs in one process, as in `replay_accuracy`, with floors of 0 to 12 tokens under every query. Recorded answers were not
asked for directly, so a service counts as right only where the recorded answer itself ends within its floor: what it costs
is exact, what it brings is the least.

    python benchmarks/minimum_service.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clear_ray.config.allocation import AllocationConfig
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.estimates import estimate, training_by_folds
from clear_ray.sweep.policies import Contest, Outcome
from clear_ray.sweep.recording import read_recording

DATA = Path(__file__).parents[1] / "tests" / "data" / "rollouts"
BUDGETS = (16, 24, 32, 48)
FLOORS = (0, 4, 8, 12)


def play(contest: Contest, budget: int, floor: int) -> Outcome:
    return contest.run(
        lambda key: BatchOffers(contest.batch("competing_risks", key)),
        budget * len(contest.recording),
        allocation=AllocationConfig(minimum_service_tokens=floor or None),
    )


def main() -> None:
    paths = str(DATA / "rollouts.parquet"), str(DATA / "features.parquet")
    recording = read_recording(*paths)
    training = training_by_folds(
        recording, rollouts_path=paths[0], features_path=paths[1], folds_path=str(DATA / "split.json")
    )
    contest = Contest(recording, estimate(recording, training, kinds=["competing_risks"], seed=0))
    rows, queries = [], len(recording)
    for budget in BUDGETS:
        without = play(contest, budget, 0)
        for floor in FLOORS:
            outcome = play(contest, budget, floor)
            lost_N = without.right_N - outcome.right_N
            rows.append(
                {
                    "budget": budget,
                    "floor": floor,
                    "right": float(outcome.right_N.sum()),
                    "lost": float(lost_N.sum()),
                    "lost_error": float(lost_N.std(ddof=1) * np.sqrt(queries)),
                    "tokens": float(outcome.spent_tokens_N.mean()),
                    "without_a_token": int((outcome.spent_tokens_N == 0).sum()),
                }
            )
    print(json.dumps({"figure": "minimum_service", "queries": queries, "rows": rows}))
    for row in rows:
        print("".join(f"{value:>18.4g}" for value in row.values()))


if __name__ == "__main__":
    main()
