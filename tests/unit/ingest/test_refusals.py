"""Every bad input is refused with its place and a remedy, and leaves nothing behind."""

import gzip
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ClearRayError, ConfigError, SchemaError, StorageError
from clear_ray.ingest import jsonl
from clear_ray.storage import open_folder
from tests.unit.ingest.corpus import BAD_FILES, BAD_LINES, BAD_REQUESTS, BAD_VALUES, GOOD, request
from tests.unit.ingest.taking import take


def refused(path: str | Path, run: Path, **settings: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        take(path, run, **settings)
    assert not run.exists(), "something was left behind"
    assert len(str(caught.value)) < 2_000
    assert caught.value.remedy or "problems:" in caught.value.what, "no remedy"
    return str(caught.value)


def test_the_corpus_is_large() -> None:
    assert len(BAD_VALUES) + len(BAD_LINES) + len(BAD_FILES) + len(BAD_REQUESTS) >= 200


@pytest.mark.parametrize(("column", "value", "words"), BAD_VALUES, ids=lambda text: str(text)[:40])
def test_bad_value(tmp_path: Path, column: str, value: str, words: str) -> None:
    fields = {"query_id": '"second"', "prompt": '"b"', column: value}
    row = ", ".join(f'"{name}": {text}' for name, text in fields.items())
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(GOOD)}\n{{{row}}}\n")
    message = refused(tmp_path / "q.jsonl", tmp_path / "run")
    assert message.startswith(f"{tmp_path}/q.jsonl:2, column {column}")
    assert words in message
    assert ". " in message, "no remedy"


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(tmp_path: Path, name: str) -> None:
    line, words = BAD_LINES[name]
    (tmp_path / "q.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    message = refused(tmp_path / "q.jsonl", tmp_path / "run")
    assert message.startswith(f"{tmp_path}/q.jsonl:2")
    assert words in message
    assert ". " in message, "no remedy"


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path: Path, name: str) -> None:
    file, content, words = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    message = refused(tmp_path / file, tmp_path / "run")
    assert f"{tmp_path}/{file}" in message
    assert words in message


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(tmp_path: Path, name: str) -> None:
    line, words = BAD_REQUESTS[name]
    first = request() | {"custom_id": "first"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(line)}\n")
    message = refused(tmp_path / "q.jsonl", tmp_path / "run")
    assert message.startswith(f"{tmp_path}/q.jsonl:2, column ")
    assert words in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"query_id": ["a"]}), "no column is known to be the prompt (got columns query_id)"),
        (pa.table({"prompt": ["a"], "id": [True], "query_id": [None]}), "row 1, column query_id: the value is null"),
        (
            pa.table({"query_id": ["a"], "prompt": pa.array([None], pa.string())}),
            "row 1, column prompt: the value is null",
        ),
        (pa.table({"query_id": ["a", "a"], "prompt": ["b", "c"]}), "row 2, column query_id: the id is given twice"),
        (pa.table({"query_id": ["a"], "prompt": [1]}), "not a text"),
        (pa.table({"query_id": ["a"], "prompt": [b"bytes"]}), "not a text"),
        (pa.table({"query_id": ["a"], "prompt": [{"text": "b"}]}), "not a text"),
        (pa.table({"query_id": ["a"], "prompt": [["b"]]}), "message is an object"),
        (pa.table({"query_id": ["a"], "prompt": ["b"], "weight": [float("nan")]}), "at most 1,000,000,000,000"),
        (
            pa.table({"query_id": ["a"], "prompt": ["b"], "max_tokens": pa.array([2**63], pa.uint64())}),
            "at most 2,147,483,647",
        ),
        (pa.table({"query_id": ["a"], "prompt": ["b"], "metadata": [b"x"]}), "not JSON"),
        (pa.Table.from_arrays([pa.array(["a"])] * 3, ["query_id", "prompt", "prompt"]), "twice"),
        (pa.table({"query_id": pa.array([], pa.string()), "prompt": pa.array([], pa.string())}), "no query"),
        (
            pa.table({"query_id": ["a", "b"], "prompt": pa.array([b"ok", b"\xff"]).view(pa.string())}),
            "row 2: the row cannot be read",
        ),
        *(
            (
                pa.table({"query_id": ["a"], "prompt": ["b"]} | {name: pa.array([0], pa.timestamp("us", "No/Where"))}),
                "q.parquet row 1",
            )
            for name in ("query_id", "prompt", "task", "gold", "metadata", "weight", "max_tokens")
        ),
    ],
)
def test_bad_parquet(tmp_path: Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "q.parquet")
    message = refused(tmp_path / "q.parquet", tmp_path / "run")
    assert f"{tmp_path}/q.parquet" in message
    assert words in message


