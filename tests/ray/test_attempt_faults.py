"""Whatever dies while queries are asked again: no attempt twice, no answer lost, no double charge, and the same answers."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.batch.run import RunResult
from clear_ray.report.summary import RunReport
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.storage import open_folder
from tests.ray.test_attempts import answers_of, check_attempts
from tests.ray.test_faults import checked, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]


@pytest.fixture
def settings(replay_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run that asks again, each answer a file of its own, slow enough to die in."""
    allocation = {"objective": "solved", "attempts": 4, "max_tokens": 400, "overlap": True}
    found = replay_settings | {"budget": 96 * 199, "dispatch": {"rows_per_file": 1}, "allocation": allocation}
    found["engine"] = found["engine"] | {"tokens_per_second": 400.0, "max_batch": 16}
    return found


def written_as(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def whole_answers(run_dir: str) -> dict[tuple[int, int], str]:
    """Return the answers of a run folder that ended by themselves, whatever is of it by now: by query and sample."""
    folder = open_folder(run_dir)
    files, parts = folder.child("rounds").files(".parquet"), AnswerParts(folder)
    rows = [row for path in files for row in parts.whole(pq.read_table(path)).to_pylist()]
    return {(row["index"], row["sample"]): row["text"] for row in rows if row["finish_reason"] == "stop"}


def result_of(report: RunReport, config: Path) -> RunResult:
    return RunResult(report, yaml.safe_load(config.read_text())["run_dir"])


@pytest.mark.parametrize("objective", ["solved", "vote"])
@pytest.mark.parametrize("fault", ["driver:after 230 answers", "machine:after 230 answers"])
def test_a_run_that_asks_again_may_die(settings: dict[str, Any], tmp_path: Path, fault: str, objective: str) -> None:
    settings["allocation"] |= {"objective": objective}
    config = written_as(tmp_path / "run.yaml", settings)
    assert start(config, fault).returncode == -signal.SIGKILL, "it was to die"
    before = whole_answers(settings["run_dir"])
    assert any(sample for _, sample in before), "some were asked again already"
    report = checked(start(config), config)
    after = {(row["index"], row["sample"]): row["text"] for row in answers_of(result_of(report, config))}
    kept = {key: text for key, text in before.items() if key in after}
    assert {key: after[key] for key in kept} == kept
    assert len(before) - len(kept) <= 32, "only what was on its way when it died is lost, and was charged"
    if objective == "solved":
        check_attempts(result_of(report, config), most=4)


@pytest.mark.parametrize(
    ("faults", "objective"),
    [(("kill:EngineWorker", "kill:Generate"), "solved"), (("kill:MarketActor",), "vote")],
)
def test_an_actor_may_be_killed_while_queries_are_asked_again(
    settings: dict[str, Any], tmp_path: Path, faults: tuple[str, ...], objective: str
) -> None:
    settings["allocation"] |= {"objective": objective}
    config = written_as(tmp_path / "run.yaml", settings)
    ended = start(config, *faults)
    report = checked(ended, config)
    assert ended.stderr.count('"killed"') == len(faults)
    assert report.failed == 0
    if objective == "solved":
        check_attempts(result_of(report, config), most=4)


def test_the_embedded_model_draws_the_same_attempts_after_it_was_killed(tmp_path: Path) -> None:
    sums = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    tasks = [
        {"name": "sum", "task": "basic_arithmetic", "params": sums | {"operators": ["+"]}, "count": 10, "examples": 4},
        {"name": "product", "task": "basic_arithmetic", "params": sums | {"operators": ["*"]}, "count": 6, "seed": 5},
    ]
    settings: dict[str, Any] = {
        "input": {"tasks": tasks},
        "budget": 260,
        "engine": {"kind": "transformers", "model": "smollm2-135m-instruct", "max_batch": 8, "temperature": 0.8},
        "allocation": {"objective": "solved", "attempts": 3, "max_tokens": 10, "overlap": False},
        "estimate": {"head": "prior"},
        "scoring": {"scorer": "reasoning_gym"},
        "dispatch": {"rows_per_file": 1},
    }
    whole = written_as(tmp_path / "whole.yaml", settings | {"run_dir": str(tmp_path / "whole")})
    one = checked(start(whole), whole)
    broken = written_as(tmp_path / "broken.yaml", settings | {"run_dir": str(tmp_path / "broken")})
    assert start(broken, "driver:after 20 answers").returncode == -signal.SIGKILL, "it was to die"
    before = whole_answers(str(tmp_path / "broken"))
    other = checked(start(broken), broken)
    found = {(row["index"], row["sample"]): row["text"] for row in answers_of(result_of(other, broken))}
    assert {key: found.get(key) for key in before} == before, "what was answered is kept"
    same = whole_answers(str(tmp_path / "whole"))
    again = whole_answers(str(tmp_path / "broken"))
    compared = same.keys() & again.keys()
    assert {key: again[key] for key in compared} == {key: same[key] for key in compared}, "each sample is drawn alike"
    assert len(compared) >= 12
    assert any(sample for _, sample in compared)
    for report, config in ((one, whole), (other, broken)):
        check_attempts(result_of(report, config), most=3)
    print(json.dumps({"compared": len(compared), "spent": [one.spent_tokens, other.spent_tokens]}))
