"""The attempts of a round, as numbers: what they were granted and came to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.errors import ResumeError
from clear_ray.ledger.void import VoidAttempts
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.ballots import NO_VOTE
from clear_ray.run_folder.parquet import read_columns
from clear_ray.stages.attempt_files import (
    READ_OF_ATTEMPT,
    SLIM_ATTEMPT_SCHEMA,
    name_in_rounds,
    round_folder,
    slim_attempts,
)
from clear_ray.storage import Folder, read_many


def read_attempts(folder: Folder, number: int, queries: int, void: VoidAttempts) -> Iterator[Attempts]:
    """Yield `read_attempt_rows` as the law of a run takes them."""
    return map(attempts_of, read_attempt_rows(folder, number, queries, void))


def read_attempt_rows(folder: Folder, number: int, queries: int, void: VoidAttempts) -> Iterator[pa.Table]:
    """Yield a round's whole attempts in `SLIM_ATTEMPT_SCHEMA`, some files' at a time, each query once.

    Files torn or damaged are removed.

    Args:
        folder: The run folder.
        number: The round.
        queries: Number of queries, N.
        void: Attempts that do not count.
    """
    attempts, is_seen_N = round_folder(folder, number), np.zeros(queries, bool)
    paths, read = attempts.files(".parquet"), partial(_read_attempt_file, attempts)
    for tables in read_many(read, paths, is_local=attempts.is_local):
        found = void.dropped_from(pa.concat_tables(tables)).combine_chunks()
        index, first_of_index = np.unique(found["index"].to_numpy(), return_index=True)
        is_new = ~is_seen_N[index]
        is_seen_N[index] = True
        yield found.take(pa.array(first_of_index[is_new]))


def _read_attempt_file(attempts: Folder, path: str) -> pa.Table:
    table = read_columns(attempts, path, list(READ_OF_ATTEMPT))
    if isinstance(table, Exception):  # the writer died, mostly; its tokens are marked as wasted by the caller
        attempts.filesystem.delete_file(path)
        return SLIM_ATTEMPT_SCHEMA.empty_table()
    if "answer_tokens" not in table.column_names:
        raise ResumeError(
            "the run was begun by an older version, which wrote answers in another way",
            path,
            remedy="Finish it with that version, or name a new run_dir.",
        )
    return slim_attempts(table, name_in_rounds(path))


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
        vote_M=table["vote"].fill_null(NO_VOTE).to_numpy(),
    )
