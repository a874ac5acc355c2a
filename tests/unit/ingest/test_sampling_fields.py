"""What a row asks of its answer: read from bodies and columns, kept with the query, and brought to the engine."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.config.engine import ReplayConfig, TransformersConfig, VllmConfig
from clear_ray.config.input import ColumnsConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine.base import Chat, read_prompt
from clear_ray.engine.build import prompt_limit
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.row_sampling import sampling_check
from clear_ray.errors import SchemaError
from clear_ray.ingest import PromptLimit
from clear_ray.ingest.fields import TABLES, check_fields
from clear_ray.ingest.requests import read_request
from clear_ray.ingest.sampling_fields import sampling_of
from clear_ray.stages.generate import asked_directly
from clear_ray.stages.probe import prompts_of
from tests.unit.ingest.corpus import request
from tests.unit.ingest.taking import rules, take, taken

BODIES = Path(__file__).parents[2] / "data/requests/bodies.jsonl"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"top_k": None, "stop": None, "logit_bias": {}, "stop_token_ids": []}, None),
        ({"response_format": {"type": "text"}, "add_generation_prompt": True, "chat_template_kwargs": {}}, None),
        ({"temperature": 0}, Sampling(temperature=0)),
        ({"top_k": -1, "seed": 7.0}, Sampling(top_k=0, seed=7)),
        ({"stop": "\n\n"}, Sampling(stop=("\n\n",))),
        ({"stop": ["a", "b"], "min_tokens": 3}, Sampling(stop=("a", "b"), min_tokens=3)),
        ({"logit_bias": {"9": -100, "3": 0.5}}, Sampling(logit_bias=((3, 0.5), (9, -100.0)))),
        ({"response_format": {"type": "json_object"}}, Sampling(structure=Structure(kind="json_object"))),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            Sampling(structure=Structure(kind="json_schema", value=json.dumps(SCHEMA, separators=(",", ":")))),
        ),
        *(
            (
                {"response_format": form},
                Sampling(structure=Structure(kind="json_schema", value=json.dumps(SCHEMA, separators=(",", ":")))),
            )
            for form in (
                {"type": "json_object", "schema": SCHEMA},
                {"type": "json_object", "response_schema": SCHEMA},
                {"type": "json_schema", "schema": SCHEMA},
                {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": False}},
                {"type": "json", "value": SCHEMA},
            )
        ),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            Sampling(structure=Structure(kind="json_object")),
        ),
        (
            {"response_format": {"type": "regex", "pattern": "yes|no"}},
            Sampling(structure=Structure(kind="regex", value="yes|no")),
        ),
        ({"random_seed": 4}, Sampling(seed=4)),
        ({"enable_thinking": False}, Sampling(template='{"enable_thinking":false}')),
        (
            {"guided_json": json.dumps(SCHEMA)},
            Sampling(structure=Structure(kind="json_schema", value=json.dumps(SCHEMA, separators=(",", ":")))),
        ),
        (
            {"structured_outputs": {"choice": ["yes", "no"]}},
            Sampling(structure=Structure(kind="choice", value='["yes","no"]')),
        ),
        ({"guided_regex": "tea"}, Sampling(structure=Structure(kind="regex", value="tea"))),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
            Sampling(template='{"enable_thinking":false,"reasoning_effort":"low"}'),
        ),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            Sampling(continue_final_message=True, add_generation_prompt=False),
        ),
    ],
)
def test_a_body_is_read(body: dict[str, Any], expected: Sampling | None) -> None:
    assert sampling_of(body) == expected


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "json_object", "frobnicate": 1}, "body.response_format.frobnicate: this is not supported"),
        ({"type": "text", "schema": SCHEMA}, "body.response_format.schema: this is not supported"),
        (
            {"type": "json_schema", "json_schema": {"schema": SCHEMA, "root": "x"}},
            "body.response_format.json_schema.root: this is not",
        ),
        ({"type": "json_object", "schema": SCHEMA, "json_schema": {"a": 1}}, "more than one schema"),
        ({"type": "grammar", "grammar": "x"}, "there is no such response format"),
        ({"type": ["text"]}, "there is no such response format"),
        ({"type": "regex"}, "it has one pattern or schema"),
        ("json_object", "it is an object"),
    ],
)
def test_a_response_format_holds_nothing_that_is_passed_over(form: Any, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        sampling_of({"response_format": form})


def test_every_endpoint_has_its_own_words() -> None:
    response = request() | {"url": "/v1/responses"}
    response["body"] = {
        "input": "a",
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "medium"},
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    read = read_request(response, columns=ColumnsConfig()).sampling
    assert read is not None
    assert read.structure == Structure(kind="json_schema", value=json.dumps(SCHEMA, separators=(",", ":")))
    assert read.template == '{"reasoning_effort":"low"}'
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The"}]
    params = {"model": "m", "max_tokens": 9, "messages": turns, "stop_sequences": ["x"], "top_k": 3}
    read = read_request({"custom_id": "a", "params": params}, columns=ColumnsConfig()).sampling
    assert read == Sampling(stop=("x",), top_k=3, continue_final_message=True)


def test_a_plain_row_asks_in_its_column(tmp_path: Path) -> None:
    rows = [
        {"query_id": "a", "prompt": "p", "sampling_params": {"temperature": 0.5, "max_tokens": 7}},
        {"query_id": "b", "prompt": "p", "max_tokens": 9, "sampling_params": '{"stop": ["x"], "max_tokens": 7}'},
        {"query_id": "c", "prompt": "p", "sampling_params": None},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    take(tmp_path / "q.jsonl", tmp_path / "run")
    kept = taken(tmp_path / "run")
    assert [row["max_tokens"] for row in kept] == [7, 9, 100]
    assert [Sampling.load(row["sampling"]) for row in kept] == [Sampling(temperature=0.5), Sampling(stop=("x",)), None]
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0] | {"sampling_params": {"best_of": 2}}))
    with pytest.raises(SchemaError, match=r"bad\.jsonl:1, column sampling_params\.best_of: this field is not"):
        take(tmp_path / "bad.jsonl", tmp_path / "other")


def test_going_on_needs_something_to_go_on_with_in_plain_rows_too(tmp_path: Path) -> None:
    goes_on = {"continue_final_message": True}
    turns = [{"role": "user", "content": "Say the alphabet."}, {"role": "assistant", "content": "A, B, C,"}]
    path = tmp_path / "q.jsonl"
    for asked in ({"prompt": "Say."}, {"messages": turns[:1]}):
        path.write_text(json.dumps({"query_id": "a", "sampling_params": goes_on} | asked))
        with pytest.raises(
            SchemaError, match=r"column sampling_params.continue_final_message: only what the assistant"
        ):
            take(path, tmp_path / "run")
    path.write_text(json.dumps({"query_id": "a", "messages": turns, "sampling_params": goes_on}))
    assert take(path, tmp_path / "run").notices == ()
    assert json.loads(taken(tmp_path / "run")[0]["prompt"]) == turns
    path.write_text(json.dumps({"query_id": "a", "messages": turns}))
    assert take(path, tmp_path / "run", reading=rules(continues=True)).notices == ()
    assert json.loads(taken(tmp_path / "run")[0]["prompt"]) == turns


def test_what_an_engine_refuses_of_a_row_is_named_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(request(logit_bias={"9999999": 1})))
    check = sampling_check(TransformersConfig())
    with pytest.raises(SchemaError, match=r"column body.logit_bias: a token id is none of this model's"):
        take(path, tmp_path / "run", reading=rules(check_sampling=check))
    path.write_text(json.dumps({"query_id": "a", "prompt": "p", "sampling_params": {"stop_token_ids": [9999999]}}))
    with pytest.raises(SchemaError, match=r"column sampling_params.stop_token_ids: a token id is none"):
        take(path, tmp_path / "run", reading=rules(check_sampling=check))


def test_token_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    line = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": [5, 49_152]}}
    path.write_text(json.dumps(line))
    limit = prompt_limit(TransformersConfig())
    with pytest.raises(SchemaError, match=r"column body.prompt: .* \(got 49152 of a vocabulary of 49152\)"):
        take(path, tmp_path / "run", limit=limit)
    path.write_text(json.dumps(line | {"body": {"prompt": [5, 49_151]}}))
    assert take(path, tmp_path / "run", limit=limit).rows == 1


def test_a_prompt_that_leaves_less_than_its_ceiling_is_counted(tmp_path: Path) -> None:
    limit = PromptLimit(context_tokens=1_000, count_tokens=lambda prompts, _: [len(text) // 4 for text in prompts])
    rows = [{"query_id": str(size), "prompt": "x" * size} for size in (40, 3_590, 3_610, 3_900)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    digest = take(tmp_path / "q.jsonl", tmp_path / "run", limit=limit)
    assert digest.notices == ("lowered: max_tokens of 2 rows to what the model's context leaves beside the prompt",)


def test_what_a_conversation_says_of_its_template_reaches_it(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Say the alphabet."}, {"role": "assistant", "content": "A, B, C,"}]
    line = request(messages=turns, continue_final_message=True, add_generation_prompt=False)
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))
    take(tmp_path / "batch.jsonl", tmp_path / "run")
    (prompt,) = prompts_of(pq.read_table(tmp_path / "run" / "queries"))
    assert isinstance(prompt, Chat)
    copied = pickle.loads(pickle.dumps(prompt))  # noqa: S301 - our own
    assert (copied, copied.sampling) == (prompt, prompt.sampling)
    rendering = Rendering("smollm2-135m-instruct")
    (goes_on,), (begins,) = rendering.token_ids([prompt]), rendering.token_ids([tuple(prompt)])
    assert rendering.tokenizer.decode(goes_on).endswith("assistant\nA, B, C,")
    assert rendering.tokenizer.decode(begins).endswith("<|im_start|>assistant\n")
    asked = asked_directly(prompt, "Now.")
    assert isinstance(asked, Chat)
    assert asked.sampling == prompt.sampling
    closed = Chat(prompt[:1], Sampling(add_generation_prompt=False))
    assert rendering.tokenizer.decode(rendering.token_ids([closed])[0]).endswith("<|im_end|>\n")
    with pytest.raises(SchemaError, match="only what the assistant has begun"):
        rendering.token_ids([Chat(prompt[:1], Sampling(continue_final_message=True))])


def test_a_model_check_says_what_has_no_effect_and_refuses_what_cannot_be_done() -> None:
    check = sampling_check(TransformersConfig())
    assert check(Sampling(temperature=1.0, seed=3, stop_token_ids=(28,))) == ()
    assert check(Sampling(template='{"enable_thinking":false}')) == (
        "chat_template_kwargs.enable_thinking (the model's template knows none)",
    )
    assert check(Sampling(template='{"reasoning_effort":"none"}')) == ()
    assert check(Sampling(template='{"reasoning_effort":"low"}')) != ()
    with pytest.raises(SchemaError, match="a token id is none of this model's"):
        check(Sampling(logit_bias={10**6: 1}))
    with pytest.raises(SchemaError, match="Unimplemented keys"):
        check(Sampling(structure=Structure(kind="json_schema", value='{"not": {}}')))
    replay = sampling_check(ReplayConfig(rollouts="x"))
    assert replay(Sampling(top_k=0, repetition_penalty=1, presence_penalty=0, top_p=1)) == []
    assert replay(Sampling(seed=3, structure=Structure(kind="json_object"))) == [
        "response_format (recordings are played as they are)",
        "seed (recordings are played as they are)",
    ]


def test_a_row_that_samples_greedily_is_not_asked_again(tmp_path: Path) -> None:
    engine = TransformersConfig(temperature=0.8)
    (tmp_path / "batch.jsonl").write_text(json.dumps(request(temperature=0)))
    with pytest.raises(SchemaError, match=r"batch\.jsonl:1.*temperature.*the same answer at every attempt"):
        take(
            tmp_path / "batch.jsonl", tmp_path / "run", reading=rules(check_sampling=sampling_check(engine, attempts=3))
        )
    assert sampling_check(engine)(Sampling(temperature=0)) == ()
    assert sampling_check(engine, attempts=3)(Sampling(temperature=0.1)) == ()
    played = sampling_check(ReplayConfig(rollouts="x"), attempts=3)
    assert played(Sampling(temperature=0)) == ["temperature (recordings are played as they are)"]


def test_what_would_break_a_structure_is_said_to_be_ignored() -> None:
    kept = Sampling(structure=Structure(kind="json_object"), template='{"enable_thinking":true}')
    reserving = TransformersConfig(answer_reserve_tokens=9)
    assert list(sampling_check(reserving)(kept)) == [
        "engine.answer_reserve_tokens (it would break a structure)",
        "chat_template_kwargs.enable_thinking (the model's template knows none)",
    ]
    thinking = VllmConfig(answer_reserve_tokens=9, thinking_tokens=4)
    assert [said.split()[0] for said in sampling_check(thinking)(Sampling(structure=kept.structure))] == [
        "engine.answer_reserve_tokens",
        "engine.thinking_tokens",
    ]
    assert list(sampling_check(thinking)(Sampling(logprobs=3))) == []


def test_a_text_with_template_settings_is_one_user_message() -> None:
    sampling = Sampling(template='{"enable_thinking":false}')
    assert read_prompt("hi", is_conversation=False, sampling=sampling) == (("user", "hi"),)
    assert read_prompt("hi", is_conversation=False, sampling=Sampling(top_k=1)) == "hi"
    assert read_prompt("hi", is_conversation=False, form="raw", sampling=sampling) == "hi"


def bodies() -> list[dict[str, Any]]:
    return [json.loads(line) for line in BODIES.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", bodies(), ids=lambda line: line["custom_id"])
def test_no_field_of_a_public_style_request_is_silently_different(line: dict[str, Any], tmp_path: Path) -> None:
    expected = line.pop("expected")
    (tmp_path / "batch.jsonl").write_text(json.dumps(line))
    if "refused" in expected:
        with pytest.raises(SchemaError) as caught:
            take(
                tmp_path / "batch.jsonl",
                tmp_path / "run",
                reading=rules(check_sampling=sampling_check(TransformersConfig())),
            )
        assert expected["refused"] in str(caught.value)
        assert "batch.jsonl:1" in str(caught.value)
        return
    digest = take(
        tmp_path / "batch.jsonl", tmp_path / "run", reading=rules(check_sampling=sampling_check(TransformersConfig()))
    )
    rows = taken(tmp_path / "run")
    assert len(rows) == (line.get("body") or {}).get("n", 1)
    for row in rows:
        assert (json.loads(row["sampling"]) if row["sampling"] else {}) == expected["sampling"]
    assert list(digest.notices) == expected.get("said", [])
    # Whatever is neither kept nor said is a field of which the table says that it changes no answer.
    body = line.get("body") or line["params"]
    url = digest.openai_url
    assert url is not None
    for name, value in body.items():
        assert TABLES[url][name].verdict in ("honoured", "harmless") or check_fields({name: value}, url) == []
