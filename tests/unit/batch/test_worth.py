"""What a run says each feature set is worth on its own answers, hidden states of its estimates among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.coordinates import coordinates_of
from clear_ray.batch.learning import Lesson, lesson_of
from clear_ray.batch.worth import worth_of_sets
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import Observed
from clear_ray.records import QUERY_SCHEMA, STATES
from clear_ray.storage import Folder, open_folder

QUERIES = 60
KIND_N = np.arange(QUERIES) % 2


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A run folder whose queries read alike, and whose states say which answers are long; one prompt was not read."""
    rows = [
        {"index": n, "query_id": f"q{n}", "prompt": "What is it?", "is_conversation": False, "weight": 1.0, "cost": 1.0,
         "max_tokens": 99, "task": "ab"[n % 3 == 0]}
        for n in range(QUERIES)
    ]  # fmt: skip
    (tmp_path / "queries").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=QUERY_SCHEMA), tmp_path / "queries" / "part.parquet")
    states = np.random.default_rng(0).standard_normal((QUERIES, 8)) + 4.0 * KIND_N[:, None]
    lists = [None if n == 5 else states[n].tolist() for n in range(QUERIES)]
    order = np.random.default_rng(1).permutation(QUERIES)
    for part, index in enumerate(np.split(order, 3)):
        some = {"index": index, "entropy": np.ones(len(index), np.float32)}
        column = pa.array([lists[n] for n in index], STATES.type)
        (tmp_path / "estimates").mkdir(exist_ok=True)
        pq.write_table(pa.table(some).append_column(STATES, column), tmp_path / "estimates" / f"{part}.parquet")
    return open_folder(str(tmp_path))


def config_of(folder: Folder, *features: str) -> RunConfig:
    engine = {"kind": "replay", "rollouts": "r.parquet"}
    estimate = {"features": features}
    return RunConfig.parse({"run_dir": folder.path, "budget": 100, "engine": engine, "estimate": estimate})


def test_hidden_states_are_read_of_the_estimates_and_tell_what_they_tell(folder: Folder) -> None:
    prompt_tokens_N = np.full(QUERIES, 9)
    x_NP = coordinates_of(folder, prompt_tokens_N, features=("hidden",), seed=0)
    assert len(x_NP) == QUERIES
    apart = np.linalg.norm(x_NP[:, None] - x_NP[None], axis=2)
    known = np.delete(np.arange(QUERIES), 5)
    same = KIND_N[known, None] == KIND_N[None, known]
    apart = apart[np.ix_(known, known)]
    assert apart[~same].mean() > 1.2 * apart[same & (apart > 0)].mean()

    rng = np.random.default_rng(2)
    length_N = np.where(KIND_N == 0, 5, 60) + rng.integers(0, 5, QUERIES)
    observed = Observed(np.arange(QUERIES), length_N, np.ones(QUERIES, bool), (KIND_N == 0).astype(float))
    sets = ("hidden", "text", "task")
    config, lesson = config_of(folder, *sets), Lesson("verdict", sets)
    found = worth_of_sets(folder, config, lesson, observed, prompt_tokens_N, tokens_K=token_grid(99, points=10))
    assert list(found) == list(sets)
    assert found["hidden"] > 0.25
    assert max(found["text"], found["task"]) < 0.1
    one = Lesson("verdict", ("hidden",))
    assert worth_of_sets(folder, config, one, observed, prompt_tokens_N, tokens_K=token_grid(99)) == {}


def test_states_are_asked_only_of_engines_that_show_some(folder: Folder) -> None:
    config = config_of(folder, "hidden", "text")
    assert config.reads_states
    shown = ModelCard("m", "f", 4_096, 8)
    lesson = lesson_of(folder, config, shown)
    assert lesson is not None
    assert lesson.features == ("hidden", "text")
    with pytest.raises(ConfigError, match="shows no hidden states"):
        lesson_of(folder, config, ModelCard("m", "f", 4_096, 0))
    for changed in (
        {"engine": {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}},
        {"estimate": {"features": ["hidden"], "store": "s"}},
        {"estimate": {"features": ["hidden"], "encoder": "e"}},
        {"estimate": {"features": ["hidden"], "head": "demo"}},
    ):
        with pytest.raises(ConfigError, match=r"states|head as it is"):
            RunConfig.parse(config.model_dump(mode="json") | changed)
