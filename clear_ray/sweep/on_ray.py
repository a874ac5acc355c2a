"""The same policies by whole runs on Ray: `batch.run` with `ReplayEngine`, one run a policy, budget and sample.

Slow beside the replay in this process, which makes the same decisions; for showing that it does.

Shapes: N queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.sweep.policies import Outcome, mean_outcome
from clear_ray.sweep.recording import Recording, read_table
from clear_ray.tasks.recorded import text_digest

REAL_POLICIES = {"clear_ray": "clear_ray", "uniform_refunds": "uniform"}
"""Policies that a run can be configured with, by their name in a sweep."""


class RealRuns:
    """Runs of one recording, each in a folder of its own under `folder`; one that is there already is only read.

    Args:
        recording: The rollouts, whose queries are written as the runs' input.
        rollouts_path: Where the engine reads them.
        features_path: Where it reads the features.
        head: Folder of the head.
        folder: Folder for input and run folders.
    """

    def __init__(self, recording: Recording, *, rollouts_path: str, features_path: str, head: str, folder: str) -> None:
        self._recording, self._head, self._folder = recording, head, Path(folder)
        self._engine = {"kind": "replay", "rollouts": rollouts_path, "features": features_path, "max_batch": 64}
        self._input = self._folder / "queries.parquet"
        self._folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(_queries(rollouts_path), self._input)

    def play(self, policy: str, average_tokens: float, *, samples: Sequence[int]) -> Outcome:
        """Return the mean outcome of one run for each sample.

        Raises:
            ConfigError: The policy exists in replay only.
        """
        if policy not in REAL_POLICIES:
            raise ConfigError("this policy runs in replay only", "sweep: policies", policy, "Leave out --on-ray.")
        return mean_outcome([self._play(policy, average_tokens, sample) for sample in samples])

    def _play(self, policy: str, average_tokens: float, sample: int) -> Outcome:
        settings = {
            "run_dir": str(self._folder / f"{policy}-{average_tokens:g}-{sample}"),
            "input": {"path": str(self._input)},
            "budget": int(average_tokens * len(self._recording)),
            "sample": sample,
            "engine": self._engine,
            "estimate": {"head": self._head},
            "allocation": {"max_tokens": self._recording.cap_tokens, "policy": REAL_POLICIES[policy]},
            "scoring": {"scorer": "clear_ray.tasks.recorded:score_recorded"},
        }
        result = run(None, RunConfig.parse(settings))
        columns = ["query_id", "correct", "finish_reason", "spent_tokens"]
        rows = {
            row["query_id"]: row for row in pq.read_table(f"{result.run_dir}/completions", columns=columns).to_pylist()
        }
        found = [rows[query_id] for query_id in self._recording.rollouts.query_ids]
        return Outcome(
            right_N=np.array([row["correct"] == 1.0 and row["finish_reason"] == "stop" for row in found], np.float64),
            spent_tokens_N=np.array([row["spent_tokens"] for row in found], np.float64),
            rounds=float(len(result.report.rounds)),
        )


def _queries(rollouts_path: str) -> pa.Table:
    """Return one row a query as `clear-ray run` reads it; which recorded texts are right goes into `metadata`."""
    queries: dict[str, dict[str, str]] = {}
    right: dict[str, set[str]] = {}
    table = read_table(rollouts_path)
    wanted = [name for name in ("query_id", "prompt", "gold", "task", "correct", "text") if name in table.column_names]
    for row in table.select(wanted).to_pylist():
        queries.setdefault(row["query_id"], {name: row[name] for name in wanted if name not in ("correct", "text")})
        if row["correct"]:
            right.setdefault(row["query_id"], set()).add(text_digest(row["text"]))
    return pa.Table.from_pylist(
        [
            {"gold": ""} | query | {"metadata": json.dumps({"right": sorted(right.get(query_id, ()))})}
            for query_id, query in sorted(queries.items())
        ]
    )
