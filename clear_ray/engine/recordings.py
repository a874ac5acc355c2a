"""Recorded rollouts and probe features in memory: what ReplayEngine plays.

Only the named columns are read. Tokens, texts and hidden states stay in the Arrow and NumPy buffers they were read
into; a Python object is made for a rollout only when it is played.

Shapes: R rollouts in order of (query, sample), Q recorded queries, N queries asked, D hidden width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.engine.base import Prompt, TokenIds, words_of
from clear_ray.errors import SchemaError

_ROLLOUT_COLUMNS = (
    "query_id",
    "sample",
    "prompt",
    "prompt_tokens",
    "finish_reason",
    "max_tokens",
    "model",
    "text",
    "token_ids",
    "tok_entropy",
)
_FEATURE_COLUMNS = ("query_id", "hidden_last", "hidden_mean")


class RecordedRollouts:
    """Recorded rollouts, R rows in order of (query, sample).

    Attributes:
        prompt_tokens_R: Tokens of the rendered prompt.
        first_entropy_R: Entropy of the untempered distribution of the first answer token, nats.
        models: Names in the `model` column, sorted.
        context_tokens: The longest prompt with its recording's cap.

    Raises:
        SchemaError: The file cannot be read or lacks a column.
    """

    def __init__(self, path: str | Path) -> None:
        table = _read(path, _ROLLOUT_COLUMNS)
        table = table.sort_by([("query_id", "ascending"), ("sample", "ascending")]).combine_chunks()
        query_ids = table["query_id"].to_pylist()
        starts = [row for row, name in enumerate(query_ids) if row == 0 or name != query_ids[row - 1]]
        self._rows_of = {
            query_ids[start]: (start, end) for start, end in zip(starts, [*starts[1:], len(query_ids)], strict=True)
        }
        tokens = table["token_ids"].combine_chunks()
        # Not .flatten(): offsets count from the start of .values even where the array is a slice.
        self._tokens: NDArray[np.int32] = tokens.values.to_numpy().astype(np.int32, copy=False)
        self._offsets_R: NDArray[np.int64] = tokens.offsets.to_numpy().astype(np.int64)
        self._texts = table["text"].combine_chunks()
        self._stopped_R = pc.equal(table["finish_reason"], "stop").to_numpy()
        self.prompt_tokens_R: NDArray[np.int64] = table["prompt_tokens"].to_numpy().astype(np.int64)
        entropies = table["tok_entropy"].combine_chunks()
        self.first_entropy_R: NDArray[np.float32] = _first_of_each(entropies)
        self.models: tuple[str, ...] = tuple(sorted(pc.unique(table["model"]).to_pylist()))
        caps_R = table["max_tokens"].to_numpy().astype(np.int64)
        self.context_tokens = int((self.prompt_tokens_R + caps_R).max(initial=1))
        prompts = table["prompt"].take(pa.array(starts, pa.int64())).to_pylist()
        counts: list[int] = self.prompt_tokens_R[starts].tolist()
        self._prompt_tokens = {_digest(prompt): count for prompt, count in zip(prompts, counts, strict=True)}
        self._tokens_per_character = sum(counts) / max(1, sum(map(len, prompts)))

    def count_prompt_tokens(self, prompt: Prompt) -> int:
        """Count exactly for a recorded prompt, else from its characters at the recordings' mean rate."""
        if isinstance(prompt, TokenIds):
            return len(prompt)
        text = words_of(prompt)
        known: int | None = self._prompt_tokens.get(_digest(text))
        return known if known is not None else max(1, math.ceil(len(text) * self._tokens_per_character))

    def first_row(self, query_id: str) -> int:
        """Return the row of the query's first sample.

        Raises:
            SchemaError: The query was not recorded.
        """
        row = self.row_of_sample(query_id, 0)
        if row is None:
            raise SchemaError(
                "there is no recording of this query", "query_id", query_id, "Replay only queries that were recorded."
            )
        return row

    def row_of_sample(self, query_id: str, sample: int) -> int | None:
        """Return the row of a sample, modulo the number of samples; None if the query was not recorded."""
        start, end = self._rows_of.get(query_id) or self._rows_of.get(original(query_id), (0, 0))
        return start + sample % (end - start) if end > start else None

    def length(self, row: int) -> int:
        """Count the recorded tokens, end token included."""
        return int(self._offsets_R[row + 1] - self._offsets_R[row])

    def has_stopped(self, row: int) -> bool:
        """Tell whether the answer ended by itself."""
        return bool(self._stopped_R[row])

    def token_ids(self, row: int, start: int, end: int) -> tuple[int, ...]:
        """Return the tokens from `start` up to `end`."""
        first = self._offsets_R[row]
        return tuple(self._tokens[first + start : first + end].tolist())

    def text(self, row: int, played: int) -> str:
        """Return the text after `played` tokens: whole at the end, before it the same share of its characters."""
        whole: str = self._texts[row].as_py() or ""
        recorded = self.length(row)
        return whole if played >= recorded else whole[: len(whole) * played // recorded]


def original(query_id: str) -> str:
    """Return the recorded query that `NAME#COPY` is a copy of: a recording can be replayed as a batch of any size."""
    return query_id.rpartition("#")[0]


class RecordedFeatures:
    """Hidden states of Q recorded queries, float16 as recorded; none if there is no file.

    Raises:
        SchemaError: The file cannot be read, lacks a column, or its hidden states differ in width.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.width = 0
        self._row_of: dict[str, int] = {}
        self._is_recorded = path is not None
        if path is None:
            return
        table = _read(path, _FEATURE_COLUMNS).combine_chunks()
        self._row_of = {query_id: row for row, query_id in enumerate(table["query_id"].to_pylist())}
        self._last_QD = _as_matrix(table["hidden_last"].combine_chunks(), f"{path}, column hidden_last")
        self._mean_QD = _as_matrix(table["hidden_mean"].combine_chunks(), f"{path}, column hidden_mean")
        self.width = self._last_QD.shape[1]

    def read(self, query_ids: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return last and mean hidden state of each query, (N, D).

        Raises:
            SchemaError: A query was not recorded.
        """
        if not self._is_recorded:
            empty_ND = np.zeros((len(query_ids), 0), dtype=np.float32)
            return empty_ND, empty_ND
        rows = [self._row_of.get(query_id, self._row_of.get(original(query_id), -1)) for query_id in query_ids]
        if -1 in rows:
            unknown = query_ids[rows.index(-1)]
            raise SchemaError(
                "there are no recorded features of this query",
                "query_id",
                unknown,
                "Replay only queries that were recorded.",
            )
        return self._last_QD[rows].astype(np.float32), self._mean_QD[rows].astype(np.float32)


def _read(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Read the named columns of a Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise SchemaError(
                    "columns are missing",
                    str(path),
                    ", ".join(missing),
                    "Record rollouts with these columns; docs/calibrating.md.",
                )
            return file.read(columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(
            "the recording cannot be read as Parquet",
            str(path),
            str(error),
            remedy="Give the path of a whole Parquet file.",
        ) from error


def _first_of_each(lists: pa.ListArray) -> NDArray[np.float32]:
    """Return the first element of each list, (R,); NaN for an empty one."""
    values = lists.values.to_numpy().astype(np.float32, copy=False)
    offsets = lists.offsets.to_numpy()
    first_R = np.full(len(lists), np.nan, dtype=np.float32)
    has_any_R = offsets[1:] > offsets[:-1]
    first_R[has_any_R] = values[offsets[:-1][has_any_R]]
    return first_R


def _as_matrix(lists: pa.ListArray, where: str) -> NDArray[np.float16]:
    """Return lists of one length as a matrix (Q, D)."""
    widths = np.unique(np.diff(lists.offsets.to_numpy()))
    if len(widths) > 1:
        raise SchemaError(
            "hidden states differ in width",
            where,
            ", ".join(map(str, widths)),
            remedy="Record all features with one model.",
        )
    values: NDArray[np.float16] = lists.flatten().to_numpy().astype(np.float16, copy=False)
    return values.reshape(len(lists), int(widths[0]) if len(widths) else 0)


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()
