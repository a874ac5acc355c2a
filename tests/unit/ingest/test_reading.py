"""What is read, however it is stored."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest import InputDigest, IntakeRules, PromptLimit, SourceBatch, ingest, read_digest
from clear_ray.records import QUERY_SCHEMA
from clear_ray.storage import open_folder
from tests.unit.ingest.corpus import GOOD, ODD_FILES, request
from tests.unit.ingest.taking import rules, take, taken

RULES = IntakeRules(reading=rules())


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file(tmp_path: Path, name: str) -> None:
    file, content, prompts = ODD_FILES[name]
    (tmp_path / file).write_bytes(content)
    digest = take(tmp_path / file, tmp_path / "run")
    assert [row["prompt"] for row in taken(tmp_path / "run")] == prompts
    assert digest.rows == len(prompts)
    assert digest.longest_prompt_characters == max(map(len, prompts))


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (["12", "twelve"], '["12","twelve"]'),
        ({"ground_truth": "72", "style": "rule"}, '{"ground_truth":"72","style":"rule"}'),
        (True, "true"),
        (False, "false"),
        (12, "12"),
    ],
)
def test_gold_answers_of_other_types_are_their_json(tmp_path: Path, gold: Any, text: str) -> None:
    take(write_lines(tmp_path / "q.jsonl", [GOOD | {"gold": gold}]), tmp_path / "run")
    assert taken(tmp_path / "run")[0]["gold"] == text


def test_defaults_and_full_row(tmp_path: Path) -> None:
    full: dict[str, Any] = {
        "query_id": 12,
        "prompt": "ask",
        "weight": 2,
        "cost": 0.33334,
        "max_tokens": 7.0,
        "gold": 3.5,
        "task": "sum",
        "metadata": {"é": [1, None]},
        "ignored": [1],
    }
    take(write_lines(tmp_path / "q.jsonl", [GOOD, full]), tmp_path / "run")
    first, second = taken(tmp_path / "run")
    empty = {"weight": 1.0, "cost": 1.0, "max_tokens": 100, "gold": None, "task": None, "metadata": None}
    empty |= {"prompt_form": None, "input_error": None, "sampling": None, "n": None, "choice": None}
    assert first == {"index": 0, **GOOD, "is_conversation": False, **empty}
    assert second == {
        "index": 1,
        "query_id": "12",
        "prompt": "ask",
        "is_conversation": False,
        "weight": 2.0,
        "cost": 0.334,
        "max_tokens": 7,
        "gold": "3.5",
        "task": "sum",
        "metadata": '{"é":[1,null]}',
        "prompt_form": None,
        "input_error": None,
        "sampling": None,
        "n": None,
        "choice": None,
    }
    assert pq.read_schema(tmp_path / "run" / "queries" / "part-000000.parquet").equals(QUERY_SCHEMA)


def test_ceiling_never_exceeds_the_run(tmp_path: Path) -> None:
    rows = [{"query_id": str(k), "prompt": "a", "max_tokens": k} for k in (1, 99, 100, 101, 2**31 - 1)]
    take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run")
    assert [row["max_tokens"] for row in taken(tmp_path / "run")] == [1, 99, 100, 100, 100]


def test_conversations_become_one_form(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    conversation = [
        {"role": "developer", "content": "be brief", "name": None},
        {"content": parts, "role": "user", "name": "Ann", "refusal": None},
    ]
    rows: list[dict[str, Any]] = [
        {"query_id": "list", "messages": conversation, "prompt": "not used"},
        {"query_id": "text", "messages": json.dumps(conversation)},
    ]
    take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run")
    canonical = '[{"role":"system","content":"be brief"},{"role":"user","content":"a\\nb","name":"Ann"}]'
    assert [(row["prompt"], row["is_conversation"]) for row in taken(tmp_path / "run")] == [(canonical, True)] * 2


def test_columns_are_mapped(tmp_path: Path) -> None:
    write_lines(tmp_path / "q.jsonl", [{"id": "a", "question": "b", "answer": 4, "prompt": "not this"}])
    take(tmp_path / "q.jsonl", tmp_path / "run", columns={"query_id": "id", "prompt": "question", "gold": "answer"})
    (row,) = taken(tmp_path / "run")
    assert (row["query_id"], row["prompt"], row["gold"]) == ("a", "b", "4")


def test_parquet_with_dictionary_nested_and_large_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "query_id": pa.array(["a", "b"], pa.large_string()),
            "prompt": pa.array(["p", None]).dictionary_encode(),
            "messages": [None, [{"role": "user", "content": "m"}]],
            "task": pa.array(["t", "t"]).dictionary_encode(),
            "weight": pa.array([1, 2], pa.uint8()),
            "metadata": [{"k": [1]}, None],
            "vector": [[1.0], [2.0]],
        }
    )
    pq.write_table(table, tmp_path / "q.parquet", row_group_size=1)
    take(tmp_path / "q.parquet", tmp_path / "run")
    rows = taken(tmp_path / "run")
    assert [row["prompt"] for row in rows] == ["p", '[{"role":"user","content":"m"}]']
    assert [row["weight"] for row in rows] == [1.0, 2.0]
    assert [row["metadata"] for row in rows] == ['{"k":[1]}', None]


def test_folder_and_globs_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.parquet", "deep/c.json", "_skipped.jsonl", ".hidden.jsonl", "notes.txt", "x[1].jsonl"):
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"query_id": [name], "prompt": ["p"]}), tmp_path / "in" / name)
        else:
            write_lines(tmp_path / "in" / name, [{"query_id": name, "prompt": "p"}])
    expected = {
        "in": ["a.parquet", "b.jsonl", "deep/c.json", "x[1].jsonl"],
        "in/": ["a.parquet", "b.jsonl", "deep/c.json", "x[1].jsonl"],
        "in/*.jsonl": ["b.jsonl", "x[1].jsonl"],
        "in/?.*": ["a.parquet", "b.jsonl"],
        "in/[ab].*": ["a.parquet", "b.jsonl"],
        "in/x[1].jsonl": ["x[1].jsonl"],
        "in/**/*.json*": ["b.jsonl", "deep/c.json", "x[1].jsonl"],
        "*/deep/*": ["deep/c.json"],
        "in/_*": ["_skipped.jsonl"],
    }
    for number, (location, names) in enumerate(expected.items()):
        for prefix in (str(tmp_path), tmp_path.as_uri()):
            if prefix.startswith("file:") and ("?" in location or location == "in/x[1].jsonl"):
                continue  # `?` starts a URI's query, and a bracket in a URI is always a pattern's
            run = tmp_path / f"run{number}{prefix[:4].strip('/')}"
            assert take(f"{prefix}/{location}", run).files == len(names)
            assert [row["query_id"] for row in taken(run)] == names, location


def test_relative_path_and_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "q.jsonl", [GOOD])
    monkeypatch.chdir(tmp_path)
    assert take("q.jsonl", tmp_path / "run") == take("*.jsonl", tmp_path / "run2")


def test_a_question_mark_in_a_name_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "what?").mkdir()
    write_lines(tmp_path / "what?" / "q?.jsonl", [GOOD])
    for name in ("what?", "what?/q?.jsonl", "wha*/q?.jsonl"):
        assert take(tmp_path / name, tmp_path / "run").rows == 1


def test_fsspec_uri(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/ingest_test/in/q.jsonl", json.dumps(GOOD).encode())
    try:
        digest = take("memory://ingest_test/in/*.jsonl", tmp_path / "run")
        queries = open_folder("memory://ingest_test/queries")
        batch = SourceBatch([dict(GOOD)], "here", [1])
        assert ingest([batch], queries=queries, rules=RULES) == digest
        assert read_digest(queries) == digest
        with pytest.raises(SchemaError):
            ingest([batch, batch], queries=queries, rules=RULES)
        assert read_digest(queries) is None
        assert not queries.files()
    finally:
        memory.rm("/ingest_test", recursive=True)


def test_openai_chat(tmp_path: Path) -> None:
    harmless = request(temperature=0.3, n=1, stream=False, tools=[], stop=None, seed=5, metadata={"k": "v"})
    lines = [
        harmless | {"gold": "4", "weight": 2},
        request(max_tokens=None, max_completion_tokens=9) | {"custom_id": "third"},
    ]
    digest = take(write_lines(tmp_path / "batch.jsonl", lines), tmp_path / "run")
    assert digest.is_openai
    assert digest.openai_url == "/v1/chat/completions"
    first, second = taken(tmp_path / "run")
    assert first["prompt"] == '[{"role":"user","content":"a"}]'
    assert (first["max_tokens"], first["gold"], first["weight"], first["metadata"]) == (5, "4", 2.0, '{"k":"v"}')
    assert (second["query_id"], second["max_tokens"], second["metadata"]) == ("third", 9, None)


def test_openai_completions_and_columns_beside_the_body(tmp_path: Path) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}, "answer": 4}
    columns = {"gold": "answer", "prompt": "not looked for"}
    digest = take(write_lines(tmp_path / "batch.jsonl", [line]), tmp_path / "run", columns=columns)
    (row,) = taken(tmp_path / "run")
    assert (row["prompt"], row["is_conversation"], row["gold"]) == ("p", False, "4")
    assert digest.openai_url == "/v1/completions"


def test_jsonl_can_be_forced(tmp_path: Path) -> None:
    row = GOOD | {"custom_id": "x", "body": "y"}
    digest = take(write_lines(tmp_path / "q.jsonl", [row]), tmp_path / "run", format="jsonl")
    assert not digest.is_openai


def test_rows_from_memory(tmp_path: Path) -> None:
    generated = [dict(GOOD), {"query_id": "g", "messages": [{"role": "user", "content": "m"}], "metadata": {"a": 1}}]
    table = pa.table({"id": ["t"], "prompt": ["p"], "other": [None]})
    batches = [
        SourceBatch(generated, "generated sums", range(1, 3)),
        SourceBatch.from_arrow(table, origin="dataset", columns=ColumnsConfig(query_id="id")),
    ]
    queries = open_folder(str(tmp_path / "queries"))
    digest = ingest(batches, queries=queries, rules=RULES)
    assert (digest.rows, digest.files, digest.is_openai) == (3, 2, False)
    assert [row["index"] for row in taken(tmp_path)] == [0, 1, 2]
    with pytest.raises(SchemaError, match=r"^generated sums row 2, column prompt"):
        ingest(
            [SourceBatch([GOOD, {"query_id": "x"}], "generated sums", range(1, 3))],
            queries=queries,
            rules=RULES,
        )
    with pytest.raises(SchemaError, match="a row is a dict"):
        ingest([SourceBatch([["no", "dict"]], "here", [1])], queries=queries, rules=RULES)  # type: ignore[list-item]
    assert read_digest(queries) == digest, "a refusal touched the queries of before"


def test_only_prompts_that_could_be_too_long_are_counted(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def count(prompts: list[str], forms: list[str]) -> list[int]:
        asked.extend(zip(prompts, forms, strict=True))
        return [len(prompt.encode()) for prompt in prompts]

    limit = PromptLimit(context_tokens=40, count_tokens=count)
    rows: list[dict[str, Any]] = [{"query_id": str(n), "prompt": "x" * n} for n in (1, 39, 10)] + [
        {"query_id": "é", "prompt": "é" * 19}
    ]
    take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run", limit=limit)
    assert not asked
    rows += [
        {"query_id": "e", "prompt": "é" * 20},
        {"query_id": "c", "messages": [{"role": "user", "content": "x" * 40}]},
    ]
    with pytest.raises(SchemaError) as caught:
        take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run2", limit=limit)
    assert [form for _, form in asked] == ["text", "conversation"]
    assert "q.jsonl:5, column prompt: the prompt does not fit the model's context of 40 tokens (got 40 tokens)" in str(
        caught.value
    )
    assert "q.jsonl:6, column messages" in str(caught.value)
    template = PromptLimit(context_tokens=40, count_tokens=count, template_tokens=1)
    asked.clear()
    take(write_lines(tmp_path / "q.jsonl", rows[:2]), tmp_path / "run3", limit=template)
    assert asked == [("x" * 39, "text")]


def test_a_line_of_50_megabytes_is_read(tmp_path: Path) -> None:
    prompt = "z" * 50_000_000
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(json.dumps({"query_id": "a", "prompt": prompt}).encode(), 1))
    assert take(tmp_path / "q.jsonl.gz", tmp_path / "run").longest_prompt_characters == len(prompt)


def test_long_input_spreads_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"query_id": f"q{k}", "prompt": f"prompt {k}"} for k in range(1_000)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    whole = take(path, tmp_path / "run")
    monkeypatch.setattr("clear_ray.ingest.query_files._FILE_ROWS", 300)
    monkeypatch.setattr("clear_ray.ingest.jsonl._BLOCK_BYTES", 777)
    monkeypatch.setattr("clear_ray.ingest.duplicates._SUSPECTS_AT_ONCE", 2)
    assert take(path, tmp_path / "run2") == whole
    assert taken(tmp_path / "run2") == taken(tmp_path / "run")
    files = open_folder(str(tmp_path / "run2" / "queries")).files(".parquet")
    assert [pq.read_metadata(file).num_rows for file in files] == [300, 300, 300, 100]
    write_lines(path, [*rows, rows[7], rows[950], rows[7], rows[300], rows[7]])
    with pytest.raises(SchemaError) as caught:
        take(path, tmp_path / "run3")
    found = [line.split("q.jsonl:")[1:] for line in str(caught.value).splitlines()[1:]]
    assert [(int(a.split(",")[0]), int(b.split(" ")[0])) for a, b in found] == [
        (1001, 8),
        (1002, 951),
        (1003, 8),
        (1004, 301),
        (1005, 8),
    ]


def test_equal_hashes_of_different_ids_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ingest.intake.hash", lambda text: len(text), raising=False)
    rows = [{"query_id": query_id, "prompt": "p"} for query_id in ("a", "b", "cc", "d")]
    assert take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / "run").rows == 4
    with pytest.raises(SchemaError, match=r"q.jsonl:5, column query_id: the id is given twice, first at .*q.jsonl:2"):
        take(write_lines(tmp_path / "q.jsonl", [*rows, rows[1]]), tmp_path / "run2")


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    for folder in ("queries", "queries.partial"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        (tmp_path / "run" / folder / "part-000009.parquet").write_bytes(b"old")
    assert read_digest(open_folder(str(tmp_path / "run" / "queries"))) is None
    digest = take(write_lines(tmp_path / "q.jsonl", [GOOD]), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == [
        "_input.json",
        "part-000000.parquet",
        "queries",
    ]
    assert read_digest(open_folder(str(tmp_path / "run" / "queries"))) == digest


def test_digest_changes_with_order_and_value(tmp_path: Path) -> None:
    other = GOOD | {"query_id": "other"}
    inputs = [[GOOD], [other], [GOOD, other], [other, GOOD], [GOOD | {"weight": 2}], [GOOD | {"gold": "1"}]]
    digests: set[InputDigest] = set()
    for number, rows in enumerate(inputs):
        digests.add(take(write_lines(tmp_path / "q.jsonl", rows), tmp_path / f"run{number}"))
    assert len({digest.sha256 for digest in digests}) == len(inputs)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_files_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    for name, text in (
        ("q.csv", "sep=;\r\nid;question;answer\r\n1;Wie, bitte? 🙂;ja\r\n"),
        ("q.txt", "id\tquestion\tanswer\r\n1\tWie, bitte? 🙂\tja\r\n"),
        ("q.jsonl", '{"id": "1", "question": "Wie, bitte? 🙂", "answer": "ja"}\r\n'),
    ):
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        take(tmp_path / name, tmp_path / "run")
        assert [(row["query_id"], row["prompt"], row["gold"]) for row in taken(tmp_path / "run")] == [
            ("1", "Wie, bitte? 🙂", "ja")
        ]


def test_a_csv_of_excel_may_name_its_delimiter(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("\ufeffsep=;\nID;Prompt;Weight\n007;a, b;2\n", encoding="utf-8")
    take(tmp_path / "q", tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert (row["query_id"], row["prompt"], row["weight"]) == ("007", "a, b", 2.0)


def test_lz4_is_read(tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / "q.jsonl.lz4"), "lz4") as stream:
        stream.write(json.dumps(GOOD).encode())
    assert take(tmp_path, tmp_path / "run").rows == 1


def test_what_a_folder_holds_beside_its_input_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl.7z", "notes.txt", ".hidden"):
        (folder / name).write_text(json.dumps(GOOD))
    assert take(folder, tmp_path / "run").notices == ("not read, for the ends of their names: b.jsonl.7z, notes.txt",)
    assert take(folder / "a.jsonl", tmp_path / "run").notices == ()
