from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.prior import PriorHead
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import clear
from clear_ray.rounds.menu import reservation_prices
from clear_ray.rounds.minimum_service import minimum_service, owed_tokens
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.budgets import sweep
from clear_ray.sweep.estimates import estimate, training_apart, training_by_folds
from clear_ray.sweep.policies import POLICIES, Contest, Outcome, equal_ceilings
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.replayed import Answers, Dispatched, Replayed, replay_run
from clear_ray.sweep.rows import Judge, Row, share_of_way
from clear_ray.sweep.votes import read_votes
from tests.conftest import ROLLOUTS
from tests.unit.estimation.conftest import drawn_tables

BASES = ("ceilings", "expected_spend")


def write(folder: Path, *, queries: int = 24, seed: int = 0, prefix: str = "") -> Path:
    """Write drawn rollouts of queries whose names and prompts begin with `prefix`."""
    rollouts, features = drawn_tables(queries, rollouts=4, seed=seed)
    rows = rollouts.to_pylist()
    for number, row in enumerate(rows):
        row |= {"query_id": prefix + row["query_id"], "prompt": prefix + row["prompt"]}
        row |= {"sample": number % 4, "task": f"task {int(row['query_id'].removeprefix(prefix)[1:]) % 3}"}
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts.parquet")
    ids = pa.array([prefix + name for name in features["query_id"].to_pylist()])
    pq.write_table(features.set_column(0, "query_id", ids), folder / "features.parquet")
    folds = {query_id: number % 3 for number, query_id in enumerate(ids.to_pylist())}
    (folder / "split.json").write_text(json.dumps({"fold": folds}))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("drawn") / "here")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return read_recording(str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet"))


def paths(folder: Path) -> tuple[str, str]:
    return str(folder / "rollouts.parquet"), str(folder / "features.parquet")


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Curves, true lengths that need not follow them, and which of them stop."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    queries = draw(st.integers(1, 12))
    tokens_K = np.array([2, 4, 8, 16, 32])
    right, wrong = rng.uniform(0, 0.4, (2, queries, 5))
    survival = np.cumprod(1 - right - wrong, axis=1)
    before = np.concatenate([np.ones((queries, 1)), survival[:, :-1]], axis=1)
    curves = curves_from_incidence(np.cumsum(before * right, axis=1), survival_NK=survival, tokens_K=tokens_K)
    length_N = rng.integers(1, 33, queries)
    order = rng.permutation(queries).astype(np.uint64)
    batch = Batch(curves, np.ones(queries), np.full(queries, 32), order, cost_N=np.ones(queries))
    return batch, length_N, length_N < 32


def replayed(
    batch: Batch,
    length_N: np.ndarray,
    is_stopped_N: np.ndarray,
    budget: int,
    *,
    basis: str = "ceilings",
    max_rounds: int = 8,
    **how: int,
) -> Replayed:
    return replay_run(
        BatchOffers(batch, basis=basis),  # type: ignore[arg-type]
        Answers(length_N, is_stopped_N, is_stopped_N),
        budget_tokens=budget,
        allocation=AllocationConfig(max_rounds=max_rounds),
        dispatched=Dispatched(**how),
    )


@pytest.mark.parametrize("basis", BASES)
@given(drawn=batches(), budget=st.integers(1, 400), slots=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_run_keeps_its_budget_and_leaves_no_query_waiting_while_tokens_are_left(
    basis: str, drawn: tuple[Batch, np.ndarray, np.ndarray], budget: int, slots: int
) -> None:
    batch, length_N, is_stopped_N = drawn
    run = replayed(batch, length_N, is_stopped_N, budget, basis=basis, max_batch=slots, max_rounds=100)
    assert run.spent_tokens_N.sum() <= budget
    assert (run.spent_tokens_N <= length_N).all()
    is_unfinished = run.spent_tokens_N < length_N
    assert budget - run.spent_tokens_N.sum() < 4 or not is_unfinished.any()
    assert np.array_equal(run.is_right_N, is_stopped_N & ~is_unfinished)


@given(drawn=batches(), budget=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_priced_by_ceilings_no_outcome_depends_on_which_ends_first(
    drawn: tuple[Batch, np.ndarray, np.ndarray], budget: int
) -> None:
    one, many = (replayed(*drawn, budget, max_batch=slots, rows_in_flight=slots) for slots in (1, 64))
    assert np.array_equal(one.spent_tokens_N, many.spent_tokens_N)
    assert one.reports == many.reports


@given(drawn=batches(), budget=st.integers(1, 400), floor=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_minimum_service_reaches_every_query_within_the_budget(
    drawn: tuple[Batch, np.ndarray, np.ndarray], budget: int, floor: int
) -> None:
    batch, length_N, is_stopped_N = drawn
    budget = max(budget, floor * len(length_N))
    run = replay_run(
        BatchOffers(batch),
        Answers(length_N, is_stopped_N, is_stopped_N),
        budget_tokens=budget,
        allocation=AllocationConfig(minimum_service_tokens=floor),
    )
    assert run.spent_tokens_N.sum() <= budget
    assert (run.spent_tokens_N >= np.minimum(floor, length_N)).all()


@given(drawn=batches(), budget=st.integers(1, 400), floor=st.integers(0, 8), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_floors_are_kept_back_for_queries_that_are_not_worth_the_price(
    drawn: tuple[Batch, np.ndarray, np.ndarray], budget: int, floor: int, seed: int
) -> None:
    batch, length_N, _ = drawn
    rng = np.random.default_rng(seed)
    generated_N = np.where(rng.random(len(length_N)) < 0.5, 0, rng.integers(1, 32, len(length_N)))
    is_open_N = rng.random(len(length_N)) < 0.8
    how = {"generated_tokens_N": generated_N, "is_open_N": is_open_N, "available_tokens": budget}
    is_owed_N = is_open_N & (generated_N == 0)
    owed_N = owed_tokens(is_owed_N, batch.max_tokens_N, floor)
    cleared = clear(batch, **how, owed_tokens_N=owed_N)
    if floor * is_owed_N.sum() > budget:
        assert not len(cleared.index_M), "what is owed is not sold"
        return
    is_granted_N = np.isin(np.arange(len(length_N)), cleared.index_M)
    assert cleared.tokens_M.sum() + cleared.kept_tokens <= budget
    assert cleared.kept_tokens == floor * (is_owed_N & ~is_granted_N).sum() or not floor
    assert (cleared.tokens_M[is_owed_N[cleared.index_M]] >= floor).all()
    assert (reservation_prices(batch)[is_owed_N & ~is_granted_N] <= cleared.shadow_price + 1e-12).all() or not floor
    assert cleared.expected_utility_M.sum() <= cleared.dual_bound + 1e-9
    assert cleared.dual_bound - cleared.expected_utility_M.sum() == pytest.approx(cleared.gap, abs=1e-9)
    rest = minimum_service(batch, owed_tokens_N=owed_N, available_tokens=budget, shadow_price=0.5)
    assert rest.is_service
    assert rest.tokens_M.sum() <= budget
    assert (rest.tokens_M > 0).all()
    assert is_owed_N[rest.index_M].all()
    if not floor:
        plain = clear(batch, **how)
        assert np.array_equal(plain.tokens_M, cleared.tokens_M)
        assert np.array_equal(plain.index_M, cleared.index_M)


def test_outcomes_follow_the_definition(recording: Recording) -> None:
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    assert len(recording) * recording.samples == len(rows)
    for cap in (16, 100):
        right = sum(r["correct"] and r["finish_reason"] == "stop" and r["output_tokens"] <= cap for r in rows)
        assert recording.right_NST(np.array([cap])).sum() == right
        assert recording.spend_NST(np.array([cap])).sum() == sum(min(r["output_tokens"], cap) for r in rows)


@given(average=st.floats(0.5, 139.0))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_ceilings_spend_what_they_are_given(recording: Recording, average: float) -> None:
    assert equal_ceilings(recording, average).spent_tokens_N.mean() == pytest.approx(average)


def test_a_row_compares_with_the_ceiling_that_spends_the_same(recording: Recording) -> None:
    judge = Judge(recording, draws=200)
    even = judge.row("uniform", 32, equal_ceilings(recording, 32))
    assert even.difference == pytest.approx(0.0, abs=1e-12)
    assert even.difference_error < 1e-9
    assert even.low < even.accuracy < even.high
    nothing = judge.row("x", 32, Outcome(np.zeros(len(recording)), np.full(len(recording), 32.0), 1.0))
    assert nothing.times_uniform == 0.0
    assert nothing.difference == -even.accuracy
    assert judge.uniform_tokens(even.accuracy) == pytest.approx(32, abs=1)
    assert judge.uniform_tokens(0.9) == float("inf")
    assert share_of_way(0.3, uniform=0.2, oracle=0.4) == pytest.approx(0.5)


def rows_of(recording: Recording, curves: Curves, budgets: tuple[int, ...]) -> list[Row]:
    judge, contest = Judge(recording, draws=500), Contest(recording, {"competing_risks": curves})
    return [judge.row("clear_ray", average, contest.play("clear_ray", average)) for average in budgets]


def test_without_a_head_no_budget_falls_below_uniform(recording: Recording) -> None:
    """The defect that pricing the expected spend of an uninformed prior was: 10 right answers for 15 of uniform."""
    known = recording.features, recording.rollouts.prompts, recording.rollouts.query_ids
    for row in rows_of(recording, PriorHead(cap_tokens=recording.cap_tokens).curves(*known), (16, 32, 96)):
        # Half a standard error: below that, nothing is told from noise.
        assert row.difference >= -0.5 * row.difference_error - 1e-9, row


@pytest.mark.slow
def test_with_a_head_scarce_budgets_buy_twice_what_uniform_buys(recording: Recording) -> None:
    """The claim of the README."""
    rollouts_path, features_path = paths(ROLLOUTS)
    training = training_by_folds(
        recording, rollouts_path=rollouts_path, features_path=features_path, folds_path=str(ROLLOUTS / "split.json")
    )
    curves = estimate(recording, training, kinds=["competing_risks"], seed=0)["competing_risks"]
    for row in rows_of(recording, curves, (8, 16, 24, 32, 48, 64, 96, 128, 192, 320)):
        assert row.difference >= -1e-9, row
        assert row.average_budget > 48 or (row.times_uniform or 0.0) >= 2.0, row


def test_a_sweep_writes_every_policy_at_every_budget(drawn: Path, tmp_path: Path) -> None:
    found = sweep(*paths(drawn), folds_path=str(drawn / "split.json"), budgets=(10, 40))
    found.write(str(tmp_path / "out"))
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert {(row["policy"], row["average_budget"]) for row in document["rows"]} == {
        (policy, budget) for policy in POLICIES for budget in (10, 40)
    }
    for row in document["rows"]:
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["tokens_per_query"] <= row["average_budget"] * 1.02
    assert document["summary"]["share_of_way_to_oracle"]["oracle"]["10"] == pytest.approx(1.0)
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000


def test_heads_may_be_fitted_on_other_rollouts(drawn: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", queries=40, seed=5, prefix="other ")
    found = sweep(*paths(drawn), train=str(other), budgets=(20,), policies=("clear_ray", "task_prior", "paper"))
    assert len(found.rows) == 3
    assert all(row.accuracy > 0 for row in found.rows)


def renamed(folder: Path, *, keep: int) -> Path:
    """Give every query another name, and all but the first `keep` prompts another prompt."""
    for name in ("rollouts", "features"):
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        for row in rows:
            if "prompt" in row and int(row["query_id"][1:]) >= keep:
                row["prompt"] = "new " + row["prompt"]
            row["query_id"] = "new " + row["query_id"]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def test_policies_that_teach_themselves_need_no_training(drawn: Path, tmp_path: Path) -> None:
    found = sweep(*paths(drawn), budgets=(15,))
    assert [row.policy for row in found.rows] == [
        "uniform_refunds",
        "learning",
        "learning_without_gold",
        "uniform",
        "oracle",
    ]
    assert all(row.tokens_per_query <= 15 * 1.02 for row in found.rows)
    assert found.facts["features"] == ["hidden", "text"]


def test_answers_are_compared_by_their_text_where_that_is_asked(drawn: Path, tmp_path: Path) -> None:
    recording = read_recording(*paths(drawn))
    with pytest.raises(SchemaError, match="no column text"):
        read_votes(paths(drawn)[0], recording, "number")
    table = pq.read_table(drawn / "rollouts.parquet")
    right = [f"Answer: {7 if is_right else 1_000 + n}" for n, is_right in enumerate(table["correct"].to_pylist())]
    pq.write_table(table.append_column("text", pa.array(right)), tmp_path / "rollouts.parquet")
    path, policy = str(tmp_path / "rollouts.parquet"), "learning_without_gold"
    vote_NS = read_votes(path, recording, "number")
    assert len({vote_NS[row] for row in zip(*np.nonzero(recording.is_right_NS), strict=True)}) == 1
    assert len(np.unique(vote_NS)) == 1 + table["correct"].to_pylist().count(False)
    found = sweep(path, paths(drawn)[1], agreement="number", budgets=(15,), policies=(policy,))
    assert found.facts["agreement"] == "number"
    assert found.rows[0].tokens_per_query <= 15


def test_recorded_answers_of_a_model_need_no_features_and_no_prompts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"query_id": f"q{n}", "task": "ab"[n % 2], "sample": sample, "prompt_tokens": 10 + n, "model": model,
         "output_tokens": int(rng.integers(0, 9_000)) if sample else 0, "finish_reason": "stop", "correct": n % 3 == 0}
        for n in range(30) for model in ("one", "two") for sample in range(2 + (n == 3))
    ]  # fmt: skip
    path = str(tmp_path / "answers.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = sweep(path, "task,length", budgets=(500,), policies=("learning", "uniform"), model="two")
    assert found.facts["queries"] == 30
    assert found.facts["samples"] == 2
    assert found.facts["features"] == ["length", "task"]
    assert all(row.tokens_per_query <= 510 for row in found.rows)
    with pytest.raises(SchemaError, match="several models"):
        sweep(path, "task", budgets=(500,), policies=("learning",))
    with pytest.raises(SchemaError, match="no answers of this model"):
        sweep(path, "task", budgets=(500,), policies=("learning",), model="three")


def test_training_and_evaluation_never_overlap(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="24 queries are in training and evaluation"):
        sweep(*paths(drawn), train=str(drawn), budgets=(20,))
    evaluated = read_recording(*paths(drawn))
    partly = training_apart(evaluated, train=str(renamed(write(tmp_path / "partly"), keep=5)))
    assert partly.adjusted == 5
    assert not set(partly.rollouts["prompt"].to_pylist()) & set(evaluated.rollouts.prompts)
    assert set(partly.recording.rollouts.query_ids) == set(partly.rollouts["query_id"].to_pylist())
    with pytest.raises(SchemaError, match="every prompt of the training rollouts is evaluated"):
        training_apart(evaluated, train=str(renamed(write(tmp_path / "all"), keep=24)))
    for folds, message in (({"q0": 0}, "has no fold"), ({f"q{n}": 0 for n in range(24)}, "at least two folds")):
        (tmp_path / "folds.json").write_text(json.dumps({"fold": folds}))
        with pytest.raises(SchemaError, match=message):
            sweep(*paths(drawn), folds_path=str(tmp_path / "folds.json"), budgets=(20,))


def test_equal_prompts_share_a_fold(tmp_path: Path) -> None:
    folder = write(tmp_path / "twins")
    rows = pq.read_table(folder / "rollouts.parquet").to_pylist()
    for row in rows:
        row["prompt"] = "What is it?" if row["query_id"] in ("q0", "q1") else row["prompt"]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts.parquet")
    rollouts_path, features_path = paths(folder)
    recording = read_recording(rollouts_path, features_path)
    training = training_by_folds(
        recording, rollouts_path=rollouts_path, features_path=features_path, folds_path=str(folder / "split.json")
    )
    assert training.folds is not None
    assert training.folds["q0"] == training.folds["q1"]
    assert training.adjusted == 1


def test_bad_sweeps_are_refused(drawn: Path, tmp_path: Path) -> None:
    folds = str(drawn / "split.json")
    for arguments, message in (
        ({"policies": ("clear_ray",)}, "needs a head that was fitted beforehand"),
        ({"policies": ("task_prior", "learning")}, "needs a head that was fitted beforehand"),
        ({"folds_path": folds, "train": "x"}, "either other rollouts"),
        ({"folds_path": folds, "policies": ("clear_ray", "greed")}, "no such policy"),
        ({"folds_path": folds, "budgets": (0,)}, "budgets above 0"),
        ({"folds_path": folds, "seeds": 0}, "at least one seed"),
        ({"folds_path": str(tmp_path / "none.json")}, "folds cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep(*paths(drawn), **arguments)  # type: ignore[arg-type]
    table = pq.read_table(drawn / "rollouts.parquet")
    pq.write_table(table.slice(1), tmp_path / "rollouts.parquet")
    with pytest.raises(SchemaError, match="differ in their number of samples"):
        read_recording(str(tmp_path / "rollouts.parquet"), str(drawn / "features.parquet"))
    with pytest.raises(SchemaError, match="cannot be read as Parquet"):
        read_recording(folds, str(drawn / "features.parquet"))


def test_features_of_a_recording_are_in_the_order_of_its_queries(recording: Recording) -> None:
    assert isinstance(recording.features, Features)
    table = pq.read_table(ROLLOUTS / "features.parquet", columns=["query_id", "prompt_tokens"]).to_pylist()
    tokens_of = {row["query_id"]: row["prompt_tokens"] for row in table}
    assert [tokens_of[name] for name in recording.rollouts.query_ids] == recording.features.prompt_tokens_N.tolist()
