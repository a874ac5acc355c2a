"""A damaged run folder is refused in words, not by the library that failed to read it."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.intake import take_in
from clear_ray.batch.plan import plan
from clear_ray.batch.run import run
from clear_ray.calibrate import _refuse_other_features, calibrate
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError, StorageError
from clear_ray.ledger.journal import read_journal, wait_until_unused
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.rounds.clearing import nothing_to_grant
from clear_ray.rounds.running import Round
from clear_ray.run_folder.attempts import read_attempts
from clear_ray.run_folder.estimates import estimated_already, read_estimates
from clear_ray.run_folder.grants import read_grants, write_grants
from clear_ray.run_folder.manifest import MANIFEST, SUMMARY, describe, read_manifest
from clear_ray.run_folder.status import read_progress, read_summary
from clear_ray.stages.attempt_files import round_folder
from clear_ray.stages.gate import Gate
from clear_ray.storage import Folder, open_folder
from tests.unit.simulation import query_row

_NOBODY = 65_534


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"{}", b'{"config": {}, "input": {}}', b"\xff\xfe", b"[" * 100_000]
)
@pytest.mark.parametrize(("name", "read"), [(MANIFEST, read_manifest), (SUMMARY, read_summary)])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, read: Callable[[Folder], Any], content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResumeError, match=f"{name}.*damaged.*new run_dir"):
        read(open_folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"config": []}, "config is no group"),
        ({"config": "x"}, "config is no group"),
        ({"input": []}, "list indices"),
        ({"input": {"rows": "x"}}, r"input\.rows is 'x'"),
        ({"input": {"rows": -1}}, r"input\.rows is -1"),
        ({"input": {"rows": 0}}, r"input\.rows is 0"),
        ({"input": {"rows": 2.0}}, r"input\.rows is 2\.0"),
        ({"input": {"rows": True}}, r"input\.rows is True"),
        ({"input": {"rows": 10**13}}, r"input\.rows is 10000000000000"),
        ({"budget_tokens": "x"}, "budget_tokens is 'x'"),
        ({"budget_tokens": -1}, "budget_tokens is -1"),
        ({"budget_tokens": 10**400}, "budget_tokens is 1000"),
    ],
    ids=str,
)
def test_a_manifest_of_other_values_is_damaged(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    whole = {"config": {}, "input": {"rows": 2}, "budget_tokens": 100}
    folder = open_folder(str(tmp_path))
    folder.write(MANIFEST, json.dumps(whole).encode())
    assert read_manifest(folder) == whole
    folder.write(MANIFEST, json.dumps(whole | damage).encode())
    for read in (read_manifest, read_progress):
        with pytest.raises(ResumeError, match=f"{MANIFEST}: the file is damaged.*{said}.*new run_dir"):
            read(folder)


def test_a_manifest_of_more_queries_than_there_are_is_damaged(replay_settings: dict[str, Any]) -> None:
    folder, _ = a_run_of(replay_settings)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert read_progress(folder)["queries"] == manifest["input"]["rows"]
    manifest["input"]["rows"] += 2_000_000_000
    folder.write(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(ResumeError, match=f"{MANIFEST}: the file is damaged"):
        read_progress(folder)


def test_a_new_folder_has_neither(tmp_path: Path) -> None:
    assert read_manifest(open_folder(str(tmp_path))) is None
    assert read_summary(open_folder(str(tmp_path))) is None


def test_what_a_run_leaves_that_ended_before_its_manifest_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("queries", "queries.partial"):
        (tmp_path / name).mkdir()
        for file in ("part-000000.parquet", "part-000001.parquet.partial", "_input.json", "_input.json.partial"):
            (tmp_path / name / file).write_bytes(b"rows")
    (tmp_path / "manifest.json.partial").write_bytes(b"{")
    (tmp_path / "journal.jsonl").touch()
    folder = open_folder(str(tmp_path))
    Gate(folder).close()
    assert read_manifest(folder) is None
    (tmp_path / "journal.jsonl").write_bytes(b"00000000 {}\n")
    with pytest.raises(ConfigError, match=r"holds no run.*journal\.jsonl"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["queries/day0.jsonl", "queries/part-0.parquet", "queries-old/part-000000.parquet"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_no_run_writes_is_somebody_elses(tmp_path: Path, name: str, place: str) -> None:
    folder = open_folder(str(tmp_path / "run") if place == "local" else f"memory://strangers-{tmp_path.name}")
    home, _, file = name.rpartition("/")
    folder.child(home).write(file, b"the only copy")
    with pytest.raises(ConfigError, match=f"holds no run.*{name}"):
        read_manifest(folder)
    for other in ("queries.txt", "notes.partial"):
        folder.child(home).filesystem.delete_file(folder.files()[0])
        folder.write(other, b"the only copy")
        with pytest.raises(ConfigError, match=f"holds no run.*{other}"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        *product(("local", "file", "memory"), ("", "/queries", "/queries/part-000000.jsonl", "/queries/*.jsonl")),
        ("local", "/../run/*/*"),
        ("local", "/../link"),
    ],
)
def test_an_input_in_the_run_folder_is_refused_and_left_alone(
    replay_settings: dict[str, Any], tmp_path: Path, place: str, path: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run" / "queries")
    home = {"local": f"{tmp_path}/run", "file": f"file://{tmp_path}/run", "memory": f"memory://in-{tmp_path.name}/run"}
    folder = open_folder(home[place])
    folder.child("queries").write("part-000000.jsonl", b'{"query_id": "a", "prompt": "the only copy"}')
    settings = replay_settings | {"run_dir": home[place], "input": {"path": home[place] + path}, "scoring": {}}
    with pytest.raises(ConfigError, match="the input lies in the run folder") as refused:
        take_in(None, RunConfig.parse(settings), folder)
    assert refused.value.where == "input.path"
    assert b"the only copy" in folder.child("queries").read("part-000000.jsonl")


def test_a_folder_of_inputs_may_hold_the_run_folder(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"query_id": "a", "prompt": "1 + 1"}\n')
    for path in (tmp_path, tmp_path / "**"):
        folder, before = a_run_of(replay_settings | {"input": {"path": str(path)}, "scoring": {}})
        config = RunConfig.parse(replay_settings | {"input": {"path": str(path)}, "scoring": {}})
        assert take_in(None, config, folder, read_manifest(folder)).rows == 1, "what it took in is no input"
        assert contents(folder) == before


def test_a_calibration_replaces_no_features_but_its_own(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    folder = open_folder(replay_settings["run_dir"])
    folder.child("features").write(f"0355AouY_{'3e' * 16}_000000-0.parquet", b"of a killed calibration")
    config = RunConfig.parse(replay_settings)
    _refuse_other_features(config, folder)
    folder.child("features").write("mine.parquet", b"the only copy")
    with pytest.raises(ConfigError, match=r"mine\.parquet: a calibration would replace this file"):
        calibrate(config, head_dir=f"{tmp_path}/head")
    folder.write("features.json", b"{}")
    _refuse_other_features(config, folder)  # whole, and only read


def test_attempts_are_read_once_a_query_and_torn_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(str(tmp_path))
    assert list(read_attempts(folder, 1, 4, VoidAttempts())) == []
    target = round_folder(folder, 1)
    target.make()
    for name, indices in (("a", [3, 1]), ("b", [2, 3])):
        rows = [attempt(index, error="x" if index == 2 else "") for index in indices]
        pq.write_table(pa.Table.from_pylist(rows, schema=ATTEMPT_SCHEMA), f"{target.path}/{name}.parquet")
    whole = Path(target.path, "a.parquet").read_bytes()
    Path(target.path, "torn.parquet").write_bytes(whole[:-20])
    (found,) = read_attempts(folder, 1, 4, VoidAttempts())
    assert found.index_M.tolist() == [1, 2, 3]
    assert found.answer_tokens_M.tolist() == [1, 2, 3]
    assert found.has_failed_M.tolist() == [False, True, False]
    assert found.has_stopped_M.tolist() == [True, False, True]
    assert np.isnan(found.correct_M).all()
    assert sorted(path.name for path in Path(target.path).iterdir()) == ["a.parquet", "b.parquet"]
    monkeypatch.setattr("clear_ray.storage._READ_AT_ONCE", 1)  # a query that stands in two files, read apart
    assert [some.index_M.tolist() for some in read_attempts(folder, 1, 4, VoidAttempts())] == [[1, 3], [2]]


def test_answers_of_an_older_version_are_named_and_kept(tmp_path: Path) -> None:
    target = round_folder(open_folder(str(tmp_path)), 1)
    target.make()
    rows = pa.Table.from_pylist([attempt(0, error="")], schema=ATTEMPT_SCHEMA)
    pq.write_table(rows.drop_columns(["answer_tokens"]), f"{target.path}/a.parquet")
    with pytest.raises(ResumeError, match=r"r01/a\.parquet.*older version.*Finish it with that version"):
        list(read_attempts(open_folder(str(tmp_path)), 1, 1, VoidAttempts()))
    assert Path(target.path, "a.parquet").exists()


def test_estimates_of_a_killed_run_count_once_and_only_where_they_are_whole(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    assert estimated_already(folder, 3)[1] == []
    for name, indices in (("a/0", [0, 1]), ("b/0", [3]), ("b/1", [1, 2])):
        path = tmp_path / "estimates" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"index": pa.array(indices, pa.int64())}), path)
    torn = tmp_path / "estimates" / "a" / "1.parquet"
    torn.write_bytes(path.read_bytes()[:-9])
    is_estimated_N, kept = estimated_already(folder, 5)
    assert is_estimated_N.tolist() == [True, True, False, True, False]
    assert kept == [str(tmp_path / "estimates" / f"{name}.parquet") for name in ("a/0", "b/0")]
    assert folder.child("estimates").files() == kept


def zero_pages(path: Path) -> None:
    """Leave a file with its beginning and its footer, and nothing between: a disk gives such back after a loss of power."""
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + bytes(start - 4) + content[start:])


def test_a_file_of_zeroed_pages_is_torn(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for name, indices in (("a", [0, 1]), ("b", [2])):
        path = tmp_path / "estimates" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"index": pa.array(indices, pa.int64())}), path)
        target = tmp_path / "rounds" / "r01" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([attempt(i, error="") for i in indices], schema=ATTEMPT_SCHEMA), target)
        if name == "b":
            zero_pages(path)
            zero_pages(target)
    assert estimated_already(folder, 3)[0].tolist() == [True, True, False]
    (found,) = read_attempts(folder, 1, 3, VoidAttempts())
    assert found.index_M.tolist() == [0, 1]
    assert [Path(path).name for path in folder.files()] == ["a.parquet", "a.parquet"]


class Away(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store that lists what it has, and gives none of it."""

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 9, "type": "directory" if path.endswith("estimates") else "file"}

    def find(self, path: str, **_: Any) -> dict[str, Any]:
        return {f"{path}/a.parquet": self.info(f"{path}/a.parquet")}

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        raise OSError("the store does not answer")

    def rm_file(self, path: str) -> None:
        raise AssertionError(f"{path} is whole")


