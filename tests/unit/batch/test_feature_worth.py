"""What a run says each feature set is worth on its own answers, hidden states of its estimates among them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from clear_ray.batch.coordinates import coordinates_of
from clear_ray.batch.feature_worth import worth_of_sets
from clear_ray.batch.first_stage import opened_rounds as rounds_of_run
from clear_ray.batch.learning import Lesson, lesson_of
from clear_ray.batch.pricing import check_first_tokens, planned_probe_parts, priced
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factors import Observed, law
from clear_ray.records import QUERY_SCHEMA, STATES
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder, open_folder
from clear_ray.sweep.replayed import SampledAnswers

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


def test_first_tokens_are_read_as_states_are(folder: Folder) -> None:
    child = folder.child("estimates")
    for path in child.files(".parquet"):
        table = pq.read_table(path)
        index = table["index"].to_numpy()
        numbers = [[0.5, -0.1, 3.0 * KIND_N[n], 0.2] if n % 7 else [np.nan] * 4 for n in index.tolist()]
        pq.write_table(table.set_column(2, STATES, pa.array(numbers, STATES.type)), path)
    x_NP = coordinates_of(folder, np.full(QUERIES, 9), features=("logprobs",), seed=0)
    assert np.isfinite(x_NP).all()
    known = np.flatnonzero(np.arange(QUERIES) % 7)
    means = [x_NP[known[KIND_N[known] == kind]] for kind in (0, 1)]
    assert max(np.ptp(rows, axis=0).max() for rows in means) < 1e-6, "alike within a kind"
    assert np.abs(means[0][0] - means[1][0]).max() > 0.1


@pytest.mark.parametrize("prices", [None, {"input": 1, "output": 2}])
def test_first_tokens_are_paid_for_and_take_a_tenth_of_the_budget_at_most(folder: Folder, prices: Any) -> None:
    engine = {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
    given: dict[str, Any] = {"run_dir": folder.path, "engine": engine, "prices": prices}

    def config(budget: Any, *features: str) -> RunConfig:
        return RunConfig.parse(given | {"budget": budget, "estimate": {"features": features}})

    ample, scarce = (10 * QUERIES, 10 * QUERIES - 1) if prices is None else ("$0.003", "$0.0029")
    one_N = np.ones(QUERIES)
    check_first_tokens(config(ample, "logprobs"), one_N, folder)
    check_first_tokens(config(1, "text") if prices is None else config("$0.0001", "text"), one_N, folder)
    tokens_N = np.full(QUERIES, 8)
    batch = estimates_of(tokens_N)
    found = planned_probe_parts(config(ample, "logprobs"), priced(config(ample, "logprobs"), batch, one_N), one_N)
    reads = QUERIES * (math.ceil(1.25 * 8) + 16)
    assert found == (QUERIES * 1_000 if prices is None else reads * 1_000_000 + QUERIES * 2_000_000)
    assert planned_probe_parts(config(ample, "text"), priced(config(ample, "text"), batch, one_N), one_N) == 0
    with pytest.raises(ConfigError, match="more than a tenth"):
        check_first_tokens(config(scarce, "logprobs"), one_N, folder)
    assert not folder.exists("queries")


def estimates_of(prompt_tokens_N: NDArray[np.int64]) -> Estimates:
    tokens_K, one_N = token_grid(99, points=4), np.ones(QUERIES)
    right_K, survival_K = law(tokens_K)
    right_NK, survival_NK = (np.tile(row, (QUERIES, 1)) for row in (right_K, survival_K))
    curves = curves_from_incidence(right_NK, survival_NK=survival_NK, tokens_K=tokens_K)
    order_N, ceiling_N = np.arange(QUERIES, dtype=np.uint64), np.full(QUERIES, 99)
    batch = Batch(curves, one_N, ceiling_N, order_N, one_N)
    none_N, unread_N = np.zeros(QUERIES, np.int32), np.zeros(QUERIES, bool)
    return Estimates(
        batch, np.arange(QUERIES), ("all",), none_N, prompt_tokens_N, ceiling_N, order_N, {}, is_read_N=unread_N
    )


def test_the_rounds_of_a_run_compare_answers_and_go_on_with_the_same_grants_after_a_restart(folder: Folder) -> None:
    """As `run` makes them of a folder: coordinates of hidden states, the label, and what ends a query."""
    given = config_of(folder, "hidden").model_dump(mode="json")
    config = RunConfig.parse(given | {"budget": 40 * QUERIES, "scoring": {"agreement": "number"}})
    assert config.votes_by == "number"
    lesson = lesson_of(folder, config, ModelCard("m", "f", 4_096, 8))
    assert lesson is not None
    rng = np.random.default_rng(4)
    length_NS = np.where(KIND_N == 0, 8, 50)[:, None] + rng.integers(0, 5, (QUERIES, 2))
    is_right_NS = np.tile(KIND_N[:, None] == 0, 2)
    votes_NS = np.where(is_right_NS, 7, rng.integers(100, 9_999, (QUERIES, 2)))
    answers = SampledAnswers(length_NS, np.ones_like(is_right_NS), is_right_NS, votes_NS)

    def rounds() -> Rounds:
        return rounds_of_run(folder, config, estimates_of(np.full(QUERIES, 9)), np.ones(QUERIES), lesson)

    def run(law: Rounds, granted: Round) -> int:
        states, clearing = law.states, granted.clearing
        begins_M, index_M = states.begins_M(clearing), clearing.index_M
        before_M = np.where(begins_M, 0, states.answer_tokens_N[index_M])
        number_N = states.attempt_N.copy()
        number_N[index_M] += begins_M
        found = answers.of_attempt(number_N).attempts(index_M, clearing.tokens_M, before_M)
        law.take(granted.number, [found])
        return int(found.attempt_tokens_M.sum())

    straight, left, kept = rounds(), config.budget_tokens, []
    while (granted := straight.next(left)) is not None:
        kept.append(granted)
        left -= run(straight, granted)
    assert left >= 0
    asked_again = int((straight.states.attempt_N > 1).sum())
    assert 0 < asked_again < QUERIES // 2
    assert straight.states.rule.objective == "vote"
    place = next(n for n, each in enumerate(kept) if each.clearing.is_fresh_M is not None) + 1
    resumed, left = rounds(), config.budget_tokens
    for granted in kept[:place]:
        left -= run(resumed, resumed.replay(granted))
    for granted in kept[place:]:
        anew = resumed.next(left)
        assert anew is not None
        np.testing.assert_array_equal(anew.clearing.index_M, granted.clearing.index_M)
        np.testing.assert_array_equal(anew.clearing.tokens_M, granted.clearing.tokens_M)
        left -= run(resumed, anew)
    assert resumed.next(left) is None


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
        {"estimate": {"features": ["logprobs"]}},
        {"estimate": {"features": ["hidden"], "store": "s"}},
        {"estimate": {"features": ["hidden"], "encoder": "e"}},
        {"estimate": {"features": ["hidden"], "head": "demo"}},
    ):
        with pytest.raises(ConfigError, match=r"states|head as it is|logprobs"):
            RunConfig.parse(config.model_dump(mode="json") | changed)
