"""Rows that ask for several answers (`n`): each answer is a query that bears the id of its row, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clear_ray.errors import SchemaError
from clear_ray.ingest import PromptLimit
from tests.unit.ingest.taking import rules, take, taken

ASK = [{"role": "user", "content": "Name a river."}]


def file_of(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def request(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    asked = {"input": "Name a river."} if url.endswith("responses") else {"messages": ASK}
    asked = {"prompt": "A river is"} if url == "/v1/completions" else asked
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked | body}


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
def test_a_request_for_several_answers_is_as_many_queries_of_one_id(tmp_path: Path, url: str) -> None:
    rows = [request("a", url), request("b", url, n=3, seed=7, max_tokens=20), request("c", url, n=1)]
    digest = take(file_of(tmp_path / "q.jsonl", *rows), tmp_path / "run")
    found = taken(tmp_path / "run")
    assert digest.rows == 5
    assert [(row["index"], row["query_id"], row["n"], row["choice"]) for row in found] == [
        (0, "a", None, None),
        (1, "b", 3, 0),
        (2, "b", 3, 1),
        (3, "b", 3, 2),
        (4, "c", None, None),
    ]
    same = [{name: row[name] for name in row if name not in ("index", "choice")} for row in found[1:4]]
    assert same[0] == same[1] == same[2]
    assert digest.notices == ("1 row asks for 3 answers (n), each of which counts as a query",)


def test_a_list_of_prompts_is_a_query_for_each(tmp_path: Path) -> None:
    rows = [
        request("a", "/v1/completions", prompt=["A river is", [5, 6], "x"], n=2, max_tokens=7, user="u"),
        request("b", "/v1/completions", prompt=[[7], [8, 9]]),
        request("c", "/v1/completions", prompt=["alone"]),
    ]
    digest = take(file_of(tmp_path / "q.jsonl", *rows), tmp_path / "run")
    found = taken(tmp_path / "run")
    assert digest.rows == len(found) == 9
    asked = [(row["query_id"], row["prompt"], row["prompt_form"], row["n"], row["choice"]) for row in found]
    assert asked == [
        ("a", "A river is", "raw", 2, 0),
        ("a", "A river is", "raw", 2, 1),
        ("a", "[5,6]", "tokens", 2, 2),
        ("a", "[5,6]", "tokens", 2, 3),
        ("a", "x", "raw", 2, 4),
        ("a", "x", "raw", 2, 5),
        ("b", "[7]", "tokens", 1, 0),
        ("b", "[8,9]", "tokens", 1, 1),
        ("c", "alone", "raw", None, None),
    ]
    assert {row["max_tokens"] for row in found[:6]} == {7}
    assert digest.notices == (
        "1 row asks for 6 answers (n), each of which counts as a query",
        "2 rows have 5 prompts, each of which counts as a query",
    )


@pytest.mark.parametrize("on_error", ["refuse", "fail_row"])
def test_one_prompt_that_is_too_long_is_its_rows_error(tmp_path: Path, on_error: str) -> None:
    limit = PromptLimit(4, lambda prompts, _: [len(prompt.split()) for prompt in prompts])
    rows = [request("a", "/v1/completions", prompt=["a b", "a b c d e", "a"]), request("b", "/v1/completions")]
    path = file_of(tmp_path / "q.jsonl", *rows)
    if on_error == "refuse":
        with pytest.raises(SchemaError, match=r"q\.jsonl:1, column body\.prompt.*5 tokens"):
            take(path, tmp_path / "run", limit=limit)
        return
    take(path, tmp_path / "run", limit=limit, on_error=on_error)
    found = taken(tmp_path / "run")
    assert [(row["query_id"], bool(row["input_error"]), row["choice"]) for row in found] == [
        ("a", True, None),
        ("b", False, None),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (request("a", "/v1/completions", prompt=["a", " "]), r"column body\.prompt\[1\]: the prompt is empty"),
        (
            request("a", "/v1/completions", prompt=["a", "b"]) | {"gold": "c"},
            "gold: one reference answer stands beside",
        ),
    ],
)
def test_what_several_prompts_cannot_be(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        take(file_of(tmp_path / "q.jsonl", line), tmp_path / "run")


def test_several_prompts_are_refused_where_queries_are_answered_several_times(tmp_path: Path) -> None:
    path = file_of(tmp_path / "q.jsonl", request("a", "/v1/completions", prompt=["a", "b"]))
    with pytest.raises(SchemaError, match=r"body\.prompt.*a row has one prompt.*2 prompts"):
        take(path, tmp_path / "run", reading=rules(splits=False))


def test_plain_rows_ask_in_their_sampling_params(tmp_path: Path) -> None:
    rows = [{"query_id": k, "prompt": "q", "sampling_params": {"n": n}} for k, n in enumerate((2.0, 1, None, 4))]
    assert take(file_of(tmp_path / "q.jsonl", *rows), tmp_path / "run").rows == 8
    assert [row["query_id"] for row in taken(tmp_path / "run")] == ["0", "0", "1", "2", "3", "3", "3", "3"]


def test_made_ids_stay_unique(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "sampling_params": {"n": 3}} for _ in range(40)]
    take(file_of(tmp_path / "q.jsonl", *rows), tmp_path / "run")
    assert len({row["query_id"] for row in taken(tmp_path / "run")}) == 40


def test_where_queries_are_asked_again_n_is_noted_alone(tmp_path: Path) -> None:
    digest = take(
        file_of(tmp_path / "q.jsonl", request("a"), request("b", n=3)), tmp_path / "run", reading=rules(splits=False)
    )
    assert digest.notices == ()
    assert [(row["n"], row["choice"]) for row in taken(tmp_path / "run")] == [(None, None), (3, None)]


def test_one_answer_asks_for_nothing(tmp_path: Path) -> None:
    path = file_of(tmp_path / "one.jsonl", request("a", n=1), request("b", seed=3, n=None))
    other = file_of(tmp_path / "none.jsonl", request("a"), request("b", seed=3))
    assert take(path, tmp_path / "one").sha256 == take(other, tmp_path / "none").sha256


def test_an_id_given_twice_is_still_found(tmp_path: Path) -> None:
    path = file_of(tmp_path / "q.jsonl", request("a", n=2), request("b", n=3), request("a", n=2))
    with pytest.raises(SchemaError, match=r"the input has 2 problems|the id is given twice, first at .*q\.jsonl:1"):
        take(path, tmp_path / "run")


@pytest.mark.parametrize(
    ("asked", "temperature"),
    [({"n": 2}, 0.0), ({"n": 2, "temperature": 0}, 0.7)],
)
def test_equal_answers_are_refused(tmp_path: Path, asked: dict[str, Any], temperature: float) -> None:
    path = file_of(tmp_path / "q.jsonl", request("a"), request("b", **asked))
    with pytest.raises(SchemaError, match=r"q\.jsonl:2, column body\.n: greedy|same answer every time.*body\.n"):
        take(path, tmp_path / "run", reading=rules(temperature=temperature))
    assert take(path, tmp_path / "run", reading=rules(temperature=None)).rows == 3


@pytest.mark.parametrize(("asked", "temperature"), [({"n": 2}, 0.7), ({"n": 2, "temperature": 0.5}, 0.0)])
def test_answers_that_are_drawn_are_not(tmp_path: Path, asked: dict[str, Any], temperature: float) -> None:
    path = file_of(tmp_path / "q.jsonl", request("b", **asked))
    assert take(path, tmp_path / "run", reading=rules(temperature=temperature)).rows == 2


@pytest.mark.parametrize("line", [request("a", "/v1/responses", n=2), {"custom_id": "a", "params": {"n": 2}}])
def test_endpoints_without_n_refuse_it(tmp_path: Path, line: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match=r"\.n"):
        take(file_of(tmp_path / "q.jsonl", line), tmp_path / "run")
