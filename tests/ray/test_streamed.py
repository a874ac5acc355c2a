"""Whole runs on a local cluster whose price is cleared while prompts are read: when answers come, and what a kill leaves."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.batch import probe as probing
from clear_ray.batch import size_limits
from clear_ray.batch.coordinates import read_coordinates
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError
from clear_ray.report.text import summary_text
from clear_ray.run_folder.estimates import estimated_already
from clear_ray.run_folder.orders import order_stop
from clear_ray.storage import open_folder
from tests.ray.test_faults import checked, start
from tests.ray.test_operating import begin
from tests.ray.test_run import check_account, completions_of

HEADS = ("prior", "learn")


def streamed(settings: dict[str, Any], head: str = "prior", **changes: Any) -> dict[str, Any]:
    allocation = {"max_tokens": 400, "streamed": True}
    return settings | {"allocation": allocation, "estimate": {"head": head, "batch_rows": 2}} | changes


WHOLE = {"max_tokens": 400, "streamed": False}


def known_of(run_dir: str | Path) -> list[int | None]:
    """Return how many queries each clearing in a run folder was over; None where it was over all."""
    kept = [pq.read_schema(path).metadata[b"known_queries"] for path in sorted(Path(run_dir).glob("grants/*.parquet"))]
    return [int(queries) if queries else None for queries in kept]


def test_the_first_answers_come_before_the_last_prompt_is_read(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    whole = run(None, RunConfig.parse(streamed(replay_settings) | {"allocation": {"max_tokens": 400}}))
    settings = streamed(replay_settings, run_dir=str(tmp_path / "streamed"))
    result = run(None, RunConfig.parse(settings))
    for ended in (whole, result):
        check_account(ended)
        assert ended.report.wasted_tokens == 0
    known = known_of(result.run_dir)
    assert known[0] is not None
    assert known[0] < 80 < 199
    assert known[-1] is None
    assert known_of(whole.run_dir) == [None] * len(whole.report.rounds)
    first, last = Path(result.run_dir, "rounds", "r01"), Path(result.run_dir, "estimates.json")
    assert min(path.stat().st_mtime_ns for path in first.iterdir()) < last.stat().st_mtime_ns
    report = result.report
    assert [stage.known_queries for stage in report.rounds] == known
    assert report.spent_tokens > 0.98 * report.budget_tokens
    at_once = next(point for point in whole.report.budget_curve if point.budget_tokens == report.budget_tokens)
    assert report.expected_utility == pytest.approx(at_once.utility)
    assert report.shadow_price == pytest.approx(at_once.shadow_price)
    assert report.shadow_price > 0
    assert report.correct == sum(row["correct"] for row in completions_of(result))
    assert run(None, RunConfig.parse(settings)).report == report, "a finished run is only read"


def test_a_run_that_learns_has_its_first_answers_before_the_last_prompt_is_read(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = streamed(replay_settings, "learn")
    result = run(None, RunConfig.parse(settings))
    report, folder = result.report, open_folder(result.run_dir)
    check_account(result)
    assert report.wasted_tokens == 0
    known = known_of(result.run_dir)
    assert [stage.known_queries for stage in report.rounds] == known
    assert known[0] is not None
    assert known[0] < 100
    assert known[-1] is None
    first, last = Path(result.run_dir, "rounds", "r01"), Path(result.run_dir, "estimates.json")
    assert min(path.stat().st_mtime_ns for path in first.iterdir()) < last.stat().st_mtime_ns
    assert read_coordinates(folder, 199).any(axis=1).mean() > 0.9, "the map tells those apart that were read later"
    assert report.head == "learn"
    assert report.learning is not None
    assert report.learning.label == "verdict"
    assert report.learning.answers == report.completed
    assert set(report.learning.nats_of_sets) == {"text", "ngrams"}
    assert report.spent_tokens > 0.95 * report.budget_tokens
    assert report.correct is not None
    even = run(None, RunConfig.parse(replay_settings | {"run_dir": str(tmp_path / "prior")})).report
    assert even.correct is not None
    assert report.correct > 1.4 * even.correct, f"{report.correct} with learning, {even.correct} without"
    assert "known" in summary_text(report)
    assert run(None, RunConfig.parse(settings)).report == report, "a finished run is only read"


@pytest.mark.parametrize("head", HEADS)
def test_a_run_that_is_cancelled_amid_the_reading_reads_no_further_part(
    replay_settings: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], head: str
) -> None:
    settings, least = (
        streamed(replay_settings, head),
        1 if head == "learn" else 3,
    )  # of a pilot, which idle slots read on beside
    with ThreadPoolExecutor(1) as threads:
        running = begin(threads, settings, answers=least)
        order_stop(open_folder(settings["run_dir"]), "batch_cancelled")
        result = running.result(timeout=120)
    report, name = result.report, "coordinates" if head == "learn" else "estimates"
    is_known_N = np.zeros(199, bool)
    for path in Path(result.run_dir, name).glob("*/*.parquet"):
        is_known_N[pq.read_table(path)["index"].to_numpy()] = True
    read = int(is_known_N.sum())
    assert 0 < read < 199
    assert report.stopped_early.startswith(f"it was cancelled when {read} of 199 queries had been read")
    assert not Path(result.run_dir, f"{name}.json").exists()
    if head == "learn":
        assert report.learning is not None
        assert report.learning.answers == report.completed
    if head == "prior":  # it replays the journal under the budget of the end, which does not hold one grant of a pilot
        check_account(result)
    assert report.completed >= least
    assert report.spent_tokens == report.budget_tokens, "nothing is promised any more"
    assert sum(task.queries for task in report.tasks) == 199
    unread = [row for row in completions_of(result) if not is_known_N[row["index"]]]
    assert {(row["status"], row["error_code"], row["price"]) for row in unread} == {
        ("abandoned", "batch_expired", None)
    }
    assert {row["reason"] for row in unread} == {"The batch was cancelled before its turn came."}
    assert "had been read" in Path(result.run_dir, "report.html").read_text()
    assert run(None, RunConfig.parse(settings)).report == report, "a finished run is only read"
    assert "Traceback" not in capfd.readouterr().err
    replay_settings["engine"]["tokens_per_second"] = None
    again = {"input": {"retry_of": result.run_dir, "retry": "unanswered"}, "run_dir": str(tmp_path / "again")}
    assert run(None, RunConfig.parse(replay_settings | again)).report.queries == report.abandoned


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of how many queries curves are held while prompts are read: the batch is larger."""
    monkeypatch.setattr(size_limits, "SKETCH_ABOVE_QUERIES", 60)
    monkeypatch.setattr(probing, "SAMPLE_QUERIES", 120)
    return 60