def test_damaged_parquet_page(tmp_path: Path) -> None:
    rows = 1_000
    table = pa.table({"query_id": [f"q{k}" for k in range(rows)], "prompt": [f"prompt {k}" for k in range(rows)]})
    pq.write_table(table, tmp_path / "q.parquet", compression="zstd", use_dictionary=False, write_page_checksum=True)
    content = bytearray((tmp_path / "q.parquet").read_bytes())
    content[300:310] = bytes(10)
    (tmp_path / "q.parquet").write_bytes(content)
    assert "cannot be read" in refused(tmp_path / "q.parquet", tmp_path / "run")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("missing.jsonl", "no such file"),
        ("*.jsonl", "no file matches"),
        ("empty", "holds no input file"),
        ("**", "no file"),
    ],
)
def test_nothing_there(tmp_path: Path, location: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    assert words in refused(f"{tmp_path}/{location}", tmp_path / "run")


@pytest.mark.parametrize("location", ["file:///nowhere/q.jsonl", "memory://nowhere/q.jsonl"])
def test_a_uri_that_cannot_be_read(tmp_path: Path, location: str) -> None:
    assert refused(location, tmp_path / "run") == f"{location}: there is no such file. Check input.path."


@pytest.mark.parametrize("file", ["q.jsonl", "*.jsonl", "folder", "folder/**/*.jsonl"])
def test_a_uri_that_cannot_be_read_is_quoted_without_keys(tmp_path: Path, file: str) -> None:
    (tmp_path / "folder").mkdir()
    for place in ("memory://KEY:HIDDEN@nowhere", f"memory://KEY:HID/DEN@nowhere{tmp_path}", f"file://{tmp_path}"):
        message = refused(f"{place}/{file}?token=HIDDEN", tmp_path / "run")
        assert message.startswith(f"{place.replace('KEY:HIDDEN@', '').replace('KEY:HID/DEN@', '')}/{file}: ")
        assert "DEN" not in message


def test_a_bad_row_behind_a_uri_is_named_without_keys(tmp_path: Path) -> None:
    place = f"memory://KEY:HIDDEN@{tmp_path.name}"
    open_folder(place).write("q.jsonl", b"{")
    message = refused(f"{place}/q.jsonl?token=HIDDEN", tmp_path / "run")
    assert message.startswith(f"/{tmp_path.name}/q.jsonl:1: bad JSON")
    assert "HIDDEN" not in message
    open_folder(f"memory://{tmp_path.name}").filesystem.delete_dir(f"/{tmp_path.name}")


def test_places_that_are_never_opened(tmp_path: Path) -> None:
    for location in ("http://example.org/q.jsonl", "ftp://example.org/q.jsonl", "javascript://x"):
        with pytest.raises(ConfigError, match="unknown scheme"):
            take(location, tmp_path / "run")
    with pytest.raises(ConfigError, match="no input file"):
        take("", tmp_path / "run")
    for location in ("~nosuchuser/q.jsonl", "~nosuchuser/*.jsonl", "nul\0byte.jsonl"):
        with pytest.raises(ConfigError):
            take(location, tmp_path / "run")


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    for location in ("loop.jsonl", "loop.jsonl/q.jsonl", "in/gone.jsonl", "in", "in/*"):
        assert str(tmp_path) in refused(tmp_path / location, tmp_path / "run")


def test_a_pipe_or_device_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "q.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in" / "q.jsonl")
    for location in ("in/q.jsonl", "in/*.jsonl", "link.jsonl"):
        message = refused(tmp_path / location, tmp_path / "run")
        assert "q.jsonl: this is neither" in message or "link.jsonl: this is neither" in message
    assert "holds no input file" in refused(tmp_path / "in", tmp_path / "run")
    assert refused("/dev/zero", tmp_path / "run").startswith("/dev/zero: this is neither a file nor a folder")


