"""Files of strangers: each is read as its shape says, and what was recognised is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import SchemaError
from clear_ray.ingest.notices import Notices
from clear_ray.tasks import load_scorer
from tests.unit.ingest.taking import take, taken

ANSWER = "the last answer of 1 row is no part of the prompt, and is the reference answer"
MADE = "ids are made from position and content: there is no id column"
FROM_ZERO = (
    "`answer` is read as counting options from 0, which no row shows: if it counts from 1, set input.first_option to 1"
)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user" if k % 2 == 0 else "assistant", "content": text} for k, text in enumerate(contents)]


def said_by(*speakers: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": f"{speaker} {k}"} for k, speaker in enumerate(speakers)]


# rows, prompt and gold of the first, what is said
SHAPES: dict[str, tuple[list[dict[str, Any]], str | list[dict[str, str]], str | None, str]] = {
    "default names": ([{"query_id": "a", "prompt": "p", "gold": "g"}], "p", "g", ""),
    "default names beside others": (
        [{"query_id": "a", "prompt": "p", "question": "q", "passage": "It is.", "choices": ["a", "b"], "input": "i"}],
        "p",
        None,
        "not read: `choices`, `input`, `passage`, `question`",
    ),
    "GSM8K": (
        [{"question": "How many?", "answer": "3*4=<<3*4=12>>12\n#### 12"}],
        "How many?",
        "3*4=<<3*4=12>>12\n#### 12",
        f"reading `question` as prompt, `answer` as gold; {MADE}",
    ),
    "AIME": (
        [{"id": 60, "problem": "Find x.", "solution": "Long.", "answer": 204}],
        "Find x.",
        "204",
        "reading `problem` as prompt, `answer` as gold, `id` as id\nnot read: `solution`",
    ),
    "MATH": (
        [{"problem": "Find x.", "level": "5", "type": "Algebra", "solution": "It is 4."}],
        "Find x.",
        "It is 4.",
        f"reading `problem` as prompt, `solution` as gold; {MADE}\nnot read: `level`, `type`",
    ),
    "Alpaca": (
        [{"instruction": "Translate.", "input": "Hund", "output": "dog"}],
        "Translate.\n\nHund",
        "dog",
        f"reading `instruction` and `input` as prompt, `output` as gold; {MADE}",
    ),
    "Alpaca without input": (
        [{"instruction": "Say hi.", "input": "", "output": "hi"}],
        "Say hi.",
        "hi",
        f"reading `instruction` and `input` as prompt, `output` as gold; {MADE}",
    ),
    "Dolly without context": (
        [{"instruction": "Say hi.", "response": "hi", "category": "open_qa"}],
        "Say hi.",
        "hi",
        f"reading `instruction` as prompt, `response` as gold; {MADE}\nnot read: `category`",
    ),
    "ShareGPT": (
        [{"id": "x1", "conversations": said_by("system", "human", "gpt", "human", "gpt")}],
        [
            {"role": "system", "content": "system 0"},
            {"role": "user", "content": "human 1"},
            {"role": "assistant", "content": "gpt 2"},
            {"role": "user", "content": "human 3"},
        ],
        "gpt 4",
        f"reading `conversations` as conversation, `id` as id\n{ANSWER}",
    ),
    "messages without id": ([{"messages": turns("a")}], turns("a"), None, f"reading {MADE}"),
    "TRL prompts": (
        [{"id": 1, "prompt": turns("Say hi."), "completion": "hi"}],
        turns("Say hi."),
        "hi",
        "reading `completion` as gold, `id` as id",
    ),
    "verl": (
        [
            {
                "data_source": "gsm",
                "prompt": turns("How many?"),
                "reward_model": {"style": "rule", "ground_truth": "12"},
                "extra_info": {"index": 3, "split": "train"},
            }
        ],
        turns("How many?"),
        "12",
        "reading `reward_model.ground_truth` as gold, `data_source` as task, `extra_info.index` as id",
    ),
    "number ids of a table": ([{"id": 1.0, "prompt": "p"}], "p", None, "reading `id` as id"),
    "a query alone": (
        [{"uid": "u", "query": "q", "other": 1}],
        "q",
        None,
        "reading `query` as prompt, `uid` as id\nnot read: `other`",
    ),
    "texts alone": ([{"text": "t"}], "t", None, f"reading `text` as prompt; {MADE}"),
    "accepted answers": (
        [{"id": 1, "question": "q", "answer": ["a", "b"]}],
        "q",
        '["a","b"]',
        "reading `question` as prompt, `answer` as gold, `id` as id",
    ),
    "true or false": (
        [{"id": 1, "question": "q", "answer": True}],
        "q",
        "true",
        "reading `question` as prompt, `answer` as gold, `id` as id",
    ),
    "a conversation for a completion": (
        [{"id": 1, "prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}],
        "q",
        None,
        "reading `id` as id\nnot read: `completion`",
    ),
    "MMLU": (
        [{"question": "Which?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}],
        "Which?\n\nA. a\nB. b\nC. c\nD. d",
        "B",
        f"reading `question` and `choices` as prompt, `answer` as gold; {MADE}\nnot read: `subject`\n{FROM_ZERO}",
    ),
    "MMLU in columns": (
        [{"Question": "Which?", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "B"}],
        "Which?\n\nA. a\nB. b\nC. c\nD. d",
        "B",
        f"reading `Question`, `A`, `B`, `C` and `D` as prompt, `Answer` as gold; {MADE}",
    ),
    "ARC": (
        [{"id": "x", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}],
        "Which?\n\n1. a\n2. b",
        "2",
        "reading `question` and `choices` as prompt, `answerKey` as gold, `id` as id",
    ),
    "MedMCQA": (
        [{"id": "x", "question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3}],
        "Which?\n\nA. a\nB. b\nC. c\nD. d",
        "D",
        "reading `question`, `opa`, `opb`, `opc` and `opd` as prompt, `cop` as gold, `id` as id\n"
        + FROM_ZERO.replace("answer", "cop"),
    ),
    "RACE": (
        [{"id": "r", "article": "Long.", "question": "Which?", "options": ["a", "b"], "answer": "A"}],
        "Long.\n\nWhich?\n\nA. a\nB. b",
        "A",
        "reading `article`, `question` and `options` as prompt, `answer` as gold, `id` as id",
    ),
    "SQuAD": (
        [{"id": "s", "title": "T", "context": "It is so.", "question": "Is it?", "answers": {"text": ["so"]}}],
        "It is so.\n\nIs it?",
        '{"text":["so"]}',
        "reading `context` and `question` as prompt, `answers` as gold, `id` as id\nnot read: `title`",
    ),
    "BoolQ": (
        [{"question": "is it", "passage": "It is.", "answer": True}],
        "It is.\n\nis it",
        "true",
        f"reading `passage` and `question` as prompt, `answer` as gold; {MADE}",
    ),
    "Dolly": (
        [{"instruction": "Say who.", "context": "Ann was there.", "response": "Ann", "category": "closed_qa"}],
        "Say who.\n\nAnn was there.",
        "Ann",
        f"reading `instruction` and `context` as prompt, `response` as gold; {MADE}\nnot read: `category`",
    ),
    "OpenOrca": (
        [{"id": "o", "system_prompt": "Be brief.", "question": "Who?", "response": "Ann"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
        "Ann",
        "reading `question` as prompt, `response` as gold, `id` as id, `system_prompt` as system prompt",
    ),
    "an Inspect sample": (
        [{"id": 1, "input": "Which?", "choices": ["a", "b"], "target": "B"}],
        "Which?\n\nA. a\nB. b",
        "B",
        "reading `input` and `choices` as prompt, `target` as gold, `id` as id",
    ),
    "a sample of OpenAI's evals": (
        [{"input": [{"role": "system", "content": "Be brief."}, *turns("Who?")], "ideal": "Ann"}],
        [{"role": "system", "content": "Be brief."}, *turns("Who?")],
        "Ann",
        f"reading `input` as prompt, `ideal` as gold; {MADE}",
    ),
    "a row of fine-tuning": (
        [{"messages": turns("Who?", "Ann")}],
        turns("Who?"),
        "Ann",
        f"reading {MADE}\n{ANSWER}",
    ),
    "a row of fine-tuning with a gold of its own": (
        [{"query_id": 1, "messages": turns("Who?", "Ann"), "gold": "A"}],
        turns("Who?"),
        "A",
        "the last answer of 1 row is no part of the prompt",
    ),
    "preferences": (
        [{"prompt": "p", "chosen": "a", "rejected": "b"}],
        "p",
        None,
        f"reading {MADE}\nnot read: `chosen`, `rejected`",
    ),
}


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_recognised_and_said(tmp_path: Path, name: str, form: str) -> None:
    rows, prompt, gold, said = SHAPES[name]
    path = tmp_path / f"q.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows, indent=1) if form == "json" else "\n".join(map(json.dumps, rows)))
    digest = take(path, tmp_path / "run")
    row = taken(tmp_path / "run")[0]
    found = json.loads(row["prompt"]) if row["is_conversation"] else row["prompt"]
    assert (found, row["gold"]) == (prompt, gold)
    assert "\n".join(digest.notices) == said


def test_texts_and_lists_of_messages_may_be_mixed_in_either_column(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1, "prompt": turns("Say hi.")}, {"id": 2, "prompt": "Say bye."}]
    rows.append({"id": 3, "prompt": None, "messages": "Say nothing."})
    rows.append({"id": 4, "messages": json.dumps(turns("Say it."))})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for columns in ({}, {"messages": "prompt"}):
        if columns:
            (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
        take(tmp_path / "q.jsonl", tmp_path / "run", columns=columns)
        found = [(row["prompt"], row["is_conversation"]) for row in taken(tmp_path / "run")]
        assert found[:2] == [('[{"role":"user","content":"Say hi."}]', True), ("Say bye.", False)]
        assert columns or found[2:] == [("Say nothing.", False), ('[{"role":"user","content":"Say it."}]', True)]


def test_names_with_dots_lead_into_objects(tmp_path: Path) -> None:
    nested = {"data": {"question": "q", "deep": {"answer": 4}}, "meta": {"n": 7}}
    columns = {"prompt": "data.question", "gold": "data.deep.answer", "query_id": "meta.n"}
    flat = {"data.question": "flat", "data": {"question": "not this", "deep": {"answer": 5}}, "meta": {"n": 8}}
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, (nested, flat))))
    pq.write_table(pa.Table.from_pylist([nested | {"meta": {"n": 9}}]), tmp_path / "q.parquet")
    take(tmp_path / "q.*", tmp_path / "run", columns=columns)
    rows = [(row["query_id"], row["prompt"], row["gold"]) for row in taken(tmp_path / "run")]
    assert rows == [("7", "q", "4"), ("8", "flat", "5"), ("9", "q", "4")]


def test_a_dotted_name_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"query_id": "a", "data": {"question": "q"}}]), tmp_path / "q.parquet")
    with pytest.raises(SchemaError, match=r"column data.nothing: the column is missing"):
        take(tmp_path / "q.parquet", tmp_path / "run", columns={"prompt": "data.nothing"})
    with pytest.raises(SchemaError, match=r"column 'date.question' is missing"):
        take(tmp_path / "q.parquet", tmp_path / "run", columns={"prompt": "date.question"})


def test_made_ids_are_the_same_for_the_same_rows_and_no_two_alike(tmp_path: Path) -> None:
    rows = [{"question": text} for text in ("a", "b", "a")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "again.json").write_text(json.dumps(rows))
    ids = []
    for name in ("q.jsonl", "again.json"):
        take(tmp_path / name, tmp_path / "run")
        ids.append([row["query_id"] for row in taken(tmp_path / "run")])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3
    assert ids[0][0].startswith("row-0000000-")
    assert ids[0][0].rpartition("-")[2] == ids[0][2].rpartition("-")[2], "the content says which row it was"


def test_a_gold_can_be_left_out_and_a_companion_be_asked_without(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": 1, "question": "q", "answer": "a", "context": "c"}))
    take(tmp_path / "q.jsonl", tmp_path / "run", columns={"prompt": "question", "gold": "gold"})
    (row,) = taken(tmp_path / "run")
    assert (row["prompt"], row["gold"]) == ("q", None)


def test_csv_keeps_texts_and_reads_numbers(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,question,answer,weight,max_tokens\n007,What?,1.50,2,\n8,Why?,,0.5,9\n")
    digest = take(tmp_path / "q.csv", tmp_path / "run")
    first, second = taken(tmp_path / "run")
    assert (first["query_id"], first["gold"], first["weight"], first["max_tokens"]) == ("007", "1.50", 2.0, 100)
    assert (second["gold"], second["weight"], second["max_tokens"]) == (None, 0.5, 9)
    assert digest.notices == ("reading `question` as prompt, `answer` as gold, `id` as id",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_may_have_every_cell_in_quotes(tmp_path: Path, delimiter: str) -> None:
    rows = (("id", "question", "answer"), ("7", "What, or; who?", "a"))
    text = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    (tmp_path / "q.csv").write_text(text)
    take(tmp_path / "q.csv", tmp_path / "run")
    (row,) = taken(tmp_path / "run")
    assert (row["query_id"], row["prompt"], row["gold"]) == ("7", "What, or; who?", "a")


def test_settings_beside_a_prompt_are_said_to_be_ignored(tmp_path: Path) -> None:
    rows = [
        {"query_id": "a", "prompt": "q", "temperature": 1.0, "n": 3},
        {"query_id": "b", "prompt": "r", "seed": None},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = take(tmp_path / "q.jsonl", tmp_path / "run")
    assert any("temperature in 1" in notice and "n in 1" in notice for notice in digest.notices), digest.notices


def test_the_format_csv_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("a,b\n1,What?\n")
    with pytest.raises(SchemaError, match="bad JSON"):
        take(tmp_path / "odd", tmp_path / "run")
    take(tmp_path / "odd", tmp_path / "run", format="csv", columns={"query_id": "a", "prompt": "b"})
    assert taken(tmp_path / "run")[0]["prompt"] == "What?"


def test_a_long_array_is_read_one_object_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clear_ray.ingest.documents._BLOCK_BYTES", 7)
    monkeypatch.setattr("clear_ray.ingest.documents._BATCH_CHARACTERS", 300)
    monkeypatch.setattr("clear_ray.ingest.files._PEEK_BYTES", 5)
    rows = [{"query_id": f"q{k}", "prompt": f"é{k}" * (k % 5 + 1)} for k in range(60)]
    (tmp_path / "q.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2))
    take(tmp_path / "q.json", tmp_path / "run")
    assert [(row["query_id"], row["prompt"]) for row in taken(tmp_path / "run")] == [
        tuple(row.values()) for row in rows
    ]


def test_notices_of_parts_are_those_of_the_whole() -> None:
    parts = [Notices(), Notices(), Notices()]
    whole = Notices()
    for part, asked in zip(parts, (4_096, 900, 4_096), strict=True):
        for notices in (part, whole):
            notices.ignore(["seed", "top_p"])
            notices.lower("max_tokens", asked)
            notices.read("`question` as prompt")
            notices.pass_over(["level"])
            notices.end("gold")
            notices.crowd()
            notices.fail("only parts of type text are read", f"messages[{asked}].content")
    merged = Notices()
    for part in reversed(parts):
        merged.merge(part)
    assert merged.lines(512) == whole.lines(512)
    assert merged.lines(512) == (
        "reading `question` as prompt",
        "not read: `level`",
        "ignored: seed in 3 rows, top_p in 3 rows; lowered: max_tokens of 3 rows from up to 4,096 to 512; "
        "lowered: max_tokens of 3 rows to what the model's context leaves beside the prompt",
        "the last answer of 3 rows is no part of the prompt, and is the reference answer",
        "failed: 3 rows of the input, 3 because only parts of type text are read (messages[].content)",
    )
    one = Notices()
    one.lower("max_tokens", 4_096)
    assert one.lines(512) == ("lowered: max_tokens of 1 row from 4,096 to 512",)
    assert Notices().lines(512) == ()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What is in <image>?", "images": ["a.png"]},
        {"messages": turns("a"), "tools": ["f"]},
        {"conversations": said_by("human", "gpt"), "audios": ["a.wav"]},
        {"question": "a", "image": {"bytes": "x"}},
    ],
)
def test_what_belongs_to_a_prompt_and_is_not_read_is_refused(tmp_path: Path, form: str, row: dict[str, Any]) -> None:
    path = tmp_path / f"q.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row))
    with pytest.raises(
        SchemaError, match=r"seems to belong to the prompts, and is not read.*Write it into the messages"
    ):
        take(path, tmp_path / "run")
    named = {
        "messages": next(
            name for name in ("messages", "conversations", "prompt", "instruction", "question") if name in row
        )
    }
    assert take(path, tmp_path / "run", columns=named).rows == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "choices": "['b', 'c']"}, "'choices' seems to belong to 'question'"),
        ({"question": "a", "context": {"title": ["t"], "sentences": [["s"]]}}, "'context' seems to belong"),
        ({"question": "a", "context": "c", "passage": "p"}, "'passage' seems to belong"),
        ({"instruction": "a", "history": [["b", "c"]]}, "'history' seems to belong"),
        ({"question": "a", "choices": ["b", "c"], "answer": 3}, "column answer: there is no such option among 2"),
        ({"question": "a", "choices": [["b"], ["c"]]}, r"column choices\[0\]: the value is not a text"),
        ({"messages": turns("a"), "system": 5}, ""),
    ],
)
def test_what_cannot_be_put_to_the_question_is_refused_or_said(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    (tmp_path / "q.json").write_text(json.dumps([row]))
    if not said:
        assert take(tmp_path / "q.json", tmp_path / "run").notices[-1] == "not read: `system`"
        return
    with pytest.raises(SchemaError, match=said):
        take(tmp_path / "q.json", tmp_path / "run")


def test_empty_companions_are_no_companions(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "", "output": "b", "system": "", "history": [], "context": None}
    (tmp_path / "q.json").write_text(json.dumps([row]))
    take(tmp_path / "q.json", tmp_path / "run")
    assert [(row["prompt"], row["gold"]) for row in taken(tmp_path / "run")] == [("a", "b")]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_column_of_system_prompts_is_a_turn(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = [{"conversations": said_by("human", "gpt"), "system": "Be brief."}]
    rows += [{"conversations": said_by("human"), "system": ""}]
    path = tmp_path / f"q.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    take(path, tmp_path / "run")
    first, second = (json.loads(row["prompt"]) for row in taken(tmp_path / "run"))
    asked = {"role": "user", "content": "human 0"}
    assert (first, second) == ([{"role": "system", "content": "Be brief."}, asked], [asked])


def test_a_named_prompt_is_asked_alone_and_what_it_leaves_is_said(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": 1, "question": "q", "choices": ["a"], "images": ["x.png"]}))
    digest = take(tmp_path / "q.jsonl", tmp_path / "run", columns={"prompt": "question"})
    assert taken(tmp_path / "run")[0]["prompt"] == "q"
    assert digest.notices[-1] == "not read: `choices`, `images`"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["data", "examples"])
def test_a_list_inside_one_object_is_read_and_said(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"id": 1, "question": "a"}, {"id": 2, "question": "b"}]
    (tmp_path / "q.json").write_text(json.dumps({"version": 1, name: rows, "tags": ["x"]}, indent=indent))
    digest = take(tmp_path / "q.json", tmp_path / "run")
    assert [(row["query_id"], row["prompt"]) for row in taken(tmp_path / "run")] == [("1", "a"), ("2", "b")]
    assert digest.notices == (
        "reading `question` as prompt, `id` as id",
        f"reading the list `{name}`, and not `version`, `tags`, of an object that is the whole file",
    )


@pytest.mark.parametrize(
    "row",
    [
        {"version": 1, "data": [{"question": "a"}], "more": [{"question": "b"}]},
        {"version": 1, "data": ["a"]},
        {"turn": 1, "dialog": turns("a")},
    ],
)
def test_what_is_no_one_list_of_rows_is_pointed_out(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "q.json").write_text(json.dumps(row, indent=1))
    with pytest.raises(SchemaError, match="no column is known to be the prompt"):
        take(tmp_path / "q.json", tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"question": "q", "image": "x.png"}, "belong to the prompts"),
        ({"question": "q", "choices": ["a", "b"]}, "columns that earlier ones lack"),
        ({"question": "q", "answer": "5"}, "columns that earlier ones lack"),
    ],
)
def test_a_column_that_comes_late_is_not_passed_over(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    rows = [{"id": f"r{number}", "question": "long " * 1_500} for number in range(200)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "last"} | more]))
    with pytest.raises(SchemaError, match=said):
        take(tmp_path / "q.jsonl", tmp_path / "run")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_text_that_is_messages_is_read_as_a_conversation(tmp_path: Path, form: str) -> None:
    asked = [json.dumps(turns("Say hi.", "hi")), json.dumps(turns("Say hi."))[:-1], '[{"name": "no message"}]']
    table = pa.table({"id": ["a", "b", "c"], "prompt": asked})
    path = tmp_path / f"q.{form}"
    if form == "csv":
        path.write_text(
            "id,prompt\n" + "".join(f'{k},"{text.replace(chr(34), chr(34) * 2)}"\n' for k, text in enumerate(asked))
        )
    else:
        pq.write_table(table, path)
    take(path, tmp_path / "run")
    rows = [(row["prompt"], row["is_conversation"], row["gold"]) for row in taken(tmp_path / "run")]
    assert rows == [
        ('[{"role":"user","content":"Say hi."}]', True, "hi"),
        (asked[1], False, None),
        (asked[2], False, None),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"key": "a", "request": {"content": []}}, "Gemini's lines are read from JSON alone, with `request.contents`"),
        ({"record": "a", "modelInput": "{}"}, "Bedrock's lines are read from JSON alone, with `recordId`"),
        ({"body": {"messages": turns("a")}}, "lines of a batch file need a custom_id"),
        ({"inputs": {"question": "a"}, "id": 1}, "leads into an object, as in inputs.NAME"),
        ({"QuestionStem": "a", "answerKey": "b"}, r"got columns QuestionStem, answerKey\)"),
    ],
)
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_what_is_no_known_shape_is_refused_with_a_way_out(
    tmp_path: Path, row: dict[str, Any], said: str, form: str
) -> None:
    path = tmp_path / f"q.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
        said = said if "QuestionStem" not in said else r"got columns answerKey, QuestionStem\)"
        said = said.removesuffix(", as in inputs.NAME")
    else:
        path.write_text(json.dumps([row]))
    with pytest.raises(SchemaError, match=said):
        take(path, tmp_path / "run")


def test_options_of_a_struct_are_those_that_a_row_has(tmp_path: Path) -> None:
    rows = [{"question": "q", "options": {"A": "x", "B": "y"}}, {"question": "r", "options": {"A": "x", "C": "z"}}]
    options = pa.struct([(label, pa.string()) for label in "ABC"])
    table = pa.Table.from_pylist(rows, pa.schema([("question", pa.string()), ("options", options)])).append_column(
        "__index_level_0__", pa.array([4, 7])
    )
    pq.write_table(table, tmp_path / "q.parquet")
    digest = take(tmp_path / "q.parquet", tmp_path / "run")
    assert [row["prompt"] for row in taken(tmp_path / "run")] == ["q\n\nA. x\nB. y", "r\n\nA. x\nC. z"]
    assert len(digest.notices) == 1


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_of_few_lines_tells_how_they_are_read_too(tmp_path: Path, end: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "question": "q", "context": None},
        {"id": 2, "question": "r", "context": "c"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + end)
    take(tmp_path / "q.jsonl", tmp_path / "run")
    assert [row["prompt"] for row in taken(tmp_path / "run")] == ["q", "c\n\nr"]


def test_nulls_that_end_far_down_a_file_are_not_passed_over(tmp_path: Path) -> None:
    rows = [{"id": k, "question": "long " * 1_500, "choices": None} for k in range(200)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"choices": ["a"]}]))
    with pytest.raises(SchemaError, match=r"q.jsonl:\d+: rows have columns that earlier ones lack"):
        take(tmp_path / "q.jsonl", tmp_path / "run")


WINOGRANDE = {"sentence": "Ann called Eve, since _ was ill.", "option1": "Ann", "option2": "Eve"}


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        (WINOGRANDE | {"answer": "2"}, "2"),
        (WINOGRANDE | {"answer": 1}, "1"),
        (WINOGRANDE | {"answer": 2.0}, "2"),  # of a column with empty cells
        (WINOGRANDE | {"answer": "option2"}, "2"),
        (WINOGRANDE | {"answer": "Eve"}, "Eve"),
        (WINOGRANDE | {"answer": None}, None),
        ({"question": "Who?", "answerA": "Ann", "answerB": "Eve", "label": "answerB"}, "B"),
        ({"question": "Who?", "option_a": "Ann", "option_b": "Eve", "answer": "option_b"}, "B"),
    ],
)
def test_options_in_numbered_columns_are_counted_as_they_are_numbered(
    tmp_path: Path, row: dict[str, Any], gold: str | None
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, row | {"answer": "1"}])) if "sentence" in row else json.dumps(row))
    take(path, tmp_path / "run")
    first, *_ = taken(tmp_path / "run")
    assert first["gold"] == gold
    labels = "12" if "sentence" in row else "AB"
    assert first["prompt"].endswith(f"\n\n{labels[0]}. Ann\n{labels[1]}. Eve")
    if gold is not None:
        text = f"Answer: {labels[1] if gold in (labels[1], 'Eve') else labels[0]}"
        assert load_scorer("choice").judge(text, gold, None, prompt=first["prompt"]).score == 1


@pytest.mark.parametrize("answer", ["0", 0, 3, "3"])
def test_numbers_that_no_numbered_column_has_are_refused(tmp_path: Path, answer: Any) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(WINOGRANDE | {"answer": answer}))
    with pytest.raises(SchemaError, match="no such option among 2, counted from 1"):
        take(tmp_path / "q.jsonl", tmp_path / "run")


def test_an_empty_cell_in_a_column_of_numbers_is_no_reference_answer(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"query_id": "a", "prompt": "?", "gold": NaN}\n{"query_id": "b", "prompt": "?", "gold": 2.5}'
    )
    digest = take(tmp_path / "q.jsonl", tmp_path / "run")
    assert [row["gold"] for row in taken(tmp_path / "run")] == [None, "2.5"]
    assert digest.notices == ("ignored: gold (NaN) in 1 row",)
