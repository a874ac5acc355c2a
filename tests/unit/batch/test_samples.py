"""Answers that a plan samples, from a replay engine behind a handle in this process: how many, how long, and how right."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.pricing import priced
from clear_ray.batch.samples import MOST_ANSWERS, Sampled, sampled_answers, with_interval
from clear_ray.config.engine import ReplayConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import Generation, Grant
from clear_ray.engine.replay import ReplayEngine
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factors import law
from clear_ray.records import QUERY_SCHEMA
from clear_ray.rounds.batch import Batch
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder, open_folder
from tests.unit.local_actors import Method
from tests.unit.report.samples import plan_report

ROLLOUTS = Path("tests/data/rollouts")
QUERIES, CAP = 199, 400


class Worker:
    """The handle of an engine that answers at once; its references are what they refer to."""

    def __init__(self) -> None:
        self.grants: list[Grant] = []

    @property
    def generate(self) -> Method:
        return Method(self._generate)

    def _generate(self, grants: list[Grant], is_alone: bool) -> list[list[Generation]]:
        self.grants += grants

        async def answers() -> list[Generation]:
            engine = ReplayEngine(ReplayConfig(kind="replay", rollouts=str(ROLLOUTS / "rollouts.parquet")))
            return [generation async for generation in engine.generate(grants)]

        return [asyncio.run(answers())]


def estimates_of() -> Estimates:
    grid = token_grid(CAP)
    right_NK, survival_NK = (np.tile(row, (QUERIES, 1)) for row in law(grid))
    one_N, ceiling_N, order_N = np.ones(QUERIES), np.full(QUERIES, CAP), np.arange(QUERIES, dtype=np.uint64)
    curves = curves_from_incidence(right_NK, survival_NK=survival_NK, tokens_K=grid)
    batch = Batch(curves, one_N, ceiling_N, order_N, one_N)
    none_N, some_N = np.zeros(QUERIES, np.int32), np.full(QUERIES, 50)
    return Estimates(batch, np.arange(QUERIES), ("all",), none_N, some_N, ceiling_N, order_N, {7: "unreadable"})


def asked(folder: Folder, settings: dict[str, Any], estimates: Estimates) -> tuple[tuple[Sampled, ...], list[Worker]]:
    """Return what samples answers of each engine, and the engines."""
    workers = [Worker() for _ in estimates.each]
    engines: Any = SimpleNamespace(each=[SimpleNamespace(workers=SimpleNamespace(handles=[each])) for each in workers])
    return sampled_answers(folder, RunConfig.parse(settings), estimates, engines, share=0.01), workers


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what samples answers for a budget, and what was granted for them."""
    monkeypatch.setattr("clear_ray.batch.samples.ray.get", lambda reference: reference)
    rows = pq.read_table(ROLLOUTS / "queries.parquet").to_pydict()
    given = {"index": range(QUERIES), "is_conversation": [False] * QUERIES, "max_tokens": [CAP] * QUERIES}
    ones = dict.fromkeys(("weight", "cost"), [1.0] * QUERIES)
    columns, none = rows | given | ones, [None] * QUERIES
    table = pa.table([pa.array(columns.get(f.name, none), f.type) for f in QUERY_SCHEMA], schema=QUERY_SCHEMA)
    (tmp_path / "run" / "queries").mkdir(parents=True)
    pq.write_table(table, tmp_path / "run" / "queries" / "part-0.parquet")
    folder = open_folder(str(tmp_path / "run"))

    def sampled(budget: int, scorer: str | None) -> tuple[Sampled, list[Grant]]:
        engine = {"kind": "replay", "rollouts": str(ROLLOUTS / "rollouts.parquet")}
        settings = {"run_dir": folder.path, "budget": budget, "engine": engine, "scoring": {"scorer": scorer}}
        (found,), workers = asked(folder, settings, estimates_of())
        return found, workers[0].grants

    return sampled


SCORER = "clear_ray.tasks.recorded:score_recorded"


