"""Whole runs with several engines under one price, on a local cluster: recorded answers, and the best of eight of them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ResumeError
from clear_ray.ledger.entries import entry_of
from clear_ray.ledger.journal import read_journal, wait_until_unused
from clear_ray.ledger.ledger import Ledger
from clear_ray.report.summary import RunReport
from clear_ray.report.text import plan_text, summary_text
from clear_ray.storage import open_folder
from clear_ray.tasks import generate_queries
from tests.conftest import ROLLOUTS
from tests.ray.test_survival import start, wait_for_answers, write_config

SMALL, LARGE = {"input": "0.015", "output": "0.045"}, {"input": "0.16", "output": "0.48"}
OUTPUT_PARTS = {"small": 45_000, "large": 480_000}
READ_PARTS = {"small": 15_000, "large": 160_000}


@pytest.fixture(scope="module")
def best_of_eight(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the recording of a model that knows which of eight recorded answers to a query is right."""
    table = pq.read_table(ROLLOUTS / "rollouts.parquet")
    order = pa.table(
        {"query_id": table["query_id"], "wrong": pc.invert(table["correct"]), "row": pa.array(range(len(table)))}
    ).sort_by([("query_id", "ascending"), ("wrong", "ascending"), ("row", "ascending")])
    first: dict[str, int] = {}
    for query_id, row in zip(order["query_id"].to_pylist(), order["row"].to_pylist(), strict=True):
        first.setdefault(query_id, row)
    path = tmp_path_factory.mktemp("recorded") / "large.parquet"
    pq.write_table(table.take(pa.array(list(first.values()))), path)
    return str(path)


@pytest.fixture
def menu(replay_settings: dict[str, Any], best_of_eight: str) -> dict[str, Any]:
    """Return settings of a run that may ask the model once, or the one that knows."""
    engine = replay_settings.pop("engine")
    return replay_settings | {
        "budget": "$0.008",
        "engines": {
            "small": {"kind": "replay", "rollouts": engine["rollouts"], "max_batch": 64, "prices": SMALL},
            "large": {"kind": "replay", "rollouts": best_of_eight, "max_batch": 16, "prices": LARGE},
        },
        "estimate": {},
        "allocation": {"max_tokens": 400, "objective": "solved"},
    }


def test_two_engines_vote_and_the_account_is_exact(menu: dict[str, Any]) -> None:
    menu["allocation"] = {"max_tokens": 400, "objective": "vote", "votes_by": "exact", "attempts": 3}
    config = RunConfig.parse(menu)
    result = run(None, config)
    report = result.report
    rows = check_bill(result.run_dir, report)
    assert {row["engine"] for row in rows} == {"small", "large"}
    assert report.attempts is not None
    assert (report.attempts.objective, report.attempts.most) == ("vote", 6)
    assert report.attempts.agreed
    attempts = pq.read_table(Path(result.run_dir) / "attempts").to_pylist()
    begun = Counter((row["index"], row["engine"]) for row in attempts)
    assert max(begun.values()) > 1, "one engine was asked again"
    assert max(begun.values()) <= 3
    chosen = {row["index"]: row for row in attempts if row["is_chosen"]}
    assert len(chosen) == report.completed
    assert run(None, config).report == report


def attempts_of(run_dir: str) -> list[dict[str, Any]]:
    """Return the attempts of a run, in the order of its rounds."""
    columns = [
        "index",
        "attempt",
        "sample",
        "round",
        "engine",
        "attempt_tokens",
        "answer_tokens",
        "taken_parts",
        "cost",
    ]
    tables = [pq.read_table(path, columns=columns) for path in sorted((Path(run_dir) / "rounds").rglob("*.parquet"))]
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: (row["round"], row["index"]))


