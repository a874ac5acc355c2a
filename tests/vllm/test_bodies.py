"""Bodies of public batch builders, from their lines to answers: the same on vLLM's CPU build as on `slots`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.engine import TransformersConfig, VllmConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine import Generation, Grant, TransformersEngine, VllmEngine
from clear_ray.engine.base import read_prompt
from clear_ray.engine.row_sampling import sampling_check
from clear_ray.stages.generate import seed_of
from tests.unit.engine.conftest import run_grants
from tests.unit.ingest.taking import rules, take, taken
from tests.unit.ingest.test_sampling_fields import BODIES

pytestmark = pytest.mark.vllm

MOST_TOKENS = 40


def grants_of(lines: list[dict[str, Any]], run: Path, engine: Any) -> dict[str, Grant]:
    """Return what those of the lines ask that are not refused."""
    grants = {}
    for line in lines:
        folder = run / line["custom_id"]
        folder.mkdir(parents=True)
        (folder / "b.jsonl").write_text(json.dumps(line))
        take(folder / "b.jsonl", folder / "run", reading=rules(check_sampling=sampling_check(engine)))
        row, *_ = taken(folder / "run")
        sampling = Sampling.load(row["sampling"])
        prompt = read_prompt(
            row["prompt"], is_conversation=row["is_conversation"], form=row["prompt_form"], sampling=sampling
        )
        tokens = min(row["max_tokens"], MOST_TOKENS)
        name = row["query_id"]
        grants[name] = Grant(name, prompt, tokens, seed=seed_of(sampling, 7), sampling=sampling)
    return grants


def accepted_chats() -> list[dict[str, Any]]:
    """Return the lines of chat completions that are not refused."""
    lines = [json.loads(line) for line in BODIES.read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "expected"}
        for line in lines
        if str(line.get("url")).endswith("/chat/completions") and "refused" not in line["expected"]
    ]


def test_chat_bodies_run_on_both(engine: VllmEngine, reference: TransformersEngine, tmp_path: Path) -> None:
    chats = accepted_chats()
    assert len(chats) >= 19
    here, there = (
        run_grants(one, list(grants_of(chats, tmp_path / name, config).values()))
        for name, one, config in (
            ("vllm", engine, VllmConfig()),
            ("slots", reference, TransformersConfig()),
        )
    )
    for line in chats:
        name, body = line["custom_id"], line["body"]
        for answer in (here[name, 0], there[name, 0]):
            assert (answer.error, answer.is_lost) == ("", False), name
            check(body, answer)
        assert here[name, 0].text == there[name, 0].text, name


def check(body: dict[str, Any], answer: Generation) -> None:
    """Check that an answer keeps to what its body asks."""
    assert len(answer.token_ids) <= MOST_TOKENS
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    assert not any(stop in answer.text for stop in stops)
    choices = (body.get("structured_outputs") or {}).get("choice") or body.get("guided_choice")
    assert not choices or answer.text in choices
    assert (answer.logprobs is not None) is bool(body.get("logprobs"))
    if body.get("response_format", {}).get("type", "").startswith("json") and answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    if "50" in body.get("logit_bias", {}):
        assert 50 not in answer.token_ids
