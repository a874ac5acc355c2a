"""What is refused before a model runs: another one than was pinned, code and pickles that it brings, and no model at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model

from clear_ray.config.engine import TransformersConfig, VllmConfig
from clear_ray.engine.build import build_engine, prompt_limit
from clear_ray.engine.fingerprint import model_fingerprint
from clear_ray.engine.loading import load_model, model_folder
from clear_ray.errors import ConfigError, EngineError
from tests.unit.engine.tiny import tiny_model


def test_another_model_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    seen = model_fingerprint(tmp_path)
    with pytest.raises(ConfigError, match=f"pinned.*{'0' * 64}.*{seen}"):
        build_engine(TransformersConfig(model=str(tmp_path), fingerprint="0" * 64))
    with pytest.raises((ConfigError, EngineError), match="tokenizer"):  # past the pin: these files hold no tokenizer
        build_engine(TransformersConfig(model=str(tmp_path), fingerprint=seen))


def test_vllm_is_refused_for_a_head_that_reads_some_layers() -> None:
    with pytest.raises(ConfigError, match=r"estimate.layers: vLLM runs all layers.*got 8"):
        build_engine(VllmConfig(kind="vllm", model="smollm2-135m-instruct"), probe_layers=8)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path, file: str) -> None:
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    settings = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(settings | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    with pytest.raises(ConfigError, match="auto_map"):
        build_engine(TransformersConfig(model=str(tmp_path)))
    assert not (tmp_path / "was_run").exists()


class _Evil:
    """What a poisoned checkpoint would hold: unpickling it runs something."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    tiny_model().config.save_pretrained(tmp_path)
    torch.save({"model.embed_tokens.weight": _Evil(tmp_path / "was_run")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match="safetensors"):
        load_model(tmp_path, device=torch.device("cpu"), dtype=None)
    assert not (tmp_path / "was_run").exists()


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for look in (
        lambda: model_folder("nobody/nothing"),
        lambda: prompt_limit(TransformersConfig(model="nobody/nothing")),
    ):
        with pytest.raises(ConfigError, match=r"cannot be had from the hub.*nobody/nothing.*name its folder"):
            look()


def test_vllm_that_is_not_installed_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("clear_ray.engine.vllm")]:
        monkeypatch.delitem(sys.modules, name)  # on a machine that has it
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"vLLM cannot be imported.*clear_ray\[vllm\]"):
        build_engine(VllmConfig(kind="vllm"))
