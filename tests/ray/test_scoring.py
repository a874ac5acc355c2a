"""Whole runs with named scorers: what was chosen, read and judged is in the rows, the report and the plan."""

from __future__ import annotations

from typing import Any

from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.report.text import plan_text, summary_text
from clear_ray.tasks import load_scorer
from tests.ray.test_run import completions_of


def settings_with(replay_settings: dict[str, Any], scorer: str) -> RunConfig:
    return RunConfig.parse(replay_settings | {"scoring": {"scorer": scorer}})


def test_the_scorer_that_fits_the_golds_judges_every_answer(replay_settings: dict[str, Any]) -> None:
    config = settings_with(replay_settings, "auto")
    result = run(None, config)
    judge = load_scorer("exact")  # there are numbers and words among the golds
    rows = completions_of(result)
    answered = [row for row in rows if row["status"] == "completed"]
    assert result.report.scorer == "exact, from 199 of 199 golds"
    assert sum(result.report.verdicts.values()) == len(answered) > 20
    assert {row["verdict"] for row in answered} >= {"right", "wrong", "cut off"}
    for row in answered:
        expected = judge(row["text"], row["gold"], None) if row["finish_reason"] == "stop" else 0.0
        assert row["correct"] == expected
        assert (row["verdict"] == "right") == (row["correct"] == 1.0)
        assert (row["verdict"] == "cut off") == (row["finish_reason"] != "stop")
        assert row["answer"] or row["verdict"] != "right"
    assert all(row["verdict"] is row["answer"] is None for row in rows if row["status"] == "abandoned")
    assert result.report.correct == sum(row["correct"] for row in rows)
    assert result.report.warnings == ()


def test_golds_that_the_scorer_cannot_read_are_told_before_and_after_a_run(replay_settings: dict[str, Any]) -> None:
    config = settings_with(replay_settings, "choice")
    (before,) = plan(None, config).warnings
    result = run(None, config)
    assert result.report.warnings[0] == before
    assert before.startswith("gold of ")
    assert "first in row 1 " in before
    assert f"warning      {before}"[:60] in summary_text(result.report)
    assert before[:40] in plan_text(plan(None, config))
    unread = [row for row in completions_of(result) if row["verdict"] == "the gold answer cannot be read"]
    assert unread
    assert all(row["correct"] is None for row in unread)
    assert result.report.scored < result.report.queries
