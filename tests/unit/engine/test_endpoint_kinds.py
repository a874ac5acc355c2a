"""What endpoints of each kind send that OpenAI's own does not: as their documents and their users' reports have it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.base import Usage
from clear_ray.engine.checking import engine_notes
from clear_ray.errors import ConfigError, EngineError
from tests.endpoint_server import KEY, MODEL, Endpoint, endpoint
from tests.unit.engine.endpoint_engines import ask, config_of, engine_of

USAGE = {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as serving:
        yield serving


def answer(content: Any = "w1 w2", *, finish: Any = "stop", usage: Any = USAGE, **choice: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}], "usage": usage}


def told(status: int, body: Any, *, tokens: int = 20, **settings: Any) -> tuple[Any, Any]:
    """Return what comes of a call that is first answered so, and the engine that made it."""
    with endpoint(faults=deque([(status, body)])) as served:
        engine = engine_of(served, **settings)
        return ask(engine, tokens=tokens), engine


# Errors where an answer was due.


def test_a_router_that_is_limited_upstream_says_so_with_status_200() -> None:
    limited = {"error": {"code": 429, "message": "upstream is rate-limited", "metadata": {"provider_name": "x"}}}
    generation, engine = told(200, limited)
    assert (generation.error, generation.finish_reason, engine.counts) == ("", "stop", {"limited": 1, "answered": 1})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"code": 502, "message": "Provider returned error"}}, "502: Provider returned error"),
        ({"error": "it broke"}, "500: it broke"),
        (answer("w1", finish="error", error={"code": 502, "message": "Overheated"}), "502: Overheated"),
        (answer("w1", finish="insufficient_system_resource"), "broken off: insufficient_system_resource"),
    ],
)
def test_an_answer_that_broke_upstream_is_lost_in_the_words_that_came(body: dict[str, Any], said: str) -> None:
    generation, _ = told(200, body)
    assert (generation.is_lost, len(generation.token_ids)) == (True, 20)
    assert said in generation.error
    generation, engine = told(200, body, charge_server_errors=False)
    assert (generation.error, engine.counts) == ("", {"lost": 1, "answered": 1})


def test_what_broke_in_a_stream_is_lost_in_its_words(served: Endpoint) -> None:
    served.behaviour.faults.extend(["error in a stream", "no choices"])
    engine = engine_of(served, stream=True)
    generation = ask(engine)
    assert generation.is_lost
    assert "502: Overheated" in generation.error
    generation = ask(engine)
    assert (generation.error, generation.usage) == ("", Usage(8, 1, 6, 0))


@pytest.mark.parametrize("stream", [False, True])
def test_what_broke_while_it_was_generated_is_lost(stream: bool) -> None:
    with endpoint(
        faults=deque([(424, {"error": "Request failed during generation", "error_type": "generation"})])
    ) as to:
        generation = ask(engine_of(to, stream=stream))
    assert generation.is_lost
    assert "424: Request failed during generation" in generation.error


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access it."}}),
        (400, {"error": {"message": "Budget has been exceeded! Max: 5", "type": "budget_exceeded", "code": "400"}}),
        (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}),
        (403, {"error": {"code": 403, "message": "Key limit exceeded (total limit)."}}),
        (200, {"error": {"code": 402, "message": "This request requires more credits"}}),
    ],
)
def test_an_account_that_is_used_up_ends_the_run_whatever_the_status(status: int, body: Any) -> None:
    with pytest.raises(EngineError, match="the endpoint answers 40"):
        told(status, body)


def test_a_quota_of_a_minute_is_none_of_an_account() -> None:
    said = [{"error": {"code": 429, "message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}}]
    assert told(429, said)[1].counts == {"limited": 1, "answered": 1}


def test_a_crowded_tier_is_asked_again() -> None:
    assert told(498, {"error": {"message": "Flex tier capacity exceeded"}})[1].counts == {"busy": 1, "answered": 1}


@pytest.mark.parametrize(
    ("status", "body", "left_out"),
    [
        (400, [{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
        (422, {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}}, "seed"),
        (422, {"error": "Input validation error: `temperature` must be strictly positive"}, "temperature"),
        (400, {"error": {"message": "`temperature` and `top_p` cannot both be specified for this model."}}, "top_p"),
    ],
)
def test_a_field_that_is_refused_is_left_out_and_told(status: int, body: Any, left_out: str) -> None:
    with endpoint(faults=deque([(status, body)])) as served:
        engine = engine_of(served, temperature=0.5, top_p=0.9)
        assert ask(engine).error == ""
        first, second = served.bodies
        assert set(first) - set(second) == {left_out}
        assert engine.oddities == {f"the endpoint does not take {left_out}, so its own holds": 1}


def test_a_prompt_that_a_filter_refuses_fails_alone() -> None:
    body = {"error": {"message": "The response was filtered.", "param": "prompt", "code": "content_filter"}}
    assert "400: The response was filtered." in told(400, body)[0].error


# Answers.


@pytest.mark.parametrize(
    ("content", "text", "is_over"),
    [
        ([{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}], "w1 w2", False),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "w"}],
            "w",
            True,
        ),
    ],
)
def test_content_may_come_in_parts(content: Any, text: str, is_over: bool) -> None:
    generation, _ = told(200, answer(content, finish="length", usage=USAGE), tokens=6, continuation="final_message")
    assert (generation.text, generation.error, generation.is_at_end) == (text, "", is_over)


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("STOP", "stop"),
        ("COMPLETE", "stop"),
        ("tool_use", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("token_limit", "length"),
        ("model_context_window_exceeded", "length"),
        ("FINISHED", "stop"),
        ("endoftext", "stop"),
        ("null", "stop"),
        ({"type": "length", "length": 20}, "length"),
        ("content_filter", "cancelled"),
        ("RECITATION", "cancelled"),
        ("guardrail_intervened", "cancelled"),
        ("PROHIBITED_CONTENT", "cancelled"),
    ],
)
def test_why_an_answer_ended_is_said_in_many_words(finish: Any, reason: str) -> None:
    generation, engine = told(200, answer(finish=finish))
    assert (generation.finish_reason, bool(generation.error)) == (reason, reason == "cancelled")
    assert not [said for said in engine.oddities if "not known" in said]


@pytest.mark.parametrize(("output", "reason"), [(6, "stop"), (20, "length")])
def test_an_answer_that_ended_for_an_unknown_reason_is_one_and_that_is_told(output: int, reason: str) -> None:
    generation, engine = told(200, answer(finish="galactic", usage=USAGE | {"completion_tokens": output}))
    assert (generation.text, generation.error, generation.finish_reason) == ("w1 w2", "", reason)
    assert [count for said, count in engine.oddities.items() if "not known, galactic, and count" in said] == [1]


def test_without_a_word_an_unknown_reason_is_why_there_is_none() -> None:
    generation, _ = told(200, answer("", finish="OTHER"))
    assert generation.error == "the endpoint ended the answer: OTHER"


# Answers in another dress.


def served_as(text: str, content_type: str, **settings: Any) -> Any:
    """Return what comes of a call that is answered with this text, as of this kind."""

    async def call(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type)

    with endpoint(faults=deque([call])) as serving:
        return ask(engine_of(serving, **settings))


EVENTS = [
    {"choices": [{"index": 0, "delta": {"content": "w1 "}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "w2"}, "finish_reason": None}]},
    {"choices": [], "usage": USAGE},
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_answer_may_come_where_a_stream_was_asked_for_and_the_other_way_round(stream: bool) -> None:
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"
    whole = json.dumps(answer())
    text, kind = (whole, "application/json") if stream else (events, "text/event-stream")
    generation = served_as(text, kind, stream=stream)
    assert (generation.text, generation.error, generation.usage) == ("w1 w2", "", Usage(8, 0, 6, 0))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [": waiting\n\n", "event: message\nid: 7\n"])
def test_a_stream_that_is_sent_as_json_may_begin_with_other_lines_than_data(before: str, stream: bool) -> None:
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"
    generation = served_as(before + events, "application/json" if stream else "text/plain", stream=stream)
    assert (generation.text, generation.error, generation.usage) == ("w1 w2", "", Usage(8, 0, 6, 0))


HALVES = "\\ud83d", "\\ude00"
"""Of one character, as JSON writes them."""


def test_half_a_character_in_an_answer_is_replaced_and_can_be_written() -> None:
    whole = json.dumps(answer("w1 X", logprobs={"content": [{"token": "w1"}, {"token": " X", "logprob": -1.0}]}))
    generation = served_as(whole.replace("X", HALVES[0]), "application/json")
    assert (generation.text, generation.error) == ("w1 \N{REPLACEMENT CHARACTER}", "")
    assert served_as(whole.replace("X", "".join(HALVES)), "application/json").text == "w1 \N{GRINNING FACE}"


def test_a_character_that_two_pieces_share_is_one() -> None:
    lines = [json.dumps(event).replace("w1 ", HALVES[0]).replace("w2", HALVES[1]) for event in EVENTS]
    events = "".join(f"data: {line}\n\n" for line in lines)
    assert served_as(events, "text/event-stream", stream=True).text == "\N{GRINNING FACE}"


def test_half_a_character_in_an_error_is_replaced() -> None:
    generation, _ = told(400, {"error": {"message": "this is not liked: \ud83d"}})
    assert generation.error == "the endpoint refused it: 400: this is not liked: \N{REPLACEMENT CHARACTER}"


def test_an_answer_may_be_sent_as_plain_text() -> None:
    assert served_as(json.dumps(answer()), "text/plain").text == "w1 w2"
    assert served_as("Welcome to nginx!", "text/plain").is_lost


def test_an_error_that_comes_where_a_stream_was_asked_for_is_read() -> None:
    limited = {"error": {"code": 429, "message": "upstream is rate-limited"}}
    generation, engine = told(200, limited, stream=True)
    assert (generation.error, engine.counts) == ("", {"limited": 1, "answered": 1})


def test_a_stream_that_says_its_usage_and_no_reason_is_whole() -> None:
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"
    assert served_as(events, "text/event-stream", stream=True).text == "w1 w2"
    cut = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS[:2])
    assert served_as(cut, "text/event-stream", stream=True).is_lost


def test_an_endpoint_that_takes_no_stream_options_is_asked_without() -> None:
    refusal = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Not permitted"}]}
    generation, engine = told(422, refusal, stream=True)
    assert (generation.error, engine.counts) == ("", {"refused": 1, "answered": 1})


# Where calls go.


@pytest.mark.parametrize("header", ["Authorization", "api-key"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_call_is_sent_on_with_its_key(status: int, header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_A_TEST", KEY)
    with endpoint() as elsewhere:
        where = f"http://localhost:{elsewhere.port}/v1/chat/completions"

        async def call(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": where})

        with endpoint(faults=deque([call])) as serving, pytest.raises(EngineError) as caught:
            ask(engine_of(serving, key_env="OF_A_TEST", key_header=header))
        assert f"{status}: it sends calls on to {where}. Write that address" in str(caught.value)
        assert not elsewhere.headers


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "gopher://127.0.0.1:1", "the proxy that the environment names cannot be used"),
        ("HTTP_PROXY", "http://127.0.0.1:1", "Look whether the proxy of HTTP_PROXY"),
        ("SSL_CERT_FILE", "/there/is/none.pem", "the certificates cannot be read"),
    ],
)
def test_what_the_environment_says_of_the_way_is_named(
    served: Endpoint, name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises((ConfigError, EngineError), match=said):
        engine_notes(config_of(served))


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:port/v1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:0/v1", "{}/chat/completions"]
)
def test_an_address_that_cannot_be_is_refused_before_anything_is_asked(served: Endpoint, address: str) -> None:
    with pytest.raises(ValidationError, match=r"the port of an address is|an address ends before"):
        config_of(served, base_url=address.format(served.base_url))
    assert config_of(served, base_url=f" {served.base_url}/ \n").base_url == served.base_url


@pytest.mark.parametrize(("words", "reason"), [(5, "stop"), (18, "length")])
def test_an_answer_with_neither_reason_nor_usage_is_over_unless_its_words_fill_the_grant(
    words: int, reason: str
) -> None:
    generation, _ = told(200, answer("w " * words, finish=None, usage=None))
    assert (generation.finish_reason, len(generation.token_ids)) == (reason, 20)


@pytest.mark.parametrize("choices", [[], None])
def test_no_choice_with_a_usage_is_an_answer_that_was_kept_back_and_costs_what_it_says(choices: Any) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 0, "total_tokens": 8}
    generation, _ = told(200, {"choices": choices, "usage": usage})
    assert (generation.is_lost, generation.token_ids) == (False, ())
    assert generation.error == "the endpoint ended the answer: it gave no answer"


def test_a_cut_below_the_grant_is_the_endpoints_own_and_over_and_told() -> None:
    generation, engine = told(200, answer(finish="length"), continuation="final_message")
    assert (generation.finish_reason, generation.is_at_end) == ("length", True)
    assert [count for said, count in engine.oddities.items() if "a limit of the endpoint's own" in said] == [1]


def test_thoughts_that_took_the_whole_grant_are_told() -> None:
    body = answer(None, finish="length")
    body["choices"][0]["message"]["reasoning_content"] = "Let me see."
    _, engine = told(200, body, tokens=6)
    assert [count for said, count in engine.oddities.items() if "no answer was begun" in said] == [1]


# What was taken.


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        # Gemini counts thoughts in the total alone.
        ({"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 30}, Usage(8, 0, 22, 17)),
        ({"prompt_tokens": 8, "total_tokens": 20}, Usage(8, 0, 12, 12)),
        (USAGE | {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 4}, Usage(8, 4, 6, 0)),
        (USAGE | {"cached_tokens": 3}, Usage(8, 3, 6, 0)),
        ({"prompt_tokens": 8.0, "completion_tokens": 6.0}, Usage(8, 0, 6, 0)),
        ({"input_tokens": 8, "output_tokens": 6}, Usage(8, 0, 6, 0)),
    ],
)
def test_usage_has_several_forms(usage: dict[str, Any], found: Usage) -> None:
    content = "w1" if usage.get("completion_tokens") or usage.get("output_tokens") else None
    assert told(200, answer(content, usage=usage), tokens=22)[0].usage == found


def test_thoughts_above_the_grant_end_the_run() -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 300}
    with pytest.raises(EngineError, match="generated 292 tokens on a grant of 20"):
        told(200, answer(usage=usage))


def test_an_endpoint_without_usage_is_told(served: Endpoint) -> None:
    served.behaviour.usage = None
    engine = engine_of(served)
    assert len(ask(engine).token_ids) == 20
    assert [count for said, count in engine.oddities.items() if "no usage came" in said] == [1]


# Names of models, and keys for calls alone.


@pytest.mark.parametrize(
    ("model", "listed"),
    [(MODEL, f"models/{MODEL}"), (MODEL, f"{MODEL}:latest"), (f"a/{MODEL}:nitro", f"a/{MODEL}")],
)
def test_a_list_may_name_a_model_otherwise(model: str, listed: str) -> None:
    with endpoint(listed=(listed,), knows=(model,)) as served:
        assert engine_notes(config_of(served, model=model)) == ()
        assert served.bodies == []


def test_a_model_that_no_list_has_is_tried_with_a_token() -> None:
    with endpoint(listed=("gpt-base",), knows=("my-deployment",)) as served:
        (note,) = engine_notes(config_of(served, model="my-deployment"))
        assert (
            "my-deployment is not in the endpoint's list: it has gpt-base; a call to my-deployment was answered" in note
        )
        assert [body["max_tokens"] for body in served.bodies] == [1]
        with pytest.raises(ConfigError, match=r"it has gpt-base.*404: The model `another` does not exist"):
            engine_notes(config_of(served, model="another"))
    with endpoint(listed=("/models/of-a-file.gguf",), knows=None, ceiling_field="max_completion_tokens") as served:
        (note,) = engine_notes(config_of(served, model="any"))
        assert "a call to any was answered" in note, "under the other name of the ceiling"
        assert ask(engine_of(served, model="any")).finish_reason == "stop"


@pytest.mark.parametrize("status", [401, 403])
def test_a_list_may_be_closed_to_a_key_that_calls_take(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with endpoint(key=KEY, list_status=status) as served:
        (note,) = engine_notes(config_of(served, key_env="MY_KEY"))
        assert "closed to this key; a call to words was answered" in note
        assert ask(engine_of(served, key_env="MY_KEY")).finish_reason == "stop"
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(ConfigError, match="does not take the key"):
            engine_notes(config_of(served, key_env="MY_KEY"))


def test_an_address_with_nothing_to_call_is_refused(served: Endpoint) -> None:
    config = config_of(served).model_copy(update={"base_url": served.base_url.removesuffix("/v1")})
    with pytest.raises(ConfigError, match=r"nothing is here to call.*most end in /v1"):
        engine_notes(config)


def test_an_address_that_wants_a_version_has_one_that_does_not() -> None:
    address = "https://x.openai.azure.com/openai/deployments/d?api-version=2024-10-21"
    with pytest.raises(ValidationError, match="ends in /openai/v1, with key_header: api-key"):
        OpenAIConfig.model_validate({"kind": "openai", "base_url": address, "model": "d"})