def over_of(run_dir: str | Path) -> list[int | None]:
    """Return over how many of those known each clearing in a run folder was, where it was not over all of them."""
    kept = [pq.read_schema(path).metadata[b"over_queries"] for path in sorted(Path(run_dir).glob("grants/*.parquet"))]
    return [int(queries) if queries else None for queries in kept]


def test_of_a_very_large_batch_the_newest_are_priced_while_prompts_are_read_and_then_all(
    replay_settings: dict[str, Any], tmp_path: Path, held: int
) -> None:
    settings = streamed(replay_settings)
    result = run(None, RunConfig.parse(settings))
    report, known, over = result.report, known_of(result.run_dir), over_of(result.run_dir)
    check_account(result)
    assert report.wasted_tokens == 0
    assert known[0] == 32, "two fifths of what is held, in whole files"
    assert known[-1] is None
    amid = [(queries, some) for queries, some in zip(known, over, strict=True) if queries is not None]
    assert all(some is None if queries <= 48 else 48 < some <= held for queries, some in amid)
    assert sum(some is not None for _, some in amid) >= 2
    assert [(stage.known_queries, stage.over_queries) for stage in report.rounds] == list(zip(known, over, strict=True))
    assert report.spent_tokens > 0.9 * report.budget_tokens, "and a sketch leaves some slack"
    assert report.shadow_price > 0
    rows = completions_of(result)
    assert report.correct == sum(row["correct"] for row in rows)
    at_once = run(None, RunConfig.parse(settings | {"run_dir": str(tmp_path / "whole"), "allocation": WHOLE}))
    worth = {row["index"]: row["reservation_price"] for row in completions_of(at_once)}
    assert {row["index"]: row["reservation_price"] for row in rows} == worth
    assert report.expected_utility == pytest.approx(at_once.report.budget_curve[7].utility)
    assert run(None, RunConfig.parse(settings)).report == report, "a finished run is only read"


