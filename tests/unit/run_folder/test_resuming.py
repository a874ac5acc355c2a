"""What `--set` may change of a run that has begun: how many engines it has, and nothing else; nothing is dropped silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clear_ray.cli import app, guarded
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.ingest import InputDigest
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe, describe_config
from clear_ray.storage import open_folder


@pytest.fixture
def begun(replay_settings: dict[str, Any]) -> RunConfig:
    """The configuration of a run whose folder holds its manifest."""
    config = RunConfig.parse(replay_settings)
    folder = Path(config.run_dir)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(describe(config, InputDigest(199, "0" * 64, 1, None, 1))))
    return config


def test_engines_may_be_added_on_the_way(begun: RunConfig) -> None:
    now = begun.resumed(("scaling.deadline=2h", "scaling.max_workers=3"))  # the first alone would be refused
    assert (now.scaling.max_workers, now.scaling.deadline) == (3, "2h")
    assert now.model_copy(update={"scaling": begun.scaling}) == begun
    check_same_run(
        json.loads((Path(begun.run_dir) / MANIFEST).read_text()), describe_config(now), open_folder(begun.run_dir)
    )


def test_the_value_that_it_has_already_is_no_change(begun: RunConfig) -> None:
    assert begun.resumed((f"budget={begun.budget}", "seed=0")) == begun


@pytest.mark.parametrize("budget", ["5k", "5", "$5"], ids=["tokens", "a number", "money"])
@pytest.mark.parametrize("began", ["2M tokens", "$7"], ids=["in tokens", "in money"])
def test_a_new_budget_is_told_its_command(begun: RunConfig, began: str, budget: str) -> None:
    prices = {"prices": {"input": 1, "output": 1}} if began.startswith("$") else {}
    run = RunConfig.parse(begun.model_dump(mode="json") | {"budget": began} | prices)
    with pytest.raises(ConfigError) as caught:
        run.resumed((f"budget={budget}",))
    assert caught.value.remedy == f"Write `clear-ray budget {run.run_dir} {budget}`, then resume."


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("budget=1", "--set budget"),
        ("allocation.max_tokens=7", "--set allocation.max_tokens"),
        ("engine.workers=2", "--set engine.workers"),
        ("run_dir=elsewhere", "--set run_dir"),
        ("no.such=1", "--set: no"),
        ("scaling.no_such=1", "--set: scaling.no_such"),
        ("scaling.max_workers=0", "--set: scaling.max_workers"),
        ("scaling", "--set"),
    ],
)
def test_anything_else_is_refused_by_name(
    begun: RunConfig, override: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=named):
        begun.resumed((override,))
    for arguments in ([begun.run_dir], ["--config", _file_of(begun)]):
        if override.startswith("run_dir") and "--config" in arguments:
            continue  # there it says which run
        assert guarded(lambda given=arguments: app(args=["resume", *given, "--set", override])) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Refused: ")
        assert override.partition("=")[0].partition(".")[0] in err


@pytest.mark.parametrize("override", ["budget=1", "scaling.max_workers=3", "no.such=1"])
def test_a_status_takes_no_setting(begun: RunConfig, override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(args=["status", begun.run_dir, "--set", override])) == 2
    assert override in capsys.readouterr().err


def _file_of(config: RunConfig) -> str:
    path = Path(config.run_dir).parent / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return str(path)
