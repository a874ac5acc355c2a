"""A planted canary: prompts are only where the README says, secrets of the environment nowhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray.test_survival import start, write_config

PROMPT, GOLD, SECRET = "canary-in-a-prompt-5e1f", "canary-in-a-gold-answer-77b2", "canary-in-the-environment-9c0d"


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's logs of this run alone; a short path, since Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def text_of(path: Path) -> bytes:
    """Return everything that a file says, compressed columns included."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return f"{table.schema.metadata} {table.to_pylist()}".encode()
    return path.read_bytes()


def holders(canary: str, folder: Path) -> set[str]:
    """Return the first parts of the paths, below a folder, of the files in which the canary is found."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return {path.relative_to(folder).parts[0] for path in files if canary.encode() in text_of(path)}


def test_prompts_stay_where_the_readme_says_and_secrets_nowhere(
    replay_settings: dict[str, Any], tmp_path: Path, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = pq.read_table(replay_settings["input"]["path"]).slice(0, 12).to_pylist()
    for number, query in enumerate(queries):
        query |= {"prompt": f"{PROMPT} {number}", "gold": GOLD}
    queries[3]["query_id"] = "never recorded"  # what fails is told, too
    path = tmp_path / "queries.parquet"
    pq.write_table(pa.Table.from_pylist(queries), path)
    settings = replay_settings | {"input": {"path": str(path)}, "budget": 12 * 48, "scoring": {"scorer": "exact"}}
    monkeypatch.setenv("CLEAR_RAY_TEST_API_KEY", SECRET)

    process = start(write_config(settings, tmp_path))
    out, err = process.communicate(timeout=250)

    assert process.returncode == 4, err
    run_dir, logs = Path(settings["run_dir"]), ray_folder / "ray"
    assert holders(PROMPT, run_dir) == {"queries"}
    assert holders(GOLD, run_dir) == {"queries", "rounds", "completions"}
    for canary in (PROMPT, GOLD, SECRET):
        assert canary not in out + err
        assert holders(canary, logs) == set()
    assert holders(SECRET, run_dir) == set()
    assert "CLEAR_RAY_TEST_API_KEY" in os.environ
