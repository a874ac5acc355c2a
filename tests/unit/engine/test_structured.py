"""Answers that keep to a structure, written by a model with random weights: what ends by itself is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clear_ray.config.engine import TransformersConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine import Engine, Generation, Grant, TransformersEngine, resolve_model
from clear_ray.engine.structured import check_structure
from clear_ray.errors import SchemaError
from tests.unit.engine.conftest import run_grants
from tests.unit.engine.tiny import tiny_config

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Rome"]}, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "people"],
        "additionalProperties": False,
    },
    "verdict": {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
        "required": ["label", "sure"],
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    "nested": {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    "either": {"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}, {"type": "boolean"}]},
    "constant": {"const": {"ok": True}},
    "short text": {
        "type": "object",
        "properties": {"say": {"type": "string", "maxLength": 4}},
        "required": ["say"],
        "additionalProperties": False,
    },
}
SAMPLES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small random model with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("random")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    torch.manual_seed(1)
    config = tiny_config(
        vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.02, eos_token_id=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = TransformersEngine(TransformersConfig(model=str(folder), max_batch=16, temperature=1.0, threads=1))
    yield engine
    engine.close()


def answers(
    engine: Engine, structures: dict[str, Structure], max_tokens: int = 120
) -> dict[tuple[str, int], Generation]:
    return run_grants(
        engine,
        [
            Grant(name, "Say something.", max_tokens, sample=k, sampling=Sampling(structure=structure))
            for name, structure in structures.items()
            for k in range(SAMPLES)
        ],
    )


def test_json_that_ended_is_valid_for_its_schema(engine: Engine) -> None:
    structures = {name: Structure(kind="json_schema", value=json.dumps(schema)) for name, schema in SCHEMAS.items()}
    ended = 0
    for (name, _), answer in answers(engine, structures).items():
        assert answer.error == ""
        if answer.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
    assert ended > len(SCHEMAS) * SAMPLES * 0.7  # a random model fills JSON up with white space now and then


def test_a_choice_an_expression_and_a_grammar_are_kept(engine: Engine) -> None:
    structures = {
        "choice": Structure(kind="choice", value='["yes", "no", "per\\"haps", "größer"]'),
        "regex": Structure(kind="regex", value="[a-f]{2,5}-[0-9]+x"),
        "grammar": Structure(kind="grammar", value='start: "<" word ">"\nword: /[a-z]{1,8}/'),
        "backus-naur": Structure(kind="grammar", value='root ::= "<" word-1 ">"\nword-1 ::= [a-z] | [a-z] word-1'),
        "object": Structure(kind="json_object"),
    }
    fits = {
        "choice": lambda text: text in ("yes", "no", 'per"haps', "größer"),
        "regex": lambda text: re.fullmatch("[a-f]{2,5}-[0-9]+x", text),
        "grammar": lambda text: re.fullmatch("<[a-z]{1,8}>", text),
        "backus-naur": lambda text: re.fullmatch("<[a-z]+>", text),
        "object": lambda text: isinstance(json.loads(text), dict),
    }
    found = answers(engine, structures)
    assert all(answer.error == "" for answer in found.values())
    for (name, _), answer in found.items():
        assert answer.finish_reason == "length" or fits[name](answer.text), answer.text
    assert all(found["choice", k].finish_reason == "stop" for k in range(SAMPLES))


def test_a_structured_answer_is_the_same_however_it_is_cut(engine: Engine) -> None:
    sampling = Sampling(structure=Structure(kind="json_schema", value=json.dumps(SCHEMAS["flat"])), seed=4)
    whole = run_grants(engine, [Grant("q", "Which?", 60, seed=4, sampling=sampling)])["q", 0]
    prefix: tuple[int, ...] = ()
    reason = "length"
    while reason == "length" and len(prefix) < 60:
        part = run_grants(engine, [Grant("q", "Which?", 3, seed=4, prefix_token_ids=prefix, sampling=sampling)])["q", 0]
        prefix, reason = prefix + part.token_ids, part.finish_reason
    assert whole.finish_reason == "stop"
    assert (prefix, part.text) == (whole.token_ids, whole.text)


def test_a_plain_neighbour_is_not_touched(engine: Engine) -> None:
    plain = Grant("plain", "Say something.", 30)
    alone = run_grants(engine, [plain])["plain", 0]
    beside = Grant("q", "Say.", 30, sampling=Sampling(structure=Structure(kind="json_object"), stop=("}",)))
    assert run_grants(engine, [plain, beside])["plain", 0] == alone


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        (Structure(kind="json_schema", value='{"not": {"type": "string"}}'), "not"),
        (Structure(kind="json_schema", value="[1]"), "object"),
        (Structure(kind="regex", value="(?<=x)a"), "look-around"),
        (Structure(kind="grammar", value="start: 'a'"), "lexer error"),
        (Structure(kind="grammar", value='root ::= "a" ('), "the grammar cannot be read"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_reason(structure: Structure, said: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(said)):
        check_structure(structure)
