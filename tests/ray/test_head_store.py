"""Runs that keep what they have learned in a store, whole and on a local cluster, with recorded rollouts of a real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.earlier_runs import EARLIER
from clear_ray.batch.plan import plan
from clear_ray.batch.run import RunResult, run
from clear_ray.config.run import RunConfig
from clear_ray.report.text import plan_text, summary_text
from tests.ray.test_drivers import cut_before, on_ray

pytestmark = pytest.mark.slow

QUERIES = 199


def config_of(settings: dict[str, Any], path: Path, rows: range, *, average: int = 16, **estimate: Any) -> RunConfig:
    """Return the settings of a run on some of the recorded queries that knows nothing but what a store holds."""
    queries = pq.read_table(settings["input"]["path"]).take(pa.array(rows))
    path.mkdir()
    pq.write_table(queries, path / "queries.parquet")
    changes = {
        "run_dir": str(path / "run"),
        "input": {"path": str(path / "queries.parquet")},
        "budget": average * len(queries),
        "estimate": estimate,
        "allocation": {"max_tokens": 400, "max_rounds": 4},
    }
    return RunConfig.parse(settings | changes)


def facts_of(result: RunResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(result.run_dir) / f"{EARLIER}.json").read_bytes())
    return found


def test_the_next_run_of_a_model_begins_with_what_the_last_one_learned(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    store = tmp_path / "learned" / "here"
    first = run(None, config_of(replay_settings, tmp_path / "a", range(0, QUERIES, 4), average=40, store=str(store)))
    assert first.report.learning is not None
    assert (first.report.learning.earlier_answers, facts_of(first)["runs"]) == (0, [])
    (kept,) = store.rglob("*.parquet")
    assert len(pq.read_table(kept)) == first.report.learning.answers
    foreign = kept.with_name("notes.parquet")
    pq.write_table(pa.table({"x": [1]}), foreign)

    config = config_of(replay_settings, tmp_path / "b", range(2, QUERIES, 4), store=str(store))
    kept_before = sorted(store.rglob("*"))
    planned = plan(None, config)
    assert planned.gain is not None
    assert (planned.gain.source, planned.gain.answers) == ("store", first.report.learning.answers)
    assert planned.gain.is_expected
    assert planned.expected_utility > 1.5 * planned.uniform_expected_utility, "by what the store says, not by the law"
    assert f"by {planned.gain.answers} answers of earlier runs" in plan_text(planned)
    assert sorted(store.rglob("*")) == kept_before

    second = run(None, config)
    learning, facts = second.report.learning, facts_of(second)
    assert learning is not None
    assert learning.earlier_answers == first.report.learning.answers == facts["answers"]
    assert facts["runs"] == [kept.stem]
    assert learning.given_share > 0.1, "the same kinds of query: what was learned fits"
    assert learning.given_share + learning.learned_share > 0.6
    assert [note.split(":")[0] for note in learning.store_notes] == ["notes.parquet"]
    said = summary_text(second.report)
    assert f"after {learning.earlier_answers} of earlier runs" in said
    assert "notes.parquet: it is no lesson" in said
    assert len(list(store.rglob("*.parquet"))) == 3, "it kept its own lesson too"


def test_a_plan_asks_for_short_answers_where_no_whole_one_is_paid_for(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(replay_settings, tmp_path / "a", range(0, QUERIES), average=64, store=str(tmp_path / "none"))
    planned = plan(None, config, sample_share=0.01)
    assert planned.gain is not None
    assert (planned.sampled_answers, planned.high_tokens, planned.gain.source) == (0, None, "sample")
    assert 0 < planned.sample_tokens <= 0.01 * 64 * QUERIES
    assert planned.gain.answers > 0
    assert planned.gain.low < planned.gain.high
    assert "sampled answer" in plan_text(planned)
    assert not (tmp_path / "none").exists()
    unasked = plan(None, config).gain
    assert unasked is not None
    assert (unasked.source, unasked.answers) == ("nothing", 0)


def test_a_resumed_run_believes_what_it_believed_and_a_store_is_worth_it(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    store, evens, odds = str(tmp_path / "learned"), range(0, QUERIES, 2), range(1, QUERIES, 2)
    run(None, config_of(replay_settings, tmp_path / "a", evens, average=64, store=store))
    config = config_of(replay_settings, tmp_path / "b", odds, average=24, store=store)
    second = run(None, config)
    alone = run(None, config_of(replay_settings, tmp_path / "c", odds, average=24))
    assert second.report.correct is not None
    assert alone.report.correct is not None
    assert second.report.correct >= alone.report.correct + 3

    # A driver that dies in the second round, and a store that others have written to, or that is gone, meanwhile.
    whole = on_ray(second)
    copy = tmp_path / "b" / "cut"
    cut_before(2, second.run_dir, copy)
    run(None, config_of(replay_settings, tmp_path / "d", evens, average=24, store=store))
    resumed = config.model_copy(update={"run_dir": str(copy)})
    assert on_ray(run(None, resumed)) == whole
    shutil.rmtree(copy)

    # A driver that dies before its beliefs were whole.
    cut_before(1, second.run_dir, copy)
    (copy / f"{EARLIER}.json").unlink()
    next((copy / EARLIER).glob("*.parquet")).write_bytes(b"torn")
    shutil.rmtree(store)
    again = run(None, resumed)
    assert again.report.learning is not None
    assert again.report.learning.earlier_answers == 0
