"""A run that learns from its own answers, whole and on a local cluster, with recorded rollouts of a real model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch import probe as probing
from clear_ray.batch import size_limits
from clear_ray.batch.coordinates import COORDINATES, COORDINATES_WHOLE, read_coordinates
from clear_ray.batch.learning import learning_offers, lesson_of
from clear_ray.batch.plan import plan
from clear_ray.batch.run import RunResult, run
from clear_ray.calibrate import fit_recorded
from clear_ray.config.run import RunConfig
from clear_ray.errors import BudgetError
from clear_ray.estimation.resolve import resolve_head
from clear_ray.report.text import plan_text, summary_text
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.offers import BatchOffers
from clear_ray.run_folder.estimates import read_estimates
from clear_ray.storage import open_folder
from clear_ray.sweep.replayed import Answers
from tests.ray.test_drivers import cut_before, on_ray
from tests.unit.rounds.drivers import Played, recorded_answers, replayed, simulated

QUERIES = 199
ROUNDS = 5
"""Enough for a pilot, stages and the rest, and few enough for a test."""


def learning(settings: dict[str, Any], **changes: Any) -> RunConfig:
    allocation = {"max_tokens": 400, "max_rounds": ROUNDS}
    return RunConfig.parse(settings | {"estimate": {}, "allocation": allocation} | changes)


def by_replay(config: RunConfig) -> Played:
    """Return what a replay makes of what the folder of a run offers; nothing of its rounds is read."""
    return replayed(*offered(config), config.budget_tokens, config.allocation)


def offered(config: RunConfig) -> tuple[LearningOffers, Answers]:
    """Return the offers that a run makes, and the answers that it gets."""
    folder = open_folder(config.run_dir)
    grid = np.array(resolve_head(None, cap_tokens=400).card.tokens_K)
    estimates = read_estimates(folder, grid, config.seed)
    lesson = lesson_of(folder, config)
    assert lesson is not None
    offers = learning_offers(folder, config, estimates, lesson)
    assert isinstance(offers, LearningOffers)
    names = pq.read_table(folder.child("estimates").path, columns=["index", "query_id"]).sort_by("index")["query_id"]
    return offers, recorded_answers(names.to_pylist())


@pytest.fixture
def learned(replay_settings: dict[str, Any]) -> tuple[RunConfig, RunResult]:
    """A run without a head at 32 tokens a query."""
    config = learning(replay_settings)
    return config, run(None, config)


def test_a_run_that_knows_nothing_learns_and_a_resumed_one_goes_on_with_the_same_grants(
    replay_settings: dict[str, Any],
    learned: tuple[RunConfig, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, result = learned
    report, whole = result.report, on_ray(result)
    prior = run(None, RunConfig.parse(replay_settings | {"run_dir": str(tmp_path / "prior")})).report
    assert (prior.head, prior.learning) == ("prior", None)
    assert report.head == "learn"
    assert report.correct is not None
    assert prior.correct is not None
    assert report.correct > 1.7 * prior.correct, f"{report.correct} with learning, {prior.correct} without"

    found = report.learning
    assert found is not None
    assert (found.label, found.features, found.left_out) == ("verdict", ("text", "ngrams"), "")
    assert found.answers == report.completed
    assert found.learned_share > 0.9
    main = report.main_round
    assert main is not None
    assert report.shadow_price == main.shadow_price > 0
    assert main.granted_tokens == max(row.granted_tokens for row in report.rounds)
    assert report.expected_utility > 1.5 * report.uniform_expected_utility, "by what it learned the price pays"
    assert "learned" in summary_text(report)

    assert by_replay(config) == whole

    # A driver that dies between two stages, and one that dies before its coordinates were whole.
    copy = tmp_path / "cut"
    cut_before(3, result.run_dir, copy)
    x_NP = read_coordinates(open_folder(result.run_dir), QUERIES)
    (copy / COORDINATES_WHOLE).unlink()
    torn = next((copy / COORDINATES).glob("*.parquet"))
    pq.write_table(pq.read_table(torn).slice(1), torn)
    with pytest.raises(BudgetError, match="coordinates"):
        read_coordinates(open_folder(str(copy)), QUERIES)
    monkeypatch.setattr(size_limits, "SPREAD_ABOVE_QUERIES", QUERIES - 1)  # Ray Data finds what the driver has found
    assert on_ray(run(None, learning(replay_settings, run_dir=str(copy)))) == whole
    assert np.array_equal(read_coordinates(open_folder(str(copy)), QUERIES), x_NP)


@pytest.mark.slow
def test_without_gold_a_run_learns_which_answers_end(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    queries = pq.read_table(replay_settings["input"]["path"])
    queries = queries.take(pa.array(range(0, QUERIES, 4)))
    pq.write_table(queries.drop_columns(["gold", "metadata"]), tmp_path / "queries.parquet")
    config = learning(replay_settings, input={"path": str(tmp_path / "queries.parquet")}, budget=16 * len(queries))
    planned = plan(None, config)
    assert planned.head == "learn"
    assert planned.learning is not None
    assert (planned.learning.label, planned.learning.answers) == ("ended", 0)
    assert "which answers ended by themselves" in plan_text(planned)
    assert not Path(config.run_dir).exists()
    result = run(None, config)
    whole = on_ray(result)
    assert by_replay(config) == whole
    # The simulation of faults scores nothing, so it can be compared where no score teaches.
    assert simulated(*offered(config), config.budget_tokens, config.allocation) == whole
    assert result.report.learning is not None
    assert (result.report.learning.label, result.report.correct) == ("ended", None)
    shutil.rmtree(config.run_dir)
    once = {"input": config.input.model_dump(), "allocation": {"sketched": True, "max_rounds": 1}}
    left_out = run(None, learning(replay_settings, budget=500, **once))
    assert left_out.report.head == "prior"
    assert "max_rounds is 1" in summary_text(left_out.report)


@pytest.mark.slow
def test_a_batch_whose_curves_no_driver_holds_learns_on_a_sample_and_is_priced_whole(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = 120
    monkeypatch.setattr(probing, "SAMPLE_QUERIES", sample)
    allocation = {"max_tokens": 400, "max_rounds": ROUNDS, "sketched": True}
    config = learning(replay_settings, allocation=allocation)
    result = run(None, config)
    report, whole = result.report, on_ray(result)
    assert (report.head, report.queries, report.failed) == ("learn", QUERIES, 0)
    assert report.learning is not None
    assert report.learning.left_out == ""
    assert report.learning.learned_share > 0.9

    folder, grid = open_folder(config.run_dir), np.array(resolve_head(None, cap_tokens=400).card.tokens_K)
    estimates = read_estimates(folder, grid, config.seed, most_curves=sample)
    is_sampled = [set(dict(grants)) <= set(estimates.sample.tolist()) for *_, grants in whole.grants]
    assert is_sampled[:2] == [True, True], "pilot and first stage"
    assert not all(is_sampled), "the rest is for all"
    names = pq.read_table(folder.child("estimates").path, columns=["index", "query_id"]).sort_by("index")["query_id"]
    answers = recorded_answers(names.to_pylist())
    by_law = BatchOffers(read_estimates(folder, grid, config.seed).batch)
    rows = replayed(by_law, answers, config.budget_tokens, config.allocation).rows
    equal = sum(has_stopped and right for (*_, has_stopped), right in zip(rows, answers.is_right_N, strict=True))
    assert report.correct is not None
    assert report.correct > 1.3 * equal, f"{report.correct} with learning, {equal} without"
    cut_before(3, result.run_dir, copy := tmp_path / "cut")
    resumed = learning(replay_settings, allocation=allocation, run_dir=str(copy))
    assert on_ray(run(None, resumed)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("known", ["store", "head"])
def test_a_batch_whose_curves_no_driver_holds_begins_with_what_was_known_before(
    known: str, replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "SAMPLE_QUERIES", 120)
    estimate: dict[str, Any] = {"head": str(tmp_path / "head"), "frozen": False}
    if known == "head":
        engine = replay_settings["engine"]
        fit_recorded(engine["rollouts"], engine["features"], head_dir=str(tmp_path / "head"), kind="factorised")
    else:
        estimate = {"store": str(tmp_path / "store")}
        first = run(None, learning(replay_settings, estimate=estimate, run_dir=str(tmp_path / "first"))).report
        assert first.learning is not None
    allocation = {"max_tokens": 400, "max_rounds": ROUNDS, "sketched": True}
    config = learning(replay_settings, allocation=allocation, estimate=estimate)
    planned = plan(None, config)
    assert planned.learning is not None
    result = run(None, config)
    found, whole = result.report.learning, on_ray(result)
    assert found is not None
    assert (found.left_out, found.store_notes) == ("", ())
    assert found.given_share + found.learned_share > 0.9
    if known == "store":
        assert found.earlier_answers == planned.learning.earlier_answers > 50
        assert planned.shadow_price > 0
        stored = sorted((tmp_path / "store").rglob("*.parquet"))
        assert len(stored) == 2, "what the second has learned is kept as well"
    cut_before(3, result.run_dir, copy := tmp_path / "cut")
    resumed = learning(replay_settings, allocation=allocation, estimate=estimate, run_dir=str(copy))
    assert on_ray(run(None, resumed)) == whole


@pytest.mark.slow
def test_answers_are_compared_in_a_run_and_a_resumed_one_compares_the_same(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    queries = pq.read_table(replay_settings["input"]["path"])
    pq.write_table(queries.drop_columns(["gold", "metadata"]), tmp_path / "queries.parquet")
    changes: dict[str, Any] = {
        "input": {"path": str(tmp_path / "queries.parquet")},
        "scoring": {"agreement": "number"},
        "budget": 48 * len(queries),
        "estimate": {"features": ["hidden", "text"]},
    }
    config = learning(replay_settings, **changes)
    planned = plan(None, config)
    assert planned.learning is not None
    assert (planned.learning.label, planned.learning.features) == ("agreement", ("hidden", "text"))
    assert "how often answers to one query agree" in plan_text(planned)
    result = run(None, config)
    report, whole = result.report, on_ray(result)
    assert report.learning is not None
    assert report.learning.label == "agreement"
    assert set(report.learning.nats_of_sets) == {"hidden", "text"}
    found = report.attempts
    assert found is not None
    assert (found.objective, found.agreed is None) == ("correct", False)
    assert report.queries < found.attempts + report.abandoned < 1.3 * report.queries
    assert "compared" in summary_text(report)
    answers = pq.read_table(Path(config.run_dir) / "attempts").to_pylist()
    assert len(answers) == found.attempts
    assert len({row["query_id"] for row in answers if row["is_chosen"]}) == sum(row["is_chosen"] for row in answers)
    cut_before(4, result.run_dir, copy := tmp_path / "cut")
    assert on_ray(run(None, learning(replay_settings, run_dir=str(copy), **changes))) == whole
