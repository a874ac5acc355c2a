"""`input.on_error: fail_row`: a row that is no query takes its place and fails; the others go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import SchemaError
from clear_ray.ingest import PromptLimit
from tests.unit.ingest.corpus import BAD_LINES, BAD_REQUESTS, BAD_VALUES, GOOD, request
from tests.unit.ingest.taking import take, taken

LAST = {"query_id": "last", "prompt": "Say hi."}


def words(prompts: list[str], forms: list[str]) -> list[int]:
    return [len(prompt.split()) for prompt in prompts]


def check_between(run: Path, path: Path, said: str, **settings: Any) -> dict[str, Any]:
    """Check that the second of three rows fails and says why, and return it."""
    digest = take(path, run, on_error="fail_row", **settings)
    first, bad, last = taken(run)
    assert (first["input_error"], last["input_error"]) == (None, None)
    assert [row["index"] for row in (first, bad, last)] == [0, 1, 2]
    assert said in bad["input_error"]
    assert len({first["query_id"], bad["query_id"], last["query_id"]}) == 3
    assert digest.rows == 3
    assert any("failed: 1 row of the input, 1 because " in line for line in digest.notices)
    return bad


# Of a row, not of the whole input: ids twice are a matter of two rows.
VALUES = [(column, value, said) for column, value, said in BAD_VALUES if said != "given twice"]


@pytest.mark.parametrize(("column", "value", "said"), VALUES, ids=lambda text: str(text)[:40])
def test_a_bad_value_fails_its_row(tmp_path: Path, column: str, value: str, said: str) -> None:
    fields = {"query_id": '"second"', "prompt": '"b"', column: value}
    row = ", ".join(f'"{name}": {text}' for name, text in fields.items())
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{{{row}}}\n{json.dumps(LAST)}\n")
    bad = check_between(tmp_path / "run", path, said)
    assert f"q.jsonl:2, column {column}" in bad["input_error"]
    assert bad["query_id"] == "second" or column == "query_id"


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_fails_its_row(tmp_path: Path, name: str) -> None:
    line, said = BAD_LINES[name]
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(LAST).encode())
    check_between(tmp_path / "run", path, said)


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_fails_its_row(tmp_path: Path, name: str) -> None:
    line, said = BAD_REQUESTS[name]
    lines = [request() | {"custom_id": "first"}, line, request() | {"custom_id": "last"}]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    check_between(tmp_path / "run", path, said)


def test_a_prompt_over_the_context_fails_alone(tmp_path: Path) -> None:
    rows = [{"query_id": str(k), "prompt": "word " * length} for k, length in enumerate((3, 5_000, 20))]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    limit = PromptLimit(context_tokens=2_048, count_tokens=words)
    bad = check_between(tmp_path / "run", tmp_path / "q.jsonl", "does not fit the model's context", limit=limit)
    assert bad["input_error"].endswith("(got 5000 tokens). Shorten it or use a model with a longer context.")


def test_a_prompt_that_the_template_refuses_fails_alone(tmp_path: Path) -> None:
    def count(prompts: list[str], forms: list[str]) -> list[int]:
        if any("odd" in prompt for prompt in prompts):
            raise SchemaError("the chat template refuses the conversation: odd", "prompt", remedy="Even it out.")
        return words(prompts, forms)

    rows = [{"query_id": text, "prompt": f"{text} " * 500} for text in ("even", "odd", "level")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    limit = PromptLimit(context_tokens=1_000, count_tokens=count)
    check_between(
        tmp_path / "run", tmp_path / "q.jsonl", "the chat template refuses the conversation: odd", limit=limit
    )
    with pytest.raises(SchemaError, match=r"q.jsonl:2, column prompt: the chat template refuses"):
        take(tmp_path / "q.jsonl", tmp_path / "run2", limit=limit)


def test_nulls_of_a_table_fail_their_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query_id": ["a", "b", "c"], "prompt": ["p", None, "q"]}), tmp_path / "q.parquet")
    assert check_between(tmp_path / "run", tmp_path / "q.parquet", "the value is null")["query_id"] == "b"
    (tmp_path / "q.csv").write_text("query_id,prompt\na,p\nb\nc,q\n")
    check_between(tmp_path / "run", tmp_path / "q.csv", "1 cells and the header 2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n", "given twice"),
        ('{"query_id": "a"}\n{"query_id": "b"}\n', "no column is known to be the prompt"),
        ("{\n", "bad JSON"),
        ('{"query_id": "a", "prompt": ""}\n{"query_id": "b", "prompt": " "}\n', "the input has 2 problems"),
        (f"[{json.dumps(GOOD)},", "the array is not closed"),
        ("", "no query"),
    ],
)
def test_what_is_no_single_row_is_refused_all_the_same(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(SchemaError, match=said):
        take(tmp_path / "q.jsonl", tmp_path / "run", on_error="fail_row")
    assert not (tmp_path / "run").exists()


def test_made_ids_count_failed_rows_too(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "a"}\n{"question": ""}\n{"question": "c"}\n')
    take(tmp_path / "q.jsonl", tmp_path / "run", on_error="fail_row")
    assert [row["query_id"][:11] for row in taken(tmp_path / "run")] == ["row-0000000", "row-0000001", "row-0000002"]


def test_failed_rows_are_told_with_their_fields_and_keep_their_ids(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "question": "q"}, {"id": "b", "question": ""}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    digest = take(tmp_path / "q.jsonl", tmp_path / "run", on_error="fail_row")
    assert digest.notices[-1] == "failed: 1 row of the input, 1 because the prompt is empty (question)"
    assert [row["query_id"] for row in taken(tmp_path / "run")] == ["a", "b"]
    lines = [request(), request(tools=[{"a": 1}]), request(echo=True)]
    lines = [line | {"custom_id": str(k)} for k, line in enumerate(lines)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    digest = take(tmp_path / "b.jsonl", tmp_path / "run", on_error="fail_row")
    assert digest.notices == (
        "failed: 2 rows of the input, 1 because this is not supported (body.tools), "
        "1 because this is not supported (body.echo)",
    )
