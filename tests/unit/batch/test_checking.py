"""`validate` says Valid of nothing that a run refuses before, or while, it loads its model: what the files say, it reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from clear_ray.batch.checking import check_run, refuse_closed
from clear_ray.cli import app, guarded
from clear_ray.config.input import ColumnsConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine.smollm2 import embedded_model_folder
from clear_ray.errors import ResumeError
from clear_ray.ingest import InputDigest
from clear_ray.ledger.lock import alone_with
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe, describe_config
from clear_ray.storage import open_folder
from tests.cluster.heads import head_of_another_version

ROWS = [{"query_id": f"q{number}", "prompt": f"What is 1 + {number}?", "gold": "2", "cost": 2} for number in range(3)]


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"run_dir": str(folder / "run"), "input": {"path": str(folder / "q.jsonl")}, "budget": 100} | changes


def validated(settings: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    code = guarded(lambda: app(args=["validate", "--config", str(folder / "run.yaml")]))
    said = capsys.readouterr()
    return code, said.out + said.err


def copy_of_model(folder: Path, *, without: str = "", **changes: Any) -> str:
    """Return a folder with the embedded model's files, linked, and some of its settings changed."""
    copy = folder / "model"
    copy.mkdir()
    for file in embedded_model_folder().iterdir():
        if file.name != without:
            (copy / file.name).symlink_to(file)
    if changes:
        content = json.loads((copy / "config.json").read_text())
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps(content | changes))
    return str(copy)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"budget": 1}, 2, "a token of the cheapest query takes 2 tokens"),
        ({"budget": 2}, 0, "Valid"),
        ({"budget": "$0.000001", "prices": {"input": 1, "output": 10}}, 2, "takes $"),
        (
            {"budget": "$0.00004", "prices": {"input": 1, "output": 10}},
            0,
            "pay for no call: the shortest prompt is about",
        ),
    ],
)
def test_a_budget_that_pays_for_no_call_is_refused_or_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: int, says: str
) -> None:
    found, said = validated(settings(tmp_path, **changes), tmp_path, capsys)
    assert found == code, said
    assert says in said