def test_a_store_that_does_not_answer_loses_nothing() -> None:
    folder = Folder(pafs.PyFileSystem(pafs.FSSpecHandler(Away())), "bucket/run", is_local=False)
    with pytest.raises(OSError, match="does not answer"):
        estimated_already(folder, 1)


@pytest.mark.parametrize("damage", ["junk", "zeros", "no facts", "no column"])
def test_damaged_grants_are_named(tmp_path: Path, damage: str) -> None:
    folder, path = open_folder(str(tmp_path)), tmp_path / "grants" / "r01.parquet"
    some_M = np.arange(2)
    granted = replace(nothing_to_grant(2), index_M=some_M, tokens_M=some_M, expected_tokens_M=some_M / 2)
    write_grants(folder, Round(1, 100, replace(granted, expected_utility_M=some_M / 4)))
    assert read_grants(folder, 1) is not None
    table = pq.read_table(path)
    if damage == "junk":
        path.write_bytes(b"x" * 100)
    elif damage == "zeros":
        zero_pages(path)
    elif damage == "no facts":
        pq.write_table(table.replace_schema_metadata(None), path)
    else:
        pq.write_table(table.drop_columns(["tokens"]), path)
    with pytest.raises(ResumeError, match=r"grants/r01\.parquet: the file is damaged.*new run_dir"):
        read_grants(folder, 1)


