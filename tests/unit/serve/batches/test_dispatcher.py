"""Batches are moved on by the store alone: whatever is killed, the next dispatcher goes on from what it finds there."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.run import RunConfig
from clear_ray.run_folder.manifest import MANIFEST
from clear_ray.run_folder.orders import read_orders
from clear_ray.serve.batches.bodies import asked_for, new_body
from clear_ray.serve.batches.dispatcher import Dispatcher, calls_of
from clear_ray.serve.batches.driver import RUNNING, StoreDisplay, finish
from clear_ray.serve.batches.drivers import Drivers
from clear_ray.serve.batches.places import Places
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.serve.batches.store import Store, StoredBatch, StoredFile
from clear_ray.serve.settings import ServeConfig
from clear_ray.storage import open_folder
from tests.conftest import ROLLOUTS
from tests.unit.report.samples import run_report, snapshot

LINE = {"method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [], "max_tokens": 7}}


class Started(Drivers):
    """Notes which drivers would have been started; a test plays what they do."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.up: set[str] = set()

    def alive(self) -> Collection[str]:
        return set(self.up)

    def start(self, batch_id: str) -> None:
        self.started.append(batch_id)
        self.up.add(batch_id)

    def end(self, batch_id: str) -> None:
        self.up.discard(batch_id)


class Server:
    """A dispatcher that can be killed and started again, over one folder."""

    def __init__(self, folder: Path, **batches: Any) -> None:
        engine = {"kind": "replay", "rollouts": str(ROLLOUTS / "rollouts.parquet")}
        base = {"model_name": "m", "max_tokens": 10, "engine": engine, "batches": {"folder": str(folder), **batches}}
        self.config = ServeConfig.parse(base)
        self.folder, self.drivers = folder, Started()
        self.store = Store(folder)
        self.restart()

    def restart(self) -> None:
        assert self.config.batches is not None
        self.dispatcher = Dispatcher(self.config, self.config.batches, self.drivers)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.dispatcher.step()

    def make(self, rows: int = 3, **asked: Any) -> str:
        path = self.folder / "files" / f"file-{time.time_ns()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps({'custom_id': str(k), **LINE})}\n" for k in range(rows)))
        self.store.add_file(StoredFile(path.name, "", "f", path.stat().st_size, "batch", 1, None, str(path)))
        given = {"input_file_id": path.name, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        whole = asked_for(given | asked)
        return self.store.add_batch("", whole, new_body(whole), idempotency_key=None).id

    def batch(self, batch_id: str) -> StoredBatch:
        found = self.store.batch(batch_id)
        assert found is not None
        return found

    def run_dir(self, batch_id: str) -> Path:
        return self.folder / "runs" / batch_id

    def begin_run(self, batch_id: str, *, has_granted: bool) -> None:
        """Write what a driver's run writes first."""
        manifest = {"config": {}, "input": {"rows": 3}, "budget_tokens": 21}
        open_folder(str(self.run_dir(batch_id))).write(MANIFEST, json.dumps(manifest).encode())
        if has_granted:
            open_folder(str(self.run_dir(batch_id))).child("grants").write("r01.parquet", b"x")

    def finish_run(self, batch_id: str) -> None:
        """Do what a driver does last."""
        folder = open_folder(str(self.run_dir(batch_id)))
        folder.write("output.jsonl", 3 * b"{}\n")
        folder.write("errors.jsonl", b"")
        config = RunConfig.parse(self.batch(batch_id).work["config"])
        finish(self.store, self.batch(batch_id), config, run_report(queries=3, completed=3, abandoned=0, failed=0))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, running=2)


def test_a_batch_runs_with_the_settings_that_it_was_taken_in_with(server: Server) -> None:
    name = server.make(metadata={"policy": "uniform", "weight": "2"})
    server.step()
    batch = server.batch(name)
    assert (batch.status, batch.body["request_counts"]["total"], batch.body["model"]) == ("in_progress", 3, "m")
    config = RunConfig.parse(batch.work["config"])
    assert (config.budget_tokens, config.allocation.policy, config.allocation.max_tokens) == (21, "uniform", 10)
    assert (config.run_dir, config.input.on_error) == (str(server.run_dir(name)), "fail_row")
    assert batch.work["weight"] == 2
    assert server.drivers.started == [name]


def test_a_batch_that_keeps_its_input_needs_no_file(server: Server) -> None:
    name = server.make()
    file = server.store.file(server.batch(name).asked["input_file_id"])
    assert file is not None
    Places(BatchSettings(folder=str(server.folder))).keep_input(name, file.path)
    Path(file.path).unlink()
    server.store.drop_file(file.id)
    server.step()
    assert server.batch(name).status == "in_progress"


def test_so_many_run_at_once_and_the_others_wait_in_their_order(server: Server) -> None:
    names = [server.make() for _ in range(4)]
    server.step(3)
    assert server.drivers.started == names[:2]
    server.drivers.end(names[0])
    server.finish_run(names[0])
    server.step(2)
    assert server.drivers.started == names[:3]


