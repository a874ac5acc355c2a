"""Rows in, validated queries out: the one gate that every query passes, wherever it comes from."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal, Protocol

import numpy as np

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.digest import InputDigest
from clear_ray.ingest.duplicates import find_duplicates
from clear_ray.ingest.fields import SETTINGS
from clear_ray.ingest.lengths import PromptLimit, check_lengths
from clear_ray.ingest.nested import outermost
from clear_ray.ingest.normalise import NormalRow, failed_row, made_id, query_id_of
from clear_ray.ingest.notices import Notices
from clear_ray.ingest.option_numbers import FirstOption, OptionNumbers
from clear_ray.ingest.query_files import QueryFiles
from clear_ray.ingest.requests import REQUEST_COLUMNS, request_columns
from clear_ray.ingest.row_reader import ReadingRules, RowReader
from clear_ray.ingest.shapes import Kinds, RowReading, kinds_of, merged, recognise
from clear_ray.ingest.source import SourceBatch
from clear_ray.ingest.values import shown
from clear_ray.storage import Folder

_PLAIN = ColumnsConfig()


class Watch(Protocol):
    """What looks at every query of an input as it is taken in, and holds no more of it than a few numbers."""

    def see(self, index: int, query: NormalRow) -> None:
        """Look at one query that is no failed row."""

    def close(self, rows: int) -> Iterable[str]:
        """Return what is to be said of an input of so many rows, a line each; raise SchemaError to refuse it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeRules:
    """What an input is held to.

    Attributes:
        reading: How its rows are read.
        prompt_limit: How long a prompt may be; not checked if not given.
        most_errors: Problems to collect before giving up; the error lists them, a line each.
        on_error: `fail_row` writes a row that is no query, or whose prompt is too long, as one that fails; an id given twice,
            a source that cannot be read to its end and an input without any query are refused all the same.
        first_option: The number of the first option where reference answers are numbers of options.
        watches: What else is told of every query, and adds to the notices.
        accept: Function that is asked before the queries take their place; what it raises refuses the input.
    """

    reading: ReadingRules
    prompt_limit: PromptLimit | None = None
    most_errors: int = 20
    on_error: Literal["refuse", "fail_row"] = "refuse"
    first_option: FirstOption = "auto"
    watches: Sequence[Watch] = ()
    accept: Callable[[InputDigest], None] | None = None


def ingest(batches: Iterable[SourceBatch], *, queries: Folder, rules: IntakeRules) -> InputDigest:
    """Check every row and write the queries, numbered from 0 in input order; all of them or nothing.

    Args:
        batches: The rows, from `read_input` or made by the caller.
        queries: Folder to write; an older one is replaced (on a local disk: only once the input is accepted).
        rules: What they are held to.

    Returns:
        What was taken in.

    Raises:
        SchemaError: A row cannot be read as a query, an id is given twice, or there is no row at all.
        ConfigError: The folder cannot be written.
        StorageError: Its disk is full or broken.
        CountsFromOneError: With `first_option` `auto`, the input turned out to count options from 1: take it in again so.
    """
    files = QueryFiles(queries)
    intake = _Intake(files, rules)
    try:
        for batch in batches:
            intake.take(batch)
        return intake.finish()
    except BaseException:
        files.discard()
        raise