def test_damaged_queries_and_estimates_are_named(replay_settings: dict[str, Any]) -> None:
    folder, _ = a_run_of(replay_settings)
    path = Path(folder.path, "queries", "part-000000.parquet")
    folder.child("estimates").write("a.parquet", path.read_bytes())
    zero_pages(path)
    zero_pages(Path(folder.path, "estimates", "a.parquet"))
    with pytest.raises(ResumeError, match=r"queries/part-000000\.parquet: the file is damaged"):
        read_progress(folder)
    with pytest.raises(ResumeError, match=r"estimates: the file is damaged"):
        read_estimates(folder, np.arange(3), 0)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that an ordinary user may enter, who this process then is: the superuser is refused nothing."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        place = Path(name, "run")
        place.mkdir()
        os.chown(place, _NOBODY if os.geteuid() == 0 else -1, -1)
        user = os.geteuid()
        os.seteuid(_NOBODY if user == 0 else user)
        try:
            yield place
        finally:
            os.seteuid(user)
            place.chmod(0o755)


@pytest.mark.parametrize(
    ("closed", "use"),
    [
        ("", read_manifest),
        ("", read_summary),
        ("", read_progress),
        ("", wait_until_unused),
        ("", lambda folder: list(read_journal(folder))),
        (MANIFEST, read_manifest),
        (MANIFEST, read_progress),
        (SUMMARY, read_summary),
        ("journal.jsonl", read_progress),
        ("journal.jsonl", wait_until_unused),
        ("journal.jsonl", lambda folder: list(read_journal(folder))),
        ("queries", read_progress),
    ],
)
def test_what_this_user_may_not_read_is_told_in_a_line(
    shared_folder: Path, closed: str, use: Callable[[Folder], Any]
) -> None:
    folder = open_folder(str(shared_folder))
    folder.write(MANIFEST, json.dumps({"config": {}, "input": {"rows": 2}, "budget_tokens": 100}).encode())
    folder.write(SUMMARY, b"{}")
    folder.write("journal.jsonl", b"")
    folder.child("queries").make()
    (shared_folder / closed).chmod(0)
    with pytest.raises(StorageError, match=r"Permission denied.*Make sure.*may read and write") as refused:
        use(folder)
    assert refused.value.where.startswith(folder.path)
    (shared_folder / closed).chmod(0o755)


