"""What a model is refused for, and what is said of it, by its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.engine import TransformersConfig, VllmConfig
from clear_ray.engine.admission import end_token_ids
from clear_ray.engine.checking import engine_notes
from clear_ray.engine.conversations import ConversationWatch
from clear_ray.engine.rendering import Rendering
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.ingest import IntakeRules, ReadingRules, SourceBatch, ingest
from clear_ray.storage import open_folder
from tests.unit.engine.model_folders import ALTERNATING, save_model
from tests.unit.engine.zoo import tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), template=ALTERNATING)


def notes_with(folder: Path, generation: dict[str, Any], **settings: Any) -> list[str]:
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return list(engine_notes(TransformersConfig(model=str(folder), **settings)))


@pytest.mark.parametrize(
    ("generation", "settings", "named"),
    [
        ({"eos_token_id": [2, 3], "max_length": 20}, {}, ""),
        ({"repetition_penalty": 1.1}, {}, "repetition_penalty 1.1"),
        ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}, {}, ""),
        # Not drawn by the model's own settings either.
        ({"temperature": 0.7, "top_k": 20}, {}, ""),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {}, "do_sample true, temperature 0.7, top_k 20"),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}, ""),
    ],
)
def test_what_the_run_does_not_take_from_the_generation_config_is_named(
    folder: Path, generation: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    expected = [f"not taken from the model's generation_config: {named}"] if named else []
    assert notes_with(folder, generation, **settings) == expected


def test_all_end_tokens_of_a_models_files_end_an_answer(folder: Path) -> None:
    from transformers import GenerationConfig

    config = tiny_config("llama", eos_token_id=[5, 6])
    found = end_token_ids(config, GenerationConfig(eos_token_id=[6, 7]), Rendering(folder))
    assert found == {5, 6, 7}
    # Of a model that sees and reads, the outer configuration may name more than that of the text.
    outer = tiny_config("gemma3")
    outer.eos_token_id = [1, 106]
    assert end_token_ids(outer, None, Rendering(folder)) >= {1, 106}


def test_a_base_model_is_said_to_read_plain_text(tmp_path: Path) -> None:
    notes = engine_notes(TransformersConfig(model=str(save_model(tmp_path))))
    assert notes == ("the model has no chat template: prompts are read as the plain text that they are",)


def test_a_model_with_a_state_of_its_own_is_said_to_run_alone(tmp_path: Path) -> None:
    model = str(save_model(tmp_path, "jamba", template=ALTERNATING))
    (note,) = engine_notes(TransformersConfig(model=model))
    assert note.startswith("answers of jamba are run one after the other, not in one batch: ")
    assert note.endswith("engine.kind vllm batches them")
    assert engine_notes(VllmConfig(kind="vllm", model=model)) == ()


def test_positions_that_move_with_the_longest_row_are_told_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path, template=ALTERNATING)
    saved = json.loads((model / "config.json").read_text())
    saved["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (model / "config.json").write_text(json.dumps(saved))
    (note,) = engine_notes(TransformersConfig(model=str(model)))
    assert "past 256 tokens" in note
    assert "engine.max_context_tokens of at most 256 batches them" in note
    assert engine_notes(TransformersConfig(model=str(model), max_context_tokens=256)) == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recurrent_gemma", "it keeps what it has read inside its layers"),
        ("bert", "it is an encoder"),
        ("bart", "it is an encoder-decoder model"),
    ],
)
def test_what_cannot_run_is_refused_by_name_with_the_way_out(name: str, words: str, tmp_path: Path) -> None:
    tiny_config(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"engine.model: the architecture {name} .*{words}.*Set engine.kind to vllm"):
        engine_notes(TransformersConfig(model=str(tmp_path)))


def taken_in(tmp_path: Path, config: TransformersConfig, conversations: list[list[tuple[str, str]]]) -> tuple[str, ...]:
    rows = [
        {"query_id": f"p-{k}", "messages": [{"role": role, "content": content} for role, content in turns]}
        for k, turns in enumerate(conversations)
    ]
    queries = open_folder(str(tmp_path / "run")).child("queries")
    batch = SourceBatch(rows, "here", range(1, len(rows) + 1))
    rules = IntakeRules(reading=ReadingRules(max_tokens=8), watches=(ConversationWatch(config),))
    return ingest([batch], queries=queries, rules=rules).notices


def test_conversations_that_will_fail_are_counted_by_the_templates_reason(folder: Path, tmp_path: Path) -> None:
    fine, system = [("user", "Name a fruit.")], [("system", "One word."), ("user", "Name a bird.")]
    twice = [("user", "hello"), ("user", "Name a fish.")]
    config = TransformersConfig(model=str(folder))
    notes = taken_in(tmp_path, config, [fine, system, fine, twice, system])
    assert [note.split(" (first")[0][:90] for note in notes] == [
        "2 of 5 conversations will fail: the chat template refuses the conversation: System role no",
        "1 of 5 conversations will fail: the chat template refuses the conversation: Conversation r",
    ]
    assert "(first: query p-1)" in notes[0]
    with pytest.raises(SchemaError, match=r"every one of 2 prompts: the chat template refuses .*System role"):
        taken_in(tmp_path / "all", config, [system, system])
    assert not (tmp_path / "all" / "run").exists(), "nothing is written"


def test_conversations_for_a_model_without_a_template_are_refused(tmp_path: Path) -> None:
    config = TransformersConfig(model=str(save_model(tmp_path / "base")))
    with pytest.raises(SchemaError, match="query p-0: the model has no chat template"):
        taken_in(tmp_path, config, [[("user", "Hi.")]])
