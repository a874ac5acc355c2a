"""Where the content of files and batches is.

FOLDER/store.sqlite3            what is known of them
FOLDER/files/ID                 what was uploaded
FOLDER/batches/ID/input.jsonl   the input of a batch: deleting the file takes nothing from a batch made of it
RUNS/ID/                        its run folder; `RUNS` is FOLDER/runs unless the settings say otherwise

and all of it outlives the server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clear_ray.batch.retrying import retry_config
from clear_ray.config.run import RunConfig
from clear_ray.run_folder.locations import absolute
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.storage import inside, open_location, sync_path

_PIECE_BYTES = 1024 * 1024


def absolute_batches(settings: BatchSettings | None) -> BatchSettings | None:
    """Return the settings with absolute paths: replicas stand in another folder than the command that starts them."""
    if settings is None:
        return None
    runs = absolute(settings.runs) if settings.runs else None
    return settings.model_copy(update={"folder": absolute(settings.folder), "runs": runs})


class Places:
    """Places of one server.

    Args:
        settings: Which folders.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.folder = Path(absolute(settings.folder))
        self._runs = absolute(settings.runs) if settings.runs else str(self.folder / "runs")
        for name in ("files", "batches"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def upload(self, file_id: str) -> Path:
        """Return where an uploaded file is."""
        return self.folder / "files" / file_id

    def input(self, batch_id: str) -> Path:
        """Return where the input of a batch is."""
        return self.folder / "batches" / batch_id / "input.jsonl"

    def run_dir(self, batch_id: str) -> str:
        """Return the run folder of a batch."""
        return inside(self._runs, batch_id)

    def retry_config(self, asked: Mapping[str, Any], batch_id: str) -> RunConfig:
        """Return the settings of a batch that asks again what another one left.

        Raises:
            ConfigError: Nothing is left of the other's budget and none is given, or it cannot be read.
            ResumeError: The other one is not done.
        """
        before, into = self.run_dir(asked["retry_of"]), self.run_dir(batch_id)
        return retry_config(before, into, budget=asked["budget"], is_unanswered=asked["is_unanswered"])

    def keep_input(self, batch_id: str, source: str) -> Path:
        """Have a batch keep its input, whatever becomes of the file; return where."""
        target = self.input(batch_id)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name("input.partial")
            partial.unlink(missing_ok=True)
            try:
                os.link(source, partial)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, partial)
                sync_path(partial)
            os.replace(partial, target)
            sync_path(target.parent)
        return target


def read_content(path: str) -> AsyncIterator[bytes]:
    """Return a file's content in pieces; it is opened before this returns."""
    filesystem, inner, _ = open_location(path)
    return _pieces(filesystem.open_input_stream(inner, compression=None))


async def _pieces(stream: Any) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(stream.read, _PIECE_BYTES):
            yield bytes(piece)
    finally:
        stream.close()


def delete_content(path: str) -> None:
    """Remove a file's content, if it is there."""
    filesystem, inner, _ = open_location(path)
    with suppress(OSError):
        filesystem.delete_file(inner)
