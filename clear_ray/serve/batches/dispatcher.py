"""Moves batches on: has them validated, started, stopped and forgotten, by what the store says and nothing else.

One replica of the deployment `batches`. It keeps nothing in memory that a start would not find again, so it can be killed at
any moment; what it started goes on meanwhile (`driver`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from clear_ray.batch.retrying import rows_left
from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError, EngineError
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.run_folder.manifest import MANIFEST
from clear_ray.run_folder.orders import Reason, order_stop, read_orders
from clear_ray.serve.batches.bodies import defect, failure
from clear_ray.serve.batches.driver import RUNNING
from clear_ray.serve.batches.drivers import Drivers
from clear_ray.serve.batches.places import Places, delete_content
from clear_ray.serve.batches.runs import asked_settings, weight_of
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.serve.batches.store import Store, StoredBatch
from clear_ray.serve.batches.validation import Looked, error, look_at
from clear_ray.serve.batches.webhook import tell_webhook
from clear_ray.serve.errors import ApiError
from clear_ray.serve.guard import tenant_of
from clear_ray.serve.log import log_event
from clear_ray.serve.settings import ServeConfig
from clear_ray.storage import Folder, open_folder

_LEAST_CALL_ROWS, _USUAL_CALL_ROWS, _MOST_CALL_ROWS, _CALL_TOKENS, _SHORT_CALLS = 4, 16, 64, 256, 4
_LOOK_SECONDS, _ALIVE_SECONDS, _SWEEP_SECONDS, _MOST_PAUSE_SECONDS = 0.25, 5.0, 60.0, 300.0


class BatchReplica:
    """The deployment that moves batches on.

    Args:
        settings: Settings of the server.
        engines: Serve's handles of the replicas of each engine, by the names that queries ask for.
    """

    def __init__(self, settings: dict[str, Any], engines: dict[str, Any]) -> None:
        config = ServeConfig.parse(settings)
        if config.batches is None:
            raise EngineError("this server keeps no batches", "batches")
        self._dispatcher = Dispatcher(config, config.batches, Drivers(config.batches, engines))
        self._failure: Exception | None = None
        self._is_over = threading.Event()
        # Telling is apart: a webhook that hangs must not hold the others up.
        for work in (self._dispatcher.step, self._dispatcher.tell):
            threading.Thread(target=self._keep_going, args=(work,), daemon=True, name="clear_ray batches").start()

    def check_health(self) -> None:
        """Called by Serve; a replica whose thread has ended is replaced.

        Raises:
            EngineError: It has.
        """
        if self._failure is not None:
            raise EngineError("batches are not moved on any more", value=repr(self._failure)) from self._failure

    def __del__(self) -> None:
        self._is_over.set()

    def _keep_going(self, work: Callable[[], None]) -> None:
        try:
            while not self._is_over.wait(_LOOK_SECONDS):
                work()
        except Exception as failed:
            self._failure = failed


class Dispatcher:
    """What is done, step by step.

    Args:
        config: Settings of the server.
        settings: Settings of its batches.
        drivers: Drivers of its batches.
    """

    def __init__(self, config: ServeConfig, settings: BatchSettings, drivers: Drivers) -> None:
        self._config, self._settings, self._drivers = config, settings, drivers
        self._places = Places(settings)
        self._store = Store(self._places.folder)
        self._swept_at = self._alive_at = -math.inf

    def step(self) -> None:
        """Look at every batch that has not ended, once."""
        self._note_alive()
        for batch in self._store.batches_in(["validating"]):
            try:
                self._validate(batch)
            except ApiError as refused:  # by the engines that its requests name, or by settings that were changed
                told = error(refused.code or "invalid_request", refused.message, param=refused.param)
                self._store.change(batch.id, within=("validating",), **failure(told))
            except (ClearRayError, OSError) as refused:  # of settings that were changed, of a disk
                self._store.change(batch.id, within=("validating",), **defect(str(refused)))
            self._note_alive()
        self._move_running()
        if time.monotonic() - self._swept_at > _SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            for file in self._store.expired_files():
                delete_content(file.path)
                self._store.drop_file(file.id)

    def _note_alive(self) -> None:
        """Say that this lives, for drivers; each time costs a write that is waited for."""
        if time.monotonic() - self._alive_at > _ALIVE_SECONDS:
            self._alive_at = time.monotonic()
            self._store.note_alive()

    def tell(self) -> None:
        """Tell the webhook, if there is one, of the batches that have ended."""
        if self._settings.webhook_url is not None:
            tell_webhook(self._store, self._settings.webhook_url, self._settings.webhook_secret)

    def _validate(self, batch: StoredBatch) -> None:
        """Look at the input of a batch, and have it run or fail."""
        if "retry_of" in batch.asked:
            config = self._places.retry_config(batch.asked, batch.id)
            before = self._store.batch(batch.asked["retry_of"])
            model = None if before is None else before.body["model"]
            self._take_in(batch, config, rows_left(config), model or self._config.model_name)
            return
        if not self._places.input(batch.id).exists():
            file = self._store.file(batch.asked["input_file_id"], batch.owner)
            if file is None or file.purpose != "batch":
                message = f"There is no file {batch.asked['input_file_id']}."
                if file is not None:
                    message = f"The purpose of the file is {file.purpose}; that of a batch's input is batch."
                refused = error("invalid_request", message, param="input_file_id")
                self._store.change(batch.id, within=("validating",), **failure(refused))
                return
            self._places.keep_input(batch.id, file.path)
        looked = self._look_at(batch)
        if looked.errors:
            self._store.change(batch.id, within=("validating",), **failure(*looked.errors))
            return
        metadata = batch.asked["metadata"] or {}
        self._take_in(batch, self._run_config(batch.id, metadata, looked), looked.requests, looked.model)

    def _take_in(self, batch: StoredBatch, config: RunConfig, requests: int, model: str) -> None:
        if not requests:
            nothing = error("nothing_to_retry", "The other batch left nothing that could be asked again.")
            self._store.change(batch.id, within=("validating",), **failure(nothing))
            return
        self._store.change(
            batch.id,
            within=("validating",),
            status="in_progress",
            model=model,
            request_counts={"total": requests, "completed": 0, "failed": 0},
            work={"config": config.model_dump(mode="json"), "weight": self._weight_of(batch)},
        )

    def _weight_of(self, batch: StoredBatch) -> float:
        tenant = self._config.tenants.get(tenant_of(batch.owner))
        return weight_of(batch.asked["metadata"] or {}) * (1.0 if tenant is None else tenant.weight)

    def _look_at(self, batch: StoredBatch) -> Looked:
        with self._places.input(batch.id).open("rb") as source:
            return look_at(
                source,
                endpoint=batch.asked["endpoint"],
                models=self._config.models,
                max_tokens=self._config.max_tokens,
                most_requests=self._settings.max_requests,
            )

    def _run_config(self, batch_id: str, metadata: dict[str, str], looked: Looked) -> RunConfig:
        """Return the settings of a batch's run; without a budget it has what its answers come to at most."""
        own = self._config.run_of(looked.model)
        asked = asked_settings(self._settings, metadata, own=own)
        allocation = {"max_tokens": self._config.max_tokens} | asked["allocation"]
        attempts = AllocationConfig.model_validate(allocation).most_attempts
        settings = {"budget": max(looked.most_tokens * attempts, 1)} | asked | own
        settings |= {
            "run_dir": self._places.run_dir(batch_id),
            "input": {"path": str(self._places.input(batch_id)), "format": "openai", "on_error": "fail_row"},
            "allocation": allocation,
        }
        config = with_absolute_paths(RunConfig.parse(settings, where=batch_id))
        tokens_each = min(config.budget_tokens, looked.most_tokens) / max(looked.requests, 1)
        dispatch = calls_of(min(named.config.max_batch for named in config.named_engines), tokens_each)
        return RunConfig.parse(
            config.model_dump(mode="json") | {"dispatch": dispatch | asked.get("dispatch", {})}, where=batch_id
        )

    def _move_running(self) -> None:
        batches = self._store.batches_in(sorted(RUNNING))
        driven = self._drivers.alive() if batches else ()
        alive = sum(batch.id in driven for batch in batches)
        for batch in batches:
            is_over = self._stop_if_due(batch, is_driven=batch.id in driven)
            if is_over or batch.id in driven or alive >= self._settings.running or not _may_start(batch):
                continue
            self._drivers.start(batch.id)
            log_event("batch started", batch=batch.id, requests=batch.body["request_counts"]["total"])
            alive += 1

    def _stop_if_due(self, batch: StoredBatch, *, is_driven: bool) -> bool:
        """Order the end of a batch that was cancelled, or whose time is over; return whether that is all there is to do."""
        reason: Reason
        if batch.status == "cancelling":
            reason, ended = "batch_cancelled", "cancelled"
        elif batch.status == "in_progress" and time.time() > batch.body["expires_at"]:
            reason, ended = "batch_expired", "expired"
        else:
            return False
        folder = open_folder(self._places.run_dir(batch.id))
        with suppress(ClearRayError):  # no run yet, or one that is done
            if not read_orders(folder, 1).stop:
                order_stop(folder, reason)
        if _has_granted(folder):
            return False
        if is_driven:
            self._drivers.end(batch.id)
        if _has_granted(folder):  # meanwhile: what was answered is kept
            return False
        self._store.change(batch.id, within=RUNNING, status=ended)
        return True


