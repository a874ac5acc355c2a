"""Whole runs whose budget is money, on a local cluster, with recorded rollouts of a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ResumeError
from clear_ray.ledger.entries import entry_of
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import Ledger
from clear_ray.report.text import plan_text, summary_text
from clear_ray.storage import open_folder

PRICES = {"input": 0.15, "output": "$0.60", "probe": 0.01}
INPUT_PARTS, OUTPUT_PARTS, PROBE_PARTS = 150_000, 600_000, 10_000


def test_a_run_pays_for_prompts_and_answers_and_its_journal_says_so(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings | {"budget": "$0.01", "prices": PRICES}
    config = RunConfig.parse(settings)
    planned = plan(None, config, sample_share=0.01)
    assert 0 < planned.low_tokens <= planned.expected_tokens <= planned.worst_tokens <= 10_000_000
    assert "$0.01" in plan_text(planned)
    assert planned.sampled_answers == 0 or planned.sample_tokens <= 0.01 * planned.budget_tokens

    result = run(None, config)
    report = result.report
    assert (report.unit, report.budget_tokens) == ("USD", 10_000_000)
    assert 0.5 * report.budget_tokens < report.spent_tokens <= report.budget_tokens
    assert report.completed + report.abandoned == report.queries
    assert "$0.01" in summary_text(report)
    ledger = Ledger(report.budget_tokens, report.queries, cost_N=OUTPUT_PARTS / 1_000)
    for record in read_journal(open_folder(result.run_dir)):
        if "op" in record:
            ledger.apply(entry_of(record))
    ledger.check()
    assert (ledger.spent_tokens, ledger.reserved_tokens) == (report.spent_tokens, 0)
    assert ledger.spent_parts_N.sum() == bill_parts(result.run_dir)
    assert report.probe_tokens == planned.probe_tokens == -(-report.prefill_tokens * PROBE_PARTS // 1_000)
    assert report.spent_tokens == -(-(ledger.spent_parts_N.sum() + report.prefill_tokens * PROBE_PARTS) // 1_000)

    again = run(None, config)
    assert again.report == report
    with pytest.raises(ResumeError, match="prices"):
        run(None, RunConfig.parse(settings | {"prices": PRICES | {"output": 0.61}}))


@pytest.mark.slow
def test_a_run_that_learns_and_one_that_is_priced_from_sketches_keep_a_budget_of_gpu_time(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    prices = {"input": 20, "output": 400, "unit": "gpu-seconds"}
    allocation = replay_settings["allocation"]
    for name, changed in {
        "learning": {"estimate": {"head": "learn"}, "allocation": allocation | {"max_rounds": 6}},
        "sketched": {"allocation": allocation | {"sketched": True}},
    }.items():
        settings = (
            replay_settings | {"budget": "5 gpu-seconds", "prices": prices, "run_dir": str(tmp_path / name)} | changed
        )
        report = run(None, RunConfig.parse(settings)).report
        assert (report.unit, report.budget_tokens) == ("gpu-seconds", 5 * 10**9)
        assert 0.5 * report.budget_tokens < report.spent_tokens <= report.budget_tokens, name


def bill_parts(run_dir: str) -> int:
    """Return what the attempts of a run took, from their rows: each read its prompt, and what it went on from."""
    folder = Path(run_dir)
    prompts = pq.read_table(folder / "estimates", columns=["index", "prompt_tokens"]).to_pylist()
    prompt_tokens = {row["index"]: row["prompt_tokens"] for row in prompts}
    bill = 0
    for path in sorted((folder / "rounds").rglob("*.parquet")):
        for row in pq.read_table(path, columns=["index", "attempt_tokens", "answer_tokens"]).to_pylist():
            before = row["answer_tokens"] - row["attempt_tokens"]
            bill += INPUT_PARTS * (prompt_tokens[row["index"]] + before) + OUTPUT_PARTS * row["attempt_tokens"]
    return bill
