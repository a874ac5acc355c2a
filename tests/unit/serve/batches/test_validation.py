"""Every line of a batch file is looked at; what is wrong is told by line and code, and whatever it holds nothing raises."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.errors import SchemaError
from clear_ray.serve.batches import validation
from clear_ray.serve.batches.validation import Looked, error, look_at, refusals
from tests.unit.ingest.taking import take

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["custom_id", "method", "url", "body", "model", "messages", "stream", "max_tokens", "x"])


def line(custom_id: str = "a", url: str = "/v1/chat/completions", **body: Any) -> bytes:
    prompt = {"/v1/completions": {"prompt": "?"}, "/v1/responses": {"input": "?"}}
    asked = {"model": "m", **prompt.get(url, {"messages": [{"role": "user", "content": "?"}]}), **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": asked}).encode() + b"\n"


def look(
    content: bytes,
    endpoint: str = "/v1/chat/completions",
    most_requests: int = 1_000,
    models: tuple[str, ...] = ("m",),
) -> Looked:
    return look_at(io.BytesIO(content), endpoint=endpoint, models=models, max_tokens=100, most_requests=most_requests)


def found(content: bytes, **changes: Any) -> list[tuple[str, int | None]]:
    return [(error["code"], error["line"]) for error in look(content, **changes).errors]


@pytest.mark.parametrize("endpoint", validation.ENDPOINTS)
def test_a_good_file_is_counted(endpoint: str) -> None:
    content = b"\xef\xbb\xbf" + line("a", endpoint) + b"\n  \r\n" + line("b", endpoint)[:-1]
    assert look(content, endpoint) == Looked(2, 200, "m", ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(line()), "a gzip archive"),
        (b"PK\x03\x04\x14\x00", "a zip archive or a spreadsheet"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (json.dumps(json.loads(line()), indent=2).encode(), "one JSON text over many lines"),
        (json.dumps([json.loads(line())], indent=2).encode(), "one JSON text over many lines"),
    ],
)
def test_a_file_of_another_kind_is_told_once(content: bytes, said: str) -> None:
    (told,) = look(content).errors
    assert (told["code"], told["line"]) == ("invalid_file", None)
    assert said in told["message"]


def test_the_requests_of_a_batch_name_one_of_several_models() -> None:
    models = ("small", "large", "any")
    assert look(line("a", model="large") + line("b", model="large"), models=models).model == "large"
    mixed = look(line("a", model="large") + line("b", model="any") + line("c", model="other"), models=models)
    assert [(each["code"], each["line"]) for each in mixed.errors] == [("mismatched_model", 2), ("model_not_found", 3)]
    assert "name large" in mixed.errors[0]["message"]
    assert "the models small, large, any" in mixed.errors[1]["message"]


def test_what_answers_may_come_to_heeds_each_lines_own_ceiling() -> None:
    ceilings = [
        {"max_tokens": 7},
        {"max_completion_tokens": 8},
        {"max_tokens": 500},
        {"max_tokens": "x"},
        {"max_tokens": -1},
        {"max_tokens": 7, "n": 3},
    ]
    content = b"".join(line(str(k), **each) for k, each in enumerate(ceilings))
    assert look(content).most_tokens == 7 + 8 + 100 + 100 + 100 + 3 * 7


def test_each_line_is_told_by_the_first_thing_wrong_with_it() -> None:
    bad = [b"\xff\n", b"[" * 100_000 + b"\n", b"nan\n", b'"text"\n', line("", stream=True), line(""), line(model="n")]
    bad.append(line("\ud83d"))
    assert found(line("ok") + b"".join(bad)) == [
        ("invalid_json_line", 2),
        ("invalid_json_line", 3),
        ("invalid_json_line", 4),
        ("invalid_request", 5),
        ("streaming_unsupported", 6),
        ("invalid_request", 7),
        ("model_not_found", 8),
        ("invalid_request", 9),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_no_line_is_of_another_encoding(encoding: str) -> None:
    text = line("x").decode().strip().replace('"x"', '"é"')
    assert found(text.encode()) == []
    assert found(text.encode(encoding)) == [("invalid_json_line", 1)]


def test_a_file_has_an_end() -> None:
    assert found(b"".join(line(str(k)) for k in range(5)), most_requests=4) == [("too_many_requests", 5)]
    assert found(b"".join(line(str(k)) for k in range(4)), most_requests=4) == []
    assert len(found(b"{x\n" * 5_000)) == 100, "no client reads more"
    assert found(b"\n\n") == [("empty_file", None)]


def test_a_line_that_is_too_long_ends_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_MOST_LINE_BYTES", 200)
    assert found(line("a") + line("b", x="y" * 300) + b"{\n") == [("line_too_long", 2)]


@given(
    rows=st.lists(
        st.binary(max_size=30) | st.dictionaries(NAMES, JSON, max_size=5).map(lambda r: json.dumps(r).encode())
    )
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_content_raises(rows: list[bytes]) -> None:
    looked = look(b"\n".join(rows))
    assert looked.errors
    assert all(isinstance(error["message"], str) for error in looked.errors)
    json.dumps(looked.errors, allow_nan=False)


@given(body=st.dictionaries(NAMES, JSON, max_size=5))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_body_raises(body: dict[str, Any]) -> None:
    row = json.loads(line()) | {"body": {"model": "m", "messages": []} | body}
    look(json.dumps(row).encode())


def test_what_is_said_of_an_input_without_a_good_row_names_lines_and_no_folder(tmp_path: Path) -> None:
    name = tmp_path / "batch_1" / "input.jsonl"
    name.parent.mkdir()
    bodies = [{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, {"messages": []}]
    rows = [
        {"custom_id": str(k), "url": "/v1/chat/completions", "method": "POST", "body": b} for k, b in enumerate(bodies)
    ]
    for count in (1, 2):
        name.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        with pytest.raises(SchemaError) as caught:
            take(name, tmp_path / "run")
        found = refusals(str(caught.value))
        assert [(each["line"], each["param"]) for each in found] == [(1, "body.tools"), (2, "body.messages")][:count]
        assert found[0]["message"].startswith("this is not supported")
        assert str(tmp_path) not in json.dumps(found)
    assert refusals("there is no such file") == [error("invalid_request", "there is no such file")]
