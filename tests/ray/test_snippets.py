"""Every Python block of README.md and docs/*.md runs as it stands, in the cluster of these tests.

What a reader has and this machine has not is put in, wherever it stands: the embedded model for one of the reader's own,
three short queries with a ceiling of their own for a file of queries, a temporary folder for `runs/`, and for the guide's
server one that `jobs/serve/demo.yaml` configures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve

from clear_ray.serve.app import application
from clear_ray.serve.settings import ServeConfig
from tests.ray.serving import free_port
from tests.unit.snippets import ROOT, Snippet, written_in

QUERIES = [
    {"query_id": f"q{number}", "prompt": f"What is {number} + 4?", "gold": str(number + 4), "max_tokens": 8}
    for number in range(3)
]
SERVER = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server that the guide starts, on a port and in a folder of its own."""
    port = free_port()
    folder = tmp_path_factory.mktemp("served")
    config = ServeConfig.load(str(ROOT / "jobs/serve/demo.yaml"), (f"batches.folder={folder}",))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(config))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def put_in(text: str, folder: Path) -> str:
    """Return a snippet with what this machine has, in the place of what its reader has."""
    queries = folder / "queries.jsonl"
    queries.write_text("".join(f"{json.dumps(row)}\n" for row in QUERIES))
    text = re.sub(r'(?<=read_json\(")[^"]+', str(queries), text)
    text = re.sub(r'"(/|hf://|s3://)?models?/[^"]*"', '"smollm2-135m-instruct"', text)
    return re.sub(r'"(s3://[^"/]+/)?runs/', f'"{folder}/runs/', text)


@pytest.mark.parametrize("snippet", written_in("python"), ids=lambda snippet: snippet.place)
def test_a_python_block_runs(
    snippet: Snippet, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    text = put_in(snippet.text, tmp_path)
    if SERVER in text:
        text = text.replace(SERVER, request.getfixturevalue("server"))
    exec(compile(text, snippet.place, "exec"), {"__name__": "__main__"})  # noqa: S102
    printed = capsys.readouterr().out
    assert ("print(" in text) == bool(printed.strip())
    for folder in (tmp_path / "runs").glob("*/"):
        assert (folder / "summary.json").exists()
