"""A head that is fitted without a scorer and without gold answers, on which answers to a query agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.checking import check_run
from clear_ray.calibrate import AGREED, calibrate
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError


@pytest.mark.slow
def test_several_answers_to_a_query_stand_in_for_a_scorer(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    queries = pq.read_table(replay_settings["input"]["path"])
    pq.write_table(queries.drop_columns(["gold", "metadata"]).slice(0, 60), few)
    unscored = {"input": {"path": str(few)}, "budget": 2 * 400 * 60, "scoring": {"agreement": "exact"}}
    config = RunConfig.parse(replay_settings | unscored)
    made = calibrate(config, head_dir=str(tmp_path / "head"), samples=2, kind="factorised")
    assert (made.head.card.label, made.queries, made.rollouts, made.warnings) == ("agreement", 60, 120, (AGREED,))
    once = calibrate(
        RunConfig.parse(replay_settings | unscored | {"run_dir": str(tmp_path / "once")}),
        head_dir=str(tmp_path / "once-head"),
        samples=1,
        kind="factorised",
    )
    assert once.head.card.label == "ended", "one answer agrees with none"
    informed = {"run_dir": str(tmp_path / "informed"), "estimate": {"head": str(tmp_path / "head")}}
    notices = check_run(RunConfig.parse(replay_settings | informed)).digest.notices
    assert any("which answers agree with others" in notice for notice in notices)
    with pytest.raises(ConfigError, match="holds the answers of a calibration, and no run"):
        check_run(config)
    notices = check_run(config.model_copy(update={"run_dir": str(tmp_path / "unlearned")})).digest.notices
    assert any("scoring.agreement is not used" in notice for notice in notices)


@pytest.mark.slow
def test_one_of_several_engines_is_calibrated_by_its_name(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(replay_settings["input"]["path"]).slice(0, 60), few)
    recorded = replay_settings.pop("engine")
    prices = {"small": {"input": "0.015", "output": "0.045"}, "large": {"input": "0.16", "output": "0.48"}}
    menu = replay_settings | {
        "input": {"path": str(few)},
        "budget": "$1",
        "engines": {name: recorded | {"prices": of} for name, of in prices.items()},
        "estimate": {},
        "allocation": {"max_tokens": 400, "objective": "solved"},
        "scaling": {"max_workers": {"small": 2}},
    }
    config = RunConfig.parse(menu)
    for name in (None, "medium"):
        with pytest.raises(ConfigError, match="Name one of small, large"):
            calibrate(config, head_dir=str(tmp_path / "head"), engine=name)
    made = calibrate(config, head_dir=str(tmp_path / "head"), samples=1, kind="factorised", engine="large")
    assert (made.head.card.label, made.queries, made.rollouts) == ("verdict", 60, 60)
    summary = json.loads((Path(config.run_dir) / "large" / "sample-00" / "summary.json").read_text())
    assert summary["unit"] == "USD"
    menu["engines"]["large"]["head"] = str(tmp_path / "head")
    told = RunConfig.parse(menu | {"run_dir": str(tmp_path / "told"), "estimate": {"frozen": False}})
    assert [named.is_unknown for named in told.named_engines] == [True, False]
    check_run(told)
    with pytest.raises(ConfigError, match="has one engine"):
        calibrate(
            RunConfig.parse(replay_settings | {"engine": recorded}), head_dir=str(tmp_path / "other"), engine="small"
        )
