"""Models that cannot be read whole are refused: quantized ones by what they lack, and those of which weights are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.build import build_engine
from clear_ray.engine.checking import check_engine
from clear_ray.errors import ConfigError, EngineError
from tests.unit.engine.model_folders import save_model


def checked(folder: Path) -> None:
    config = TransformersConfig(model=str(folder), threads=1)
    check_engine(config, probe_layers=None, check_model=lambda _: None, is_for_any_model=True)


def quantized(folder: Path, settings: dict[str, Any]) -> Path:
    save_model(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"quantization_config": settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "quantized by gptq: .*optimum"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "quantized by compressed-tensors: .*compressed-tensors",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quantized by modelopt: transformers does not know it"),
        ({"bits": 4}, "quantized by an unnamed method: "),
    ],
)
def test_what_quantized_weights_lack_is_told_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=said) as caught:
        checked(quantized(tmp_path, settings))
    assert "engine.kind to vllm" in caught.value.remedy
    with pytest.raises((ConfigError, EngineError)):
        build_engine(TransformersConfig(model=str(tmp_path), threads=1))


def test_packages_of_another_machine_are_not_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    checked(quantized(tmp_path / "a", {"quant_method": "gptq", "bits": 4, "group_size": 128}))
    with pytest.raises(ConfigError, match="transformers does not know it"):
        checked(quantized(tmp_path / "b", {"quant_method": "modelopt"}))


def test_a_model_of_which_weights_are_missing_is_refused_as_they_would_be_drawn_at_random(tmp_path: Path) -> None:
    file = save_model(tmp_path) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "layers.0" in name)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match=f"its files lack 1 of its weights, the first of them {name}"):
        build_engine(TransformersConfig(model=str(tmp_path), threads=1))
