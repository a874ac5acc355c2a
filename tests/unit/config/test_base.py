"""One loader: the configuration of a run and that of a server are read, overridden and refused alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clear_ray.config.base import ConfigFile
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.serve.settings import ServeConfig

KINDS: list[tuple[type[ConfigFile], dict[str, Any]]] = [
    (RunConfig, {"run_dir": "runs/x", "budget": 100}),
    (ServeConfig, {"model_name": "x"}),
]


@pytest.fixture(params=KINDS, ids=["run", "serve"])
def kind(request: pytest.FixtureRequest) -> type[ConfigFile]:
    kind: type[ConfigFile] = request.param[0]
    return kind


@pytest.fixture
def file(kind: type[ConfigFile], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(dict(KINDS)[kind]))
    return path


def test_an_override_replaces_what_the_file_says(kind: type[ConfigFile], file: Path) -> None:
    plain = kind.load(file)
    changed = kind.load(file, ("engine.temperature=0.5", "engine.max_batch=7"))
    assert plain.engine.max_batch != 7  # type: ignore[attr-defined]
    engine = plain.engine.model_copy(update={"temperature": 0.5, "max_batch": 7})  # type: ignore[attr-defined]
    assert changed == plain.model_copy(update={"engine": engine})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "engine.max_bach=7",
            r"engine\.max_bach: kind transformers has no such setting; did you mean max_batch\? \(got 7\)",
        ),
        ("engine.max_batch=0", r"engine\.max_batch: .*greater than or equal to 1 \(got 0\)"),
        ("api_key=sk-geheim", "api_key: there is no such setting"),
        ("engine.max_batch={system_prompt: geheim}", r"engine\.max_batch: .*valid integer"),
    ],
)
def test_a_refusal_names_the_setting_and_shows_no_key(
    kind: type[ConfigFile], file: Path, override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        kind.load(file, (override,))
    assert str(file) in str(caught.value)
    assert kind.remedy in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "a: [", "only text"])
def test_a_file_that_is_no_mapping_is_refused(kind: type[ConfigFile], tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        kind.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        kind.load(tmp_path / "absent.yaml")
