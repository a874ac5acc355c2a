"""One batch through the drivers of the law that need no cluster, and what it came to in a form to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clear_ray.config.allocation import AllocationConfig
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.offers import Offers
from clear_ray.rounds.running import Round
from clear_ray.sweep.replayed import Answers, replay_run
from tests.conftest import ROLLOUTS
from tests.unit.simulation import World, simulate


@dataclass(frozen=True)
class Played:
    """What a run came to, to the token.

    Attributes:
        grants: Of each round: number, tokens available, price, whether it is the service, grants in order of dispatch.
        reports: What each round came to, without times and scores.
        spent: Tokens charged, of each query.
        rows: Of each query: rounds, tokens granted, tokens of its answer, whether it ended by itself.
    """

    grants: list[tuple[int, int, float, bool, list[tuple[int, int]]]]
    reports: list[RoundReport]
    spent: list[int]
    rows: list[tuple[int, int, int, bool]]


def played(rounds: Sequence[Round], reports: Sequence[RoundReport], spent: list[int], rows: list[Any]) -> Played:
    grants = [
        (
            granted.number,
            granted.available_tokens,
            granted.clearing.shadow_price,
            granted.clearing.is_service,
            list(zip(granted.clearing.index_M.tolist(), granted.clearing.tokens_M.tolist(), strict=True)),
        )
        for granted in rounds
    ]
    bare = [report.model_copy(update={"seconds": 0.0, "correct": None}) for report in reports]
    return Played(grants, bare, spent, rows)


def recorded_answers(query_ids: Sequence[str]) -> Answers:
    """Return the first recorded answer of each query."""
    columns = ["query_id", "sample", "output_tokens", "finish_reason", "correct"]
    table = pq.read_table(ROLLOUTS / "rollouts.parquet", columns=columns).to_pylist()
    first = {row["query_id"]: row for row in table if row["sample"] == 0}
    rows = [first[query_id] for query_id in query_ids]
    is_stopped_N = np.array([row["finish_reason"] == "stop" for row in rows])
    is_right_N = np.array([bool(row["correct"]) for row in rows])
    return Answers(np.array([row["output_tokens"] for row in rows]), is_stopped_N, is_right_N & is_stopped_N)


def replayed(offers: Offers, answers: Answers, budget_tokens: int, allocation: AllocationConfig) -> Played:
    run = replay_run(offers, answers, budget_tokens=budget_tokens, allocation=allocation)
    granted_N, rounds_N = np.zeros((2, len(answers.length_N)), np.int64)
    for one in run.rounds:
        granted_N[one.clearing.index_M] += one.clearing.tokens_M
        rounds_N[one.clearing.index_M] += 1
    has_stopped_N = answers.is_stopped_N & (run.spent_tokens_N == answers.length_N)
    columns = (rounds_N, granted_N, run.spent_tokens_N, has_stopped_N)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return played(run.rounds, run.reports, run.spent_tokens_N.tolist(), rows)


def simulated(offers: Offers, answers: Answers, budget_tokens: int, allocation: AllocationConfig) -> Played:
    world = World(offers, answers.length_N.tolist(), budget_tokens, (~answers.is_stopped_N).tolist(), allocation)
    run = simulate(0, given=world, is_faultless=True)
    rows_of: dict[int, list[dict[str, Any]]] = {index: [] for index in range(run.queries)}
    for number in sorted(run.rows):
        for row in run.rows[number]:
            rows_of[row["index"]].append(row)
    rows = [
        (
            len(found),
            sum(row["granted_tokens"] for row in found),
            len(found[-1]["token_ids"]) if found else 0,
            bool(found) and found[-1]["finish_reason"] == "stop",
        )
        for found in rows_of.values()
    ]
    return played(
        [run.grants[number] for number in sorted(run.grants)],
        [run.reports[number] for number in sorted(run.reports)],
        run.spent_N.tolist(),
        rows,
    )
