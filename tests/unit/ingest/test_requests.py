"""Batch files as OpenAI, Azure, vLLM and Anthropic document them, in our own words: read whole, or refused by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import TABLES, Endpoint, check_fields
from clear_ray.ingest.requests import endpoint_of
from tests.unit.ingest.taking import take, taken

ASK = [{"role": "user", "content": "Name a river."}]


def line(url: str, body: dict[str, Any], custom_id: str = "a") -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def params(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "params": {"model": "m", "max_tokens": 9, "messages": ASK} | body}


def conversation(*pairs: tuple[str, str]) -> str:
    return json.dumps([{"role": role, "content": text} for role, text in pairs], separators=(",", ":"))


RIVER = ("user", "Name a river.")
# line, endpoint, prompt as it is kept, its form, what is ignored
READ: dict[str, tuple[dict[str, Any], Endpoint, str, str | None, str]] = {
    "Azure": (
        line("/chat/completions", {"model": "d", "messages": ASK, "max_tokens": 30}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "Azure deployment": (
        line("/openai/deployments/my-gpt/chat/completions?api-version=2025-01-01", {"messages": ASK}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "Azure v1": (
        line("/openai/v1/responses", {"input": "Name a river."}),
        "/v1/responses",
        conversation(RIVER),
        None,
        "",
    ),
    "whole url": (
        line("https://host.example/v1/chat/completions", {"messages": ASK}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "bare url": (line("chat/completions", {"messages": ASK}), "/v1/chat/completions", conversation(RIVER), None, ""),
    "slash at the end": (
        line("/v1/chat/completions/", {"messages": ASK}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "defaults of a client": (
        line(
            "/v1/chat/completions",
            {
                "messages": ASK,
                "n": 1,
                "stream": None,
                "tools": [],
                "tool_choice": "none",
                "modalities": ["text"],
                "top_k": -1,
                "repetition_penalty": 1.0,
                "presence_penalty": 0,
                "logprobs": False,
                "stop": None,
                "prompt_cache_key": "k",
                "user": "u",
                "response_format": {"type": "text"},
                "store": True,
            },
        ),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "sampling": (
        line("/v1/chat/completions", {"messages": ASK, "temperature": 0.1, "seed": 5, "top_p": 0.9, "min_p": 0.0}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "a named message": (
        line("/v1/chat/completions", {"messages": [{"role": "user", "name": "ann", "content": "Name a river."}]}),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "messages.name in 1 row",
    ),
    "completion": (
        line("/v1/completions", {"prompt": "A: 1\nB:", "temperature": 0}),
        "/v1/completions",
        "A: 1\nB:",
        "raw",
        "",
    ),
    "Azure completion": (line("/completions", {"prompt": "A: "}), "/v1/completions", "A: ", "raw", ""),
    "a list of one prompt": (line("/v1/completions", {"prompt": ["A: "]}), "/v1/completions", "A: ", "raw", ""),
    "token ids": (line("/v1/completions", {"prompt": [5, 0, 7]}), "/v1/completions", "[5,0,7]", "tokens", ""),
    "a list of the token ids of one": (
        line("/v1/completions", {"prompt": [[5, 0]]}),
        "/v1/completions",
        "[5,0]",
        "tokens",
        "",
    ),
    "response of a text": (
        line("/v1/responses", {"input": "Name a river.", "instructions": "Be brief.", "max_output_tokens": 9}),
        "/v1/responses",
        conversation(("system", "Be brief."), RIVER),
        None,
        "",
    ),
    "response of messages": (
        line(
            "/v1/responses",
            {
                "input": [
                    {"type": "message", "role": "developer", "content": "Be brief."},
                    {"role": "user", "content": [{"type": "input_text", "text": "Name a river."}]},
                    {
                        "type": "message",
                        "id": "msg_1",
                        "status": "completed",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "Elbe.", "annotations": []}],
                    },
                    {"role": "user", "content": "Another."},
                ],
                "text": {"format": {"type": "text"}},
                "reasoning": {"effort": None},
                "truncation": "disabled",
            },
        ),
        "/v1/responses",
        conversation(("system", "Be brief."), RIVER, ("assistant", "Elbe."), ("user", "Another.")),
        None,
        "",
    ),
    "Anthropic": (params(), "/v1/messages", conversation(RIVER), None, ""),
    "Anthropic with a system prompt": (
        params(system="Be brief.", temperature=1.0, metadata={"user_id": "u"}),
        "/v1/messages",
        conversation(("system", "Be brief."), RIVER),
        None,
        "",
    ),
    "Anthropic with blocks": (
        params(
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}],
        ),
        "/v1/messages",
        conversation(("system", "Be brief."), RIVER),
        None,
        "",
    ),
}

# line, words of the refusal
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an image": (
        line("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        "type text",
    ),
    "a call of a tool": (
        line("/v1/responses", {"input": [{"type": "function_call", "name": "f"}]}),
        "only messages are read",
    ),
    "an earlier response": (
        line("/v1/responses", {"input": "a", "previous_response_id": "r"}),
        "earlier turns into input",
    ),
    "a format of a response without its schema": (
        line("/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema"}}}),
        "the schema is missing",
    ),
    "verbosity of a response": (
        line("/v1/responses", {"input": "a", "text": {"verbosity": "low"}}),
        "body.text.verbosity",
    ),
    "a response without input": (line("/v1/responses", {"instructions": "a"}), "body.input: the field is missing"),
    "chat at completions": (
        line("/v1/completions", {"messages": ASK}),
        "body.messages: this field is neither honoured",
    ),
    "echo": (line("/v1/completions", {"prompt": "a", "echo": True}), "body.echo"),
    "a suffix": (line("/v1/completions", {"prompt": "a", "suffix": "b"}), "body.suffix"),
    "no prompt": (line("/v1/completions", {"max_tokens": 5}), "body.prompt: the field is missing"),
    "an empty prompt of tokens": (line("/v1/completions", {"prompt": []}), "not one text, nor the token ids"),
    "stop sequences that are none": (params(stop_sequences=[3]), "params.stop: it is a text"),
    "thinking": (params(thinking={"type": "enabled", "budget_tokens": 1024}), "params.thinking"),
    "tools of Anthropic": (params(tools=[{"name": "f"}]), "params.tools"),
    "no ceiling": (params(max_tokens=None), "params.max_tokens: the field is missing"),
    "an unknown param": (params(frobnicate=1), "params.frobnicate: this field is neither"),
    "params that are text": ({"custom_id": "a", "params": "x"}, "no object"),
    "another protocol": (line("ftp://host/v1/chat/completions", {"messages": ASK}), "not served"),
    "a path that only ends so": (line("/proxy/chat/completions", {"messages": ASK}), "not served"),
}


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize("name", READ)
def test_a_request_is_read(tmp_path: Path, name: str) -> None:
    request, endpoint, prompt, form, ignored = READ[name]
    digest = take(write(tmp_path / "batch.jsonl", request), tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert digest.openai_url == endpoint
    assert (row["prompt"], row["prompt_form"], row["query_id"]) == (prompt, form, "a")
    assert row["is_conversation"] == (form is None)
    assert digest.notices == ((f"ignored: {ignored}",) if ignored else ())


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_is_refused_by_name(tmp_path: Path, name: str) -> None:
    request, words = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        take(write(tmp_path / "batch.jsonl", request), tmp_path / "run")
    assert words in str(caught.value)
    assert caught.value.remedy


def test_the_same_endpoint_in_other_words_is_one_batch(tmp_path: Path) -> None:
    urls = ("/v1/chat/completions", "/chat/completions", "https://h.example/openai/deployments/d/chat/completions?x=1")
    lines = [line(url, {"messages": ASK}, custom_id=str(k)) for k, url in enumerate(urls)]
    assert take(write(tmp_path / "batch.jsonl", *lines), tmp_path / "run").rows == 3
    assert [endpoint_of(request) for request in lines] == ["/v1/chat/completions"] * 3
    mixed = [*lines, line("/v1/responses", {"input": "a"}, custom_id="r")]
    with pytest.raises(SchemaError, match="mixes formats or endpoints"):
        take(write(tmp_path / "batch.jsonl", *mixed), tmp_path / "run")


def test_ceilings_that_are_lowered_and_fields_without_effect_are_counted_over_the_batch(tmp_path: Path) -> None:
    lines = [
        line("/v1/chat/completions", {"messages": [ASK[0] | {"name": "ann"}], "max_tokens": asked}, custom_id=str(k))
        for k, asked in enumerate([4_096] * 12 + [100, 50])
    ]
    digest = take(write(tmp_path / "batch.jsonl", *lines), tmp_path / "run")
    assert digest.notices == ("ignored: messages.name in 14 rows; lowered: max_tokens of 12 rows from 4,096 to 100",)
    assert [row["max_tokens"] for row in taken(tmp_path / "run")] == [100] * 13 + [50]


def test_every_field_of_a_table_passes_or_is_refused_whatever_its_value() -> None:
    for endpoint, table in TABLES.items():
        for name, field in table.items():
            assert check_fields({name: None}, endpoint) == []
            for neutral in field.neutral:
                assert check_fields({name: neutral}, endpoint) == []
            strange = {"a": ["strange value"]}
            if field.verdict == "refused":
                with pytest.raises(SchemaError, match=f"body.{name}"):
                    check_fields({name: strange}, endpoint)
            else:
                assert check_fields({name: strange}, endpoint) == ([name] if field.verdict == "ignored" else [])
        with pytest.raises(SchemaError, match="neither honoured nor known"):
            check_fields({"frobnicate": 0}, endpoint)
