"""Lines of Gemini's and Bedrock's batch files, as their users write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as fuzz_settings
from hypothesis import strategies as st

from clear_ray.config.input import ColumnsConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.errors import SchemaError
from clear_ray.ingest.requests import is_request, read_request
from tests.unit.ingest.taking import take, taken

RIVER = [{"role": "user", "parts": [{"text": "Name a river."}]}]
SCHEMA = {"type": "OBJECT", "properties": {"name": {"type": "STRING"}, "km": {"type": "NUMBER", "nullable": True}}}
AS_JSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "km": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
}


def gemini(**request: Any) -> dict[str, Any]:
    return {"key": "a", "request": {"contents": RIVER} | request}


def bedrock(**given: Any) -> dict[str, Any]:
    return {"recordId": "a", "modelInput": given}


def settings(**given: Any) -> dict[str, Any]:
    return gemini(generationConfig=given)


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps([{"role": role, "content": text} for role, text in turns], separators=(",", ":"))


ASKED = chat(("user", "Name a river."))
# line, prompt, ceiling, sampling
READ: dict[str, tuple[dict[str, Any], str, int, Sampling | None]] = {
    "the least": (gemini(), ASKED, 100, None),
    "a content alone": (gemini(contents=RIVER[0]), ASKED, 100, None),
    "a part alone": (gemini(contents=[{"parts": {"text": "Name a river."}}]), ASKED, 100, None),
    "turns": (
        gemini(
            contents=[
                *RIVER,
                {"role": "model", "parts": [{"text": "Po"}]},
                {"parts": [{"text": "In"}, {"text": "Peru?"}]},
            ],
            system_instruction={"parts": [{"text": "Be brief."}]},
            safetySettings=[{"category": "x", "threshold": "BLOCK_NONE"}],
        ),
        chat(("system", "Be brief."), ("user", "Name a river."), ("assistant", "Po"), ("user", "In\nPeru?")),
        100,
        None,
    ),
    "settings": (
        settings(
            temperature=0.2, topP=0.9, topK=40, maxOutputTokens=64, stopSequences=["\n"], seed=3, candidateCount=1
        ),
        ASKED,
        64,
        Sampling(temperature=0.2, top_p=0.9, top_k=40, seed=3, stop=("\n",)),
    ),
    "words with underscores": (
        gemini(
            generation_config={
                "max_output_tokens": 7,
                "presence_penalty": 0.5,
                "response_logprobs": True,
                "logprobs": 2,
            }
        ),
        ASKED,
        7,
        Sampling(presence_penalty=0.5, logprobs=2),
    ),
    "no thoughts": (
        settings(thinkingConfig={"thinkingBudget": 0, "includeThoughts": False}),
        ASKED,
        100,
        Sampling(template='{"enable_thinking":false}'),
    ),
    "thoughts as it likes": (settings(thinkingConfig={"thinkingBudget": -1}), ASKED, 100, None),
    "JSON": (
        settings(responseMimeType="application/json"),
        ASKED,
        100,
        Sampling(structure=Structure(kind="json_object")),
    ),
    "a schema": (
        settings(responseMimeType="application/json", responseSchema=SCHEMA),
        ASKED,
        100,
        Sampling(structure=Structure(kind="json_schema", value=json.dumps(AS_JSON, separators=(",", ":")))),
    ),
    "a choice": (
        settings(responseMimeType="text/x.enum", responseSchema={"type": "STRING", "enum": ["Po", "Nile"]}),
        ASKED,
        100,
        Sampling(structure=Structure(kind="choice", value='["Po","Nile"]')),
    ),
    "Anthropic on Bedrock": (
        bedrock(
            anthropic_version="bedrock-2023-05-31",
            max_tokens=9,
            system="Be brief.",
            messages=[{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}],
        ),
        chat(("system", "Be brief."), ("user", "Name a river.")),
        9,
        None,
    ),
    "Nova": (
        bedrock(
            schemaVersion="messages-v1",
            system=[{"text": "Be brief."}],
            messages=[{"role": "user", "content": [{"text": "Name a river."}]}],
            inferenceConfig={"maxTokens": 20, "temperature": 0.1, "topP": 0.5, "topK": 3},
        ),
        chat(("system", "Be brief."), ("user", "Name a river.")),
        20,
        Sampling(temperature=0.1, top_p=0.5, top_k=3),
    ),
    "OpenAI's body": (
        bedrock(messages=[{"role": "user", "content": "Name a river."}], max_completion_tokens=8, temperature=0.3),
        ASKED,
        8,
        Sampling(temperature=0.3),
    ),
    "Titan": (
        bedrock(inputText="Name a river.", textGenerationConfig={"maxTokenCount": 30, "stopSequences": []}),
        ASKED,
        30,
        None,
    ),
    "Llama": (
        bedrock(prompt="<s>[INST] Hi [/INST]", max_gen_len=5, top_p=0.2),
        "<s>[INST] Hi [/INST]",
        5,
        Sampling(top_p=0.2),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_lines_are_read(tmp_path: Path, name: str) -> None:
    line, prompt, ceiling, sampling = READ[name]
    (tmp_path / "b.jsonl").write_text(json.dumps(line))
    digest = take(tmp_path / "b.jsonl", tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert (row["query_id"], row["prompt"], row["max_tokens"]) == ("a", prompt, ceiling)
    assert Sampling.load(row["sampling"]) == sampling
    url = (
        "/v1/messages" if name.startswith("Anth") else "/v1/completions" if name == "Llama" else "/v1/chat/completions"
    )
    assert digest.openai_url == url
    assert (row["prompt_form"] == "raw") is (name == "Llama")
    assert any("answers are written as" in line for line in digest.notices)
    assert not any("ignored" in line for line in digest.notices)


@pytest.mark.parametrize("name", ["key", "id", "custom_id"])
def test_lines_have_their_own_ids(tmp_path: Path, name: str) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps({name: "mine", "request": {"contents": RIVER}}))
    digest = take(tmp_path / "b.jsonl", tmp_path / "run")
    assert [row["query_id"] for row in taken(tmp_path / "run")] == ["mine"]
    assert len(digest.notices) == 1


def test_lines_without_a_key_have_made_ids(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"request": {"contents": RIVER}}, {"modelInput": {"inputText": "Name a river."}}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    take(tmp_path / "b.jsonl", tmp_path / "run")
    ids = [row["query_id"] for row in taken(tmp_path / "run")]
    assert [name[:11] for name in ids] == ["row-0000000", "row-0000001"]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (gemini(tools=[{"googleSearch": {}}]), "request.tools"),
        (gemini(cachedContent="c"), "request.cachedContent"),
        (gemini(contents=[{"parts": [{"inlineData": {"data": "x"}}]}]), "request.contents[0].parts[0].inlineData"),
        (gemini(contents=[{"parts": [{"text": "a", "thought": True}]}]), "request.contents[0].parts[0].thought"),
        (gemini(contents=[{"role": "function", "parts": []}]), "request.contents[0].role"),
        (gemini(contents="a"), "request.contents"),
        (gemini(contents=[]), "request.contents"),
        (gemini(contents=[{"parts": [{"text": 3}]}]), "request.contents[0]"),
        (gemini(contents=[*RIVER, {"parts": [{"text": " "}]}], systemInstruction="s"), "request.contents[1]"),
        (settings(temperature=-1), "request.generationConfig.temperature"),
        (settings(maxOutputTokens=0), "request.generationConfig.maxOutputTokens"),
        (settings(candidateCount=0), "request.generationConfig.candidateCount"),
        (settings(thinkingConfig={"thinkingBudget": 9}), "request.generationConfig.thinkingConfig"),
        (settings(responseModalities=["IMAGE"]), "request.generationConfig.responseModalities"),
        (settings(responseMimeType="image/png"), "request.generationConfig.responseMimeType"),
        (settings(logprobs=3), "request.generationConfig.logprobs"),
        (settings(responseSchema={"type": "BLOB"}), "request.generationConfig.responseSchema.type"),
        (bedrock(), "modelInput"),
        (bedrock(messages=[{"role": "user", "content": [{"image": {}}]}]), "modelInput.messages[0].content[0].image"),
        (bedrock(messages=[{"role": "user", "content": "a"}], toolConfig={"tools": []}), "modelInput.toolConfig"),
        (
            bedrock(messages=[{"role": "user", "content": "a"}], inferenceConfig={"maxTokens": -1}),
            "inferenceConfig.maxTokens",
        ),
        (bedrock(inputText="a", textGenerationConfig={"topK": 1}), "modelInput.textGenerationConfig.topK"),
        (bedrock(inputText=""), "modelInput.inputText"),
        (bedrock(prompt="a", images=["x"]), "modelInput.images"),
        (bedrock(anthropic_version="b", messages=[{"role": "user", "content": "a"}]), "modelInput.max_tokens"),
    ],
)
def test_what_is_no_text_is_refused_by_its_own_name(tmp_path: Path, line: dict[str, Any], where: str) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(line))
    with pytest.raises(SchemaError) as refused:
        take(tmp_path / "b.jsonl", tmp_path / "run")
    assert where in refused.value.where


NAMES = st.sampled_from(
    [
        *(
            "contents",
            "parts",
            "text",
            "role",
            "systemInstruction",
            "system_instruction",
            "generationConfig",
            "temperature",
        ),
        *(
            "stopSequences",
            "responseSchema",
            "responseMimeType",
            "properties",
            "type",
            "items",
            "anyOf",
            "nullable",
            "enum",
        ),
        *(
            "messages",
            "content",
            "system",
            "inferenceConfig",
            "maxTokens",
            "prompt",
            "inputText",
            "textGenerationConfig",
        ),
        *("anthropic_version", "max_tokens", "schemaVersion", "logprobs", "responseLogprobs", "x"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "user", "model", "STRING", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(asked=st.dictionaries(NAMES, VALUES, max_size=5), is_gemini=st.booleans())
@fuzz_settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_line_it_is_read_or_refused_in_words(asked: dict[str, Any], is_gemini: bool) -> None:
    line = {"key": "a", "request": {"contents": None} | asked} if is_gemini else {"recordId": "a", "modelInput": asked}
    assert is_request(line)
    where = "custom_id"
    try:
        where = str(read_request(line, columns=ColumnsConfig()).row["custom_id"])
    except SchemaError as error:
        where = error.where
    assert where == "a" or where.startswith(("request", "modelInput"))
