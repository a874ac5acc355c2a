"""Which run a folder is of: a random name made at its first start, in its manifest and in its journal's first record.

A path says where a run is, not which one: a folder can be deleted and made anew, a journal copied, and an actor of a driver
that was killed may live on under the path's name. So whatever charges tokens first makes sure that the journal is its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any
from uuid import uuid4

from clear_ray.errors import ResumeError
from clear_ray.ledger.journal import JOURNAL, Journal, read_journal
from clear_ray.storage import Folder

RUN_ID = re.compile(r"[0-9a-f]{32}")
_CHECKSUM = re.compile(rb"[0-9a-f]{0,8} ?")
_BEGUN, _BODY = b'{"run":"', re.compile(rb'\{"run":"[0-9a-f]{0,32}"?\}?')


def begin(folder: Folder, manifest: Mapping[str, Any] | None) -> str:
    """Return the identity of the run in a folder, after making sure that its journal is its own; a new run is given one.

    Args:
        folder: The run folder.
        manifest: Manifest of the run that is there; None before it has one.

    Returns:
        32 hexadecimal digits; empty for a run that began before runs had identities.

    Raises:
        ResumeError: The journal is another run's, or it is gone.
    """
    seen = _first_record(folder)
    if manifest is not None:
        run_id: str = manifest.get("run_id", "")
        check_journal(folder, run_id)
        return run_id
    if seen is not None and seen.get("run"):  # of a start that ended before its manifest was written
        return str(seen["run"])
    run_id = uuid4().hex
    journal = Journal(folder)
    try:
        journal.append([{"run": run_id}])
    finally:
        journal.close()
    return run_id


def check_journal(folder: Folder, run_id: str) -> None:
    """Make sure that the journal in a folder is the run's own.

    Raises:
        ResumeError: It is another run's, or it is gone.
    """
    seen = _first_record(folder)
    if seen is None and run_id:
        raise ResumeError(
            "the run's journal is gone",
            f"{folder.path}/{JOURNAL if folder.is_local else 'journal'}",
            remedy="Restore it from a copy, or delete the whole run folder to begin anew.",
        )
    if seen is not None and seen.get("run", "") != run_id:
        raise ResumeError(
            f"the journal is another run's, not that of run {run_id or 'without identity'}",
            folder.path,
            f"run {seen.get('run') or 'without identity'}",
            "Restore this run's own journal from a copy, or name a new run_dir.",
        )


def is_own(folder: Folder, run_id: str) -> bool:
    """Whether the folder still holds the journal of a run: not if it was deleted, or another run begun in its place."""
    if not run_id:  # a run without identity cannot be told from others
        return True
    seen = _first_record(folder)
    return seen is not None and seen.get("run") == run_id


def has_only_begun(folder: Folder) -> bool:
    """Whether a journal holds nothing but a run's identity, whole or torn: nothing was charged under it."""
    if folder.is_local and _is_torn(folder.read(JOURNAL)):
        return True
    try:
        records = list(islice(read_journal(folder), 2))
    except ResumeError:
        return False
    return len(records) == 1 and "run" in records[0]


def _is_torn(content: bytes) -> bool:
    """Whether this is the beginning of an identity's record, up to any of its bytes but the last."""
    checksum, body = content[:9], content[9:]
    return bool(_CHECKSUM.fullmatch(checksum)) and (_BEGUN.startswith(body) or bool(_BODY.fullmatch(body)))


def _first_record(folder: Folder) -> dict[str, Any] | None:
    return next(iter(read_journal(folder)), None)