def test_a_run_that_can_be_started_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = validated(settings(tmp_path, estimate={"head": "demo"}), tmp_path, capsys)
    assert (code, said.partition(", sha256 ")[0]) == (0, "Valid: 3 queries, budget 100 tokens")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allocation": {"minimum_service_tokens": 20}}, "minimum service of 3 queries takes 120"),
        ({"estimate": {"head": "no/such"}}, "no/such"),
        ({"estimate": {"layers": 31}}, "the model has 30 layers"),
        ({"estimate": {"head": "demo", "layers": 4}}, "the head was fitted on 8 layers"),
        ({"engine": {"kind": "vllm"}, "estimate": {"layers": 4}}, "vLLM runs all layers"),
        ({"engine": {"fingerprint": "0" * 64}}, "not the one that was pinned"),
        ({"engine": {"model": "/no/such"}}, "no such model folder"),
        ({"engine": {"max_context_tokens": 100_000}}, "context is"),
        (
            {"engine": {"answer_reserve_tokens": 2, "closing_text": "So, all in all, the answer is"}},
            "closing text takes",
        ),
        ({"engine": {"device": "nonsense"}}, "no such device"),
        ({"engine": {"device": "mps"}}, "no such device"),
        ({"engine": {"kind": "replay", "rollouts": "no.parquet", "features": "no.parquet"}}, "no.parquet"),
        ({"scoring": {"scorer": "no.such:scorer"}}, "no.such"),
    ],
    ids=str,
)
def test_what_its_engine_head_or_budget_would_refuse_is_not(
    tmp_path: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = validated(settings(tmp_path, **changes), tmp_path, capsys)
    assert code in (1, 2), said
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("without", "changes", "words"),
    [
        ("model.safetensors", {}, "safetensors"),
        ("config.json", {}, "no config.json"),
        ("", {"model_type": "no_such_architecture"}, "cannot be loaded"),
        ("", {"auto_map": {"AutoModel": "modeling.Own"}}, "Python code of its own"),
        ("", {"num_hidden_layers": "many"}, "cannot be loaded"),
    ],
    ids=["no weights", "no config", "unknown architecture", "own code", "damaged config"],
)
def test_a_model_folder_that_cannot_be_loaded_is_not(
    tmp_path: Path, without: str, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_of_model(tmp_path, without=without, **changes)
    code, said = validated(settings(tmp_path, engine={"model": model}), tmp_path, capsys)
    assert code in (1, 2), said
    assert words in said
    assert said.count("\n") == 1


def test_a_head_for_another_model_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy_of_model(tmp_path, rope_theta=1.0)
    code, said = validated(settings(tmp_path, engine={"model": model}, estimate={"head": "demo"}), tmp_path, capsys)
    assert code == 2, said
    assert "the head was fitted for" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"budget": 101}, "config.budget was 100"), ({}, "input.sha256 was"), ({"seed": 7}, "config.seed was 0")],
    ids=["budget", "input", "seed"],
)
def test_a_folder_of_another_run_is_not(
    tmp_path: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.parse(settings(tmp_path))
    (tmp_path / "run").mkdir()
    manifest = describe(config, InputDigest(3, "0" * 64, 1, None, 1))
    (tmp_path / "run" / MANIFEST).write_text(json.dumps(manifest))
    code, said = validated(settings(tmp_path, **changes), tmp_path, capsys)
    assert code == 2, said
    assert words in said
    assert (tmp_path / "run" / MANIFEST).read_text() == json.dumps(manifest)


def told_around(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, str]:
    """Return what `validate` says of a run that needs no model: what is around it is asked last but for the engine."""
    return validated(settings(folder, **changes), folder, capsys)


@contextmanager
def silence() -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (nullcontext("127.0.0.1:1"), "nothing answers there"),
        (nullcontext("ray://127.0.0.1:1"), "nothing answers there"),
        (nullcontext("no.such.host.invalid:6379"), "nothing answers there"),
        (nullcontext("nonsense"), "a Ray address reads host:port"),
        (nullcontext("127.0.0.1:port"), "a Ray address reads host:port"),
        (head_of_another_version(), "Install ray==1.13.0 here"),
        (silence(), "no Ray head, or hangs"),
    ],
    ids=["refused", "client", "no host", "no address", "no port", "version", "silence"],
)
def test_a_cluster_that_cannot_be_had_is_not(
    tmp_path: Path,
    address: AbstractContextManager[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("clear_ray.cluster.connection._ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a test before this one may have left its cluster joined
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with address as named:
        monkeypatch.setenv("RAY_ADDRESS", named)
        code, said = told_around(tmp_path, capsys)
    assert code == 1, said
    assert words in said
    assert said.count("\n") == 1


def test_more_gpus_than_this_machine_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, said = told_around(tmp_path, capsys, engine={"num_gpus": 64, "workers": 2})
    assert code == 2
    assert "the cluster has no place for 2 engines of 64 GPU each" in said


def test_a_folder_that_another_run_writes_to_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_with(open_folder(str(tmp_path / "run"))):
        code, said = told_around(tmp_path, capsys)
    assert code == 2
    assert "another run is writing to this run folder" in said
    assert told_around(tmp_path, capsys)[0] == 0


def test_a_folder_that_is_closed_to_this_user_is_not(tmp_path: Path) -> None:
    """In a process of another user, for root may write anywhere."""
    (tmp_path / "closed").mkdir(mode=0o555)
    code = (
        "import sys; from clear_ray.batch.checking import refuse_closed; from clear_ray.storage import open_folder\n"
        "import os; os.getuid() or os.setuid(65534)\n"
        "try: refuse_closed(open_folder(sys.argv[1]))\n"
        "except PermissionError as error: print(error.filename)"
    )
    for folder in (*tmp_path.parents[:3], tmp_path):
        folder.chmod(folder.stat().st_mode | 0o755)
    place = tmp_path / "closed" / "run" / "deeper"
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'closed'}\n"


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_run_folder_in_the_copy_that_ray_makes_for_a_job_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_in = tmp_path / "session_latest/runtime_resources/working_dir_files/_ray_pkg_0a1b2c"
    stands_in.mkdir(parents=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tmp_path) | {"run_dir": "runs/mine"}))
    monkeypatch.chdir(stands_in)
    code = guarded(lambda: app(args=[command, "--config", str(tmp_path / "run.yaml")]))
    said = capsys.readouterr().err
    assert (code, "run_dir: this folder lies in the copy of a working folder" in said) == (2, True), said
    assert not (stands_in / "runs").exists()


