"""Calls find their rows: the right query in the right file, with its last answer, and no file that they do not need."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.errors import ResumeError
from clear_ray.records import ATTEMPT_SCHEMA, QUERY_SCHEMA
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.stages.attempt_files import slim_attempts
from clear_ray.stages.granted import GrantedCall, RunRows
from clear_ray.storage import Folder, open_folder
from tests.unit.simulation import query_row

FILE_ROWS = (3, 5, 1, 4)
QUERIES = sum(FILE_ROWS)


def answered(index: int, attempt: int, length: int) -> dict[str, object]:
    ended = {"round": 1, "attempt": attempt, "granted_tokens": 9, "attempt_tokens": length, "finish_reason": "length"}
    tokens = list(range(100 * attempt, 100 * attempt + length))
    rest = {"text": "x", "token_ids": tokens, "answer_tokens": length, "error": "", "seconds": 0.0}
    return query_row(index) | ended | rest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run folder with some files of queries, and two rounds with answers of the even ones and of every fourth one."""
    path, first = tmp_path_factory.mktemp("run"), 0
    for name in ("queries", "rounds/r01", "rounds/r02"):
        (path / name).mkdir(parents=True)
    for number, rows in enumerate(FILE_ROWS):
        part = pa.Table.from_pylist([query_row(index) for index in range(first, first + rows)], schema=QUERY_SCHEMA)
        pq.write_table(part, path / f"queries/part-{number:06d}.parquet")
        first += rows
    for name, step in (("r01/a", 2), ("r02/b", 4)):
        rows = [answered(index, int(name[2]), index) for index in range(0, QUERIES, step)]
        pq.write_table(pa.Table.from_pylist(rows, schema=ATTEMPT_SCHEMA), path / f"rounds/{name}.parquet")
    return open_folder(str(path))


def answers_in(folder: Folder) -> AnswerFiles:
    answers = AnswerFiles(np.zeros(QUERIES, np.int64))
    for name in ("r01/a.parquet", "r02/b.parquet"):
        answers.note(slim_attempts(pq.read_table(f"{folder.path}/rounds/{name}"), name))
    return answers


@given(indices=st.lists(st.integers(0, QUERIES - 1), min_size=1, unique=True), most_bytes=st.sampled_from([1, 10**6]))
@settings(max_examples=50, deadline=None)
def test_a_call_has_its_rows_in_its_order_with_the_last_answers(
    folder: Folder, indices: list[int], most_bytes: int
) -> None:
    index = np.array(indices)
    rows = RunRows(folder, most_bytes).granted(GrantedCall(3, index, index + 1, *answers_in(folder).of(index)))
    assert rows["query_id"].to_pylist() == [str(i) for i in indices]
    assert rows["granted_tokens"].to_pylist() == [i + 1 for i in indices]
    assert set(rows["round"].to_pylist()) == {3}
    expected = [
        list(range(200, 200 + i)) if i % 4 == 0 else list(range(100, 100 + i)) if i % 2 == 0 else [] for i in indices
    ]
    assert rows["token_ids"].to_pylist() == expected


def test_a_call_reads_the_files_of_its_rows_alone(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder.path, tmp_path / "run")
    copy = open_folder(str(tmp_path / "run"))
    rows, index = RunRows(copy), np.array([4, 12])
    call = GrantedCall(3, index, index, *answers_in(copy).of(index))
    (tmp_path / "run/rounds/r01/a.parquet").unlink()  # 4 and 12 have gone on in the second round
    whole = (tmp_path / "run/queries/part-000000.parquet").read_bytes()
    (tmp_path / "run/queries/part-000000.parquet").write_bytes(b"?" + whole[1:])  # a foot without a head
    assert rows.granted(call)["query_id"].to_pylist() == ["4", "12"]
    shutil.rmtree(tmp_path / "run/queries")
    assert rows.granted(call)["query_id"].to_pylist() == ["4", "12"], "what was read a moment ago is at hand"


def test_a_folder_whose_queries_were_exchanged_is_no_longer_gone_on_with(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder.path, tmp_path / "run")
    shutil.copy(tmp_path / "run/queries/part-000001.parquet", tmp_path / "run/queries/part-000003.parquet")
    index = np.array([10])
    call = GrantedCall(1, index, index, ("",), np.zeros(1, np.int32))
    with pytest.raises(ResumeError, match="does not hold the rows"):
        RunRows(open_folder(str(tmp_path / "run"))).granted(call)