def test_a_run_of_a_very_large_batch_that_is_cancelled_amid_the_reading(
    replay_settings: dict[str, Any], held: int
) -> None:
    settings = streamed(replay_settings)
    with ThreadPoolExecutor(1) as threads:
        running = begin(threads, settings, answers=60)
        order_stop(open_folder(settings["run_dir"]), "batch_cancelled")
        result = running.result(timeout=120)
    report, is_estimated_N = result.report, estimated_already(open_folder(result.run_dir), 199)[0]
    read = int(is_estimated_N.sum())
    assert held < read < 199
    assert report.stopped_early.startswith(f"it was cancelled when {read} of 199 queries had been read")
    check_account(result)
    rows = completions_of(result)
    assert {row["reservation_price"] for row in rows if not is_estimated_N[row["index"]]} == {0.0}
    assert sum(row["reservation_price"] > 0 for row in rows) > held, "of all that were read"
    assert sum(task.queries for task in report.tasks) == 199
    assert 0 < report.expected_utility < read


def test_an_engine_that_cannot_start_leaves_a_folder_that_the_mended_command_takes(
    replay_settings: dict[str, Any],
) -> None:
    settings = streamed(replay_settings)
    with pytest.raises(ClearRayError, match="nowhere"):
        run(None, RunConfig.parse(settings | {"engine": settings["engine"] | {"features": "nowhere.parquet"}}))
    check_account(run(None, RunConfig.parse(settings)))


@pytest.fixture
def config(request: pytest.FixtureRequest, replay_settings: dict[str, Any], tmp_path: Path) -> Path:
    """Return the settings of a run with the head that is asked for, or under the prior."""
    head = getattr(request, "param", "prior")
    settings = streamed(replay_settings, head, budget=48 * 199, dispatch={"rows_per_file": 1})
    settings["engine"] = settings["engine"] | {"tokens_per_second": 100.0, "max_batch": 8}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(
    ("config", "faults"),
    [
        ("prior", ("driver:amid the reading",)),
        ("prior", ("machine:amid the reading",)),
        ("prior", ("held:60", "driver:amid the reading")),
        ("learn", ("driver:amid the reading",)),
        ("learn", ("machine:amid the reading",)),
    ],
    indirect=["config"],
)
def test_a_driver_may_die_amid_the_reading(config: Path, faults: tuple[str, ...]) -> None:
    assert start(config, *faults).returncode == -signal.SIGKILL, "it was to die"
    run_dir = Path(yaml.safe_load(config.read_text())["run_dir"])
    grants = {path.name: path.read_bytes() for path in run_dir.glob("grants/*.parquet")}
    mapped = {path: path.read_bytes() for path in (*run_dir.glob("coordinates/*/*.parquet"), *run_dir.glob("*.map"))}
    is_estimated_N, files = estimated_already(open_folder(str(run_dir)), 199)
    assert 0 < is_estimated_N.sum() < 199
    report = checked(start(config, *faults[:-1]), config)
    assert all((run_dir / "grants" / name).read_bytes() == content for name, content in grants.items())
    assert set(files) <= set(map(str, run_dir.glob("estimates/*/*.parquet"))), "no prompt is read twice"
    assert all(path.read_bytes() == content for path, content in mapped.items())
    assert bool(mapped) is (report.learning is not None)
    index = [i for path in run_dir.glob("estimates/*/*.parquet") for i in pq.read_table(path)["index"].to_pylist()]
    assert sorted(index) == list(range(199))
    known = known_of(run_dir)
    assert known[len(grants) - 1] is not None
    assert known[-1] is None
    assert report.failed == 0


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_the_driver_of_a_very_large_batch_may_die_after_the_reading(config: Path) -> None:
    assert start(config, "held:60", "driver:after the reading").returncode == -signal.SIGKILL, "it was to die"
    run_dir = Path(yaml.safe_load(config.read_text())["run_dir"])
    grants = {path.name: path.read_bytes() for path in run_dir.glob("grants/*.parquet")}
    assert (run_dir / "estimates.json").exists()
    report = checked(start(config, "held:60"), config)
    assert all((run_dir / "grants" / name).read_bytes() == content for name, content in grants.items())
    assert report.failed == 0
    assert [stage.over_queries for stage in report.rounds] == over_of(run_dir)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("config", HEADS, indirect=True)
@pytest.mark.parametrize("name", ["ProbeToFiles", "EngineWorker", "MarketActor", "GenerateActor"])
def test_an_actor_may_be_killed_amid_the_reading(config: Path, name: str) -> None:
    ended = start(config, f"kill:{name}")
    report = checked(ended, config)
    assert ended.stderr.count('"killed"') == 1
    assert report.failed == 0
    assert known_of(report.run_dir)[-1] is None
