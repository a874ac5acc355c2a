"""Files that users elsewhere have, in our own words: bytes of other systems, tables of other libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clear_ray.cli import app, guarded
from tests.unit.ingest.taking import take, taken


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    import signal

    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def test_a_batch_file_of_windows(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Say hi in French."}, {"type": "text", "text": "One word."}]
    first = {"custom_id": 7, "method": "POST", "url": "/v1/chat/completions"}
    first["body"] = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 20}  # type: ignore[assignment]
    second = (
        '{"custom_id": "b-2", "method": "POST", "url": "/v1/chat/completions", "body": {"max_tokens": 20, "messages": ['
    )
    second += '{"role": "developer", "content": "Be brief."}, '
    second += '{"role": "user", "content": "Say hi in Dutch 🙂 \\ud83d\\ude00"}]}}'
    content = f"\ufeff{json.dumps(first)}\r\n\r\n{second}\r\n\n\n"
    path = tmp_path / "batch [1] é.jsonl"
    path.write_text(content, encoding="utf-8", newline="")
    digest = take(path, tmp_path / "run")
    rows = taken(tmp_path / "run")
    assert [row["query_id"] for row in rows] == ["7", "b-2"]
    assert json.loads(rows[0]["prompt"]) == [{"role": "user", "content": "Say hi in French.\nOne word."}]
    assert [turn["role"] for turn in json.loads(rows[1]["prompt"])] == ["system", "user"]
    assert json.loads(rows[1]["prompt"])[1]["content"] == "Say hi in Dutch 🙂 😀"
    assert [row["max_tokens"] for row in rows] == [20, 20]
    assert digest.notices == ()


def test_a_table_with_odd_types(tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.large_string()), ("tool_calls", pa.list_(pa.string()))])
    turn = {"role": "user", "content": "hello", "tool_calls": None}
    table = pa.table(
        {
            "id": pa.array([2**64 - 1, 1], pa.uint64()),
            "messages": pa.array([[turn], [turn]], pa.list_(message)),
            "task": pa.array(["a", "b"]).dictionary_encode(),
            "weight": pa.array([1, 2], pa.decimal128(5, 2)),
            "max_tokens": pa.array([16.0, None], pa.float64()),
            "gold": pa.array([3, None], pa.int8()),
            "metadata": pa.array([{"made": 1_700_000_000}, None], pa.struct([("made", pa.timestamp("s"))])),
            "embedding": pa.array([[0.5], [0.25]], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "q.parquet")
    digest = take(tmp_path / "q.parquet", tmp_path / "run")
    first, second = taken(tmp_path / "run")
    assert (first["query_id"], first["task"], first["weight"], first["max_tokens"]) == (str(2**64 - 1), "a", 1.0, 16)
    assert (first["gold"], second["gold"], second["max_tokens"]) == ("3", None, 100)
    assert first["metadata"] == '{"made":"2023-11-14T22:13:20"}'
    assert digest.notices == ("reading `id` as id", "not read: `embedding`")


def test_float_ids_of_a_table_with_empty_cells_are_whole_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query_id": [1.0, 2.0], "prompt": ["a", "b"]}), tmp_path / "q.parquet")
    take(tmp_path / "q.parquet", tmp_path / "run")
    assert [row["query_id"] for row in taken(tmp_path / "run")] == ["1", "2"]


@pytest.mark.parametrize("as_json", [True, False])
def test_validate_says_what_is_lowered_and_ignored(
    replay_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    lines = []
    for k, asked in enumerate([4_096, 4_096, 10]):
        body = {"model": "m", "messages": [{"role": "user", "content": "Write."}], "max_tokens": asked, "seed": k}
        lines.append({"custom_id": str(k), "method": "POST", "url": "/v1/chat/completions", "body": body})
    (tmp_path / "batch.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = replay_settings | {"input": {"path": str(tmp_path / "batch.jsonl")}, "allocation": {"max_tokens": 512}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = ["validate", "--config", str(tmp_path / "run.yaml"), *(["--json"] if as_json else [])]
    assert guarded(lambda: app(args=command)) == 0
    out = capsys.readouterr().out
    said = (
        "ignored: seed (recordings are played as they are) in 3 rows; lowered: max_tokens of 2 rows from 4,096 to 512"
    )
    if as_json:
        assert json.loads(out)["notices"] == [said]
    else:
        assert out.splitlines()[1] == said


def test_a_relative_input_is_the_drivers(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text('query_id,prompt,gold\n1,"Say hi, please.",hi\n2,Say bye.,bye\n')
    settings = replay_settings | {"input": {"path": "in.csv"}, "run_dir": "runs/batch"}
    Path("run.yaml").write_text(yaml.safe_dump(settings))
    assert guarded(lambda: app(args=["validate", "--config", "run.yaml"])) == 0
    assert capsys.readouterr().out.startswith("Valid: 2 queries")
    assert not Path("runs").exists()
