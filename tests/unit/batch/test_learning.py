"""Whether a run learns, from what, and how many rounds it has for that: derived from its settings and its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.checking import notes_of
from clear_ray.batch.learning import DEFAULT_FEATURES, FEWEST_ROUNDS, can_differ, head_name, lesson_of, stages_for
from clear_ray.config.allocation import MOST_ROUNDS, AllocationConfig
from clear_ray.config.estimate import NAMED_HEADS
from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.prior import PriorHead
from clear_ray.estimation.resolve import resolve_head
from clear_ray.records import QUERY_SCHEMA
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.serve.settings import ServeConfig
from clear_ray.storage import Folder, open_folder
from clear_ray.sweep.replayed import Answers, replay_run

SCORER = "clear_ray.tasks.recorded:score_recorded"


def config_of(folder: Path, **settings: Any) -> RunConfig:
    engine = {"kind": "replay", "rollouts": "r.parquet"}
    return RunConfig.parse({"run_dir": str(folder), "budget": 100, "engine": engine} | settings)


def folder_with(path: Path, **columns: list[Any]) -> Folder:
    """Return a run folder whose queries hold these columns."""
    rows: dict[str, list[Any]] = {
        "index": [0, 1], "query_id": ["a", "b"], "prompt": ["one", "two"], "is_conversation": [False] * 2,
        "weight": [1.0] * 2, "cost": [1.0] * 2, "max_tokens": [9] * 2, "gold": [None] * 2, "task": [None] * 2,
        "metadata": [None] * 2, "prompt_form": [None] * 2, "input_error": [None] * 2, "sampling": [None] * 2,
        "n": [None] * 2, "choice": [None] * 2,
    }  # fmt: skip
    (path / "queries").mkdir(parents=True)
    pq.write_table(pa.table(rows | columns, schema=QUERY_SCHEMA), path / "queries" / "part-000000.parquet")
    return open_folder(str(path))


@pytest.mark.parametrize(
    ("scorer", "columns", "label"),
    [
        (SCORER, {"gold": ["4", None]}, "verdict"),
        (SCORER, {"metadata": [None, "{}"]}, "verdict"),
        ("exact", {"metadata": [None, "{}"]}, "ended"),
        (SCORER, {}, "ended"),
        (None, {"gold": ["4", "5"]}, "ended"),
    ],
)
def test_the_label_is_the_scorers_verdict_where_there_can_be_one(
    tmp_path: Path, scorer: str | None, columns: dict[str, list[Any]], label: str
) -> None:
    lesson = lesson_of(folder_with(tmp_path, **columns), config_of(tmp_path, scoring={"scorer": scorer}))
    assert lesson is not None
    assert (lesson.label, lesson.features, lesson.left_out) == (label, DEFAULT_FEATURES, "")


def test_where_votes_are_counted_the_label_is_that_answers_agree(tmp_path: Path) -> None:
    config = config_of(tmp_path, scoring={"scorer": SCORER}, allocation={"objective": "vote"})
    lesson = lesson_of(folder_with(tmp_path, gold=["4", "5"]), config)
    assert lesson is not None
    assert lesson.label == "agreement"


@pytest.mark.parametrize(
    ("settings", "columns", "label"),
    [
        ({}, {}, "agreement"),
        ({"scoring": {"agreement": "number", "scorer": SCORER}}, {"gold": ["4", None]}, "verdict"),
        ({"scoring": {"agreement": "number", "scorer": SCORER}}, {}, "agreement"),
        ({"scoring": {}}, {}, "ended"),
        ({"engine": {"kind": "transformers", "temperature": 0.0}}, {}, "ended"),
        ({"engine": {"kind": "transformers", "temperature": 0.7}}, {}, "agreement"),
    ],
)
def test_a_verdict_is_worth_more_than_agreement_and_that_more_than_an_ending(
    tmp_path: Path, settings: dict[str, Any], columns: dict[str, list[Any]], label: str
) -> None:
    config = config_of(tmp_path, **{"scoring": {"agreement": "number"}, **settings})
    lesson = lesson_of(folder_with(tmp_path, **columns), config)
    assert lesson is not None
    assert lesson.label == lesson.report().label == label
    assert (lesson.agreement is not None) is (label == "agreement")
    assert any("scoring.agreement is not used" in note for note in notes_of(config, ())) is (
        label == "ended" and config.scoring.agreement is not None
    )


def test_a_row_that_samples_greedily_is_not_asked_again_to_compare_its_answers(tmp_path: Path) -> None:
    texts = [Sampling(temperature=0.0).dump(), Sampling(temperature=0.5).dump()]
    folder = folder_with(tmp_path, sampling=texts)
    assert can_differ(folder, 2).tolist() == [False, True]
    assert can_differ(folder_with(tmp_path / "bare"), 2).all()


@pytest.mark.parametrize(
    ("estimate", "policy", "learns"),
    [
        ({}, "clear_ray", True),
        ({"head": "learn"}, "clear_ray", True),
        ({"head": "prior"}, "clear_ray", False),
        ({"head": "demo"}, "clear_ray", False),
        ({"head": "demo", "frozen": True}, "clear_ray", False),
        ({"head": "demo", "frozen": False}, "clear_ray", True),
        ({}, "uniform", False),
    ],
)
def test_a_run_learns_if_no_head_is_given_or_a_given_one_is_not_frozen(
    tmp_path: Path, estimate: dict[str, Any], policy: str, learns: bool
) -> None:
    config = config_of(tmp_path, estimate=estimate, allocation={"policy": policy})
    assert (lesson_of(folder_with(tmp_path), config) is not None) is learns


@pytest.mark.parametrize(
    ("allocation", "said"),
    [
        ({"sketched": True}, ""),
        ({"max_rounds": FEWEST_ROUNDS - 1}, "max_rounds is 2"),
        ({"sketched": True, "max_rounds": FEWEST_ROUNDS - 1}, "max_rounds is 2"),
        ({"max_rounds": FEWEST_ROUNDS}, ""),
    ],
)
def test_what_keeps_a_run_from_learning_is_said(tmp_path: Path, allocation: dict[str, Any], said: str) -> None:
    lesson = lesson_of(folder_with(tmp_path), config_of(tmp_path, allocation=allocation))
    assert lesson is not None
    assert said in lesson.left_out
    assert bool(said) == bool(lesson.left_out)
    assert lesson.report().left_out == lesson.left_out
    assert head_name(lesson, "prior") == ("prior" if said else "learn")
    assert head_name(lesson, "competing_risks") == "competing_risks"


@pytest.mark.parametrize(
    "estimate",
    [
        {"frozen": True},
        {"head": "prior", "frozen": False},
        {"head": "demo", "features": ["text"]},
        {"features": ["entropy"]},
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, estimate: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"frozen|features"):
        config_of(tmp_path, estimate=estimate)


@pytest.mark.parametrize(
    "estimate", [{"head": "learn"}, {"head": "demo", "frozen": False}, {"features": ["text"]}, {"encoder": "x"}]
)
def test_a_server_does_not_learn(estimate: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="learns nothing"):
        ServeConfig.parse({"estimate": estimate})
    ServeConfig.parse({"estimate": {}})
    ServeConfig.parse({"estimate": {"encoder": "x"}, "batches": {"folder": "b"}})


def test_names_that_name_no_head_are_the_uninformed_law() -> None:
    for name in (None, "learn", "prior"):
        assert isinstance(resolve_head(name, cap_tokens=64), PriorHead)


@pytest.mark.parametrize("name", NAMED_HEADS)
def test_names_stay_names_where_paths_become_absolute(tmp_path: Path, name: str) -> None:
    config = config_of(tmp_path, estimate={"head": name})
    assert with_absolute_paths(config).estimate.head == name
    resolve_head(name, cap_tokens=64)


def test_the_documented_rounds_are_those_of_the_law() -> None:
    said = f"{LEARNING_ROUNDS} of a run that learns, which takes {FEWEST_ROUNDS} at least, and {MOST_ROUNDS} of others"
    assert said in (AllocationConfig.model_fields["max_rounds"].description or "")


def offers_on(texts: list[str], features: tuple[str, ...], rounds: int) -> LearningOffers:
    """Return offers to queries with these prompts, as a run with so many rounds makes them."""
    none = np.zeros((len(texts), 0), np.float32)
    tokens_N = np.array([len(text) for text in texts])
    known = Features(tokens_N, np.full(len(texts), np.nan, np.float32), none, none)
    one_N = np.ones(len(texts))
    return LearningOffers(
        x_NP=fit_coordinates(known, texts, sets=features)(known, texts),
        tokens_K=token_grid(64),
        weight_N=one_N,
        max_tokens_N=np.full(len(texts), 64),
        tie_break_N=np.arange(len(texts), dtype=np.uint64),
        cost_N=one_N,
        budget_tokens=10 * len(texts),
        stages=stages_for(rounds),
    )


@pytest.mark.parametrize("rounds", [3, 4, 6, LEARNING_ROUNDS])
def test_however_few_rounds_there_are_the_last_ones_leave_nothing_unsold(rounds: int) -> None:
    """Every answer runs on to its ceiling, so a run that is not through by its last clearing leaves tokens lying."""
    texts = [f"count to {number}" for number in range(60)]
    never = Answers(np.full(60, 64), np.zeros(60, bool), np.zeros(60, bool))
    offers = offers_on(texts, ("text", "ngrams"), rounds)
    settings = AllocationConfig(max_rounds=rounds)
    played = replay_run(offers, never, budget_tokens=offers.budget_tokens, allocation=settings)
    assert played.clearings <= rounds
    assert played.spent_tokens_N.sum() > 0.99 * offers.budget_tokens
