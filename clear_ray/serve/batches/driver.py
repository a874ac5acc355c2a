"""The driver of one batch: `batch.run` on the server's engines, in an actor of its own; its end is in the store.

The actor has no owner, so it outlives the replica that started it: a batch goes on while its server's parts are
replaced. What it needs is in the store and in the run folder, and one that is started anew goes on where the last one was
killed. A driver whose server is gone for good ends itself.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from functools import partial
from typing import Any

import ray
import ray.actor

from clear_ray.batch.run import run_on
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError, ConfigError, SchemaError, told
from clear_ray.ingest.openai_output import ERRORS_FILE, OUTPUT_FILE
from clear_ray.report.summary import ProgressSnapshot, RunReport
from clear_ray.run_folder.orders import read_orders
from clear_ray.serve.batches.bodies import defect, failure
from clear_ray.serve.batches.places import Places
from clear_ray.serve.batches.served_engines import served
from clear_ray.serve.batches.settings import DEFAULT_SECONDS, BatchSettings
from clear_ray.serve.batches.store import Store, StoredBatch, StoredFile
from clear_ray.serve.batches.upload import expiry_of
from clear_ray.serve.batches.usage import usage_of
from clear_ray.serve.batches.validation import refusals
from clear_ray.storage import Folder, inside, open_folder

RUNNING = frozenset({"in_progress", "finalizing", "cancelling"})
"""States of a batch that has a driver."""
_LEASE_SECONDS, _LOOK_SECONDS, _TELL_SECONDS = 60.0, 5.0, 1.0
_MOST_FAILURES = 5
_BLOCK_BYTES = 1 << 20


class BatchDriver:
    """Runs one batch, from its creation on, and ends its process.

    Args:
        settings: Where everything is.
        batch_id: The batch.
        engines: Serve's handles of the replicas of each engine, by the names that queries ask for.
    """

    def __init__(self, settings: BatchSettings, batch_id: str, engines: dict[str, Any]) -> None:
        self._places = Places(settings)
        self._store = Store(self._places.folder)
        self._batch_id, self._engines = batch_id, engines
        for work in (self._drive, self._watch_server):
            threading.Thread(target=work, daemon=True, name=f"clear_ray {work.__name__}").start()

    def _drive(self) -> None:
        try:
            batch = self._store.batch(self._batch_id)
            if batch is not None and batch.status in RUNNING:
                self._run(batch)
        except Exception as failed:
            self._note_failure(failed)
        finally:
            ray.get_runtime_context().current_actor.leave.remote()  # nothing waits for this actor

    def leave(self) -> None:
        """End this actor, and with it what it started."""
        exit_actor: Any = ray.actor.exit_actor
        exit_actor()

    def _run(self, batch: StoredBatch) -> None:
        config = RunConfig.parse(batch.work["config"], where=batch.id)
        weight = float(batch.work.get("weight", 1.0))
        handles = self._handles(config, str(batch.body["model"]))
        engines = served(handles, batch=batch.id, weight=weight)
        result = run_on(engines, None, config, display=StoreDisplay(self._store, batch))
        finish(self._store, batch, config, result.report)

    def _handles(self, config: RunConfig, model: str) -> list[tuple[str, Any]]:
        """Return the handles of a run's engines.

        Raises:
            ConfigError: The server was started again without one of them.
        """
        if config.engines is None and len(self._engines) == 1:  # whatever it is called by now
            return list(self._engines.items())
        names = [model] if config.engines is None else list(config.engines)
        if gone := sorted(set(names) - set(self._engines)):
            remedy = "Name it in `engines` again and restart the server, or make another batch."
            raise ConfigError(f"this server has no model {gone[0]} any more", "engines", gone[0], remedy)
        return [(name, self._engines[name]) for name in names]

    def _note_failure(self, failed: Exception) -> None:
        batch = self._store.batch(self._batch_id)
        if batch is None:
            return
        said = str(failed) if isinstance(failed, ClearRayError) else told(failed)
        said = said.replace(f"{self._places.folder}/", "")
        failures = int(batch.work.get("failures", 0)) + 1
        work = {"failures": failures, "failed_at": time.time(), "said": said}
        if isinstance(failed, SchemaError | ConfigError):
            self._store.change(batch.id, within=RUNNING, work=work, **failure(*refusals(said)))
        elif failures >= _MOST_FAILURES:
            self._store.change(batch.id, within=RUNNING, work=work, **defect(said))
        else:  # a full disk, a cluster without room: it is tried again
            self._store.change(batch.id, within=RUNNING, work=work)

    def _watch_server(self) -> None:
        while time.time() - self._store.alive_at() < _LEASE_SECONDS:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)


class StoreDisplay:
    """Notes in the store how a batch is getting on.

    Args:
        store: The store.
        batch: The batch.
    """

    def __init__(self, store: Store, batch: StoredBatch) -> None:
        self._store, self._batch = store, batch
        self._told_at, self._stage = 0.0, ""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Note a snapshot, one a second and every change of stage."""
        now = time.monotonic()
        if snapshot.stage == self._stage and now - self._told_at < _TELL_SECONDS:
            return
        self._stage, self._told_at = snapshot.stage, now
        before = self._batch.body["request_counts"]  # of a driver that was killed: what had ended has ended
        ended = min(max(snapshot.ended, before["completed"]), before["total"])
        counts = {"total": before["total"], "completed": ended, "failed": 0}
        names = ("stage", "round", "budget_tokens", "spent_tokens", "reserved_tokens", "shadow_price")
        live = {name: getattr(snapshot, name) for name in names} | {"unit": snapshot.unit}
        self._store.change(self._batch.id, within=RUNNING, request_counts=counts, clear_ray=live)
        if snapshot.stage == "write":
            self._store.change(self._batch.id, within=("in_progress",), status="finalizing")

    def close(self) -> None:
        """Nothing is open."""