def test_as_many_whole_answers_are_asked_for_as_are_surely_paid_for(sample: Any) -> None:
    found, grants = sample(1_000 * QUERIES, SCORER)
    ceilings = [grant.max_tokens for grant in grants]
    assert set(ceilings) == {CAP}, "what is left is far less than a query has in the mean"
    assert len(found.whole) == len(found.answers) == len(grants)
    assert found.taken == sum(found.whole) <= 10 * QUERIES
    assert found.taken > 10 * QUERIES - CAP
    assert len({grant.query_id for grant in grants}) == len(grants)


def test_where_no_whole_answer_is_paid_for_short_ones_are_asked_for_and_cut(sample: Any) -> None:
    found, grants = sample(64 * QUERIES, SCORER)
    assert found.whole == ()
    assert {grant.max_tokens for grant in grants} == {127}, "a hundredth of the budget"
    assert 0 < found.taken == sum(answer.taken for answer in found.answers) <= 0.64 * QUERIES
    for answer in found.answers:
        assert answer.is_ended or (answer.taken, answer.right) == (127, None)
        assert not answer.is_ended or answer.right in (0.0, 1.0)


def test_no_more_are_asked_than_say_something_and_none_where_not_one_is_paid_for(sample: Any) -> None:
    many, grants = sample(100_000 * QUERIES, SCORER)
    assert len(many.answers) == len(grants) == MOST_ANSWERS
    assert {answer.right for answer in many.answers if answer.is_ended} == {0.0, 1.0}
    assert sample(QUERIES // 2, SCORER) == (Sampled(), [])


def test_without_a_scorer_every_answer_that_ends_is_one(sample: Any) -> None:
    found, _ = sample(100_000 * QUERIES, None)
    assert {answer.right for answer in found.answers if answer.is_ended} == {1.0}
    assert {answer.right for answer in found.answers if not answer.is_ended} <= {None}


def test_a_plan_says_what_short_answers_took_and_gives_no_interval_by_them(sample: Any) -> None:
    found, _ = sample(64 * QUERIES, SCORER)
    report = with_interval(plan_report(), estimates_of(), (found,))
    assert report == plan_report().model_copy(update={"sample_tokens": int(found.taken)})
    whole, _ = sample(1_000 * QUERIES, SCORER)
    by_whole = with_interval(plan_report(budget_tokens=1_000 * QUERIES), estimates_of(), (whole,))
    assert (by_whole.sampled_answers, by_whole.sample_tokens) == (len(whole.whole), int(whole.taken))
    assert by_whole.high_tokens is not None


def test_each_of_several_engines_is_asked_for_an_equal_part_at_its_own_prices(sample: Any, tmp_path: Path) -> None:
    prices = [{"input": 0.1, "output": 0.2}, {"input": 0.5, "output": 1.0}]
    engine = {"kind": "replay", "rollouts": str(ROLLOUTS / "rollouts.parquet")}
    settings = {
        "run_dir": str(tmp_path / "run"),
        "budget": "$0.2",
        "engines": {name: engine | {"prices": each} for name, each in zip(("small", "large"), prices, strict=True)},
        "scoring": {"scorer": SCORER},
        "allocation": {"objective": "solved"},
    }
    one, config = estimates_of(), RunConfig.parse(settings)
    estimates = priced(config, replace(one, others=(one,)), np.ones(QUERIES))
    found, workers = asked(open_folder(str(tmp_path / "run")), settings, estimates)
    for each, worker in zip(found, workers, strict=True):
        assert 2 <= len(each.whole) == len(worker.grants)
        assert each.taken <= 0.005 * config.budget_tokens
    # The same queries, and the same recording: a token costs five times as much, so does a prompt.
    assert len(found[0].whole) > 3 * len(found[1].whole)
    assert {round(taken) for taken in found[1].whole} <= {round(5 * taken) for taken in found[0].whole}
    report = with_interval(plan_report(budget_tokens=config.budget_tokens), estimates, found, is_followed=True)
    assert report.sampled_answers == sum(len(each.whole) for each in found)
    assert report.high_tokens is not None
    assert report.low_tokens < report.expected_tokens < report.high_tokens
