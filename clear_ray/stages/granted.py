"""Grants on their way to a caller of stage 2, and the rows that they are of, read where they lie.

The driver decides over arrays of N numbers and sends numbers. A caller looks up the prompts: files of `queries/` hold
consecutive indices, so it knows which file a query is in, and it is told which file of `rounds/` has an answer so far.
So a round with seven grants reads a few files, whatever the size of the batch.

Shapes: M queries of one call.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.errors import ResumeError
from clear_ray.records import QUERY_SCHEMA
from clear_ray.stages.answer_parts import NOTHING, AnswerParts
from clear_ray.stages.probe import with_added_columns
from clear_ray.storage import Folder

_MOST_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, eq=False)
class GrantedCall:
    """Some grants of one round, in order of dispatch, that go to a caller and on to an engine together.

    Attributes:
        round: Round of the grants.
        index_M: The queries.
        tokens_M: Further tokens granted to each.
        file_M: File of `rounds/` that holds each query's answer so far; empty for one that has none.
        attempt_M: Which attempt of the query that is; 0 for none.
        direct_text: Put after every prompt, to ask for a direct answer; nothing if empty.
        reserved_parts_M: What each call may take from the budget, where prompts are paid for.
        sample_M: Which of a query's independent answers each grant belongs to; the first if not given. Where a row asks for
            several, they are counted from the row's own choice.
        times_ended: How often engine workers had been ended when the call was sent; see `Roster.look_again`.
        engine: Place of the engine that is called, where a run has several.
        home: Its worker that has read the prompts, if one has.
    """

    round: int
    index_M: NDArray[np.int64]
    tokens_M: NDArray[np.int64]
    file_M: tuple[str, ...]
    attempt_M: NDArray[np.int32]
    direct_text: str = ""
    reserved_parts_M: NDArray[np.int64] | None = None
    sample_M: NDArray[np.int32] | None = None
    times_ended: int = 0
    engine: int = 0
    home: int | None = None


class RunRows:
    """The rows of a run folder that calls are of; some files are kept at hand, so that memory stays flat.

    Args:
        folder: The run folder.
        most_bytes: What the files at hand may hold, at least one of them.
    """

    def __init__(self, folder: Folder, most_bytes: int = _MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._parts = AnswerParts(folder, most_bytes)
        self._at_hand: OrderedDict[str, pa.Table] = OrderedDict()
        self._held_bytes = 0
        self._files: list[str] = []
        self._first: NDArray[np.int64] = np.zeros(0, np.int64)

    def granted(self, call: GrantedCall) -> pa.Table:
        """Return the rows of a call: `records.QUERY_SCHEMA`, the answers so far, the round and the grants.

        Raises:
            ResumeError: A file is damaged, or does not hold what it should.
        """
        rows = self.queries(call.index_M)
        earlier = zip(call.file_M, call.index_M.tolist(), call.attempt_M.tolist(), strict=True)
        answers = [self._parts.answer(*row) if row[0] else NOTHING for row in earlier]
        sample_M = np.zeros(len(rows), np.int32) if call.sample_M is None else call.sample_M
        columns = {
            "token_ids": pa.array([answer.token_ids for answer in answers], pa.list_(pa.int32())),
            "text": pa.array([answer.text for answer in answers], pa.string()),
            "logprobs": pa.array([answer.logprobs for answer in answers], pa.string()),
            "before": pa.array([file or None for file in call.file_M], pa.string()),
            "before_attempt": pa.array(call.attempt_M, pa.int32()),
            "round": pa.array(np.full(len(rows), call.round, np.int32)),
            "granted_tokens": pa.array(call.tokens_M),
            "sample": pc.add(pc.fill_null(rows["choice"], 0), pa.array(sample_M, pa.int32())),
        }
        if call.reserved_parts_M is not None:
            columns["reserved_parts"] = pa.array(call.reserved_parts_M)
        for name, column in columns.items():
            rows = rows.append_column(name, column)
        return rows

    def queries(self, index_M: NDArray[np.int64]) -> pa.Table:
        """Return the rows of some queries, `records.QUERY_SCHEMA`, in that order.

        Raises:
            ResumeError: A file does not hold what it should.
        """
        if not self._files:
            self._files = self._folder.child("queries").files(".parquet")
            filesystem = self._folder.filesystem
            rows = [pq.read_metadata(path, filesystem=filesystem).num_rows for path in self._files]
            self._first = np.cumsum([0, *rows[:-1]])
        file_M = np.searchsorted(self._first, index_M, side="right") - 1
        parts, place_M, before = [], np.zeros(len(index_M), np.int64), 0
        for file in np.unique(file_M):
            is_here_M = file_M == file
            found = with_added_columns(self._read(self._files[file])).select(QUERY_SCHEMA.names)
            parts.append(found.take(pa.array(index_M[is_here_M] - self._first[file])))
            place_M[is_here_M] = before + np.arange(len(parts[-1]))
            before += len(parts[-1])
        rows = pa.concat_tables(parts).take(pa.array(place_M)).combine_chunks()
        if not np.array_equal(rows["index"].to_numpy(), index_M):
            raise ResumeError("a file of queries does not hold the rows that it should", self._folder.path)
        return rows

    def _read(self, path: str) -> pa.Table:
        if (table := self._at_hand.get(path)) is not None:
            self._at_hand.move_to_end(path)
            return table
        with self._folder.filesystem.open_input_file(path) as source:
            table = pq.ParquetFile(source).read().combine_chunks()
        self._at_hand[path] = table
        self._held_bytes += table.nbytes
        while self._held_bytes > self._most_bytes and len(self._at_hand) > 1:
            _, dropped = self._at_hand.popitem(last=False)
            self._held_bytes -= dropped.nbytes
        return table
