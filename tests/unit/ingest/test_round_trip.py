"""The same rows give the same queries, whichever way they are stored; and any bytes are read or refused, never worse."""

import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clear_ray.errors import ClearRayError
from tests.unit.ingest.taking import take, taken

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
_written = _text.filter(lambda text: text.strip())
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_content = _written | st.lists(_written, min_size=1, max_size=2).map(
    lambda texts: [{"type": "text", "text": text} for text in texts]
)
_messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": _content}),
    min_size=1,
    max_size=3,
).filter(lambda turns: any(turn["role"] != "assistant" for turn in turns))
_rows: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries(
        {
            "query_id": st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20),
            "prompt": _written,
            "messages": st.none() | _messages,
            "weight": st.none() | st.floats(0, 1e12),
            "cost": st.none() | st.integers(1, 10**9).map(lambda parts: parts / 1_000),
            "max_tokens": st.none() | st.integers(1, 2**31 - 1),
            "gold": st.none() | _text,
            "task": st.none() | _text,
            "metadata": st.none() | _json.map(json.dumps),
        }
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda row: str(row["query_id"]),
)


def _as_table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        {
            "query_id": pa.string(),
            "prompt": pa.dictionary(pa.int32(), pa.string()),
            "messages": pa.string(),
            "weight": pa.float64(),
            "cost": pa.float64(),
            "max_tokens": pa.int64(),
            "gold": pa.string(),
            "task": pa.large_string(),
            "metadata": pa.string(),
        }
    )
    stored = [row | {"messages": row["messages"] and json.dumps(row["messages"])} for row in rows]
    return pa.Table.from_pylist(stored, schema=schema)


@settings(max_examples=40, deadline=None)
@given(rows=_rows, cut=st.integers(0, 20), is_ascii=st.booleans(), missing_not_null=st.booleans())
def test_jsonl_and_parquet_give_the_same(
    rows: list[dict[str, Any]], cut: int, is_ascii: bool, missing_not_null: bool
) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "in").mkdir()
        for name, part in (("a.jsonl.gz", rows[:cut]), ("b.jsonl", rows[cut:])):
            kept = [{k: v for k, v in row.items() if v is not None or not missing_not_null} for row in part]
            lines = "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in kept).encode()
            (folder / "in" / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
        pq.write_table(_as_table(rows), folder / "q.parquet", row_group_size=3)
        one, two = take(folder / "in", folder / "run1"), take(folder / "q.parquet", folder / "run2")
        assert (one.sha256, one.rows, one.longest_prompt_characters) == (
            two.sha256,
            two.rows,
            two.longest_prompt_characters,
        )
        queries = taken(folder / "run1")
        assert queries == taken(folder / "run2")
    assert [query["index"] for query in queries] == list(range(len(rows)))
    for row, query in zip(rows, queries, strict=True):
        assert query["is_conversation"] == (row["messages"] is not None)
        if not query["is_conversation"]:
            assert query["prompt"] == row["prompt"]
        assert query["weight"] == (1.0 if row["weight"] is None else row["weight"])
        assert query["cost"] == (1.0 if row["cost"] is None else row["cost"])
        assert {key: query[key] for key in ("query_id", "task", "metadata")} == {
            key: row[key] for key in ("query_id", "task", "metadata")
        }
        asked = json.loads(query["prompt"]) if query["is_conversation"] else []
        gold = row["gold"] if (row["gold"] or "").strip() else None
        assert gold == query["gold"] or len(asked) < len(row["messages"]), "unless an answer is the gold"


_pieces = rb"""{ } [ ] " : , \u0000 \ud800 1e999 NaN null true 7 "query_id" "prompt" "messages" "custom_id" "body" "url"
{"query_id":"a","prompt":"b"} PAR1""".split()
_near_json = st.lists(
    st.sampled_from([*_pieces, b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\x1f\x8b"]), max_size=12
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=80) | _near_json)
@example(content=b"\x1f\x8b")
@example(content=b"PAR1")
@example(content=b"BZh9")
@example(content=b"\x28\xb5\x2f\xfd")
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as made:
        path, run = Path(made) / "q.jsonl", Path(made) / "run"
        path.write_bytes(content)
        try:
            digest = take(path, run)
        except ClearRayError as error:
            assert str(path) in str(error)  # noqa: PT017 - both outcomes are right, each with its own promise
            assert not run.exists()
        else:
            assert digest.rows == len(taken(run)) > 0


_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "messages", "prompt", "n"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_columns = ["query_id", "prompt", "messages", "weight", "cost", "max_tokens", "gold", "task", "metadata"]


@settings(max_examples=150, deadline=None)
@given(
    row=st.dictionaries(st.sampled_from(_columns), _value, max_size=4).map(
        lambda row: {"query_id": "q", "prompt": "p"} | row
    )
    | st.dictionaries(st.sampled_from(["weight", "gold", "body"]), _value).map(
        lambda row: {"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}} | row
    )
)
@example(row={"query_id": [None], "prompt": [None]})
def test_any_row_is_read_or_refused_with_its_column(row: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as made:
        path, run = Path(made) / "q.jsonl", Path(made) / "run"
        path.write_text(json.dumps(row))
        try:
            take(path, run)
        except ClearRayError as error:
            where = re.escape(str(path)) + r"(:1| row \d+), column "  # a row of a table, where it is read as one
            assert re.match(where, str(error))  # noqa: PT017 - as above
            assert not run.exists()
        else:
            assert taken(run)
