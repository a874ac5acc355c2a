"""What endpoints of each kind send that OpenAI's own does not: as their documents and their users' reports have it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
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
        ("content_filter", "cancelled"),
    ],
)
def test_why_an_answer_ended_is_said_in_many_words(finish: str, reason: str) -> None:
    assert told(200, answer(finish=finish))[0].finish_reason == reason


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
    ],
)
def test_usage_has_several_forms(usage: dict[str, Any], found: Usage) -> None:
    content = "w1" if usage.get("completion_tokens") else None
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
