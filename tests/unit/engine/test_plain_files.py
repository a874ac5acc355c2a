"""What is read of a model without transformers is what transformers reads, and torch stays out of a run's driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clear_ray.engine.architectures import read_model_config, refuse_unfit, unfit_reason, way_note
from clear_ray.engine.context import longest_context, moving_positions
from clear_ray.engine.plain_files import PLAIN_ARCHITECTURES, has_plain_tokenizer, has_template_file, plain_config
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.smollm2 import embedded_model_folder
from tests.unit.engine.model_folders import ALTERNATING, save_model
from tests.unit.engine.zoo import tiny_config


@pytest.mark.parametrize("name", sorted(PLAIN_ARCHITECTURES))
def test_a_plain_configuration_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    tiny_config(name).save_pretrained(tmp_path)
    plain, whole = plain_config(tmp_path), read_model_config(tmp_path)
    assert plain is not None
    refuse_unfit(plain)
    for said in (longest_context, moving_positions, unfit_reason, lambda config: way_note(config, 64)):
        assert said(plain) == said(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mamba"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"max_position_embeddings": None},
        {"auto_map": {"AutoConfig": "mine.Mine"}},
    ],
)
def test_what_is_not_plain_is_left_to_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert plain_config(tmp_path) is not None
    (tmp_path / "config.json").write_text(json.dumps(saved | changes))
    assert plain_config(tmp_path) is None


def test_conversations_read_the_same_with_the_plain_tokenizer(tmp_path: Path) -> None:
    for folder in (save_model(tmp_path, template=ALTERNATING), embedded_model_folder()):
        whole, plain = Rendering(folder), Rendering(folder, for_templates=True)
        assert has_plain_tokenizer(folder)
        assert has_template_file(folder) is plain.has_template is whole.has_template is True
        asked = [(("user", "Name a fruit."), ("assistant", "A pear."), ("user", "Another."))]
        assert plain.token_ids(asked) == whole.token_ids(asked)
    assert not has_template_file(save_model(tmp_path / "base"))


def test_the_driver_of_a_run_needs_no_torch_and_few_threads() -> None:
    script = """
import os, sys
import clear_ray.cli
assert int(os.environ["OPENBLAS_NUM_THREADS"]) == max(1, min(os.cpu_count() // 4, 8))
import clear_ray.batch.run
from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.build import prompt_limit
from clear_ray.engine.checking import engine_notes
from clear_ray.engine.conversations import ConversationWatch

config = TransformersConfig(model="smollm2-135m-instruct")
assert engine_notes(config) == ()
assert prompt_limit(config).context_tokens == 8192
assert "transformers" not in sys.modules
assert ConversationWatch(config)._rendering.token_ids([(("user", "Hello."),)])
assert "torch" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)
