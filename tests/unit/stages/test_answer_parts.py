"""Answers are written in parts, and put together again are what they were, whatever the text before each part became."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.errors import ResumeError
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.stages.answer_parts import AnswerParts, kept, part_of
from clear_ray.storage import Folder, open_folder
from tests.unit.simulation import query_row

Grants = list[tuple[list[int], str, str | None]]
TEXT = st.text("ab�", max_size=8)
GRANTS: st.SearchStrategy[Grants] = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=3), TEXT, TEXT), min_size=1, max_size=5
)


def write(folder: Folder, index: int, grants: Grants) -> list[dict[str, Any]]:
    """Write what each grant made of an answer, each into a file of its own; return the attempts before they were cut."""
    attempts: list[dict[str, Any]] = []
    for number, (new, text, logprobs) in enumerate(grants, 1):
        before = attempts[-1] if attempts else {"token_ids": [], "text": "", "logprobs": None}
        token_ids = [*before["token_ids"], *new]
        ended = {"round": number, "attempt": number, "granted_tokens": 9, "attempt_tokens": len(new)}
        rest = {"finish_reason": "length", "text": text, "token_ids": token_ids, "answer_tokens": len(token_ids)}
        link = {"before": f"r{number - 1:02d}/{index}.parquet" if attempts else None, "before_attempt": number - 1}
        same = {"kept_characters": kept(before["text"], text), "kept_logprobs": kept(before["logprobs"], logprobs)}
        last = {"error": "", "seconds": 0.0, "logprobs": logprobs}
        attempts.append(query_row(index) | ended | rest | link | same | last)
        into = folder.child("rounds").child(f"r{number:02d}")
        into.make()
        rows = pa.Table.from_pylist([part_of(attempts[-1])], schema=ATTEMPT_SCHEMA)
        pq.write_table(rows, f"{into.path}/{index}.parquet")
    return attempts


@given(grants=st.lists(GRANTS, min_size=1, max_size=3), most_bytes=st.sampled_from([1, 10**6]))
@settings(max_examples=30, deadline=None)
def test_parts_are_the_answers_again(
    tmp_path_factory: pytest.TempPathFactory, grants: list[Grants], most_bytes: int
) -> None:
    folder = open_folder(str(tmp_path_factory.mktemp("run")))
    parts = AnswerParts(folder, most_bytes)
    for index, asked in enumerate(grants):
        for attempt in write(folder, index, asked):
            file = f"r{attempt['round']:02d}/{index}.parquet"
            found = parts.answer(file, index, attempt["attempt"])
            assert (found.token_ids.tolist(), found.text) == (attempt["token_ids"], attempt["text"])
            assert found.logprobs == attempt["logprobs"]
            written = pq.read_table(f"{folder.path}/rounds/{file}")
            assert written["token_ids"].to_pylist() == [attempt["token_ids"][-attempt["attempt_tokens"] :]] or (
                attempt["attempt_tokens"] == 0
            )
            (whole,) = pickle.loads(pickle.dumps(parts)).whole(written).to_pylist()  # noqa: S301 - our own
            assert (whole["text"], whole["logprobs"]) == (attempt["text"], attempt["logprobs"])


def test_text_that_goes_on_is_written_once(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    grants = [([number], "word " * number, None) for number in range(1, 40)]
    write(folder, 0, grants)
    tables = [pq.read_table(path) for path in folder.child("rounds").files(".parquet")]
    assert sum(len(table["text"][0].as_py()) for table in tables) == len("word ") * 39
    assert sum(len(table["token_ids"][0].as_py()) for table in tables) == 39


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder, 0, [([1], "a", None), ([2], "ab", None)])
    (tmp_path / "rounds/r01/0.parquet").unlink()
    with pytest.raises(ResumeError, match=r"r01/0\.parquet: a part of an answer is gone"):
        AnswerParts(folder).answer("r02/0.parquet", 0, 2)
    with pytest.raises(ResumeError, match=r"query 0, attempt 3"):
        AnswerParts(folder).answer("r02/0.parquet", 0, 3)


@given(before=TEXT, after=TEXT)
def test_what_two_texts_begin_with_alike(before: str, after: str) -> None:
    count = kept(before, after)
    assert before[:count] == after[:count]
    assert count == min(len(before), len(after)) or before[count] != after[count]
