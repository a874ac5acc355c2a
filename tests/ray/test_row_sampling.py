"""A whole run whose rows say themselves how their answers are made, over several grants, on the embedded model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.errors import SchemaError
from tests.ray.test_run import check_account, completions_of

SCHEMA = {
    "type": "object",
    "properties": {"tea": {"type": "boolean"}, "cups": {"enum": [1, 2, 3]}},
    "required": ["tea", "cups"],
    "additionalProperties": False,
}
ALPHABET = [{"role": "user", "content": "Say the alphabet."}, {"role": "assistant", "content": "A, B, C, D,"}]
BODIES: dict[str, dict[str, Any]] = {
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}, "chat_template_kwargs": {"enable_thinking": False}},
    "regex": {"guided_regex": "tea", "stop_token_ids": [28], "min_tokens": 1},
    "goes on": {"messages": ALPHABET, "continue_final_message": True, "add_generation_prompt": False},
    "drawn": {"temperature": 1.3, "seed": 5},
    "drawn again": {"temperature": 1.3, "seed": 6},
    "json": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    "stop": {"stop": [" of"], "max_tokens": 20, "logprobs": True, "top_logprobs": 2},
    "logprobs": {"logprobs": True},
}


def batch(path: Path) -> dict[str, Any]:
    lines = []
    for name, body in BODIES.items():
        body = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]} | body
        lines.append({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})
    path.write_text("\n".join(map(json.dumps, lines)))
    return {
        "input": {"path": str(path)},
        "budget": 60 * len(lines),
        "engine": {"kind": "transformers", "model": "smollm2-135m-instruct", "max_batch": 4, "threads": 1},
        "allocation": {"max_tokens": 60, "max_rounds": 4},
    }


def texts_of(settings: dict[str, Any], run_dir: Path, **allocation: Any) -> tuple[dict[str, str], Any]:
    allocated = settings["allocation"] | allocation
    result = run(None, RunConfig.parse(settings | {"run_dir": str(run_dir), "allocation": allocated}))
    check_account(result)
    assert result.report.failed == 0
    rows = completions_of(result)
    return {row["query_id"]: row["text"] for row in rows if row["finish_reason"] == "stop"}, result


def test_every_row_is_answered_as_it_asks(tmp_path: Path) -> None:
    ended, result = texts_of(batch(tmp_path / "batch.jsonl"), tmp_path / "run", policy="uniform")
    assert result.report.notices[0].startswith("ignored: chat_template_kwargs.enable_thinking")
    answers = {row["query_id"]: row["text"] for row in completions_of(result)}
    assert ended["choice"] in ("yes", "no")
    assert ended["regex"] == "tea"
    value = json.loads(ended["json"])
    assert isinstance(value["tea"], bool)
    assert value["cups"] in SCHEMA["properties"]["cups"]["enum"]  # type: ignore[index]
    assert re.match(r"\s*E,", answers["goes on"])
    assert answers["drawn"] != answers["drawn again"]
    assert ended["stop"] == "The capital"
    check_logprobs(result)


def check_logprobs(result: Any) -> None:
    """Check that the entries of each answer, of all its grants, are its text."""
    lines = [json.loads(line) for line in (Path(result.run_dir) / "output.jsonl").read_text().splitlines()]
    choice_of = {line["custom_id"]: line["response"]["body"]["choices"][0] for line in lines}
    for name, choice in choice_of.items():
        asked = BODIES[name].get("logprobs")
        assert (choice["logprobs"] is not None) is bool(asked)
        if asked:
            entries = choice["logprobs"]["content"]
            assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
            assert {len(entry["top_logprobs"]) for entry in entries} == {BODIES[name].get("top_logprobs", 0)}
    assert {"stop", "logprobs"} <= choice_of.keys()


def test_a_structure_that_cannot_be_kept_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    settings = batch(tmp_path / "batch.jsonl")
    bad = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}}
    line = json.loads((tmp_path / "batch.jsonl").read_text().splitlines()[0])
    line["body"] |= bad
    line["body"].pop("structured_outputs")
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))
    with pytest.raises(SchemaError, match=r"batch\.jsonl:1, .*no answer can be kept to this structure"):
        run(None, RunConfig.parse(settings | {"run_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()
