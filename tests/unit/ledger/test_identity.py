"""A journal is of one run, whatever folder it is found in; and a path means what it means to the driver."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.ledger.identity import begin, check_journal, has_only_begun, is_own
from clear_ray.ledger.journal import Journal, read_journal
from clear_ray.ledger.market import MarketActor
from clear_ray.run_folder.locations import absolute, absolute_engine, with_absolute_paths
from clear_ray.run_folder.manifest import check_same_run, describe_config, read_manifest
from clear_ray.storage import Folder, open_folder


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    found = open_folder(str(tmp_path / "run") if request.param == "local" else f"memory://identity-{tmp_path.name}")
    yield found
    if found.exists():
        found.filesystem.delete_dir(found.path)


def append(folder: Folder, *records: dict[str, Any]) -> None:
    journal = Journal(folder)
    journal.append(records)
    journal.close()


def test_a_run_is_given_one_identity_at_its_first_start(folder: Folder) -> None:
    run_id = begin(folder, None)
    assert list(read_journal(folder)) == [{"run": run_id}]
    assert begin(folder, None) == run_id, "a start that ended before its manifest is the same run"
    assert begin(folder, {"run_id": run_id}) == run_id
    assert is_own(folder, run_id)
    assert read_manifest(folder) is None, "nothing was charged: what it left is no obstacle"
    append(folder, {"round": 1})
    with pytest.raises(ConfigError, match="holds no run"):
        read_manifest(folder)
    folder.filesystem.delete_dir(folder.path)
    assert not is_own(folder, run_id)
    assert begin(folder, None) != run_id, "a folder that was deleted begins anew"


def test_a_foreign_journal_is_refused_by_name(folder: Folder) -> None:
    mine, other = begin(folder, None), "f" * 32
    for manifest, seen in (({"run_id": other}, f"not that of run {other}"), ({}, "without identity")):
        with pytest.raises(ResumeError, match=f"another run's.*{seen}.*run {mine}.*new run_dir"):
            begin(folder, manifest)


def test_a_journal_that_is_gone_is_not_begun_anew(folder: Folder) -> None:
    with pytest.raises(ResumeError, match=r"journal is gone.*delete the whole run folder"):
        begin(folder, {"run_id": "a" * 32})
    assert not folder.exists(), "looking made nothing"


def test_a_run_from_before_there_were_identities_goes_on(folder: Folder) -> None:
    assert begin(folder, {"format": 1}) == "", "its journal may not have begun"
    append(folder, {"round": 1, "price": 0.0})
    assert begin(folder, {"format": 1}) == ""
    with pytest.raises(ResumeError, match="without identity"):
        check_journal(folder, "a" * 32)


@pytest.mark.parametrize("torn", range(52))
def test_an_identity_torn_at_any_byte_is_no_obstacle(tmp_path: Path, torn: int) -> None:
    folder = open_folder(str(tmp_path))
    begin(folder, None)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:torn])
    assert has_only_begun(folder)
    assert begin(folder, None)
    assert len(list(read_journal(folder))) == 1


async def test_a_market_serves_its_own_run_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_id = begin(open_folder(str(run_dir)), None)
    market = MarketActor(str(run_dir), 100, 2, run_id=run_id)
    assert await market.reserve(1, [(0, 10)]) == [1]
    assert await market.is_in_place()
    shutil.rmtree(run_dir)
    assert not await market.is_in_place()
    with pytest.raises(ResumeError, match="journal is gone"):
        MarketActor(str(run_dir), 100, 2, run_id=run_id)
    assert not run_dir.exists(), "a market that is started again makes no folder that was deleted"
    begun = begin(open_folder(str(run_dir)), None)
    assert not await market.is_in_place()
    with pytest.raises(ResumeError, match="another run's"):
        MarketActor(str(run_dir), 100, 2, run_id=run_id)
    balance = await MarketActor(str(run_dir), 100, 2, run_id=begun).balance()
    assert (balance.spent_tokens, balance.reserved_tokens) == (0, 0), "nothing of the deleted run is charged to it"


def test_paths_are_the_drivers_and_uris_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("runs/a") == str(tmp_path / "runs/a")
    assert absolute("~/q*.jsonl") == "/home/somebody/q*.jsonl"
    for kept in ("/x/y", "s3://bucket/a", "memory://a", "s3:/mistyped", "", "~nosuchuser/a"):
        assert absolute(kept) == kept
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    names = {"models/mine": str(tmp_path / "models/mine"), "owner/model": "owner/model"}
    names |= {"smollm2-135m-instruct": "smollm2-135m-instruct", "nul\0": "nul\0"}
    for given, wanted in names.items():
        settings = {"run_dir": "r", "budget": 5, "engine": {"model": given}, "input": {"path": "in/*.jsonl"}}
        config = with_absolute_paths(RunConfig.parse(settings | {"estimate": {"head": "heads/mine"}}))
        assert config.engine.kind == "transformers"
        assert config.engine.model == wanted
        assert config.input.path == str(tmp_path / "in/*.jsonl")
        assert config.estimate.head == str(tmp_path / "heads/mine")
        assert with_absolute_paths(config) == config
    replay = RunConfig.parse(
        {"run_dir": "r", "budget": 5, "engine": {"kind": "replay", "rollouts": "a", "features": "b"}}
    )
    assert absolute_engine(replay.engine).model_dump()["rollouts"] == str(tmp_path / "a")
    shipped = RunConfig.parse({"run_dir": "r", "budget": 5, "estimate": {"head": "demo"}})
    assert with_absolute_paths(shipped).estimate.head == "demo"


def test_a_project_that_moved_goes_on_and_another_input_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def described(project: str, path: str) -> dict[str, Any]:
        settings = {"run_dir": f"{project}/runs/a", "budget": 5, "input": {"path": f"{project}/{path}"}}
        return describe_config(with_absolute_paths(RunConfig.parse(settings)))

    folder = open_folder(str(tmp_path / "b/runs/a"))
    check_same_run(described("a", "q.jsonl"), described("b", "q.jsonl"), folder)
    with pytest.raises(ResumeError, match=r"config.input.path was"):
        check_same_run(described("a", "q.jsonl"), described("b", "other.jsonl"), folder)
    written_relative = describe_config(
        RunConfig.parse({"run_dir": "b/runs/a", "budget": 5, "input": {"path": "b/q.jsonl"}})
    )
    check_same_run(written_relative, described("b", "q.jsonl"), folder)


def test_settings_that_have_come_since_hold_at_their_defaults(tmp_path: Path) -> None:
    config = RunConfig.parse({"run_dir": str(tmp_path), "budget": 5})
    old = describe_config(config)
    del old["config"]["input"]["on_error"]
    folder = open_folder(str(tmp_path))
    check_same_run(old, describe_config(config), folder)
    changed = config.model_copy(update={"input": config.input.model_copy(update={"on_error": "fail_row"})})
    with pytest.raises(ResumeError, match=r"config.input.on_error was 'refuse'.*is 'fail_row' now"):
        check_same_run(old, describe_config(changed), folder)


@pytest.mark.parametrize("run_id", ["", "x", "g" * 32, 7, "a" * 31])
def test_a_manifest_with_a_damaged_identity_is_named(tmp_path: Path, run_id: Any) -> None:
    content = {"config": {}, "input": {"rows": 2}, "budget_tokens": 100, "run_id": run_id}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    if run_id == "":
        assert read_manifest(open_folder(str(tmp_path))) == content
        return
    with pytest.raises(ResumeError, match=r"manifest\.json.*damaged"):
        read_manifest(open_folder(str(tmp_path)))


def test_a_scorer_is_found_from_the_drivers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clear_ray.batch.intake import load_scorer_of

    (tmp_path / "driver").mkdir()
    (tmp_path / "raylet").mkdir()
    (tmp_path / "driver/scoring_of_mine.py").write_text("def score(text, gold, metadata):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path / "driver")
    settings = {"run_dir": "r", "budget": 5, "scoring": {"scorer": "scoring_of_mine:score"}}
    make = load_scorer_of(RunConfig.parse(settings))
    assert make is not None
    monkeypatch.chdir(tmp_path / "raylet")
    assert make()("a", None, None) == 1.0
    assert os.getcwd() == str(tmp_path / "raylet")
