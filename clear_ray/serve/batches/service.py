"""What the routes of files and batches do, between HTTP and the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from clear_ray.errors import ClearRayError, ConfigError
from clear_ray.run_folder.export import export
from clear_ray.run_folder.orders import order_budget, unit_in
from clear_ray.serve.batches.bodies import CANCELLABLE, asked_for, new_body
from clear_ray.serve.batches.places import Places, delete_content, read_content
from clear_ray.serve.batches.runs import asked_settings, check_names, weight_of
from clear_ray.serve.batches.settings import DEFAULT_SECONDS, BatchSettings
from clear_ray.serve.batches.store import ENDED, Store, StoredBatch, StoredFile, new_id
from clear_ray.serve.batches.upload import expiry_of, receive
from clear_ray.serve.errors import ApiError
from clear_ray.storage import open_folder

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_MOST_FILES, _MOST_BATCHES, _BATCHES = 10_000, 100, 20
_KEY_CHARACTERS = 255


class BatchService:
    """Files and batches of one server.

    Args:
        settings: Where they are, and how large they may be.
        runs: What a run may have of the server's own, see `ServeConfig.run_of`; the settings of one have to fit one of them.
    """

    def __init__(self, settings: BatchSettings, runs: Sequence[Mapping[str, Any]]) -> None:
        self._settings, self._runs, self._places = settings, runs, Places(settings)
        self._store = Store(self._places.folder)

    async def upload(self, owner: str, body: AsyncIterator[bytes], content_type: str) -> dict[str, Any]:
        """Take a file in.

        Raises:
            ApiError: 400 or 413; nothing is kept.
        """
        file_id, now = new_id("file-"), int(time.time())
        target = self._places.upload(file_id)
        try:
            fields, filename, length = await receive(
                body, content_type, target, most_bytes=self._settings.max_file_bytes
            )
            if filename is None:
                raise ApiError(400, "The form has no part `file`.", param="file", code="missing_required_parameter")
            if (purpose := fields.get("purpose")) not in PURPOSES:
                code = "missing_required_parameter" if purpose is None else "invalid_value"
                raise ApiError(400, f"The purpose is one of {', '.join(PURPOSES)}.", param="purpose", code=code)
            default = DEFAULT_SECONDS if purpose == "batch" else None
            expires_at = expiry_of(fields, now, default_seconds=default)
            file = StoredFile(file_id, owner, filename, length, purpose, now, expires_at, str(target))
            await asyncio.to_thread(self._store.add_file, file)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return file.body

    async def list_files(self, owner: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of files."""
        limit, order = _whole(query, "limit", _MOST_FILES, _MOST_FILES), query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise ApiError(400, "The order is asc or desc.", param="order", code="invalid_value")
        after = await self._after("files", query, owner)
        purpose = query.get("purpose") or None
        found = await asyncio.to_thread(
            self._store.files, owner, after=after, limit=limit + 1, is_ascending=order == "asc", purpose=purpose
        )
        return _page([file.body for file in found], limit)

    async def file(self, owner: str, file_id: str) -> StoredFile:
        """Return a file.

        Raises:
            ApiError: 404.
        """
        found = await asyncio.to_thread(self._store.file, file_id, owner)
        if found is None:
            raise ApiError(404, "There is no such file.", param="id", code="file_not_found")
        return found

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Return the content of a file, in pieces.

        Raises:
            ApiError: 404: it is gone from its disk.
        """
        try:
            stream = await asyncio.to_thread(read_content, file.path)
        except (OSError, ClearRayError) as error:
            raise ApiError(404, "The content of the file is gone.", param="id", code="file_not_found") from error
        return stream

    async def delete_file(self, owner: str, file_id: str) -> dict[str, Any]:
        """Forget a file, and remove its content; a batch that was made from it goes on."""
        file = await self.file(owner, file_id)
        await asyncio.to_thread(self._store.drop_file, file.id)
        await asyncio.to_thread(delete_content, file.path)
        return {"id": file.id, "object": "file", "deleted": True}

    async def create(self, owner: str, given: Any, idempotency_key: str | None) -> dict[str, Any]:
        """Make a batch; the same idempotency key gives the same batch.

        Raises:
            ApiError: 400; 409 for a key that another request was made with.
        """
        if not isinstance(given, dict):
            raise ApiError(400, "The body is a JSON object.")
        asked = asked_for(given)
        check_names(asked["metadata"] or {})
        self._check(asked["metadata"] or {})
        weight_of(asked["metadata"] or {})
        keys = [key for key in (idempotency_key, given.get("idempotency_key")) if key is not None]
        if not all(isinstance(key, str) and 0 < len(key) <= _KEY_CHARACTERS for key in keys):
            message = "An idempotency key is a string of 1 to 255 characters."
            raise ApiError(400, message, param="idempotency_key", code="invalid_value")
        key = next(iter(keys), None)
        made = await asyncio.to_thread(self._store.add_batch, owner, asked, new_body(asked), idempotency_key=key)
        await self._keep_input(made)
        if made.asked != asked:
            message = "This idempotency key was used with other parameters."
            raise ApiError(409, message, param="idempotency_key", code="idempotency_conflict")
        return made.body

    def _check(self, metadata: Mapping[str, str]) -> None:
        """Refuse what no run would take; of which engines it is, its requests say.

        Raises:
            ApiError: 400, as the last of them words it.
        """
        refused: list[ApiError] = []
        for own in self._runs:
            try:
                asked_settings(self._settings, metadata, own=own)
            except ApiError as error:
                refused.append(error)
        if len(refused) == len(self._runs):
            raise refused[-1]

    async def _keep_input(self, made: StoredBatch) -> None:
        """Have a new batch keep its input from now on, if it is there: the file may be deleted before it was looked at."""
        if made.status != "validating":
            return
        file = await asyncio.to_thread(self._store.file, made.asked["input_file_id"], made.owner)
        if file is not None and file.purpose == "batch":
            with suppress(OSError):  # the dispatcher tries again, and tells
                await asyncio.to_thread(self._places.keep_input, made.id, file.path)

    async def batch(self, owner: str, batch_id: str) -> StoredBatch:
        """Return a batch.

        Raises:
            ApiError: 404.
        """
        found = await asyncio.to_thread(self._store.batch, batch_id, owner)
        if found is None:
            raise ApiError(404, "There is no such batch.", param="id", code="batch_not_found")
        return found

    async def list_batches(self, owner: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of batches, the newest first."""
        limit = _whole(query, "limit", _MOST_BATCHES, _BATCHES)
        after = await self._after("batches", query, owner)
        found = await asyncio.to_thread(self._store.batches, owner, after=after, limit=limit + 1)
        return _page([batch.body for batch in found], limit)

    async def cancel(self, owner: str, batch_id: str) -> dict[str, Any]:
        """Have a batch end; what was answered is kept.

        Raises:
            ApiError: 409 for one that has ended, or is about to.
        """
        await self.batch(owner, batch_id)
        changed = await asyncio.to_thread(self._store.change, batch_id, within=CANCELLABLE, status="cancelling")
        if changed is not None:
            return changed.body
        batch = await self.batch(owner, batch_id)
        if batch.status in ("cancelling", "cancelled"):
            return batch.body
        raise ApiError(409, f"The batch is {batch.status}; it cannot be cancelled.", code="batch_not_cancellable")

    async def change_budget(self, owner: str, batch_id: str, given: Any) -> dict[str, Any]:
        """Raise or cut the budget of a batch that is running; it is on disk when this returns.

        Raises:
            ApiError: 400 for a budget that cannot be read; 409 for a batch that does not run.
        """
        batch = await self.batch(owner, batch_id)
        budget = _amount(given.get("budget")) if isinstance(given, dict) else None
        if not isinstance(budget, str):
            raise ApiError(400, "Give the budget as text, such as `+200k`, `-50k` or `2M tokens`.", param="budget")
        if batch.status != "in_progress":
            raise ApiError(409, f"The batch is {batch.status}; its budget cannot be changed.", code="batch_not_running")
        folder = open_folder(self._places.run_dir(batch_id))
        try:
            ordered = await asyncio.to_thread(order_budget, folder, budget)
        except ClearRayError as error:
            raise _refusal(error) from error
        unit = await asyncio.to_thread(unit_in, folder)
        return {"id": batch_id, "object": "batch.budget", "budget_tokens": ordered, "unit": unit}

    async def retry(self, owner: str, batch_id: str, given: Any) -> dict[str, Any]:
        """Make a batch of what another one left: of the requests that failed, or of all without an answer.

        Raises:
            ApiError: 400 for what cannot be read; 409 for a batch that has not ended, or never ran.
        """
        batch = await self.batch(owner, batch_id)
        if not isinstance(given, dict) or given.keys() - {"budget", "unanswered"}:
            raise ApiError(400, "The body is an object; it may have `budget` and `unanswered`.")
        budget, is_unanswered = _amount(given.get("budget")), given.get("unanswered", False)
        if not isinstance(is_unanswered, bool) or not isinstance(budget, str | None):
            raise ApiError(400, "The budget is a text, and unanswered true or false.")
        if batch.status not in ENDED or not batch.work:
            raise ApiError(409, f"The batch is {batch.status}; it left nothing.", code="batch_not_ended")
        asked = batch.asked | {"retry_of": batch.id, "budget": budget, "is_unanswered": is_unanswered}
        try:  # what can be told now is told now
            await asyncio.to_thread(self._places.retry_config, asked, "retried")
        except ClearRayError as error:
            raise _refusal(error) from error
        made = await asyncio.to_thread(self._store.add_batch, owner, asked, new_body(asked), idempotency_key=None)
        return made.body

    async def export(self, owner: str, batch_id: str, query: Mapping[str, str]) -> tuple[AsyncIterator[bytes], str]:
        """Return all rows of a batch that has ended, answers and others, in the order of its input, and the format.

        Raises:
            ApiError: 400 for another format; 409 for a batch that has not ended, or never ran.
        """
        batch, kind = await self.batch(owner, batch_id), query.get("format", "jsonl")
        if kind not in ("jsonl", "csv", "parquet"):
            raise ApiError(400, "The format is jsonl, csv or parquet.", param="format", code="invalid_value")
        target = self._places.input(batch_id).with_name(f"export-{uuid4().hex}.{kind}")
        try:
            await asyncio.to_thread(export, open_folder(self._places.run_dir(batch_id)), target)
        except (ClearRayError, OSError) as error:
            raise ApiError(409, f"The batch is {batch.status}; it has no rows.", code="batch_not_ended") from error
        stream = await asyncio.to_thread(read_content, str(target))
        target.unlink()  # what is open stays
        return stream, kind

    async def _after(self, table: Any, query: Mapping[str, str], owner: str) -> int | None:
        name = query.get("after")
        if not name:
            return None
        number = await asyncio.to_thread(self._store.number, table, name, owner)
        if number is None:
            raise ApiError(404, "There is no such id to go on after.", param="after", code="invalid_after")
        return number


def _amount(given: Any) -> Any:
    """Return an amount as text; a whole number above 0 is one of tokens, anything else stays as it is."""
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    return str(given) if type(given) is int and given > 0 else given


def _refusal(error: ClearRayError) -> ApiError:
    """Return what a client is told of a budget that is refused: without places on this machine."""
    value = f" (got {error.value})" if error.value else ""
    return ApiError(400 if isinstance(error, ConfigError) else 409, f"{error.what}{value}.", param="budget")


def _whole(query: Mapping[str, str], name: str, most: int, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    number = int(text[:12]) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= most:
        is_number = text.removeprefix("-").isdigit()
        code = ("integer_above_max_value" if number else "integer_below_min_value") if is_number else "invalid_type"
        raise ApiError(400, f"{name} lies between 1 and {most}.", param=name, code=code)
    return number


def _page(bodies: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    data = bodies[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(bodies) > limit,
    }