class _Intake:
    """The state of one `ingest`: problems so far, and what finding duplicates needs."""

    def __init__(self, files: QueryFiles, rules: IntakeRules) -> None:
        self._files, self._rules = files, rules
        self._max_tokens = rules.reading.max_tokens
        self._notices = Notices()
        self._options = OptionNumbers(rules.first_option)
        self._reader = RowReader(rules.reading, self._options, self._notices)
        self._problems: list[SchemaError] = []
        self._failures: list[SchemaError] = []  # the first of those that only fail their row
        self._hashes = array("q")
        self._numbers = array("q")
        self._sources: list[tuple[int, SourceBatch]] = []  # first index and, without rows, a batch of each source
        self._origins: set[str] = set()
        self._watched: ColumnsConfig | None = None
        self._unseen: dict[str, str] = {}  # columns that the user named and no row has shown yet, with the setting
        self._longest = 0
        self._reading: tuple[str, RowReading | None] = ("", None)  # of the source that is read; None if it is refused
        self._kinds: Kinds = {}  # of its columns so far

    def take(self, batch: SourceBatch) -> None:
        """Check and write the rows of one batch."""
        self._remember_source(batch)
        self._notices.say(batch.said)
        self._expect_named_columns(batch)
        reading = self._reading_of(batch)
        if reading is None:
            return
        first = len(self._hashes)
        found = [self._reader.read(batch, k, reading, number=first + k) for k in range(len(batch.rows))]
        row_of = [k for k, reads in enumerate(found) for _ in reads]
        reads = [read for reads in found for read in reads]
        if self._rules.prompt_limit is not None:
            check_lengths(batch, reads, row_of, reading.columns, self._rules.prompt_limit, self._notices)
        for k, some in groupby(zip(row_of, reads, strict=True), key=itemgetter(0)):
            self._add([read for _, read in some], batch, k, reading)

    def _add(self, reads: list[NormalRow | SchemaError], batch: SourceBatch, k: int, reading: RowReading) -> None:
        """Write what a row was read as: a query for each of its prompts, if nothing is wrong with any."""
        queries, number = [read for read in reads if isinstance(read, NormalRow)], batch.numbers[k]
        if wrong := next((read for read in reads if isinstance(read, SchemaError)), None):
            failed = self._fail(batch, k, wrong, reading)
            queries = [] if failed is None else [failed]
        for query in queries:
            self._longest = max(self._longest, len(query.prompt))
            for watch in () if wrong else self._rules.watches:
                watch.see(self._files.rows, query)
        if len(queries) == 1 and ((queries[0].n or 1) == 1 or not self._rules.reading.splits):
            self._hashes.append(hash(queries[0].query_id))
            self._numbers.append(number)
            self._files.add(queries[0])
        elif queries:
            self._add_choices(queries, number)

    def _add_choices(self, prompts: list[NormalRow], number: int) -> None:
        """Write a query for each answer that a row asks for, those to its first prompt first.

        All bear the row's id, which is hashed once: it is no duplicate of itself.
        """
        query_id, n = prompts[0].query_id, prompts[0].n or 1
        self._notices.split(n, prompts=len(prompts))
        for choice in range(n * len(prompts)):
            self._hashes.append(hash((query_id, choice) if choice else query_id))
            self._numbers.append(number)
            self._files.add(prompts[choice // n]._replace(n=n, choice=choice))

    def _reading_of(self, batch: SourceBatch) -> RowReading | None:
        """Return how the rows of a source are read; None if they cannot be.

        The first of its batches that has any tells. A column that comes later and would have told otherwise is refused.
        """
        if batch.is_openai:
            return RowReading(request_columns(batch.columns))
        if not any(isinstance(row, dict) for row in batch.rows):
            return RowReading(batch.columns)
        origin, reading = self._reading
        names = set[str]().union(*(row for row in batch.rows if isinstance(row, dict)))
        if origin == batch.origin and (reading is None or not self._are_news(names, batch)):
            return reading
        found = kinds_of(batch.rows)
        if origin == batch.origin:
            found = merged(self._kinds, found)
        self._kinds = found
        try:
            told = recognise(found, batch.columns, where=batch.origin, left_behind=batch.left_behind)
            if origin == batch.origin and told != reading:
                new = ", ".join(sorted(names)[:8])
                remedy = "Write the columns into every row, or name them in input.columns."
                what = "rows have columns that earlier ones lack, and with which they would be read in another way"
                raise SchemaError(what, batch.place(0), new, remedy)
            if origin != batch.origin:
                self._notices.read(told.said)
            self._notices.pass_over(self._unread(told, batch))
            reading = told
        except SchemaError as error:
            self._note(error)
            reading = None
        self._reading = batch.origin, reading
        return reading

    def _are_news(self, names: set[str], batch: SourceBatch) -> bool:
        """Whether a batch has columns that earlier ones of its source lack, or of which they had nulls alone."""
        if not names <= self._kinds.keys():
            return True
        empty = [name for name in names if self._kinds[name] == {"null"}]
        return any(row.get(name) not in (None, "", []) for row in batch.rows if isinstance(row, dict) for name in empty)

    def _unread(self, reading: RowReading, batch: SourceBatch) -> list[str]:
        """Return the columns of a source that are not read; those that are told of row by row are not among them."""
        held = [name for name, kinds in self._kinds.items() if kinds != {"null"} and "." not in name]
        dotted = [name for name in self._kinds if "." in name and name.partition(".")[0] not in self._kinds]
        return [name for name in reading.unread([*held, *dotted, *batch.left_behind]) if name not in SETTINGS]

    def finish(self) -> InputDigest:
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
        if self._failures and self._notices.failed == self._files.rows:
            self._problems += self._failures
        if self._problems:
            raise self._refusal()
        counted = list(self._options.lines())
        said = [line for watch in self._rules.watches for line in watch.close(self._files.rows)]
        notices = (*self._notices.lines(self._max_tokens), *counted, *said)
        digest = InputDigest(
            self._files.rows, self._files.sha256, len(self._origins), self._reader.endpoint, self._longest, notices
        )
        if self._rules.accept is not None:
            self._rules.accept(digest)
        self._files.publish(digest)
        return digest

    def _fail(self, batch: SourceBatch, k: int, error: SchemaError, reading: RowReading) -> NormalRow | None:
        """Return the row that takes the place of one that is no query, or note the problem where such rows are refused."""
        if self._rules.on_error == "refuse" or not batch.is_whole:
            self._note(error)
            return None
        self._notices.fail(error.what, error.where.partition(", column ")[2])
        if len(self._failures) < self._rules.most_errors:
            self._failures.append(error)
        number = len(self._hashes)
        own = None if reading.makes_ids else _own_id(batch.rows[k], reading.columns)
        return failed_row(own or made_id(number, error.what), str(error), max_tokens=self._max_tokens)

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
                for column in [name for name in self._unseen if outermost(name, row) in row]:
                    del self._unseen[column]

    def _note(self, problem: SchemaError) -> None:
        self._problems.append(problem)
        if len(self._problems) >= self._rules.most_errors:
            raise self._refusal()

    def _refusal(self) -> SchemaError:
        if len(self._problems) == 1:
            return self._problems[0]
        stopped = "at least " if len(self._problems) >= self._rules.most_errors else ""
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


def _own_id(row: object, columns: ColumnsConfig) -> str | None:
    """Return the id of a row that is no query, if it has one that can be used."""
    if not isinstance(row, dict):
        return None
    try:
        return query_id_of(row, columns.query_id)
    except SchemaError:
        return None