def _has_granted(folder: Folder) -> bool:
    return folder.exists(MANIFEST) and bool(folder.child("grants").files(".parquet"))


def calls_of(max_batch: int, tokens_each: float) -> dict[str, int]:
    """Return how many queries travel in one call, and how many calls are open where answers are short.

    A call through Serve costs more than one of a run to its own engines; and it comes back when its longest answer has
    ended, so the more travel together the shorter they are.

    Args:
        max_batch: Queries that an engine runs at once.
        tokens_each: What a query's answer may come to, on average.
    """
    rows = max(_LEAST_CALL_ROWS, min(_USUAL_CALL_ROWS, max_batch // 4))
    many = min(_MOST_CALL_ROWS, max_batch, int((_CALL_TOKENS / max(tokens_each, 1.0)) ** 2))
    return {"batch_rows": many, "calls_in_flight": _SHORT_CALLS} if many > 2 * rows else {"batch_rows": max(rows, many)}


def _may_start(batch: StoredBatch) -> bool:
    """Whether a batch may be started now: after a failure it pauses, longer each time."""
    failures = int(batch.work.get("failures", 0))
    pause = min(2.0**failures, _MOST_PAUSE_SECONDS) if failures else 0.0
    return time.time() >= float(batch.work.get("failed_at", 0.0)) + pause