@pytest.mark.parametrize("at", ["validating", "in_progress", "finalizing"])
def test_at_every_state_a_new_dispatcher_goes_on(server: Server, at: str) -> None:
    name = server.make()
    if at != "validating":
        server.step()
    if at == "finalizing":
        server.store.change(name, within=RUNNING, status="finalizing")
    server.drivers.up.clear()  # the machine is lost
    server.restart()
    server.step(2)
    assert server.drivers.up == {name}
    assert server.drivers.started == [name] * (1 if at == "validating" else 2)
    server.finish_run(name)
    server.drivers.end(name)
    body = server.batch(name).body
    server.finish_run(name)  # a driver that was killed after it had said so
    server.step(2)
    assert server.batch(name).body == body
    assert body["status"] == "completed"
    assert body["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert body["error_file_id"] is None
    output = server.store.file(body["output_file_id"])
    assert output is not None
    assert (output.bytes, output.purpose) == (9, "batch_output")
    assert server.drivers.up == set()


def test_a_dispatcher_that_is_replaced_leaves_drivers_alone(server: Server) -> None:
    name = server.make()
    server.step()
    server.restart()
    server.step(3)
    assert server.drivers.started == [name]


ENDS = [(False, "cancelled", "batch_cancelled"), (True, "expired", "batch_expired")]


@pytest.mark.parametrize(("is_expired", "ended", "code"), ENDS)
@pytest.mark.parametrize("at", ["validating", "no run yet", "no grant yet", "granted"])
def test_a_batch_that_is_to_end_ends_from_anywhere(
    server: Server, at: str, is_expired: bool, ended: str, code: str
) -> None:
    name = server.make()
    if at != "validating":
        server.step()
        if at != "no run yet":
            server.begin_run(name, has_granted=at == "granted")
    if is_expired:
        server.store.change(name, within=("validating", *RUNNING), expires_at=int(time.time()) - 5)
        server.step()  # one that was not looked at before is taken in first
    else:
        server.store.change(name, within=("validating", *RUNNING), status="cancelling")
    server.restart()
    server.step()
    if at != "granted":
        assert server.batch(name).status == ended
        assert server.drivers.up == set()
        return
    folder = open_folder(str(server.run_dir(name)))
    assert server.batch(name).status == ("in_progress" if is_expired else "cancelling")
    assert read_orders(folder, 21).stop == code
    assert server.drivers.up == {name}, "it ends by itself, and keeps what was answered"
    server.step(3)
    assert len(folder.child("orders").files()) == 1
    server.finish_run(name)
    assert server.batch(name).status == ended
    assert server.batch(name).body["output_file_id"] is not None


def test_one_that_is_cancelled_when_it_is_done_ends_as_cancelled(server: Server) -> None:
    name = server.make()
    server.step()
    server.begin_run(name, has_granted=True)
    open_folder(str(server.run_dir(name))).write("summary.json", b"{}")
    server.store.change(name, within=RUNNING, status="cancelling")
    server.step()
    server.finish_run(name)
    assert server.batch(name).status == "cancelled"
    assert server.batch(name).body["output_file_id"] is not None


def test_a_driver_that_failed_is_started_again_after_a_pause(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    name = server.make()
    server.step()
    server.drivers.end(name)
    server.store.change(
        name, within=RUNNING, work={"failures": 2, "failed_at": time.time(), "said": "the disk is full"}
    )
    server.step()
    assert server.drivers.started == [name]
    server.store.change(name, within=RUNNING, work={"failed_at": time.time() - 5})
    server.step()
    assert server.drivers.started == [name, name]


def test_settings_that_changed_fail_the_batch_and_not_the_server(tmp_path: Path) -> None:
    rated = Server(tmp_path, run={"budget_rate": "$1 per 1M tokens"})
    name, other = rated.make(metadata={"budget": "$2"}), rated.make()
    server = Server(tmp_path)  # started again without the rate
    server.step()
    assert server.batch(name).status == "failed"
    (told,) = server.batch(name).body["errors"]["data"]
    assert (told["code"], told["param"]) == ("invalid_metadata", "metadata.budget")
    assert server.batch(other).status == "in_progress"


def test_files_that_have_expired_are_swept(server: Server) -> None:
    path = server.folder / "files" / "file-old"
    path.write_text("x")
    server.store.add_file(StoredFile("file-old", "", "f", 1, "batch", 1, 2, str(path)))
    server.step()
    assert not path.exists()
    assert server.store.expired_files() == []


def test_the_store_hears_how_a_run_gets_on(server: Server) -> None:
    name = server.make()
    server.step()
    display = StoreDisplay(server.store, server.batch(name))
    display.update(snapshot(stage="generate", ended=2, spent_tokens=9, budget_tokens=21))
    body = server.batch(name).body
    assert body["request_counts"] == {"total": 3, "completed": 2, "failed": 0}
    assert (body["clear_ray"]["spent_tokens"], body["clear_ray"]["stage"]) == (9, "generate")
    StoreDisplay(server.store, server.batch(name)).update(snapshot(stage="read", ended=0))
    assert server.batch(name).body["request_counts"]["completed"] == 2, (
        "a driver that is started anew knows nothing yet"
    )
    display.update(snapshot(stage="write", ended=3))
    assert server.batch(name).status == "finalizing"
    display.close()


@pytest.mark.parametrize(
    ("max_batch", "tokens_each", "rows"),
    [
        (64, 400.0, 16),
        (64, 64.0, 16),
        (64, 50.0, 26),
        (64, 20.0, 64),
        (64, 0.0, 64),
        (8, 20.0, 8),
        (1, 20.0, 4),
        (512, 9, 64),
    ],
)
def test_the_shorter_answers_are_the_more_travel_in_a_call(max_batch: int, tokens_each: float, rows: int) -> None:
    found = calls_of(max_batch, tokens_each)
    assert found["batch_rows"] == rows
    assert found.get("calls_in_flight", 4) == 4
    assert ("calls_in_flight" in found) == (rows > 32)
