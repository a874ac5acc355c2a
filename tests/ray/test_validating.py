"""`validate` and `run` refuse the same input and the same configuration, in the same words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clear_ray.batch.checking import check_run
from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError
from tests.unit.ingest.corpus import BAD_FILES, BAD_LINES, BAD_REQUESTS, BAD_VALUES, GOOD, request


def bad_inputs(kind: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of files that are refused, of one kind of the corpus."""
    good = json.dumps(GOOD).encode()
    if kind == "values":
        for column, value, _ in BAD_VALUES:
            fields = {"query_id": '"second"', "prompt": '"b"', column: value}
            row = ", ".join(f'"{name}": {text}' for name, text in fields.items())
            yield "q.jsonl", good + f"\n{{{row}}}\n".encode()
    elif kind == "lines":
        yield from (("q.jsonl", good + b"\n" + line + b"\n") for line, _ in BAD_LINES.values())
    elif kind == "files":
        yield from ((file, content) for file, content, _ in BAD_FILES.values())
    else:
        first = json.dumps(request() | {"custom_id": "first"})
        yield from (("q.jsonl", f"{first}\n{json.dumps(line)}\n".encode()) for line, _ in BAD_REQUESTS.values())


def refusals(settings: dict[str, Any]) -> tuple[str, str]:
    """Return what `validate` and what `run` says; empty where it has nothing to say."""
    said = []
    config = RunConfig.parse(settings)
    for command in (check_run, lambda config: run(None, config)):
        try:
            command(config)
            said.append("")
        except ClearRayError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said[0], said[1]


@pytest.mark.parametrize("kind", ["values", "lines", "files", "requests"])
def test_every_input_of_the_corpus_is_refused_by_both(
    replay_settings: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    for file, content in bad_inputs(kind):
        (tmp_path / file).write_bytes(content)
        validated, ran = refusals(replay_settings | {"input": {"path": str(tmp_path / file)}})
        assert ran, content
        assert validated == ran
        (tmp_path / file).unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {"allocation": {"max_tokens": 400, "minimum_service_tokens": 100}},
        {"estimate": {"head": "no/such"}},
        {"estimate": {"head": "demo", "layers": 3}},
        {"scoring": {"scorer": "no.such:scorer"}},
        {"scoring": {"scorer": "clear_ray.tasks.recorded:no_such"}},
        {"input": {}},
        {"input": {"path": "no/such.jsonl"}},
        {"engine": {"kind": "replay", "rollouts": "no.parquet", "features": "no.parquet"}},
        {"engine": {"kind": "transformers", "model": "/no/such"}},
        {"engine": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "patience_seconds": 1}},
    ],
    ids=str,
)
def test_every_configuration_that_a_run_refuses_is_refused_by_validate(
    replay_settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    validated, ran = refusals(replay_settings | changes)
    assert ran
    assert validated == ran


@pytest.mark.parametrize(
    "engine",
    [
        {"max_context_tokens": 100_000},
        {"answer_reserve_tokens": 2},
        {"fingerprint": "0" * 64},
        {"device": "nonsense"},
        {"kind": "vllm"},  # which is in an environment of its own
    ],
    ids=str,
)
def test_what_an_engine_refuses_is_refused_by_validate(replay_settings: dict[str, Any], engine: dict[str, Any]) -> None:
    """The engine says it in an actor that has loaded the model; `validate` reads the files."""
    settings = replay_settings | {"engine": {"kind": "transformers", **engine}, "scoring": {}}
    validated, ran = refusals(settings)
    assert ran
    assert validated


UNKEPT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}


def test_what_a_model_cannot_do_for_a_row_is_refused_by_both(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"stop_token_ids": [10_000_000]},
        {"logit_bias": {"10000000": 1}},
        {"response_format": UNKEPT},
        {"continue_final_message": True},
        {"min_tokens": 50, "max_tokens": 5},
        {"messages": [{"role": "user", "content": "many words " * 9_000}]},
        {"n": 3},  # at temperature 0
    ]
    lines = [request(**fields) | {"custom_id": str(number)} for number, fields in enumerate(asked)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"engine": {"kind": "transformers"}, "scoring": {}, "input": {"path": str(tmp_path / "q.jsonl")}}
    validated, ran = refusals(replay_settings | settings)
    assert validated == ran
    assert f"the input has {len(asked)} problems" in ran
