"""The attempts of a round, as numbers: what they were granted and came to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.rounds.attempts import Attempts
from clear_ray.run_folder.parquet import read_columns
from clear_ray.storage import Folder, read_many

_READ_OF_ATTEMPT = [
    "index",
    "attempt",
    "granted_tokens",
    "attempt_tokens",
    "token_ids",
    "finish_reason",
    "correct",
    "error",
    "is_at_end",
]

_KEPT_OF_ATTEMPT = ("index", "attempt", "granted_tokens", "attempt_tokens", "correct")

SLIM_ATTEMPT_SCHEMA = pa.schema(
    [
        *(ATTEMPT_SCHEMA.field(name).with_nullable(True) for name in _KEPT_OF_ATTEMPT),
        pa.field("answer_tokens", pa.int64()),
        pa.field("has_stopped", pa.bool_()),
        pa.field("has_failed", pa.bool_()),
        pa.field("is_at_end", pa.bool_()),
    ]
)
"""What the driver keeps of an attempt: numbers, and whether it ended by itself, failed, or cannot go on."""


def round_folder(folder: Folder, number: int) -> Folder:
    """Return the folder of a round's attempts."""
    return folder.child("rounds").child(f"r{number:02d}")


def read_attempts(folder: Folder, number: int, queries: int, void: VoidAttempts) -> Iterator[Attempts]:
    """Yield a round's whole attempts, some files' at a time, each query once.

    Files torn or damaged are removed.

    Args:
        folder: The run folder.
        number: The round.
        queries: N.
        void: Attempts that do not count.
    """
    attempts, is_seen_N = round_folder(folder, number), np.zeros(queries, bool)
    for tables in read_many(partial(_read_attempt_file, attempts), attempts.files(".parquet")):
        found = void.dropped_from(pa.concat_tables(tables)).combine_chunks()
        index, first_of_index = np.unique(found["index"].to_numpy(), return_index=True)
        is_new = ~is_seen_N[index]
        is_seen_N[index] = True
        yield attempts_of(found.take(pa.array(first_of_index[is_new])))


def _read_attempt_file(attempts: Folder, path: str) -> pa.Table:
    table = read_columns(attempts, path, _READ_OF_ATTEMPT)
    if isinstance(table, Exception):  # the writer died, mostly; its tokens are marked as wasted by the caller
        attempts.filesystem.delete_file(path)
        return SLIM_ATTEMPT_SCHEMA.empty_table()
    return slim_attempts(table)


def slim_attempts(table: pa.Table) -> pa.Table:
    """Return attempts as the driver keeps them, from the columns of `ATTEMPT_SCHEMA`."""
    has_failed = pc.not_equal(table["error"], "").fill_null(False)
    is_cut = pc.equal(table["finish_reason"], "length").fill_null(False)
    is_short = pc.less(table["attempt_tokens"], table["granted_tokens"])
    columns = {
        "answer_tokens": table["token_ids"].combine_chunks().value_lengths(),
        "has_stopped": pc.and_not(pc.equal(table["finish_reason"], "stop").fill_null(False), has_failed),
        "has_failed": has_failed,
        "is_at_end": pc.and_(is_cut, is_short),
    }
    if "is_at_end" in table.column_names:  # older runs lack it
        columns["is_at_end"] = pc.or_(columns["is_at_end"], table["is_at_end"].fill_null(False))
        table = table.drop_columns(["is_at_end"])
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.select(SLIM_ATTEMPT_SCHEMA.names).cast(SLIM_ATTEMPT_SCHEMA)


def attempts_of(table: pa.Table) -> Attempts:
    """Return a table of `SLIM_ATTEMPT_SCHEMA` as the law of a run takes it."""

    def column(name: str, kind: type[Any]) -> NDArray[Any]:
        return np.asarray(table[name].to_numpy(zero_copy_only=False), kind)

    return Attempts(
        index_M=column("index", np.int64),
        granted_tokens_M=column("granted_tokens", np.int64),
        attempt_tokens_M=column("attempt_tokens", np.int64),
        answer_tokens_M=column("answer_tokens", np.int64),
        has_stopped_M=column("has_stopped", np.bool_),
        has_failed_M=column("has_failed", np.bool_),
        is_at_end_M=column("is_at_end", np.bool_),
        correct_M=column("correct", np.float64),
    )
