"""What the server says of its routes, and what schemathesis finds when it takes the server at its word."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pyarrow.parquet as pq
import pytest
import uvicorn

from clear_ray.config.allocation import Objective
from clear_ray.ingest.fields import TABLES, Endpoint
from clear_ray.serve.batches.runs import asked_settings
from clear_ray.serve.errors import ApiError
from clear_ray.serve.ingress import api
from clear_ray.serve.openapi import bodies, describe, reference_page
from clear_ray.serve.openapi.bodies import query
from clear_ray.serve.page import routes_of
from clear_ray.serve.settings import ServeConfig
from tests.conftest import ROLLOUTS
from tests.unit.serve.local_server import DIGEST, KEY, REPLAY, LocalServer, served

# What the language of schemas cannot say: which recordings there are, and that the last message is not blank.
_HOOKS = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body if isinstance(case.body, dict) else {}
    metadata, messages = body.get("metadata"), body.get("messages") or body.get("input")
    if isinstance(metadata, dict) and isinstance(metadata.get("query_id"), str):
        metadata["query_id"] = QUERY
    is_good = case.meta is not None and case.meta.generation.mode.is_positive
    if is_good and isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        messages[-1]["content"] = "What is 3 + 4?"
"""


def settings(**changes: Any) -> ServeConfig:
    return ServeConfig.parse({"model_name": "replay", "engine": REPLAY, "batches": {"folder": "x"}} | changes)


def test_every_route_is_described_and_no_other() -> None:
    described = {
        f"{method.upper()} {path}" for path, methods in describe(settings())["paths"].items() for method in methods
    }
    assert described == {route.replace("{name:path}", "{name}") for route in routes_of(api)}
    without = describe(settings(batches=None))["paths"]
    assert not [path for path in without if path.startswith(("/v1/files", "/v1/batches"))]


@pytest.mark.parametrize("engine", [REPLAY, {"kind": "transformers", "model": "x"}])
@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_every_field_that_is_honoured_is_described(endpoint: Endpoint, engine: dict[str, Any]) -> None:
    described = query(settings(engine=engine), endpoint)["properties"]
    honoured = {name for name, field in TABLES[endpoint].items() if field.verdict == "honoured"}
    assert honoured - described.keys() == {"random_seed"}  # a synonym


def test_what_is_described_follows_the_settings() -> None:
    described = describe(settings(api_key_sha256=[DIGEST], model_name="mine", limits={"choices": 2}))
    request = described["components"]["schemas"]["ChatRequest"]
    schema = {**request, "components": described["components"]}
    asked = {"model": "mine", "messages": [{"role": "user", "content": "a"}], "metadata": {"query_id": "a"}}
    jsonschema.validate(asked | {"n": 2, "presence_penalty": 0, "user": "b"}, schema)
    for wrong in (
        {"n": 3},
        {"model": "yours"},
        {"metadata": {}},
        {"temperature": 0.5},
        {"tools": [{}]},
        {"nonsense": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(asked | wrong, schema)
    assert described["security"] == [{"key": []}]
    assert describe(settings())["security"] == []


@pytest.mark.parametrize("run", [{}, {"scoring": {"scorer": "number"}}, {"allocation": {"objective": "vote"}}])
def test_what_metadata_is_described_is_what_is_taken(run: dict[str, Any]) -> None:
    """Every combination of what goes together only in part."""
    known = settings(engine={**REPLAY}, batches={"folder": "x", "run": run})
    assert known.batches is not None
    schema = jsonschema.Draft202012Validator(bodies._metadata_of_batch(known))
    taken = 0
    for objective, policy, attempts in product(
        (None, *get_args(Objective)), (None, "clear_ray", "uniform"), (None, "1", "3")
    ):
        words = {"objective": objective, "policy": policy, "attempts": attempts}
        metadata = {name: word for name, word in words.items() if word is not None}
        try:
            asked_settings(known.batches, metadata, own=known.run_of(known.model_name))
            is_taken = True
        except ApiError:
            is_taken = False
        assert schema.is_valid(metadata) == is_taken, metadata
        taken += is_taken
    assert taken > 5


def test_the_reference_shows_every_route_and_loads_nothing() -> None:
    page = reference_page(describe(settings()))
    for route in routes_of(api):
        assert route.partition(" ")[2].replace("{name:path}", "{name}") in page
    assert not re.search(r"<script|src=|https?://", page)


@contextmanager
def listening(folder: Path) -> Iterator[int]:
    """Let the application listen on a port of this machine."""
    server = LocalServer(api_key_sha256=[DIGEST], batches={"folder": str(folder)})
    server.price.reconfigure(server.settings.price.model_dump(mode="json"))
    with socket.socket() as listener, served(server.ingress):
        listener.bind(("127.0.0.1", 0))
        own = uvicorn.Server(uvicorn.Config(api, log_level="error", lifespan="off"))
        thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
        thread.start()
        while not own.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            own.should_exit = True
            thread.join()


def attack(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    query_id = pq.read_table(ROLLOUTS / "rollouts.parquet", columns=["query_id"])["query_id"][0].as_py()
    (folder / "hooks.py").write_text(f"QUERY = {json.dumps(query_id)}\n{_HOOKS}", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--seed=1", "--checks=all", "--no-color"]
    with listening(folder / "server") as port:
        where = f"http://127.0.0.1:{port}/openapi.json"
        return subprocess.run(
            [*command, "--continue-on-failure", f"--header=Authorization: Bearer {KEY}", *options, where],
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=280,
        )


def test_schemathesis_passes(tmp_path: Path) -> None:
    ran = attack(tmp_path, "--phases=examples,fuzzing", "--max-examples=3")
    assert ran.returncode == 0, ran.stdout[-8_000:]
    assert "Tested: 22" in ran.stdout


@pytest.mark.slow
def test_schemathesis_passes_in_all_its_phases(tmp_path: Path) -> None:
    ran = attack(tmp_path, "--max-examples=60")
    assert ran.returncode == 0, ran.stdout[-8_000:]
