"""YAML as people write it: nothing is dropped, no number becomes another one, and what is wrong is told with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.base import apply_override
from clear_ray.config.reading import read_yaml
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError

LEAST = "run_dir: runs/x\nbudget: 5k\n"


def loaded(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    (tmp_path / "run.yaml").write_text(text)
    return RunConfig.load(tmp_path / "run.yaml", overrides)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{LEAST}budget: 9k\n", "line 3, column 1: `budget` stands here and in line 2"),
        (
            f"{LEAST}engine: {{model: a}}\nseed: 1\nengine: {{model: b}}\n",
            "line 5, column 1: `engine` stands here and in",
        ),
        (
            f"{LEAST}allocation:\n  max_tokens: 5\n  max_tokens: 5\n",
            "line 5, column 3: `max_tokens` stands here and in",
        ),
        (f"{LEAST}engine: {{workers: 1, workers: 2}}\n", "line 3, column 22: `workers` stands here and in line 3"),
        (f"{LEAST}allocation:\n\tmax_tokens: 5\n", r"line 4, column 1: found character '\t'"),
        (f"{LEAST}---\n{LEAST}", "line 3, column 1: expected a single document in the stream but found another"),
        ("run_dir: runs: x\n", "line 1, column 14: mapping values are not allowed here"),
    ],
)
def test_what_is_no_yaml_or_says_two_things_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert said in str(caught.value)
    assert caught.value.where == str(tmp_path / "run.yaml")


def test_a_key_may_replace_one_that_a_merge_brings_along() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")["b"] == {"x": 3, "y": 2}
    deep = "a: &a {x: 1}\nb: {c: {d: &d {<<: *a, x: 2}}}\ne: {<<: *d, y: 3}\n"  # a mapping may be merged before it is built
    assert read_yaml(deep) == {"a": {"x": 1}, "b": {"c": {"d": {"x": 2}}}, "e": {"x": 2, "y": 3}}


def test_an_override_changes_one_of_the_groups_that_an_alias_made_alike() -> None:
    settings = read_yaml("a: &a {extra: {x: 1}, y: 2}\nb: *a\nc: {<<: *a, z: 3}\n")
    apply_override(settings, "a.extra.x=5")
    apply_override(settings, "c.extra.new.w=6")
    assert settings == {
        "a": {"extra": {"x": 5}, "y": 2},
        "b": {"extra": {"x": 1}, "y": 2},
        "c": {"extra": {"x": 1, "new": {"w": 6}}, "y": 2, "z": 3},
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("0150", 150),
        ("-08", -8),
        ("0o17", 15),
        ("0x10", 16),
        ("0b101", 5),
        ("1_000", 1_000),
        ("1e6", 1e6),
        ("-1e-3", -1e-3),
        ("1.5e3", 1_500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("190:20:30.5", "190:20:30.5"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
        ("1,500", "1,500"),
        ("'12'", "12"),
        ("yes", True),
        ("~", None),
    ],
)
def test_a_number_is_the_one_that_is_written(written: str, value: object) -> None:
    found = read_yaml(f"a: {written}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("written", ["2000", "2000.0", "2e3", "2.0e+3", "02000", "2k", "'2000'"])
def test_a_budget_may_be_a_number_of_any_spelling(tmp_path: Path, written: str) -> None:
    config = loaded(tmp_path, LEAST, f"budget={written}")
    assert (config.budget_tokens, RunConfig.parse(config.model_dump(mode="json"))) == (2_000, config)


@pytest.mark.parametrize("written", ["2000.5", "1:30", "yes", ".nan", "[5]"])
def test_what_is_no_whole_number_is_no_budget(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: budget: "):
        loaded(tmp_path, LEAST, f"budget={written}")


@pytest.mark.parametrize("group", ["input", "engine", "scaling", "estimate", "allocation", "scoring", "dispatch"])
def test_a_group_with_nothing_in_it_is_left_out(tmp_path: Path, group: str) -> None:
    assert loaded(tmp_path, f"{LEAST}{group}:\n  # all of it is commented out\n") == loaded(tmp_path, LEAST)


@pytest.mark.parametrize(
    "override", ["allocation.max_tokens=yes", "engine.workers=on", "scoring.scorer=off", "engine.temperature=true"]
)
def test_a_truth_value_is_no_number_and_no_text(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, LEAST, override)
    assert caught.value.where.endswith(f": {override.partition('=')[0]}")
    assert "true and false say nothing here" in caught.value.what


@pytest.mark.parametrize("value", [True, False])
def test_what_is_true_or_false_may_be_so(value: bool) -> None:
    settings: dict[str, Any] = {"run_dir": "runs/x", "budget": 5}
    config = RunConfig.parse(settings | {"engine": {"chat_template": value}, "allocation": {"overlap": value}})
    assert (config.engine.chat_template, config.allocation.overlap) == (value, value)  # type: ignore[union-attr]
