"""What the answers of a batch took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.serve.batches.usage import usage_of
from clear_ray.storage import open_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of five lines: one asked once, one for three answers, of which two were bought, one abandoned, and two more.

    The last has three prompts, the second of which was abandoned.
    """
    columns: dict[str, Any] = {
        "query_id": ["a", "b", "b", "b", "c", "d", "e", "e", "e"],
        "prompt_tokens": [10, 20, 20, 20, 40, 80, 1, 2, 4],
        "spent_tokens": [5, 0, 2, 4, 0, 7, 1, 0, 1],
        "rounds": [1, 0, 1, 2, 0, 1, 1, 0, 1],
        "n": [None, 3, 3, 3, None, None, 1, 1, 1],
        "choice": [None, 0, 1, 2, None, None, 0, 1, 2],
    }
    (tmp_path / "completions").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "completions" / "part-00000.parquet")
    return tmp_path


def write_round(run: Path, number: int, **columns: Any) -> None:
    folder = run / "rounds" / f"r{number:02d}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"index": pa.array(range(2)), **columns}), folder / "a.parquet")


def test_a_prompt_counts_once_for_each_line(run: Path) -> None:
    write_round(run, 1, usage_prompt_tokens=pa.array([None, None], pa.int64()))
    assert usage_of(open_folder(str(run))) == {
        "input_tokens": 10 + 20 + 80 + 1 + 4,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 135,
    }


def test_an_endpoints_word_counts(run: Path) -> None:
    for number, cached in ((1, [0, None]), (2, [8, 9])):
        write_round(
            run,
            number,
            usage_prompt_tokens=pa.array([11, 21], pa.int64()),
            usage_cached_tokens=pa.array(cached, pa.int64()),
            usage_reasoning_tokens=pa.array([1, 2], pa.int64()),
        )
    usage = usage_of(open_folder(str(run)))
    assert (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (64, 17)
    assert (usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]) == (20, 6)
