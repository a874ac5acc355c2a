"""Models that cannot be read whole are refused: quantized ones by what they lack, and those of which weights are missing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from clear_ray.config.engine import TransformersConfig, VllmConfig
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


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def sharded(folder: Path, *, is_whole: bool = False) -> None:
    weights = load_file(folder / "model.safetensors")
    files = {name: f"model-{1 + k % 2}.safetensors" for k, name in enumerate(sorted(weights))}
    for file in set(files.values()):
        if is_whole or file != "model-2.safetensors":
            some = {name: weights[name] for name in weights if files[name] == file}
            save_file(some, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "model.safetensors").unlink()


def configured(folder: Path, **changes: Any) -> None:
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (pointer, "the file is a pointer of Git LFS"),
        (cut, "the file of weights is cut off"),
        (adapter, "these are the weights of an adapter"),
        (sharded, r"1 of 2 files of weights are missing \(got model-2\.safetensors\)"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "the file is not safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
            "neither model.safetensors nor",
        ),
        (lambda folder: configured(folder, vocab_size=50), r"has another shape than config.json says, \(50, 32\)"),
        (
            lambda folder: configured(folder, num_hidden_layers=5),
            "its files lack 9 of the weights that config.json asks for",
        ),
    ],
)
def test_damaged_weights_are_told_before_they_are_loaded(tmp_path: Path, damage: Any, said: str) -> None:
    damage(save_model(tmp_path))
    with pytest.raises(EngineError, match=said):
        checked(tmp_path)
    with pytest.raises(EngineError):
        build_engine(TransformersConfig(model=str(tmp_path), threads=1))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral", "opt", "falcon"])
def test_whole_weights_are_not_refused(tmp_path: Path, name: str) -> None:
    checked(save_model(tmp_path, name))
    sharded(tmp_path, is_whole=True)
    checked(tmp_path)


def test_a_chat_template_that_is_none_is_told(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    checked(save_model(tmp_path / "whole", template=template))
    broken = save_model(tmp_path / "broken", template=template)
    (broken / "chat_template.jinja").write_text("{% for message in %}")
    with pytest.raises(EngineError, match="its chat template cannot be read"):
        checked(broken)


def test_weights_for_vllm_are_looked_at_where_they_have_the_usual_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where vLLM is installed
    config = VllmConfig(kind="vllm", model=str(tmp_path))
    check = partial(check_engine, config, probe_layers=None, check_model=lambda _: None, is_for_any_model=True)
    save_model(tmp_path)
    check()
    pointer(tmp_path)
    with pytest.raises(EngineError, match="pointer of Git LFS"):
        check()
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    check()
