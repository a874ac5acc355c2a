"""Rows in, validated queries out: the one gate that every query passes, wherever it comes from."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clear_ray.config import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.digest import InputDigest
from clear_ray.ingest.duplicates import find_duplicates
from clear_ray.ingest.normalise import NormalRow, normalise
from clear_ray.ingest.openai_batch import REQUEST_COLUMNS, read_request, request_columns
from clear_ray.ingest.query_files import QueryFiles
from clear_ray.ingest.source import SourceBatch, shown
from clear_ray.storage import Folder

_PLAIN = ColumnsConfig()


@dataclass(frozen=True)
class PromptLimit:
    """How long a prompt may be.

    A prompt has at most as many tokens as UTF-8 bytes, so only those that could be too long are counted.

    Attributes:
        context_tokens: What the model holds, prompt and answer together; a prompt must leave room for one token.
        count_tokens: Function from prompts, and for each whether it is a conversation, to token counts, template included.
        template_tokens: The most that the chat template and special tokens add to a prompt.
    """

    context_tokens: int
    count_tokens: Callable[[list[str], list[bool]], Sequence[int]]
    template_tokens: int = 0


def ingest(
    batches: Iterable[SourceBatch],
    *,
    queries: Folder,
    max_tokens: int,
    prompt_limit: PromptLimit | None = None,
    most_errors: int = 20,
    accept: Callable[[InputDigest], None] | None = None,
) -> InputDigest:
    """Check every row and write the queries, numbered from 0 in input order; all of them or nothing.

    Args:
        batches: The rows, from `read_input` or made by the caller.
        queries: Folder to write; an older one is replaced (on a local disk: only once the input is accepted).
        max_tokens: The run's ceiling of one query; a row's own can only lower it.
        prompt_limit: How long a prompt may be; not checked if not given.
        most_errors: Problems to collect before giving up; the error lists them, a line each.
        accept: Function that is asked before the queries take their place; what it raises refuses the input.

    Returns:
        What was taken in.

    Raises:
        SchemaError: A row cannot be read as a query, an id is given twice, or there is no row at all.
        ConfigError: The folder cannot be written.
        StorageError: Its disk is full or broken.
    """
    files = QueryFiles(queries)
    intake = _Intake(files, max_tokens, prompt_limit, most_errors)
    try:
        for batch in batches:
            intake.take(batch)
        return intake.finish(accept)
    except BaseException:
        files.discard()
        raise


class _Intake:
    """The state of one `ingest`: problems so far, and what finding duplicates needs."""

    def __init__(self, files: QueryFiles, max_tokens: int, limit: PromptLimit | None, most_errors: int) -> None:
        self._files = files
        self._max_tokens = max_tokens
        self._limit = limit
        self._most_errors = most_errors
        self._problems: list[SchemaError] = []
        self._hashes = array("q")
        self._numbers = array("q")
        self._sources: list[tuple[int, SourceBatch]] = []  # first index and, without rows, a batch of each source
        self._origins: set[str] = set()
        self._watched: ColumnsConfig | None = None
        self._unseen: dict[str, str] = {}  # columns that the user named and no row has shown yet, with the setting
        self._format: tuple[str | None, str] | None = None  # endpoint, if any, and the place that fixed it
        self._longest = 0

    def take(self, batch: SourceBatch) -> None:
        """Check and write the rows of one batch."""
        self._remember_source(batch)
        self._expect_named_columns(batch)
        columns = request_columns(batch.columns) if batch.is_openai else batch.columns
        long_rows: list[tuple[str, NormalRow]] = []
        for k, row in enumerate(batch.rows):
            try:
                query = self._read(row, batch, columns)
                self._expect_one_format(row, batch, k)
            except SchemaError as error:
                self._note(error if error is row else _at(error, batch.place(k)))
                continue
            self._hashes.append(hash(query.query_id))
            self._numbers.append(batch.numbers[k])
            self._files.add(query)
            self._longest = max(self._longest, len(query.prompt))
            if self._limit and _may_exceed(query.prompt, self._limit):
                long_rows.append((batch.place(k), query))
        if self._limit and long_rows:
            self._check_lengths(long_rows, self._limit)

    def finish(self, accept: Callable[[InputDigest], None] | None) -> InputDigest:
        """Run the checks that need all rows, and publish."""
        self._files.flush()
        if not self._files.rows and not self._problems:
            self._note(SchemaError("the input holds no query", self._all_sources(), "", "Check input.path."))
        for column, setting in self._unseen.items():
            what = f"no row has the column {column!r} that input.columns.{setting} names"
            self._note(SchemaError(what, self._all_sources(), "", "Correct the name or remove the setting."))
        hashes_N = np.array(self._hashes, dtype=np.int64)
        repeats = find_duplicates(hashes_N, folder=self._files.folder, file_rows=self._files.file_rows)
        for query_id, first, again in repeats:
            what = f"the id is given twice, first at {self._place(first)}"
            remedy = "Give every query an id of its own."
            self._note(SchemaError(what, f"{self._place(again)}, column query_id", shown(query_id), remedy))
        if self._problems:
            raise self._refusal()
        url = self._format[0] if self._format else None
        digest = InputDigest(self._files.rows, self._files.sha256, len(self._origins), url, self._longest)
        if accept is not None:
            accept(digest)
        self._files.publish(digest)
        return digest

    def _read(self, row: object, batch: SourceBatch, columns: ColumnsConfig) -> NormalRow:
        if isinstance(row, SchemaError):
            raise row
        if not isinstance(row, dict):
            raise SchemaError("a row is a dict of its columns", "all", shown(row), "Make it one.")
        if batch.is_openai:
            row = read_request(row, columns=batch.columns)
        return normalise(row, columns=columns, max_tokens=self._max_tokens)

    def _expect_one_format(self, row: dict[str, Any] | SchemaError, batch: SourceBatch, k: int) -> None:
        """Refuse what could not be answered in one format: plain rows among requests, or two endpoints."""
        url = str(row["url"]) if batch.is_openai and isinstance(row, dict) else None
        if self._format is None:
            self._format = (url, batch.place(k))
        elif self._format[0] != url:
            what = f"the input mixes formats or endpoints: {self._format[1]} has another"
            raise SchemaError(what, "url", url or "a plain row", "Run them as separate batches.")

    def _expect_named_columns(self, batch: SourceBatch) -> None:
        """Keep watch for columns that the user named: a typing error in an optional one would go unnoticed."""
        if batch.rows and batch.columns != self._watched:
            self._watched = batch.columns
            for setting, column in batch.columns.model_dump().items():
                is_default = column == getattr(_PLAIN, setting)
                if not is_default and not (batch.is_openai and setting in REQUEST_COLUMNS):
                    self._unseen[column] = setting
        for row in batch.rows if self._unseen else ():
            if isinstance(row, dict):
                for column in self._unseen.keys() & row.keys():
                    del self._unseen[column]

    def _check_lengths(self, long_rows: list[tuple[str, NormalRow]], limit: PromptLimit) -> None:
        counts = limit.count_tokens([row.prompt for _, row in long_rows], [row.is_conversation for _, row in long_rows])
        for (place, row), count in zip(long_rows, counts, strict=True):
            if count >= limit.context_tokens:
                what = f"the prompt does not fit the model's context of {limit.context_tokens} tokens"
                column = "messages" if row.is_conversation else "prompt"
                remedy = "Shorten it or use a model with a longer context."
                self._note(SchemaError(what, f"{place}, column {column}", f"{count} tokens", remedy))

    def _note(self, problem: SchemaError) -> None:
        self._problems.append(problem)
        if len(self._problems) >= self._most_errors:
            raise self._refusal()

    def _refusal(self) -> SchemaError:
        if len(self._problems) == 1:
            return self._problems[0]
        stopped = "at least " if len(self._problems) >= self._most_errors else ""
        listed = "\n  ".join(str(problem) for problem in self._problems)
        return SchemaError(f"the input has {stopped}{len(self._problems)} problems:\n  {listed.removesuffix('.')}")

    def _remember_source(self, batch: SourceBatch) -> None:
        self._origins.add(batch.origin)
        last = self._sources[-1][1] if self._sources else None
        if last is None or (last.origin, last.unit) != (batch.origin, batch.unit):
            self._sources.append((self._files.rows, SourceBatch([], batch.origin, [], batch.unit)))

    def _place(self, index: int) -> str:
        source = next(source for first, source in reversed(self._sources) if first <= index)
        return SourceBatch([], source.origin, [self._numbers[index]], source.unit).place(0)

    def _all_sources(self) -> str:
        more = len(self._origins) - 1
        return min(self._origins, default="") + (f" and {more} more" if more > 0 else "")


def _at(error: SchemaError, place: str) -> SchemaError:
    return SchemaError(error.what, f"{place}, column {error.where}", error.value, error.remedy)


def _may_exceed(prompt: str, limit: PromptLimit) -> bool:
    room = limit.context_tokens - limit.template_tokens
    return len(prompt) * 4 >= room and len(prompt.encode()) >= room
