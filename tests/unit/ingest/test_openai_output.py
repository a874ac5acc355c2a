"""The OpenAI batch output format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clear_ray.ingest import write_openai_outputs
from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.storage import Folder, open_folder


def completion(query_id: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COMPLETION_SCHEMA.names)
    row |= {"query_id": query_id, "status": "completed", "finish_reason": "stop", "text": "é\n42", "spent_tokens": 3}
    row |= {"reason": "answered"}
    return row | changes


ROWS = [
    completion("a"),
    completion("b", status="abandoned", finish_reason=None, text=None, reason="worth less than its price"),
    completion("c", status="failed", reason="failed", error="engine died"),
    completion("d", finish_reason="length", prompt_tokens=5),
]


def read_lines(folder: Folder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.read(name).decode().splitlines()]


def test_every_row_comes_out_once(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path / "run"))
    write_openai_outputs(iter(ROWS), folder, model="m", created=7)
    done, errors = read_lines(folder, "output.jsonl"), read_lines(folder, "errors.jsonl")
    assert [line["custom_id"] for line in done] == ["a", "d"]
    assert [line["error"] for line in errors] == [
        {"code": "abandoned_by_price", "message": "worth less than its price"},
        {"code": "generation_failed", "message": "engine died"},
    ]
    assert all(line["response"] is None for line in errors)
    assert len({line["id"] for line in done + errors}) == 4
    body = done[0]["response"]["body"]
    assert done[0]["error"] is None
    assert done[0]["response"]["status_code"] == 200
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "m", 7)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "é\n42"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"completion_tokens": 3}
    usage = done[1]["response"]["body"]["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_same_rows_same_bytes_and_text_completions(tmp_path: Path) -> None:
    one, two = open_folder(str(tmp_path / "one")), open_folder(str(tmp_path / "two"))
    for folder in (one, two):
        write_openai_outputs(ROWS, folder, model="m", url="/v1/completions")
    assert one.read("output.jsonl") == two.read("output.jsonl")
    body = read_lines(one, "output.jsonl")[0]["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "é\n42"


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_nothing_half_written(tmp_path: Path, scheme: str) -> None:
    folder = open_folder(str(tmp_path / "run") if scheme == "local" else "memory://openai_output_test")

    def dying() -> Iterator[dict[str, Any]]:
        yield from ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_openai_outputs(dying(), folder, model="m")
    assert folder.files() == []
    write_openai_outputs(ROWS[:1], folder, model="m")
    assert len(read_lines(folder, "output.jsonl")) == 1
    assert folder.read("errors.jsonl") == b""
