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
    **{
        f"at {url}": (line(url, {"messages": ASK}), "/v1/chat/completions", conversation(RIVER), None, "")
        for url in (
            "/models/chat/completions",
            "/models/chat/completions?api-version=2024-05-01-preview",
            "/api/v1/chat/completions",
            "/v1beta/openai/chat/completions",
            "/proxy/chat/completions",
            "https://host.example/inference/v1/chat/completions#x",
        )
    },
    "Mistral": (
        {"custom_id": "a", "body": {"messages": ASK, "max_tokens": 9, "random_seed": 5, "safe_prompt": False}},
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "no url, a raw prompt": ({"custom_id": "a", "body": {"prompt": "A: "}}, "/v1/completions", "A: ", "raw", ""),
    "a method in small letters": (
        line("/v1/chat/completions", {"messages": ASK}) | {"method": "post"},
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "what clients send empty": (
        line(
            "/v1/chat/completions",
            {
                "messages": [ASK[0] | {"tool_calls": [], "function_call": None, "refusal": "", "annotations": []}],
                "functions": [],
                "stream": False,
                "audio": {},
                "extra_headers": {},
                "verbosity": "medium",
                "prompt_logprobs": 0,
                "no_repeat_ngram_size": 0,
                "safety_identifier": "s",
                "service_tier": "flex",
                "thinking": {"type": "disabled"},
            },
        ),
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "",
    ),
    "a field beside the body": (
        line("/v1/chat/completions", {"messages": ASK}) | {"timeout": 5, "priority": None},
        "/v1/chat/completions",
        conversation(RIVER),
        None,
        "timeout in 1 row",
    ),
    "response with empty instructions": (
        line("/v1/responses", {"input": "Name a river.", "instructions": ""}),
        "/v1/responses",
        conversation(RIVER),
        None,
        "",
    ),
    "an empty system turn that is written out": (
        line("/v1/chat/completions", {"messages": [{"role": "system", "content": ""}, *ASK]}),
        "/v1/chat/completions",
        conversation(("system", ""), RIVER),
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
        '[{"role":"user","content":"Name a river.","name":"ann"}]',
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
    "token ids": (line("/v1/completions", {"prompt": [5, 0.0, 7]}), "/v1/completions", "[5,0,7]", "tokens", ""),
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
    "an empty prompt of tokens": (line("/v1/completions", {"prompt": []}), "a text, or the token ids of one"),
    "stop sequences that are none": (params(stop_sequences=[3]), "params.stop_sequences: it is a text"),
    "thinking": (params(thinking={"type": "enabled", "budget_tokens": 1024}), "params.thinking"),
    "tools of Anthropic": (params(tools=[{"name": "f"}]), "params.tools"),
    "no ceiling": (params(max_tokens=None), "params.max_tokens: the field is missing"),
    "an unknown param": (params(frobnicate=1), "params.frobnicate: this field is neither"),
    "params that are text": ({"custom_id": "a", "params": "x"}, "no object"),
    "a message of Anthropic": (
        params(messages=[{"role": "user", "content": [{"type": "image"}]}]),
        "column params.messages[0].content[0]: only",
    ),
    "a ceiling of Anthropic": (params(max_tokens=0), "column params.max_tokens: a token count is positive"),
    "a turn after instructions": (
        line("/v1/responses", {"instructions": "i", "input": [{"role": "wizard", "content": "a"}]}),
        "column body.input[0].role: unknown role",
    ),
    "instructions that are no text": (
        line("/v1/responses", {"instructions": ["i"], "input": "a"}),
        "column body.instructions",
    ),
    "a ceiling of a response": (
        line("/v1/responses", {"input": "a", "max_output_tokens": "9"}),
        "max_output_tokens: a",
    ),
    "another ceiling": (
        line("/v1/chat/completions", {"messages": ASK, "max_completion_tokens": -1}),
        "column body.max_completion_tokens: a token count is positive",
    ),
    "a schema of a response": (
        line("/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema", "schema": [1]}}}),
        "column body.text.format: a schema is an object",
    ),
    "two seeds": (line("/v1/chat/completions", {"messages": ASK, "seed": 1, "random_seed": 2}), "body.random_seed"),
    "a prompt that is made safe": (line("/v1/chat/completions", {"messages": ASK, "safe_prompt": True}), "safe_prompt"),
    "what a client unpacks": (
        line("/v1/chat/completions", {"messages": ASK, "extra_body": {"top_k": 1}}),
        "extra_body",
    ),
    "a call in a message": (
        line("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}, *ASK]}),
        "body.messages[0].tool_calls",
    ),
    "a role that is none": (
        line("/v1/chat/completions", {"messages": [{"role": "wizard", "content": "a"}]}),
        "body.messages[0].role: unknown role",
    ),
    "more tokens than the ceiling at least": (
        line("/v1/chat/completions", {"messages": ASK, "min_tokens": 9, "max_tokens": 5}),
        "body.min_tokens: the least number of tokens is above the row's ceiling (got 9 above 5)",
    ),
    "another protocol": (line("ftp://host/v1/chat/completions", {"messages": ASK}), "not served"),
    "a path that only begins so": (line("/v1/chat/completions/x", {"messages": ASK}), "not served"),
    "a word that only ends so": (line("/v1/subcompletions", {"prompt": "a"}), "not served"),
    "Gemini's own": (line("/v1beta/models/gemini:generateContent", {"contents": []}), "not served"),
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


@pytest.mark.parametrize("mark", ["prefix", "partial"])
def test_a_last_message_that_is_marked_is_gone_on_with(tmp_path: Path, mark: str) -> None:
    turns = [*ASK, {"role": "assistant", "content": "A river is the", mark: True}]
    take(write(tmp_path / "batch.jsonl", line("/v1/chat/completions", {"messages": turns})), tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert json.loads(row["sampling"]) == {"continue_final_message": True}
    turns[0] = {**ASK[0], mark: True}
    with pytest.raises(SchemaError, match=rf"body.messages\[0\].{mark}: a message holds more than text"):
        take(write(tmp_path / "batch.jsonl", line("/v1/chat/completions", {"messages": turns})), tmp_path / "run")


def test_a_request_that_ends_with_an_answer_keeps_it_and_that_is_said(tmp_path: Path) -> None:
    turns = [*ASK, {"role": "assistant", "content": "Elbe."}]
    path = write(tmp_path / "batch.jsonl", line("/v1/chat/completions", {"messages": turns}))
    digest = take(path, tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert (json.loads(row["prompt"]), row["gold"]) == (turns, None)
    assert [notice[:42] for notice in digest.notices] == ["the conversation of 1 row ends with the as"]
    assert take(write(tmp_path / "b.jsonl", params(messages=turns)), tmp_path / "run").notices == ()


def test_fewest_tokens_above_the_runs_ceiling_are_said_to_be_lowered(tmp_path: Path) -> None:
    request = line("/v1/chat/completions", {"messages": ASK, "min_tokens": 300, "max_tokens": 400})
    digest = take(write(tmp_path / "batch.jsonl", request), tmp_path / "run")
    assert digest.notices == (
        "lowered: max_tokens of 1 row from 400 to 100; lowered: min_tokens of 1 row from 300 to 100",
    )
