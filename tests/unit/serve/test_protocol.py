from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.config.sampling import Sampling, Structure
from clear_ray.errors import ConfigError
from clear_ray.serve.cutting import cut_at_stop, showable
from clear_ray.serve.guard import Guard
from clear_ray.serve.protocol import ApiError, ChatRequest, Message, read_request, refuse_equal_choices
from clear_ray.serve.settings import LimitSettings, ServeConfig
from tests.unit.config.test_run import ROOT

LIMITS = LimitSettings(prompt_characters=10, choices=2, stop_strings=2, stop_characters=3)
LEAST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DIGEST = hashlib.sha256(b"sk-right").hexdigest()


def read(**changes: Any) -> ChatRequest:
    body = json.dumps(LEAST | changes).encode()
    return read_request(body, ChatRequest, limits=LIMITS, models={"m": None})


def refused(**changes: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**changes)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"temperature": 0.5, "top_p": 1}, "temperature", 0.5),
        ({"stop": "abc"}, "stops", ("abc",)),
        ({"user": "u", "seed": None}, "sampling", None),
        (
            {"temperature": 0.4, "top_p": 0.9, "stop": "abc", "seed": 3, "presence_penalty": 0.1, "top_k": 5},
            "sampling",
            Sampling(temperature=0.4, top_p=0.9, stop=("abc",), seed=3, presence_penalty=0.1, top_k=5),
        ),
        (
            {"response_format": {"type": "json_object"}},
            "sampling",
            Sampling(structure=Structure(kind="json_object")),
        ),
        ({"stop": ["a", "abc"]}, "stops", ("a", "abc")),
        ({"n": 2}, "n", 2),
        ({"max_tokens": 9, "max_completion_tokens": 5}, "upper_limit_tokens", 5),
        ({}, "upper_limit_tokens", None),
        ({"user": "someone", "logprobs": False, "tools": []}, "stream", False),
        ({"messages": [{"role": "user", "content": "x" * 10}]}, "n", 1),
        ({"n": None, "stream": None, "max_tokens": None, "tool_choice": "none", "functions": []}, "n", 1),
        ({"modalities": ["text"], "prompt_cache_key": "k", "prediction": None, "extra_headers": {}}, "sampling", None),
        ({"top_k": -1, "repetition_penalty": 1}, "sampling", Sampling(top_k=0, repetition_penalty=1)),
        ({"messages": [{"role": "developer", "content": "hi"}]}, "messages", (Message(role="system", content="hi"),)),
        (
            {"messages": [{"role": "user", "content": "hi", "tool_calls": [], "refusal": None, "audio": None}]},
            "messages",
            (Message(role="user", content="hi"),),
        ),
    ],
)
def test_what_can_be_honoured_is_read(changes: dict[str, Any], attribute: str, value: object) -> None:
    assert getattr(read(**changes), attribute) == value


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 1.9}, 400, "top_p"),
        ({"presence_penalty": 2.1}, 400, "presence_penalty"),
        ({"top_k": "all"}, 400, "top_k"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type"),
        ({"continue_final_message": True}, 400, "continue_final_message"),
        ({"min_tokens": 3, "stop": "a"}, 400, "min_tokens"),
        ({"best_of": 2}, 400, "best_of"),
        ({"n": 3}, 400, "n"),
        ({"stop": ["a", "b", "c"]}, 400, "stop"),
        ({"stop": "abcd"}, 400, "stop"),
        ({"stop": ["a", ""]}, 400, "stop"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi", "tool_call_id": "c"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "hi", "name": 5}]}, 400, "messages[0].name"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, 400, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "half \ud83d"}]}, 400, "messages[0].content"),
        ({"frobnicate": 1}, 400, "frobnicate"),
        ({"logprobs": "yes"}, 400, "logprobs"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x" * 11}]}, 400, "messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_the_rest_is_refused_by_name(changes: dict[str, Any], status: int, param: str) -> None:
    error = refused(**changes)
    assert (error.status, error.param) == (status, param)
    assert set(error.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"null"])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_request(body, ChatRequest, limits=LIMITS, models={"m": None})
    assert caught.value.status == 400


def test_text_parts_are_joined_and_others_refused_without_their_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read(messages=[{"role": "user", "content": parts}]).messages[0].content == "a\nb", "as in a batch file"
    secret = [{"type": "image_url", "image_url": {"url": "a secret"}}]
    assert "secret" not in json.dumps(refused(messages=[{"role": "user", "content": secret}]).body)


texts = st.text(alphabet="ab\ufffd", max_size=12)


@given(texts, st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=3), st.integers(0, 12))
def test_nothing_is_shown_that_a_stop_string_takes_back(text: str, stops: list[str], seen: int) -> None:
    whole = cut_at_stop(text, stops)
    early = text[:seen]
    if cut_at_stop(early, stops) is None:
        shown = showable(early, stops)
        assert early.startswith(shown)
        assert (text if whole is None else whole).startswith(shown)


def test_a_stop_string_cuts_at_its_first_place() -> None:
    assert cut_at_stop("one two three", ["three", "two"]) == "one "
    assert cut_at_stop("one", ["two"]) is None
    assert showable("one t", ["two"]) == "one "
    assert showable("one \ufffd", []) == "one "


def test_a_key_is_needed_and_found_by_its_digest() -> None:
    guard = Guard([hashlib.sha256(b"other").hexdigest(), DIGEST], concurrent_per_key=2)
    assert guard.admit("Bearer sk-right", "10.0.0.9") == DIGEST
    for given_ in (None, "", "Bearer", "Bearer sk-wrong", "Basic sk-right", f"Bearer {DIGEST}"):
        with pytest.raises(ApiError) as caught:
            guard.admit(given_, "127.0.0.1")
        assert caught.value.status == 401


def test_every_key_takes_as_many_comparisons_of_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard([hashlib.sha256(name).hexdigest() for name in (b"first", b"second", b"third")], concurrent_per_key=1)
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    counts = []
    for key in ("first", "second", "third", "none of them", ""):
        compared.clear()
        with contextlib.suppress(ApiError):
            guard.admit(f"Bearer {key}", "10.0.0.9")
        counts.append(len(compared))
        assert all(len(a) == len(b) == 64 for a, b in compared)  # digests, never the keys themselves
    assert counts == [3] * 5


def test_without_keys_only_this_machine_is_served() -> None:
    guard = Guard([], concurrent_per_key=2)
    assert guard.admit(None, "127.0.0.1") == ""
    for host in ("10.0.0.9", None, ""):
        with pytest.raises(ApiError):
            guard.admit("Bearer sk-right", host)


def test_one_key_has_so_many_queries_under_way_and_no_more() -> None:
    guard = Guard([DIGEST], concurrent_per_key=2)
    with guard.under_way("a"), guard.under_way("a"), guard.under_way("b"):
        with pytest.raises(ApiError) as caught, guard.under_way("a"):
            pass
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
    with guard.under_way("a"):
        pass
    with guard.under_way("a"):
        guard.change(concurrent_per_key=1)  # what is under way still counts
        with pytest.raises(ApiError), guard.under_way("a"):
            pass


def test_the_shipped_configuration_loads() -> None:
    assert ServeConfig.load(ROOT / "jobs/serve/demo.yaml").model_name == "smollm2"


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "0.0.0.0"},  # noqa: S104
        {"api_key_sha256": ["sk-a-key-itself"]},
        {"price": {"window_seconds": 1.0}},
        {"unknown": 1},
    ],
)
def test_settings_that_would_be_unsafe_or_unknown_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeConfig.parse(changes)
    assert "sk-a-key-itself" not in str(caught.value)


def test_with_keys_a_server_may_listen_anywhere() -> None:
    assert ServeConfig.parse({"host": "0.0.0.0", "api_key_sha256": [DIGEST]}).host == "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    ("changes", "engines", "is_refused"),
    [
        ({"n": 2}, 0.0, True),
        ({"n": 2, "temperature": 0}, 0.7, True),
        ({"n": 2, "temperature": 0.7}, 0.0, False),
        ({"n": 2}, 0.7, False),
        ({"temperature": 0}, 0.0, False),
    ],
)
def test_answers_that_would_all_be_the_same_are_not_sold(
    changes: dict[str, Any], engines: float, is_refused: bool
) -> None:
    request = read(**changes)
    if not is_refused:
        refuse_equal_choices(request, engines)
        return
    with pytest.raises(ApiError) as caught:
        refuse_equal_choices(request, engines)
    assert (caught.value.status, caught.value.param) == (400, "n")