def test_format_that_the_file_has_not(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD))
    pq.write_table(pa.table({"query_id": ["a"], "prompt": ["b"]}), tmp_path / "q.parquet")
    assert "is not a Parquet file" in refused(tmp_path / "q.jsonl", tmp_path / "run", format="parquet")
    assert "is a Parquet file" in refused(tmp_path / "q.parquet", tmp_path / "run", format="jsonl")
    assert "column custom_id: the field is missing" in refused(tmp_path / "q.jsonl", tmp_path / "run", format="openai")


def test_line_over_the_limit(tmp_path: Path) -> None:
    over = jsonl.MAX_LINE_BYTES + 2_000_000
    (tmp_path / "q.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(GOOD).encode() + b'\n{"query_id": "x", "prompt": "' + b"z" * over + b'"}\n', 1)
    )
    message = refused(tmp_path / "q.jsonl.gz", tmp_path / "run")
    assert message.startswith(f"{tmp_path}/q.jsonl.gz:2: a line is longer than 64 MiB")


def test_named_column_that_no_row_has(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD))
    message = refused(tmp_path / "q.jsonl", tmp_path / "run", columns={"gold": "anwser"})
    assert "no row has the column 'anwser' that input.columns.gold names" in message


def test_all_problems_are_listed_up_to_the_limit(tmp_path: Path) -> None:
    good = [json.dumps({"query_id": f"q{k}", "prompt": "a"}) for k in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join([good[0], "{", good[1], good[1], "[]", good[2]]))
    message = refused(tmp_path / "q.jsonl", tmp_path / "run")
    lines = message.splitlines()
    assert lines[0] == "the input has 3 problems:"
    assert [line.strip().split(":")[1].split(",")[0] for line in lines[1:]] == ["2", "5", "4"]
    assert not message.endswith("..")
    two = refused(tmp_path / "q.jsonl", tmp_path / "run", most_errors=2)
    assert two.startswith("the input has at least 2 problems:")
    assert refused(tmp_path / "q.jsonl", tmp_path / "run", most_errors=1).startswith(f"{tmp_path}/q.jsonl:2: bad JSON")


def test_a_bad_file_does_not_hide_the_next(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "in" / "c.jsonl").write_text("5")
    message = refused(tmp_path / "in", tmp_path / "run")
    assert all(name in message for name in ("a.jsonl:1", "b.parquet", "c.jsonl:1"))


def test_id_twice_across_files_names_both_lines(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n\n" + json.dumps(GOOD))
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps(GOOD | {"query_id": "other"}) + "\n" + json.dumps(GOOD))
    message = refused(tmp_path / "in", tmp_path / "run")
    assert message.startswith(f"{tmp_path}/in/b.jsonl:2, column query_id")
    assert f"first at {tmp_path}/in/a.jsonl:3" in message


def test_mixed_formats(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps(request()))
    assert "mixes formats" in refused(tmp_path / "in", tmp_path / "run")


def test_names_in_the_input_never_become_paths(tmp_path: Path) -> None:
    evil = "../../../evil"
    rows = [GOOD | {"query_id": name, "task": name, "gold": name} for name in (evil, f"/{evil}", f"{tmp_path}/evil")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    take(tmp_path / "q.jsonl", tmp_path / "deep" / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"run"}
    assert all("evil" not in path.name for path in (tmp_path / "deep").rglob("*"))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # a disk that takes the beginning of a file
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            take(tmp_path / "q.jsonl", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "run").write_text("a file stands where the run folder should be")
    with pytest.raises(ClearRayError, match="run: a file stands where a folder should be"):
        take(tmp_path / "q.jsonl", tmp_path / "run")