def finish(store: Store, batch: StoredBatch, config: RunConfig, report: RunReport) -> None:
    """Note the files that a run wrote, and that its batch has ended; done twice, it changes nothing."""
    folder = open_folder(config.run_dir)
    stop = read_orders(folder, config.budget_tokens).stop
    status = {"batch_cancelled": "cancelled", "batch_expired": "expired"}.get(stop, "completed")
    files = {
        name: _file(store, batch, folder, config.run_dir, content)
        for name, content in (("output_file_id", OUTPUT_FILE), ("error_file_id", ERRORS_FILE))
    }
    answered, failed = (_lines_in(folder, name) for name in (OUTPUT_FILE, ERRORS_FILE))
    counts = {"total": answered + failed, "completed": answered, "failed": failed}
    names = ("budget_tokens", "spent_tokens", "wasted_tokens", "shadow_price", "abandoned", "failed")
    account = {name: getattr(report, name) for name in names} | {"stage": "done", "unit": config.unit}
    usage = usage_of(folder)
    changes: dict[str, Any] = {"request_counts": counts, "usage": usage, "clear_ray": account, **files}
    # One that was cancelled when it was done already is a cancelled one all the same.
    if store.change(batch.id, within=RUNNING - {"cancelling"}, status=status, **changes) is None:
        store.change(batch.id, within=("cancelling",), status="cancelled", **changes)


def _file(store: Store, batch: StoredBatch, folder: Folder, run_dir: str, name: str) -> str | None:
    """Note a file that a run wrote and return its id; None for an empty one."""
    length = folder.filesystem.get_file_info(f"{folder.path}/{name}").size or 0
    if not length:
        return None
    file_id = f"file-{hashlib.sha256(f'{batch.id}/{name}'.encode()).hexdigest()[:32]}"
    now = int(time.time())
    expires_at = expiry_of(batch.asked, now, default_seconds=DEFAULT_SECONDS, name="output_expires_after")
    filename = f"{batch.id}_{name}"
    place = inside(run_dir, name)
    store.add_file(StoredFile(file_id, batch.owner, filename, length, "batch_output", now, expires_at, place))
    return file_id


def _lines_in(folder: Folder, name: str) -> int:
    """Return how many requests a file that a run wrote answers; one that asks for several answers is one all the same."""
    with folder.filesystem.open_input_stream(f"{folder.path}/{name}") as stream:
        return sum(block.count(b"\n") for block in iter(partial(stream.read, _BLOCK_BYTES), b""))
