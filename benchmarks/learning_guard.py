"""Is a run that learns ever worse than equal ceilings, where what it learns from says nothing?

Replays of recorded answers through the real law, small batches, everything charged:

- `shuffled`: the coordinates are those of other queries;
- `random_scorer`: the verdicts are drawn by lot at the true rate, and the true ones are counted;
- `other_head`: a head is given to learn on from, and its curves are those of other queries;
- `plain`: nothing is wrong, but the batch is tiny.

A gain is counted in standard errors of the equal ceiling's accuracy on a batch of that size: the aim is -.5 at worst.

    python benchmarks/learning_guard.py DIR [--draws 6] [--sizes 20,50,100] [--budgets 8,32,96,320] [--cases shuffled,...]

DIR holds rollouts.parquet and features.parquet, such as tests/data/rollouts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from learning import Drawn, cross_fitted, draw
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves, token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.hazards import Incidence
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.sweep.policies import equal_ceilings
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers, replay_run

CASES = ("shuffled", "random_scorer", "other_head", "plain")


def gain(drawn: Drawn, average: float, case: str, head: Curves) -> tuple[float, float]:
    """Return what a run that learns answers above the equal ceiling, and what that one answers."""
    rng, r = np.random.default_rng([7, drawn.seed]), drawn.recording
    length_N, is_right_N, one_N = r.length_NS[:, 0], r.is_right_NS[:, 0], np.ones(len(r))
    said_N: NDArray[np.bool_] = is_right_N
    if case == "random_scorer":
        said_N = rng.random(len(r)) < is_right_N.mean()
    given = None
    if case == "other_head":
        wrong = head.take(drawn.row_N[rng.permutation(len(r))])
        right_NK, survival_NK = wrong.success_NK.astype(float), wrong.survival_NK.astype(float)
        given = Incidence(right_NK, (1.0 - right_NK - survival_NK).clip(0.0), survival_NK)
    offers = LearningOffers(
        x_NP=drawn.x_NP,
        tokens_K=token_grid(r.cap_tokens),
        weight_N=one_N,
        max_tokens_N=np.full(len(r), r.cap_tokens),
        tie_break_N=rng.permutation(len(r)).astype(np.uint64),
        cost_N=one_N,
        budget_tokens=int(average * len(r)),
        given=given,
        seed=drawn.seed,
    )
    played = replay_run(
        offers,
        Answers(length_N, r.is_stopped_NS[:, 0], said_N),
        budget_tokens=offers.budget_tokens,
        allocation=AllocationConfig(max_rounds=LEARNING_ROUNDS),
    )
    even = float(equal_ceilings(r, average).right_N.mean())
    return float((is_right_N & (played.spent_tokens_N >= length_N)).mean()) - even, even


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--sizes", default="20,50,100")
    parser.add_argument("--budgets", default="8,32,96,320")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--features", default="text,ngrams")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    recording = read_recording(str(folder / "rollouts.parquet"), str(folder / "features.parquet"))
    known = recording.features, recording.rollouts.prompts
    x_NP = fit_coordinates(*known, sets=arguments.features.split(","))(*known)
    head = cross_fitted(recording, x_NP, samples=range(recording.samples), seed=0)
    rows = []
    for case in arguments.cases.split(","):
        for queries in _numbers(arguments.sizes):
            for average in _numbers(arguments.budgets):
                found = [
                    gain(
                        draw(
                            recording, x_NP, copies=1, queries=queries, shuffled=case == "shuffled", seed=seed
                        ), float(average), case, head,
                    )
                    for seed in range(arguments.draws)
                ]  # fmt: skip
                rows.append(_row(case, queries, average, np.array(found)))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(arguments).items() if name in ("draws", "features")}
    print(json.dumps({"figure": "learning_guard", **settings, "path": folder.name, "rows": rows}))


def _row(case: str, queries: int, average: int, found_D2: NDArray[np.float64]) -> dict[str, Any]:
    gain_D, even = found_D2[:, 0], float(found_D2[:, 1].mean())
    error = float(np.sqrt(even * (1.0 - even) / queries))
    return {
        "case": case,
        "queries": queries,
        "average_budget": average,
        "uniform": round(even, 4),
        "gain": round(float(gain_D.mean()), 4),
        "gain_in_standard_errors": round(float(gain_D.mean()) / error, 2),
        "its_error": round(float(gain_D.std(ddof=1) / np.sqrt(len(gain_D))) / error, 2),
    }


def _numbers(words: str) -> Sequence[int]:
    return [int(word) for word in words.split(",")]


if __name__ == "__main__":
    main()
