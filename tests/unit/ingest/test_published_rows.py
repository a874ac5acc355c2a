"""Rows as data sets publish them and lines as other services' users write them: read as meant, and everything else said."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ConfigError, SchemaError
from tests.unit.ingest.taking import take, taken

ASK = [{"role": "user", "content": "Hi"}]
CHECK = "def check(candidate):\n    assert candidate(1) == 1\n"
CASES = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})

# row, id (None: made), prompt, gold
ROWS: dict[str, tuple[dict[str, Any], str | None, str, str | None]] = {
    "GPQA": (
        {"Record ID": "r1", "Question": "What?", "Correct Answer": "A1", "Incorrect Answer 1": "B1"},
        "r1",
        "What?",
        "A1",
    ),
    "HumanEval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def f(x):\n",
            "canonical_solution": "x",
            "test": CHECK,
            "entry_point": "f",
        },
        "HumanEval/0",
        "def f(x):\n",
        CHECK,
    ),
    "MBPP": (
        {"task_id": 11, "text": "Write f.", "code": "x", "test_list": ["assert f(1) == 1"], "test_setup_code": ""},
        "11",
        "Write f.",
        '["assert f(1) == 1"]',
    ),
    "APPS": (
        {"problem_id": 0, "question": "Do it.", "solutions": "[]", "input_output": CASES, "starter_code": ""},
        None,
        "Do it.",
        CASES,
    ),
    "a test that is none of a program": ({"question": "q", "test": "yes"}, None, "q", None),
    "OpenBookQA": (
        {
            "id": "7",
            "question_stem": "The sun is for",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        "7",
        "The sun is for\n\nA. a\nB. b",
        "B",
    ),
    "PIQA": (
        {"goal": "Open a jar", "sol1": "twist", "sol2": "smash", "label": 0},
        None,
        "Open a jar\n\nA. twist\nB. smash",
        "A",
    ),
    "SVAMP": (
        {"ID": "c-1", "Body": "Ann has 3 apples.", "Question": "How many left?", "Answer": "2", "Equation": "3 - 1"},
        "c-1",
        "Ann has 3 apples.\n\nHow many left?",
        "2",
    ),
    "TruthfulQA": (
        {"question": "What?", "best_answer": "No", "correct_answers": ["No", "None"], "incorrect_answers": ["Yes"]},
        None,
        "What?",
        '["No","None"]',
    ),
    "FLAN": ({"inputs": "Translate dog.", "targets": "Hund", "task": "wmt"}, None, "Translate dog.", "Hund"),
    "BIG-bench": (
        {"idx": 0, "inputs": "Q: x", "targets": ["a"], "multiple_choice_scores": [1, 0]},
        None,
        "Q: x",
        '["a"]',
    ),
    "LiveCodeBench": ({"question_id": "abc", "question_content": "Given n", "platform": "x"}, "abc", "Given n", None),
    "LSAT": (
        {"id_string": "i", "context": "C.", "question": "q", "answers": ["a", "b", "c"], "label": 2},
        None,
        "C.\n\nq\n\nA. a\nB. b\nC. c",
        "C",
    ),
    "accepted answers beside a text": ({"question": "q", "answers": ["a", "b"], "label": "x"}, None, "q", '["a","b"]'),
    "Cosmos QA": (
        {"id": "1", "context": "C.", "question": "q", "answer0": "a", "answer1": "b", "label": 0},
        "1",
        "C.\n\nq\n\nA. a\nB. b",
        "A",
    ),
    "AGIEval": (
        {"question": "q", "options": ["(A)x", "(B) y"], "label": "A", "answer": None},
        None,
        "q\n\nA. x\nB. y",
        "A",
    ),
    "GAIA": ({"task_id": "t", "Question": "q", "Level": 1, "Final answer": "x"}, None, "q", "x"),
    "FRAMES": ({"Unnamed: 0": 0, "Prompt": "If", "Answer": "Jane"}, None, "If", "Jane"),
    "AIME": ({"ID": "2024-I-1", "Problem": "Find x.", "Solution": "…", "Answer": 113}, "2024-I-1", "Find x.", "113"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_is_read_as_its_authors_mean_it(tmp_path: Path, name: str) -> None:
    row, query_id, prompt, gold = ROWS[name]
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    take(tmp_path / "q.jsonl", tmp_path / "run")
    (found,) = taken(tmp_path / "run")
    assert (found["prompt"], found["gold"]) == (prompt, gold)
    assert found["query_id"] == query_id or (query_id is None and found["query_id"].startswith("row-"))


def test_what_records_of_chats_keep_beside_a_message_does_no_harm(tmp_path: Path) -> None:
    facts = {
        "country": "X",
        "hashed_ip": "i",
        "header": {"a": "b"},
        "toxic": False,
        "timestamp": "t",
        "turn_identifier": 1,
    }
    row = {"conversation": [ASK[0] | facts, {"role": "assistant", "content": "Yo", "language": "English"}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    take(tmp_path / "q.jsonl", tmp_path / "run")
    (found,) = taken(tmp_path / "run")
    assert (json.loads(found["prompt"]), found["gold"]) == (ASK, "Yo")


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    url = "/v1/chat/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"messages": ASK, **body}}


# lines, sampling of the first
LINES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "OpenRouter's reasoning": (chat("a", reasoning={"effort": "high"}), {"template": '{"reasoning_effort":"high"}'}),
    "vLLM's defaults": (chat("a", detokenize=True, mm_processor_kwargs=None, echo=False, documents=None), None),
    "what asks for no citation": (chat("a", citation_options="enabled", perf_metrics_in_response=True), None),
    "encrypted thoughts": (
        {
            "custom_id": "a",
            "url": "/v1/responses",
            "body": {"input": "Hi", "store": False, "include": ["reasoning.encrypted_content"]},
        },
        None,
    ),
    "Claude's lines on Vertex AI": (
        {
            "custom_id": "a",
            "request": {"anthropic_version": "vertex-2023-10-16", "max_tokens": 5, "messages": ASK, "temperature": 0.5},
        },
        {"temperature": 0.5},
    ),
    "Nova's lines": (
        {
            "recordId": "a",
            "modelInput": {
                "schemaVersion": "messages-v1",
                "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
                "inferenceConfig": {"max_new_tokens": 5, "top_k": 20},
            },
        },
        {"top_k": 20},
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_other_services_are_read(tmp_path: Path, name: str) -> None:
    line, sampling = LINES[name]
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    take(tmp_path / "q.jsonl", tmp_path / "run")
    (found,) = taken(tmp_path / "run")
    assert (found["query_id"], json.loads(found["prompt"])) == ("a", ASK)
    assert found["sampling"] == (None if sampling is None else json.dumps(sampling, separators=(",", ":")))
    if name in ("Claude's lines on Vertex AI", "Nova's lines"):
        assert found["max_tokens"] == 5


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (chat("a", reasoning={"max_tokens": 5}), "body.reasoning.max_tokens: this is not supported"),
        (chat("a", detokenize=False), "body.detokenize: this is not supported"),
        (
            {"custom_id": "a", "request": {"anthropic_version": "v", "max_tokens": 5, "messages": ASK, "tools": [{}]}},
            "request.tools: this is not supported",
        ),
    ],
)
def test_what_is_not_done_of_them_is_refused_in_their_own_words(
    tmp_path: Path, line: dict[str, Any], where: str
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    with pytest.raises(SchemaError) as caught:
        take(tmp_path / "q.jsonl", tmp_path / "run")
    assert where in str(caught.value)


def test_rows_that_name_several_models_are_told_that_one_answers(tmp_path: Path) -> None:
    lines = [chat("a", model="small"), chat("b", model="large"), chat("c", model="small")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert take(tmp_path / "q.jsonl", tmp_path / "run").notices == (
        "rows name 2 models (`large`, `small`); all are answered by the run's",
    )
    (tmp_path / "one.jsonl").write_text(json.dumps(lines[0]))
    assert take(tmp_path / "one.jsonl", tmp_path / "one").notices == ()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test, train"),
        (["train/a.parquet", "validation/a.parquet"], "train, validation"),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], None),
        (["testing.parquet", "a/contest.parquet"], None),
    ],
)
def test_splits_that_are_read_as_one_input_are_named(tmp_path: Path, names: list[str], said: str | None) -> None:
    for k, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"query_id": [f"{k}"], "prompt": ["a"]}), tmp_path / "set" / name)
    expected = () if said is None else (f"reading the splits {said} as one input",)
    assert take(tmp_path / "set", tmp_path / "run").notices == expected


@pytest.mark.parametrize("location", ["hf://datasets/a/b", "https://example.org/q.jsonl"])
def test_what_has_to_be_downloaded_first_is_told_so(tmp_path: Path, location: str) -> None:
    with pytest.raises(ConfigError, match="Download it first"):
        take(location, tmp_path / "run")


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'It\\'s \\\\d \\n \"x\"'}, {'role': 'assistant', 'content': 'Yo'}]",
        "[{'content': 'It\\'s \\\\d \\n \"x\"', 'role': 'user'}\n {'content': 'Yo', 'role': 'assistant'}]",
    ],
)
@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_messages_as_python_prints_them_are_a_conversation(tmp_path: Path, column: str, cell: str) -> None:
    pd_csv = "".join((f"id,{column}\n", '1,"', cell.replace('"', '""'), '"\n'))
    (tmp_path / "q.csv").write_text(pd_csv)
    take(tmp_path / "q.csv", tmp_path / "run")
    (found,) = taken(tmp_path / "run")
    assert found["is_conversation"]
    assert json.loads(found["prompt"])[0] == {"role": "user", "content": 'It\'s \\d \n "x"'}
    assert found["gold"] == "Yo"


def test_what_only_begins_like_messages_is_a_text(tmp_path: Path) -> None:
    for k, text in enumerate(("[{'role': 'user'}] is Python", "[{'role': 'user', 'content': 5", '[{"role": "user"} ?')):
        (tmp_path / f"{k}.jsonl").write_text(json.dumps({"prompt": text}))
        take(tmp_path / f"{k}.jsonl", tmp_path / f"run{k}")
        assert [row["prompt"] for row in taken(tmp_path / f"run{k}")] == [text]


def test_a_tar_archive_is_refused_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "a"}))
    with tarfile.open(tmp_path / "q.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "q.jsonl", "q.jsonl")
    with pytest.raises(SchemaError, match="the file is a tar archive"):
        take(tmp_path / "q.tar.gz", tmp_path / "run")