def check_bill(run_dir: str, report: RunReport, *, wasted_parts: int = 0) -> list[dict[str, Any]]:
    """Check rows, journal, report and budget of a finished run against each other, to the thousandth; return its attempts."""
    rows = attempts_of(run_dir)
    prompts: dict[str, dict[int, int]] = {}
    for name, folder in (("small", "estimates"), ("large", "estimates-1")):
        table = pq.read_table(Path(run_dir) / folder, columns=["index", "prompt_tokens"])
        prompts[name] = dict(zip(table["index"].to_pylist(), table["prompt_tokens"].to_pylist(), strict=True))
    for row in rows:
        name, before = row["engine"], row["answer_tokens"] - row["attempt_tokens"]
        read = prompts[name][row["index"]] + before
        assert row["taken_parts"] == READ_PARTS[name] * read + OUTPUT_PARTS[name] * row["attempt_tokens"]
    dearest = OUTPUT_PARTS["large"] / 1_000
    ledger = Ledger(report.budget_tokens, report.queries, cost_N=dearest)
    for record in read_journal(open_folder(run_dir)):
        if "op" in record:
            ledger.apply(entry_of(record))
    ledger.check()
    assert (ledger.spent_tokens, ledger.reserved_tokens) == (report.spent_tokens, 0)
    assert ledger.spent_parts_N.sum() == sum(row["taken_parts"] for row in rows) + wasted_parts
    assert report.spent_tokens <= report.budget_tokens
    completions = pq.read_table(Path(run_dir) / "completions").to_pylist()
    for engine in report.engines:
        own = [row for row in rows if row["engine"] == engine.name]
        assert (engine.calls, engine.generated_tokens) == (len(own), sum(row["attempt_tokens"] for row in own))
        assert engine.spent_tokens == -(-sum(row["taken_parts"] for row in own) // 1_000)
        answers = [row for row in completions if row["engine"] == engine.name]
        assert (engine.answers, engine.correct) == (len(answers), sum(row["correct"] for row in answers))
    assert sum(engine.answers for engine in report.engines) == report.completed
    return rows


def test_wrong_answers_of_a_cheap_engine_are_followed_by_a_dear_one_and_the_account_is_exact(
    menu: dict[str, Any],
) -> None:
    config = RunConfig.parse(menu)
    planned = plan(None, config)
    assert planned.learning is not None
    assert "$0.008" in plan_text(planned)
    result = run(None, config)
    report = result.report
    rows = check_bill(result.run_dir, report)
    asked: dict[int, list[str]] = {}
    for row in rows:
        if row["attempt_tokens"] == row["answer_tokens"]:
            asked.setdefault(row["index"], []).append(row["engine"])
    ways = Counter(map(tuple, asked.values()))
    assert set(ways) <= {("small",), ("large",), ("small", "large")}
    assert ways["small", "large"] >= 10
    assert 0.8 * report.budget_tokens < report.spent_tokens
    recorded = pq.read_table(ROLLOUTS / "rollouts.parquet", columns=["sample", "correct"])
    once = float(pc.sum(recorded.filter(pc.equal(recorded["sample"], 0))["correct"]).as_py())
    assert report.correct is not None
    assert report.correct > once, "more than the cheap one is right of at any price"
    text = summary_text(report)
    assert "small: " in text
    assert "large: " in text
    assert report.attempts is not None
    assert report.attempts.solved == report.correct
    assert 0 < report.attempts.one_more_solves < report.queries - report.correct
    attempts = pq.read_table(Path(result.run_dir) / "attempts").to_pylist()
    assert {(row["index"], row["sample"]): row["engine"] for row in attempts} == {
        (row["index"], row["sample"]): row["engine"] for row in rows
    }
    assert run(None, config).report == report
    with pytest.raises(ResumeError, match=r"prices\.large"):
        run(None, RunConfig.parse(menu | {"prices": {"large": SMALL}, "engines": bare(menu, "large")}))
    sampled = plan(None, config, sample_share=0.01)
    assert sampled.sample_tokens <= 0.01 * config.budget_tokens
    if sampled.sampled_answers:
        assert sampled.high_tokens is not None
        assert sampled.low_tokens <= sampled.expected_tokens <= sampled.high_tokens


def bare(menu: dict[str, Any], name: str) -> dict[str, Any]:
    engine = {key: value for key, value in menu["engines"][name].items() if key != "prices"}
    return menu["engines"] | {name: engine}


@pytest.mark.slow
def test_the_embedded_model_and_a_recorded_one_are_killed_and_go_on(tmp_path: Path) -> None:
    """The demo's queries: the model that is shipped, and a recording that has the right answer to each of them."""
    demo = RunConfig.load("jobs/configs/demo.yaml")
    recorded = [
        {
            "query_id": row["query_id"],
            "sample": 0,
            "prompt": row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]),
            "prompt_tokens": 40,
            "finish_reason": "stop",
            "max_tokens": 160,
            "model": "answers",
            "text": f"Answer: {row['gold']}",
            "token_ids": list(range(8)),
            "tok_entropy": [0.0],
        }
        for row in generate_queries(demo.input.tasks)
    ]
    pq.write_table(pa.Table.from_pylist(recorded), tmp_path / "answers.parquet")
    settings = demo.model_dump(mode="json", exclude={"engine", "engines", "budget", "estimate"}) | {
        "run_dir": str(tmp_path / "run"),
        "budget": "$0.0009",
        "engines": {
            "small": {"model": "smollm2-135m-instruct", "threads": 1, "prices": SMALL},
            "large": {
                "kind": "replay",
                "rollouts": str(tmp_path / "answers.parquet"),
                "max_batch": 4,
                "tokens_per_second": 20.0,
                "prices": LARGE,
            },
        },
    }
    settings["allocation"] |= {"objective": "solved"}
    settings["dispatch"] |= {"rows_per_file": 1}
    config, run_dir = write_config(settings, tmp_path), str(tmp_path / "run")
    process = start(config)
    wait_for_answers(Path(run_dir), process, at_least=6)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until_unused(open_folder(run_dir))
    kept = {path: path.stat().st_mtime_ns for path in (Path(run_dir) / "rounds").rglob("*.parquet")}
    second = start(config)
    out, err = second.communicate(timeout=250)
    assert second.returncode in (0, 3), err
    summary = json.loads(out.splitlines()[-1])
    assert summary.pop("event") == "summary"
    report = RunReport.model_validate(summary)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    rows = attempts_of(run_dir)
    assert {row["engine"] for row in rows} == {"small", "large"}
    ledger = Ledger(report.budget_tokens, report.queries, cost_N=OUTPUT_PARTS["large"] / 1_000)
    settled: dict[tuple[int, int], int] = {}
    for record in read_journal(open_folder(run_dir)):
        if "op" in record:
            ledger.apply(entry_of(record))
            if record["op"] == "settle":
                settled[record["i"], record["a"]] = record["p"]
    ledger.check()
    assert (ledger.spent_tokens, ledger.wasted_tokens) == (report.spent_tokens, report.wasted_tokens)
    assert report.spent_tokens <= report.budget_tokens
    written = {(row["index"], row["attempt"]): row["taken_parts"] for row in rows}
    assert {attempt: settled[attempt] for attempt in written if attempt in settled} == {
        attempt: parts for attempt, parts in written.items() if attempt in settled
    }
    assert len(written.keys() & settled.keys()) >= report.completed
    assert report.correct is not None
    assert report.correct >= 44, "what the embedded model alone is right of, and more"


@pytest.mark.slow
@pytest.mark.parametrize("allocation", [{"policy": "uniform"}, {"objective": "best_of_n"}])
def test_equal_shares_and_the_best_of_several_keep_the_same_exact_account(
    allocation: dict[str, Any], menu: dict[str, Any]
) -> None:
    config = RunConfig.parse(menu | {"allocation": {"max_tokens": 400} | allocation})
    planned = plan(None, config)
    result = run(None, config)
    report = result.report
    rows = check_bill(config.run_dir, report)
    assert sum(planned.engines.values()) > 0
    assert report.correct is not None
    asked: dict[int, list[str]] = {}
    for row in rows:
        if row["attempt_tokens"] and row["answer_tokens"] == row["attempt_tokens"]:
            asked.setdefault(row["index"], []).append(row["engine"])
    if "policy" in allocation:
        assert report.learning is None
        assert all(len(engines) == 1 for engines in asked.values())
        counted = Counter(engines[0] for engines in asked.values())
        assert abs(counted["small"] - counted["large"]) <= 1
        assert "attempts/" not in summary_text(report)
    else:
        assert any(engines == ["small", "large"] for engines in asked.values())
        assert (Path(config.run_dir) / "attempts").exists()