@pytest.mark.parametrize("command", ["validate", "run", "sweep"])
def test_neither_lessons_nor_a_sweep_are_kept_in_the_copy_that_ray_makes_for_a_job(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stands_in = tmp_path / "session_latest/runtime_resources/working_dir_files/_ray_pkg_0a1b2c"
    stands_in.mkdir(parents=True)
    kept = {"run_dir": str(tmp_path / "mine"), "estimate": {"head": "learn", "store": "lessons"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tmp_path) | kept))
    monkeypatch.chdir(stands_in)
    arguments, setting = ["--config", str(tmp_path / "run.yaml")], "estimate.store"
    if command == "sweep":
        arguments, setting = ["--rollouts", "x", "--features", "text", "--output", "swept"], "--output"
    code = guarded(lambda: app(args=[command, *arguments]))
    said = capsys.readouterr().err
    assert (code, f"{setting}: this folder lies in the copy of a working folder" in said) == (2, True), said
    assert not list(stands_in.iterdir())


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "question": "What is 2 + 3?", "answer": "5"},
        {"id": 1, "messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]},
        {"id": 1, "prompt": "What is 2 + 3?", "system": "Be brief.", "answer": "5"},
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "2 + 3 ="}, "gold": "5"},
    ],
)
@pytest.mark.parametrize("named", [{}, {"gold": "gold"}])
def test_settings_that_were_kept_in_a_manifest_read_the_same_queries(
    row: dict[str, Any], named: dict[str, str], tmp_path: Path
) -> None:
    """What a file's columns hold is told by which of them were named, so that has to be kept, too."""
    config = RunConfig.parse(settings(tmp_path) | {"input": {"path": str(tmp_path / "q.jsonl"), "columns": named}})
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    kept = json.loads(json.dumps(describe_config(config)))
    again = RunConfig.parse(kept["config"])
    before, after = check_run(config).digest, check_run(again).digest
    assert (after.sha256, after.notices) == (before.sha256, before.notices)
    assert again.resumed(()).input.columns.model_fields_set == set(named)


def test_a_manifest_that_names_every_column_is_the_same_run(tmp_path: Path) -> None:
    config = RunConfig.parse(settings(tmp_path))
    kept = describe_config(config)
    kept["config"]["input"]["columns"] = config.input.columns.model_dump()
    check_same_run(kept, describe_config(config), open_folder(str(tmp_path)))
    other = config.model_copy(
        update={"input": config.input.model_copy(update={"columns": ColumnsConfig(gold="answer")})}
    )
    with pytest.raises(
        ResumeError, match=r"config\.input\.columns\.gold was 'gold' when the run began and is 'answer' now"
    ):
        check_same_run(kept, describe_config(other), open_folder(str(tmp_path)))


def test_a_disk_that_is_read_only_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    as_mounted = SimpleNamespace(f_flag=found.f_flag | os.ST_RDONLY)
    monkeypatch.setattr("clear_ray.batch.checking.os.statvfs", lambda _: as_mounted)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        refuse_closed(open_folder(str(tmp_path / "not/there")))
    assert caught.value.filename == str(tmp_path)
