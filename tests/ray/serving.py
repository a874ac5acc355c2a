"""What the tests of the server share: its settings over recorded rollouts, and questions to it."""

from __future__ import annotations

import hashlib
import socket
from typing import Any

import openai

from clear_ray.serve.settings import ServeConfig
from tests.conftest import ROLLOUTS

KEY = "sk-a-key-of-the-tests"
PRICE = {"budget_tokens_per_second": 100_000, "carry_over_tokens": 100_000, "clearing_seconds": 1.0}
PRICE |= {"window_seconds": 4.0}


def settings(**changes: Any) -> ServeConfig:
    """Return settings of a server that replays; `engine` changes single settings of the engine."""
    engine = {
        "kind": "replay",
        "rollouts": str(ROLLOUTS / "rollouts.parquet"),
        "features": str(ROLLOUTS / "features.parquet"),
        "max_batch": 64,
    }
    if "engines" not in changes and changes.get("engine", {}).get("kind", "replay") == "replay":
        changes["engine"] = engine | changes.get("engine", {})
    base = {"model_name": "replay", "max_tokens": 400, "price": PRICE, "drain_seconds": 5.0}
    base |= {"api_key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()], "limits": {"body_bytes": 20_000}}
    return ServeConfig.parse(base | changes)


def client_of(port: int, path: str) -> openai.OpenAI:
    """Return a client of the application under `path`."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}{path}/v1", api_key=KEY, max_retries=0)


def ask(client: openai.OpenAI, row: dict[str, Any], **changes: Any) -> Any:
    """Ask a recorded query."""
    messages = [{"role": "user", "content": row["question"]}]
    arguments = {"model": "replay", "messages": messages, "metadata": {"query_id": row["query_id"]}}
    return client.chat.completions.create(**arguments | changes)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
