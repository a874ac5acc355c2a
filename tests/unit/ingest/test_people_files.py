"""Files as people's tools write them: read as they are meant, or refused by what they are."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import SchemaError
from tests.unit.ingest.taking import take, taken

TABLE = pa.table({"id": ["1", "2"], "question": ["a?", "b?"], "answer": ["x", "y"]})
ROWS = [("1", "a?", "x"), ("2", "b?", "y")]


def rows_of(path: Path, run: Path) -> list[tuple[str, str, str]]:
    take(path, run)
    return [(row["query_id"], row["prompt"], row["gold"]) for row in taken(run)]


@pytest.mark.parametrize(
    "document",
    [
        {"id": {"0": "1", "1": "2"}, "question": {"0": "a?", "1": "b?"}, "answer": {"0": "x", "1": "y"}},
        {"1": {"question": "a?", "answer": "x"}, "2": {"question": "b?", "answer": "y"}},
        {"columns": ["id", "question", "answer"], "index": [0, 1], "data": [["1", "a?", "x"], ["2", "b?", "y"]]},
        {"id": ["1", "2"], "question": ["a?", "b?"], "answer": ["x", "y"]},
    ],
    ids=["columns", "index", "split", "list"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_table_as_pandas_writes_it(tmp_path: Path, document: Any, indent: int | None) -> None:
    (tmp_path / "q.json").write_text(json.dumps(document, indent=indent))
    assert rows_of(tmp_path / "q.json", tmp_path / "run") == ROWS
    assert take(tmp_path / "q.json", tmp_path / "again").notices[-1].endswith("as a table, as pandas writes it")


@pytest.mark.parametrize(
    "row",
    [
        {"question": {"text": "a"}, "answer": {"text": "b", "more": 1}},
        {"columns": ["question"], "data": [["a", "b"]]},
        {"question": ["a", "b"], "answer": ["c"]},
        {"one": {"a": 1}, "two": {"b": 2}},
    ],
)
def test_what_is_no_table_is_none(tmp_path: Path, row: Any) -> None:
    (tmp_path / "q.json").write_text(json.dumps(row))
    with pytest.raises(SchemaError):
        take(tmp_path / "q.json", tmp_path / "run")


def write_arrow(path: Path, *, is_file: bool) -> None:
    with pa.OSFile(str(path), "wb") as sink:
        writer = pa.ipc.new_file(sink, TABLE.schema) if is_file else pa.ipc.new_stream(sink, TABLE.schema)
        with writer:
            writer.write_table(TABLE, max_chunksize=1)


@pytest.mark.parametrize("is_file", [True, False])
def test_arrow_files_and_streams_are_read(tmp_path: Path, is_file: bool) -> None:
    write_arrow(tmp_path / "q.arrow", is_file=is_file)
    assert rows_of(tmp_path / "q.arrow", tmp_path / "run") == ROWS
    damaged = (tmp_path / "q.arrow").read_bytes()[:-40]
    (tmp_path / "q.arrow").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(SchemaError, match="the Arrow file cannot be read"):
        take(tmp_path / "q.arrow", tmp_path / "again")


def test_a_folder_that_datasets_wrote_is_read_without_its_cards(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    write_arrow(saved / "data-00000-of-00001.arrow", is_file=False)
    for name in ("dataset_info.json", "state.json"):
        (saved / name).write_text('{"features": {}}')
    assert rows_of(saved, tmp_path / "run") == ROWS
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for k in range(2):
        pq.write_table(TABLE.slice(k, 1), hub / f"train-0000{k}-of-00002.parquet")
    (hub.parent / "dataset_infos.json").write_text("{}")
    (hub.parent / ".gitattributes").touch()
    assert rows_of(hub.parent, tmp_path / "run2") == ROWS


def test_xz_is_unpacked(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row) for row in TABLE.to_pylist()).encode()
    (tmp_path / "q.jsonl.xz").write_bytes(lzma.compress(lines * 1))
    assert rows_of(tmp_path / "q.jsonl.xz", tmp_path / "run") == ROWS
    (tmp_path / "q.jsonl.xz").write_bytes(lzma.compress(lines)[:-20])
    with pytest.raises(SchemaError, match=r"q.jsonl.xz.*the file cannot be read.*(?:copy it again)"):
        take(tmp_path / "q.jsonl.xz", tmp_path / "again")


def test_messages_of_conversation_trees_are_no_queries(tmp_path: Path) -> None:
    rows = [
        {"message_id": "m1", "parent_id": None, "text": "Hello?", "role": "prompter"},
        {"message_id": "m2", "parent_id": "m1", "text": "Hi", "role": "assistant"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SchemaError, match="each row is one message of a conversation"):
        take(tmp_path / "q.jsonl", tmp_path / "run")


def test_endings_and_spans_are_read(tmp_path: Path) -> None:
    endings = [{"ctx": "He sits", "endings": ["down", "up"], "label": label} for label in ("1", "0")]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, endings)))
    take(tmp_path / "h.jsonl", tmp_path / "run")
    assert [row["gold"] for row in taken(tmp_path / "run")] == ["B", "A"]
    spans = {"passage": "P.", "question": "How many?", "answers_spans": {"spans": ["4"], "types": ["number"]}}
    (tmp_path / "d.jsonl").write_text(json.dumps(spans))
    take(tmp_path / "d.jsonl", tmp_path / "drop")
    assert json.loads(taken(tmp_path / "drop")[0]["gold"]) == spans["answers_spans"]


@pytest.mark.parametrize("is_file", [True, False])
def test_an_arrow_file_whose_offsets_lead_out_of_it_is_refused(tmp_path: Path, is_file: bool) -> None:
    """Arrow believes them: to read such a text ends the process."""
    with pa.OSFile(str(tmp_path / "q.arrow"), "wb") as sink:
        writer = pa.ipc.new_file(sink, TABLE.schema) if is_file else pa.ipc.new_stream(sink, TABLE.schema)
        with writer:
            writer.write_table(TABLE)
    content = (tmp_path / "q.arrow").read_bytes()
    offsets = b"\0\0\0\0\2\0\0\0\4\0\0\0"
    assert offsets in content
    (tmp_path / "q.arrow").write_bytes(content.replace(offsets, b"\0\0\0\0\xff\xff\xff\x6f\xff\xff\xff\x7f"))
    with pytest.raises(SchemaError, match=r"the Arrow file cannot be read.*Write the file again"):
        take(tmp_path / "q.arrow", tmp_path / "run")


@pytest.mark.parametrize("images", [[None, None], [[], None], [[], []]])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_of_images_in_which_there_is_none_is_no_hindrance(
    tmp_path: Path, images: list[Any], kind: str
) -> None:
    for name, held in (("none", images), ("one", [images[0], ["a.png"]])):
        table = TABLE.append_column("images", pa.array(held, pa.list_(pa.string())))
        if kind == "parquet":
            pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=1)
        else:
            with (
                pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table, max_chunksize=1)
    assert rows_of(tmp_path / f"none.{kind}", tmp_path / "run") == ROWS
    with pytest.raises(SchemaError, match="the column 'images' seems to belong to the prompts"):
        take(tmp_path / f"one.{kind}", tmp_path / "again")


def test_rows_that_a_sheet_keeps_of_cleared_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,question,answer,\n1,a?,x,\n,,,\n2,b?,y,\n,,,\n,,,\n")
    assert rows_of(tmp_path / "q.csv", tmp_path / "run") == ROWS
    (tmp_path / "q.csv").write_text("id,question,answer,\n1,a?,x,\n,,,\n2,,y,\n")
    with pytest.raises(SchemaError, match=r"q\.csv row 3, column question: the value is null"):
        take(tmp_path / "q.csv", tmp_path / "again")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "a pointer of Git LFS"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "a page of HTML"),
        ("<html><body>Sign in</body></html>", "a page of HTML"),
    ],
)
def test_what_came_in_place_of_a_file_is_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(SchemaError, match=rf"q\.jsonl: the file is {said}"):
        take(tmp_path / "q.jsonl", tmp_path / "run")


def test_a_number_of_another_country_is_told_how_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id;prompt;weight\n1;a;1,5\n")
    with pytest.raises(SchemaError, match=r"column weight: a weight is a number .*decimals after a point"):
        take(tmp_path / "q.csv", tmp_path / "run")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_empty_text_is_no_reference_answer_and_is_counted(tmp_path: Path, kind: str) -> None:
    rows = [{"id": "1", "prompt": "a?", "gold": "5"}, {"id": "2", "prompt": "b?", "gold": ""}]
    rows += [{"id": "3", "prompt": "c?", "gold": " \n"}]
    path = tmp_path / f"q.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    digest = take(path, tmp_path / "run")
    assert [row["gold"] for row in taken(tmp_path / "run")] == ["5", None, None]
    assert "ignored: gold (empty) in 2 rows" in digest.notices
