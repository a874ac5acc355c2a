"""What a server knows of its files and batches: one SQLite file, which several processes read and write at once.

Every change is on disk before its call returns. A batch moves from state to state by `change`, which tells from which
states it may: of two processes that would end a batch, one does.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, filename TEXT NOT NULL,
    bytes INTEGER NOT NULL, purpose TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, path TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS dropped (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, dropped_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
    idempotency_key TEXT, asked TEXT NOT NULL, body TEXT NOT NULL, work TEXT NOT NULL DEFAULT '{}',
    UNIQUE (owner, idempotency_key)
);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status);
CREATE INDEX IF NOT EXISTS batches_by_owner ON batches (owner, number);
CREATE TABLE IF NOT EXISTS notices (
    batch TEXT PRIMARY KEY, status TEXT NOT NULL, ended_at INTEGER NOT NULL, tries INTEGER NOT NULL, due_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS server (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""
_WAIT_SECONDS, _PLACE_SECONDS = 30.0, 86_400.0
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""States in which nothing more happens to a batch."""
Table = Literal["files", "batches"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file and where its content is.

    Attributes:
        id: Its name in the API.
        owner: Digest of the key that it belongs to; empty without keys.
        filename: As its client named it.
        bytes: Its length.
        purpose: As its client gave it; `batch_output` of what a batch wrote.
        created_at: Unix seconds.
        expires_at: Unix seconds; None if it is kept.
        path: Place of its content, a path or URI.
    """

    id: str
    owner: str
    filename: str
    bytes: int
    purpose: str
    created_at: int
    expires_at: int | None
    path: str

    @property
    def body(self) -> dict[str, Any]:
        """The file as OpenAI's clients know it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": self.expires_at,
            "status_details": None,
        }


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch.

    Attributes:
        id: Its name in the API.
        owner: Digest of the key that it belongs to.
        status: Its state.
        asked: What its client asked for, by which a repeated request is known.
        body: The batch as OpenAI's clients know it.
        work: What its run needs to know.
    """

    id: str
    owner: str
    status: str
    asked: dict[str, Any]
    body: dict[str, Any]
    work: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Notice:
    """The end of a batch, of which the webhook has not been told yet.

    Attributes:
        batch: The batch.
        status: State in which it ended.
        ended_at: Unix seconds.
        tries: How often it was tried to tell.
    """

    batch: str
    status: str
    ended_at: int
    tries: int


class Store:
    """The files and batches of one server.

    Args:
        folder: Where the store's file is; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            folder / "store.sqlite3", timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._database.close()

    def add_file(self, file: StoredFile) -> None:
        """Note a file whose content is on disk; told again, it changes nothing."""
        values = (
            file.id,
            file.owner,
            file.filename,
            file.bytes,
            file.purpose,
            file.created_at,
            file.expires_at,
            file.path,
        )
        with self._writing() as database:
            database.execute(
                "INSERT OR IGNORE INTO files (id, owner, filename, bytes, purpose, created_at, expires_at, path) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def file(self, file_id: str, owner: str | None = None) -> StoredFile | None:
        """Return a file; None if there is none, it has expired, or it belongs to another owner."""
        rows = self._rows(
            "SELECT * FROM files WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)", file_id, time.time()
        )
        found = _file(rows[0]) if rows else None
        return found if found is not None and owner in (None, found.owner) else None

    def drop_file(self, file_id: str) -> None:
        """Forget a file; its place is known for a day, for a client that deletes what it lists and goes on after it."""
        now = time.time()
        with self._writing() as database:
            database.execute("DELETE FROM dropped WHERE dropped_at < ?", (now - _PLACE_SECONDS,))
            question = "INSERT OR IGNORE INTO dropped SELECT number, id, owner, ? FROM files WHERE id = ?"
            database.execute(question, (now, file_id))
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))

    def expired_files(self) -> list[StoredFile]:
        """Return the files whose time is over."""
        return [_file(row) for row in self._rows("SELECT * FROM files WHERE expires_at <= ?", time.time())]

    def files(
        self, owner: str, *, after: int | None, limit: int, is_ascending: bool, purpose: str | None
    ) -> list[StoredFile]:
        """Return a page of files by their age; `after` is the number of the last one before it."""
        order, sign = ("ASC", ">") if is_ascending else ("DESC", "<")
        where, values = "owner = ? AND (expires_at IS NULL OR expires_at > ?)", [owner, time.time()]
        if after is not None:
            where, values = f"{where} AND number {sign} ?", [*values, after]
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        rows = self._rows(f"SELECT * FROM files WHERE {where} ORDER BY number {order} LIMIT ?", *values, limit)  # noqa: S608
        return [_file(row) for row in rows]

    def number(self, table: Table, name: str, owner: str) -> int | None:
        """Return the place of a file or batch in the order in which they came; None if this owner had none of that name."""
        question = f"SELECT number FROM {table} WHERE id = ? AND owner = ?"  # noqa: S608
        rows = self._rows(question, name, owner)
        if not rows and table == "files":
            rows = self._rows("SELECT number FROM dropped WHERE id = ? AND owner = ?", name, owner)
        return int(rows[0]["number"]) if rows else None

    def add_batch(
        self, owner: str, asked: Mapping[str, Any], body: Mapping[str, Any], *, idempotency_key: str | None
    ) -> StoredBatch:
        """Note a new batch, or return the one that this owner made before under the same idempotency key."""
        new = StoredBatch(body["id"], owner, body["status"], dict(asked), dict(body), {})
        with self._writing() as database:
            if idempotency_key is not None:
                question = "SELECT * FROM batches WHERE owner = ? AND idempotency_key = ?"
                found = database.execute(question, (owner, idempotency_key)).fetchone()
                if found is not None:
                    return _batch(found)
            database.execute(
                "INSERT INTO batches (id, owner, status, idempotency_key, asked, body) VALUES (?, ?, ?, ?, ?, ?)",
                (new.id, owner, new.status, idempotency_key, json.dumps(new.asked), json.dumps(new.body)),
            )
        return new

    def batch(self, batch_id: str, owner: str | None = None) -> StoredBatch | None:
        """Return a batch; None if there is none, or it belongs to another owner."""
        rows = self._rows("SELECT * FROM batches WHERE id = ?", batch_id)
        found = _batch(rows[0]) if rows else None
        return found if found is not None and owner in (None, found.owner) else None

    def batches(self, owner: str, *, after: int | None, limit: int) -> list[StoredBatch]:
        """Return a page of batches, the newest first."""
        last = 1 << 62 if after is None else after
        question = "SELECT * FROM batches WHERE owner = ? AND number < ? ORDER BY number DESC LIMIT ?"
        return [_batch(row) for row in self._rows(question, owner, last, limit)]

    def batches_in(self, statuses: Collection[str]) -> list[StoredBatch]:
        """Return all batches in some states, the oldest first."""
        marks = ", ".join("?" * len(statuses))
        question = f"SELECT * FROM batches WHERE status IN ({marks}) ORDER BY number"  # noqa: S608
        return [_batch(row) for row in self._rows(question, *statuses)]

    def change(
        self, batch_id: str, *, within: Collection[str], work: Mapping[str, Any] | None = None, **changes: Any
    ) -> StoredBatch | None:
        """Change fields of a batch's body, `status` among them; the time at which it enters a state is noted too.

        Args:
            batch_id: The batch.
            within: States in which it may be; in another one nothing is changed.
            work: New values of what its run needs to know.
            changes: New values.

        Returns:
            The batch as it is now; None if nothing was changed.
        """
        with self._writing() as database:
            row = database.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
            if row is None or row["status"] not in within:
                return None
            body = json.loads(row["body"]) | changes
            now, status = int(time.time()), body["status"]
            if status != row["status"]:
                body[f"{status}_at"] = now
                if status in ENDED:
                    database.execute(
                        "INSERT OR IGNORE INTO notices VALUES (?, ?, ?, 0, ?)", (batch_id, status, now, now)
                    )
            worked = json.dumps(json.loads(row["work"]) | dict(work or {}))
            database.execute(
                "UPDATE batches SET status = ?, body = ?, work = ? WHERE id = ?",
                (status, json.dumps(body), worked, batch_id),
            )
            return StoredBatch(batch_id, row["owner"], status, json.loads(row["asked"]), body, json.loads(worked))

    def due_notices(self) -> list[Notice]:
        """Return the ends of batches that the webhook is to be told of now."""
        rows = self._rows("SELECT * FROM notices WHERE due_at <= ? ORDER BY due_at LIMIT 100", time.time())
        return [Notice(row["batch"], row["status"], row["ended_at"], row["tries"]) for row in rows]

    def put_off(self, notice: Notice, seconds: float) -> None:
        """Note that a notice did not arrive, and is to be tried again."""
        with self._writing() as database:
            due_at = time.time() + seconds
            database.execute("UPDATE notices SET tries = tries + 1, due_at = ? WHERE batch = ?", (due_at, notice.batch))

    def drop_notice(self, notice: Notice) -> None:
        """Forget a notice."""
        with self._writing() as database:
            database.execute("DELETE FROM notices WHERE batch = ?", (notice.batch,))

    def note_alive(self) -> None:
        """Note that the server's dispatcher lives now."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO server VALUES ('alive_at', ?)", (time.time(),))

    def alive_at(self) -> float:
        """Return when the server's dispatcher last said that it lives, Unix seconds; 0 if it never did."""
        rows = self._rows("SELECT value FROM server WHERE name = 'alive_at'")
        return float(rows[0]["value"]) if rows else 0.0

    def _rows(self, question: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(question, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the store alone; what is changed is on disk when the block has ended, all of it or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def new_id(prefix: str) -> str:
    """Return a name that nothing else has."""
    return f"{prefix}{uuid4().hex}"


def _file(row: sqlite3.Row) -> StoredFile:
    names = ("id", "owner", "filename", "bytes", "purpose", "created_at", "expires_at", "path")
    return StoredFile(*(row[name] for name in names))


def _batch(row: sqlite3.Row) -> StoredBatch:
    asked, body, work = (json.loads(row[name]) for name in ("asked", "body", "work"))
    return StoredBatch(row["id"], row["owner"], row["status"], asked, body, work)
