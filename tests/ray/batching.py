"""What the tests of files and batches share: a server that replays, and batches of recorded queries."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq

from clear_ray.serve.settings import ServeConfig
from tests.conftest import ROLLOUTS
from tests.ray.serving import settings

ENDED = ("completed", "failed", "expired", "cancelled")


def recorded_ids() -> list[str]:
    """Return the names of the recorded queries."""
    ids: list[str] = pq.read_table(ROLLOUTS / "queries.parquet", columns=["query_id"])["query_id"].to_pylist()
    return ids


def batch_settings(folder: Path, **changes: Any) -> ServeConfig:
    """Return settings of a server with batches in `folder`."""
    run = {"dispatch": {"rows_per_file": 16}, "allocation": {"max_rounds": 3}}
    batches = {"folder": str(folder), "run": run} | changes.pop("batches", {})
    return settings(batches=batches, **{"limits": {}, "estimate": {"head": "prior"}} | changes)


def request(custom_id: str, /, **changes: Any) -> dict[str, Any]:
    """Return a line of a batch file; None takes a field, or one of its body, out."""
    body: Any = {"model": "replay", "messages": [{"role": "user", "content": f"Question {custom_id}"}]}
    if isinstance(changes.get("body"), dict):
        body = {name: value for name, value in {**body, **changes.pop("body")}.items() if value is not None}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | changes
    return {name: value for name, value in line.items() if value is not None}


def lines(rows: Sequence[dict[str, Any] | str]) -> bytes:
    """Return a batch file; texts are lines as they are."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def upload(client: openai.OpenAI, rows: Sequence[dict[str, Any] | str], **changes: Any) -> Any:
    """Upload a batch file."""
    return client.files.create(file=("batch.jsonl", io.BytesIO(lines(rows))), purpose="batch", **changes)


def create(client: openai.OpenAI, file_id: str, **changes: Any) -> Any:
    """Make a batch."""
    arguments: dict[str, Any] = {"completion_window": "24h", "endpoint": "/v1/chat/completions"}
    return client.batches.create(input_file_id=file_id, **arguments | changes)


def ended(client: openai.OpenAI, batch_id: str, *, seconds: float = 150.0) -> Any:
    """Return a batch once it has ended."""
    return reaching(client, batch_id, *ENDED, seconds=seconds)


def reaching(client: openai.OpenAI, batch_id: str, *statuses: str, seconds: float = 150.0) -> Any:
    """Return a batch once it is in one of some states."""
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status not in statuses:
        assert batch.status not in ENDED, batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a file; none without one."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
