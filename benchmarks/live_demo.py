"""Does the demo answer more than equal ceilings on other queries too, with a real model under a real budget?

Whole runs of `jobs/configs/demo.yaml` on local Ray with the embedded model under the same budget: once as it is, without any
head, as a run that learns from its own answers; once by the price with the head that ships for its tasks; and once by equal
ceilings. Each seed asks other queries with other worked examples: every source's seed is moved far away from those of the
demo and of its head's calibration. Everything else is the configuration's. Prints one JSON line.

    python benchmarks/live_demo.py                seeds 1, 2 and 3: nine runs of about three minutes of two cores
    python benchmarks/live_demo.py --seeds 4,5    others
    python benchmarks/live_demo.py --policies uniform --seeds 2

Runs lie in `runs/live-demo/seed-K-POLICY`; one that is finished is only read, so the command can be stopped and run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig

DEMO = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "demo.yaml"
SEEDS_APART = 100_000
POLICIES = ("clear_ray", "uniform", "learning")


def moved(seed: int, policy: str, folder: str) -> RunConfig:
    """Return the demo's configuration with the queries of another seed."""
    demo = RunConfig.load(DEMO)
    tasks = [task.model_copy(update={"seed": task.seed + seed * SEEDS_APART}) for task in demo.input.tasks]
    estimate, allocation = demo.estimate.model_dump(), demo.allocation.model_dump() | {"policy": policy}
    if policy == "learning":
        allocation |= {"policy": "clear_ray"}
    if policy == "clear_ray":
        estimate |= {"head": "demo"}
        allocation |= {"max_rounds": 4}
    settings = demo.model_dump() | {
        "run_dir": f"{folder}/seed-{seed}-{policy}",
        "input": demo.input.model_dump() | {"tasks": [task.model_dump() for task in tasks]},
        "estimate": estimate,
        "allocation": allocation,
    }
    return RunConfig.parse(settings, where=str(DEMO))


def play(seed: int, policy: str, folder: str) -> dict[str, Any]:
    """Return what one run came to."""
    report = run(None, moved(seed, policy, folder)).report
    return {
        "seed": seed,
        "policy": policy,
        "correct": report.correct,
        "scored": report.scored,
        "budget_tokens": report.budget_tokens,
        "spent_tokens": report.spent_tokens,
        "funded": report.funded,
        "abandoned": report.abandoned,
        "truncated": report.truncated,
        "failed": report.failed,
        "expected": report.expected_utility,
        "rounds": len(report.rounds),
        "shadow_price": report.shadow_price,
        "seconds": round(report.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--folder", default="runs/live-demo")
    asked = parser.parse_args()
    rows = [
        play(int(seed), policy, asked.folder) for seed in asked.seeds.split(",") for policy in asked.policies.split(",")
    ]
    print(json.dumps({"figure": "live_demo", "rows": rows}))


if __name__ == "__main__":
    main()
