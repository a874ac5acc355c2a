"""A run that learns from its own answers, whole and on a local cluster, with recorded rollouts of a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clear_ray.batch.learning import learning_offers, lesson_of
from clear_ray.config import RunConfig
from clear_ray.estimation.resolve import resolve_head
from clear_ray.pipeline import run
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.run_folder import read_estimates
from clear_ray.storage import open_folder
from tests.ray.test_drivers import on_ray
from tests.unit.rounds.drivers import recorded_answers, replayed


def learning_settings(settings: dict[str, Any], **allocation: Any) -> dict[str, Any]:
    return settings | {"estimate": {}, "allocation": {"max_tokens": 400} | allocation}


def offers_of_folder(config: RunConfig, run_dir: str) -> LearningOffers:
    """Return what a run offers, made again from its folder."""
    folder = open_folder(run_dir)
    estimates = read_estimates(folder, np.array(resolve_head(None, cap_tokens=400).card.tokens_K), config.seed)
    lesson = lesson_of(folder, config, estimates.queries)
    assert lesson is not None
    return learning_offers(folder, config, estimates, lesson)


def test_a_run_that_knows_nothing_learns_and_beats_the_prior(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.parse(learning_settings(replay_settings))
    result = run(None, config)
    whole = on_ray(result)
    report = result.report
    assert report.head == "learn"
    assert report.learning is not None
    print(report.learning, report.correct, len(report.rounds), report.seconds)
    prior = run(None, RunConfig.parse(replay_settings | {"run_dir": str(tmp_path / "prior")})).report
    print(prior.correct)
    from clear_ray.report.text import summary_text

    print(summary_text(report))
    query_ids = (
        pq.read_table(f"{result.run_dir}/estimates", columns=["index", "query_id"])
        .sort_by("index")["query_id"]
        .to_pylist()
    )
    answers = recorded_answers(query_ids)
    allocation = config.allocation.model_copy(update={"max_rounds": LEARNING_ROUNDS})
    offers = offers_of_folder(config, result.run_dir)
    assert replayed(offers, answers, config.budget_tokens, allocation) == whole
    assert report.correct > 1.8 * prior.correct
