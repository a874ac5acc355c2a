"""What a server knows of its batches: on disk, moved by one of several processes, and never from where it may not be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clear_ray.serve.batches.bodies import asked_for, new_body
from clear_ray.serve.batches.store import Store, StoredBatch, StoredFile

ASKED = asked_for({"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"})


def made(store: Store, owner: str = "", key: str | None = None) -> StoredBatch:
    return store.add_batch(owner, ASKED, new_body(ASKED), idempotency_key=key)


def file(name: str, **changes: object) -> StoredFile:
    fields = {
        "owner": "",
        "filename": "f",
        "bytes": 1,
        "purpose": "batch",
        "created_at": 1,
        "expires_at": None,
        "path": "p",
    }
    return StoredFile(name, **fields | changes)  # type: ignore[arg-type]


def test_a_batch_is_moved_only_from_where_it_may_be(tmp_path: Path) -> None:
    store = Store(tmp_path)
    batch = made(store)
    changed = store.change(batch.id, within=("validating",), status="in_progress", work={"weight": 2.0})
    assert changed is not None
    assert (changed.status, changed.body["status"], changed.work) == ("in_progress", "in_progress", {"weight": 2.0})
    assert changed.body["in_progress_at"] >= batch.body["created_at"]
    assert store.change(batch.id, within=("validating",), status="failed") is None
    assert store.change("batch_none", within=("validating",), status="failed") is None
    assert Store(tmp_path).batch(batch.id) == changed


def test_of_many_that_would_end_a_batch_one_does(tmp_path: Path) -> None:
    stores = [Store(tmp_path) for _ in range(4)]
    batch = made(stores[0])
    with ThreadPoolExecutor(4) as threads:
        ends = threads.map(
            lambda k: stores[k % 4].change(batch.id, within=("validating",), status="failed", n=k), range(16)
        )
    (winner,) = [end for end in ends if end is not None]
    assert stores[1].batch(batch.id) == winner
    assert [notice.batch for notice in stores[2].due_notices()] == [batch.id]


def test_owners_see_nothing_of_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    batch = made(store, "a", key="k")
    store.add_file(file("file-1", owner="a"))
    assert (store.batch(batch.id, "a"), store.batch(batch.id, "b")) == (batch, None)
    assert (
        store.batches("b", after=None, limit=9)
        == store.files("b", after=None, limit=9, is_ascending=True, purpose=None)
        == []
    )
    assert store.file("file-1", "b") is None
    assert store.number("files", "file-1", "b") is None
    assert made(store, "b", key="k").id != batch.id
    assert made(store, "a", key="k").id == batch.id


def test_an_expired_file_is_gone_for_clients_and_told_to_the_sweep(tmp_path: Path) -> None:
    store = Store(tmp_path)
    now = int(time.time())
    for name, expires_at in (("old", now - 1), ("new", now + 60), ("kept", None)):
        store.add_file(file(name, expires_at=expires_at))
    assert store.file("old") is None
    assert [each.id for each in store.files("", after=None, limit=9, is_ascending=True, purpose=None)] == [
        "new",
        "kept",
    ]
    assert [each.id for each in store.expired_files()] == ["old"]


def test_pages_meet(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = [made(store).id for _ in range(25)]
    seen: list[str] = []
    after = None
    while page := store.batches("", after=after, limit=4):
        seen += [batch.id for batch in page]
        after = store.number("batches", page[-1].id, "")
    assert seen == ids[::-1]


WRITER = """
import json, sys
from pathlib import Path
from clear_ray.serve.batches.store import Store
from tests.unit.serve.batches.test_store import made
store = Store(Path(sys.argv[1]))
while True:
    batch = made(store)
    store.change(batch.id, within=("validating",), status="in_progress")
    print(json.dumps(batch.id), flush=True)
"""


def test_what_a_killed_process_was_told_is_on_disk(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [json.loads(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        told += [json.loads(line) for line in writer.stdout if line.endswith("\n")]
    store = Store(tmp_path)
    assert all(batch is not None and batch.status == "in_progress" for batch in map(store.batch, told))
    made(store)  # nothing is locked
