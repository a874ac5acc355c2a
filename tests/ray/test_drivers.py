"""One batch through all four drivers of the law: on Ray, resumed on Ray, replayed, and in the simulation of faults.

Grants, spending and rows agree to the token. `tests/unit/rounds/test_drivers.py` does the same at many more budgets with
the two drivers that take milliseconds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.run import RunResult, run
from clear_ray.config.run import RunConfig
from clear_ray.estimation.resolve import resolve_head
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.offers import BatchOffers
from clear_ray.run_folder.estimates import read_estimates
from clear_ray.run_folder.grants import read_grants
from clear_ray.storage import open_folder
from tests.ray.test_run import check_account, completions_of
from tests.unit.rounds.drivers import Played, played, recorded_answers, replayed, simulated

QUERIES = 24


def on_ray(result: RunResult) -> Played:
    """Return what a finished run came to, from its folder."""
    check_account(result)
    folder, rounds = open_folder(result.run_dir), []
    while (granted := read_grants(folder, len(rounds) + 1)) is not None:
        rounds.append(granted)
    attempts = pq.read_table(f"{result.run_dir}/rounds").to_pylist() if rounds else []
    last = {row["index"]: row for row in sorted(attempts, key=lambda row: row["round"])}
    rows, spent = [], []
    for row in completions_of(result):
        answer = last[row["index"]]["answer_tokens"] if row["rounds"] else 0
        rows.append((row["rounds"], row["max_tokens"], answer, row["finish_reason"] == "stop"))
        spent.append(row["spent_tokens"])
    return played(rounds, result.report.rounds, spent, rows)


def cut_before(round_number: int, run_dir: str, copy: Path) -> None:
    """Copy a finished run as it was when a round was about to be cleared, which is as a driver leaves it that dies there."""
    shutil.copytree(run_dir, copy)
    for path in [*copy.glob("summary.json"), *copy.glob("report.html")]:
        path.unlink()
    for name in ("completions", *(f"rounds/{path.name}" for path in (copy / "rounds").iterdir())):
        if name == "completions" or int(name[-2:]) >= round_number:
            shutil.rmtree(copy / name)
    for path in (copy / "grants").iterdir():
        if int(path.stem[1:]) >= round_number:
            path.unlink()
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    opened = [n for n, line in enumerate(lines) if json.loads(line[9:]).get("round") == round_number]
    (copy / "journal.jsonl").write_bytes(b"".join(lines[: opened[0]]))


def written_input(path: Path, source: str) -> list[str]:
    """Write queries evenly drawn, with weights and costs; return their names."""
    table = pq.read_table(source)
    table = table.take(pa.array(range(0, len(table), len(table) // QUERIES)[:QUERIES]))
    rng = np.random.default_rng(1)
    columns = {"weight": rng.choice([0.0, 0.5, 1.0, 3.0], QUERIES), "cost": rng.choice([0.25, 1.0, 2.5], QUERIES)}
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    pq.write_table(table, path)
    names: list[str] = table["query_id"].to_pylist()
    return names


def batch_of(run_dir: str) -> Batch:
    head = resolve_head(None, cap_tokens=400)
    return read_estimates(open_folder(run_dir), np.array(head.card.tokens_K), seed=0).batch


@pytest.mark.parametrize(
    ("budget", "service", "cut"),
    [(3, None, None), (QUERIES * 16, None, 3), (QUERIES * 16, 3, 2), (60_000, None, None)],
)
def test_all_drivers_bring_a_batch_to_the_same_end(
    replay_settings: dict[str, Any], tmp_path: Path, budget: int, service: int | None, cut: int | None
) -> None:
    query_ids = written_input(tmp_path / "queries.parquet", replay_settings["input"]["path"])
    settings = replay_settings | {
        "input": {"path": str(tmp_path / "queries.parquet")},
        "budget": budget,
        "allocation": {"max_tokens": 400, "max_rounds": 6, "minimum_service_tokens": service},
    }
    config = RunConfig.parse(settings)
    whole = on_ray(run(None, config))
    offers, answers = BatchOffers(batch_of(config.run_dir)), recorded_answers(query_ids)
    assert replayed(offers, answers, budget, config.allocation) == whole
    assert simulated(offers, answers, budget, config.allocation) == whole
    assert any(is_service for *_, is_service, _ in whole.grants) == (service is not None)
    assert sum(whole.spent) > 0
    if cut is not None:
        assert len(whole.grants) >= cut
        cut_before(cut, config.run_dir, tmp_path / "cut")
        assert on_ray(run(None, RunConfig.parse(settings | {"run_dir": str(tmp_path / "cut")}))) == whole
