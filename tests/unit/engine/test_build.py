"""A pinned model is refused before it is loaded if it is another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_model

from clear_ray.config import TransformersConfig
from clear_ray.engine.build import build_engine
from clear_ray.engine.fingerprint import model_fingerprint
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
