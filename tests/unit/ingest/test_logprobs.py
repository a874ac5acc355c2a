"""Log-probabilities of answers, in the shapes that clients read."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError
from clear_ray.ingest.logprobs import (
    NOT_GIVEN,
    TokenLogprob,
    chat_logprobs,
    dump_logprobs,
    legacy_logprobs,
    load_logprobs,
    of_answer,
    read_content,
    read_legacy,
)
from clear_ray.ingest.sampling_fields import sampling_of

WORDS = (TokenLogprob(b"The", -0.5, ((b"The", -0.5), (b"A", -1.5))), TokenLogprob(b" end", -0.25))


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": 5}, 5),  # legacy completions
        ({"logprobs": 0}, 0),
        ({"logprobs": 3.0}, 3),  # of a table
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"top_logprobs": 0}, None),
        ({}, None),
    ],
)
def test_how_they_are_asked_for(body: dict[str, Any], asked: int | None) -> None:
    assert sampling_of(body) == (None if asked is None else Sampling(logprobs=asked))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"top_logprobs": 2}, "body.top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "body.top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "body.top_logprobs"),
        ({"logprobs": True, "top_logprobs": "2"}, "body.top_logprobs"),
        ({"logprobs": 21}, "body.logprobs"),
        ({"logprobs": "yes"}, "body.logprobs"),
        ({"logprobs": 2, "top_logprobs": 3}, "body.logprobs"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(body: dict[str, Any], where: str) -> None:
    with pytest.raises(SchemaError) as refused:
        sampling_of(body)
    assert refused.value.where == where


def test_shapes_of_answers() -> None:
    assert chat_logprobs(WORDS) == {
        "content": [
            {
                "token": "The",
                "logprob": -0.5,
                "bytes": [84, 104, 101],
                "top_logprobs": [
                    {"token": "The", "logprob": -0.5, "bytes": [84, 104, 101]},
                    {"token": "A", "logprob": -1.5, "bytes": [65]},
                ],
            },
            {"token": " end", "logprob": -0.25, "bytes": [32, 101, 110, 100], "top_logprobs": []},
        ],
        "refusal": None,
    }
    assert legacy_logprobs(WORDS, begin=4) == {
        "tokens": ["The", " end"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"The": -0.5, "A": -1.5}, {" end": -0.25}],
        "text_offset": [4, 7],
    }
    assert chat_logprobs(None) is None
    assert legacy_logprobs(None) is None


tokens = st.binary(max_size=5)
entries = st.builds(
    TokenLogprob,
    tokens,
    st.floats(-9999, 0),
    st.lists(st.tuples(tokens, st.floats(-9999, 0)), max_size=3).map(
        lambda pairs: tuple(sorted(pairs, key=lambda pair: -pair[1]))
    ),
)


@given(st.lists(entries, max_size=6))
def test_what_is_written_is_read_again(answer: list[TokenLogprob]) -> None:
    text = dump_logprobs(answer)
    json.dumps(json.loads(text), allow_nan=False)
    assert load_logprobs(text) == tuple(answer)
    assert load_logprobs(NOT_GIVEN) is None
    assert load_logprobs(None) is None


@given(st.text(max_size=12), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 12), st.data())
def test_the_entries_of_an_answer_are_its_text_however_it_was_cut(
    text: str, cuts: list[int], kept: int, data: st.DataObject
) -> None:
    content = text.encode(errors="replace")
    text = content.decode()
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    whole = [TokenLogprob(content[a:b], -0.1) for a, b in itertools.pairwise(places)]
    first = data.draw(st.integers(0, len(whole)))
    found = of_answer(text, whole[first:], whole[:first])
    assert found == tuple(whole)
    shown = text[:kept]  # cut at a stop, within a token maybe
    cut = of_answer(shown, whole[first:], whole[:first])
    assert cut is not None
    said = b"".join(entry.token for entry in cut).decode(errors="replace")
    assert said.startswith(shown.rstrip("\ufffd")) or len(said) >= len(shown)
    assert not cut or len(b"".join(entry.token for entry in cut[:-1]).decode(errors="ignore")) <= len(shown)


def test_what_was_trimmed_before_it_was_gone_on_with_is_forgotten() -> None:
    earlier = (TokenLogprob(b"Hello", -1.0), TokenLogprob(b" ", -2.0))
    new = (TokenLogprob(b" world", -3.0),)
    assert of_answer("Hello world", new, earlier) == (earlier[0], *new)
    assert of_answer("Hello world", None, earlier) is None
    assert of_answer("Hello world", new, None) is None
    assert of_answer("", None) == ()


@pytest.mark.parametrize(
    "told", [None, [], {}, "x", {"tokens": ["a"]}, {"tokens": ["a"], "token_logprobs": []}, {"content": [{}]}]
)
def test_what_an_endpoint_tells_is_not_believed_blindly(told: Any) -> None:
    assert read_legacy(told) is None
    assert read_content(told.get("content") if isinstance(told, dict) else told) in (None, ())
    assert read_content([{"token": "a", "logprob": float("nan")}]) is None
    inf = read_content([{"token": "é", "logprob": float("-inf"), "bytes": None, "top_logprobs": None}])
    assert inf == (TokenLogprob("é".encode(), -9999.0),)