@pytest.mark.parametrize("mode", [0, 0o444, 0o555])
def test_a_run_in_a_folder_closed_to_this_user_is_told_in_a_line(
    replay_settings: dict[str, Any], shared_folder: Path, mode: int
) -> None:
    (shared_folder / "queries.partial").mkdir()
    shared_folder.chmod(mode)
    settings = replay_settings | {"run_dir": str(shared_folder), "input": {"path": "/dev/null"}, "scoring": {}}
    config = RunConfig.parse(settings)
    only_write = partial(take_in, folder=open_folder(config.run_dir))
    with pytest.raises(StorageError, match=r"Permission denied.*(can be reached|the same command again|Check space)"):
        (only_write if mode == 0o555 else run)(None, config)


def test_a_disk_that_is_full_before_a_plan_is_told_in_a_line(
    replay_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clear_ray.batch.startup.joining_cluster", full)
    monkeypatch.setattr("clear_ray.calibrate.joined_cluster", full)
    config = RunConfig.parse(replay_settings)
    for use in (lambda: plan(None, config), lambda: calibrate(config, head_dir="/nowhere")):
        with pytest.raises(StorageError, match=r"No space left.*run the same command again"):
            use()


def attempt(index: int, *, error: str) -> dict[str, Any]:
    ended = {
        "round": 1,
        "attempt": 1,
        "granted_tokens": 9,
        "attempt_tokens": index,
        "finish_reason": "stop",
        "text": "x",
    }
    tokens = list(range(index))
    return (
        query_row(index)
        | ended
        | {"token_ids": tokens, "answer_tokens": index, "correct": None, "error": error, "seconds": 0.0}
    )


def a_run_of(settings: dict[str, Any]) -> tuple[Folder, dict[str, bytes]]:
    """Leave a run folder that has taken its input in, and return it with what it holds."""
    folder, config = open_folder(settings["run_dir"]), RunConfig.parse(settings)
    digest = take_in(None, config, folder)
    folder.write(MANIFEST, json.dumps(describe(config, digest)).encode())
    return folder, contents(folder)


def contents(folder: Folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder.path).rglob("*") if path.is_file()}


def test_a_changed_input_is_refused_before_anything_is_touched(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query_id": "a", "prompt": "1 + 1"}\n')
    settings = replay_settings | {"input": {"path": str(path)}, "scoring": {}}
    folder, before = a_run_of(settings)
    path.write_text('{"query_id": "a", "prompt": "1 + 2"}\n')
    with pytest.raises(ResumeError, match=r"input\.sha256 was"):
        take_in(None, RunConfig.parse(settings), folder, read_manifest(folder))
    assert contents(folder) == before


def test_a_changed_configuration_is_refused_before_anything_is_read(replay_settings: dict[str, Any]) -> None:
    folder, before = a_run_of(replay_settings)
    with pytest.raises(ResumeError, match=r"config\.seed was 0 when the run began and is 7 now"):
        run(None, RunConfig.parse(replay_settings | {"seed": 7}))
    assert contents(folder) == before


def test_a_run_writes_nothing_through_a_link(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "queries").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds a link"):
        run(None, RunConfig.parse(replay_settings))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["queries"]
