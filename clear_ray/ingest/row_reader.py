"""One row read as the queries that it asks, with what it asks of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import settings_beside
from clear_ray.ingest.messages import ends_with_answer, has_names, is_record
from clear_ray.ingest.nested import lookup
from clear_ray.ingest.normalise import (
    NormalRow,
    asked_tokens,
    is_nan,
    is_no_gold,
    made_id,
    messages_in,
    normalise,
    raw_prompt,
)
from clear_ray.ingest.notices import Notices
from clear_ray.ingest.option_numbers import OptionNumbers
from clear_ray.ingest.requests import RawPrompt, at, read_request
from clear_ray.ingest.sampling_fields import AskedAnswer, refuse_equal_answers, sampling_params_of
from clear_ray.ingest.shapes import RowReading
from clear_ray.ingest.source import SourceBatch
from clear_ray.ingest.values import shown


def _everything_has_effect(_: Sampling) -> Sequence[str]:
    return ()


def _tells_names() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingRules:
    """What decides how a row is read, beside its source.

    Attributes:
        max_tokens: The run's ceiling of one query; a row's own can only lower it.
        check_sampling: Function that is asked of every row's own sampling: it returns what of it has no effect here, and
            raises for what cannot be done.
        reads_names: Function that is asked at the first speaker with a name: whether the model is told it.
        continues: Whether the run goes on with the assistant's words at the end of a conversation. If not, those of a plain
            row are its reference answer.
        temperature: The run's, which several answers to one row are refused at if it is 0; None where it has no effect.
        splits: Whether a row that asks for several answers (`n`, or several prompts) becomes as many queries; if not, `n`
            is only noted, and several prompts are refused.
        options_of: Function that reads the options in a prompt (whether it is a conversation), if answers may number them.
    """

    max_tokens: int
    check_sampling: Callable[[Sampling], Sequence[str]] = _everything_has_effect
    reads_names: Callable[[], bool] = _tells_names
    continues: bool = False
    temperature: float | None = None
    splits: bool = True
    options_of: Callable[[str, bool], Mapping[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of either form, before it is a query.

    Attributes:
        values: Under the names of the columns.
        asked: What it asks of its answer.
        place: What holds that, as errors name it.
        place_of: Function from a place in `values` to the place in the row, as errors name it.
        makes_id: Whether it has no id of its own.
        endpoint: What a request asks; None for a plain row.
        form: Form of its prompt, as `records.QUERY_SCHEMA` has it.
        further: Other prompts of the same row.
        ignored: Fields of a request without effect.
    """

    values: dict[str, Any]
    asked: AskedAnswer
    place: str
    place_of: Callable[[str], str]
    makes_id: bool
    endpoint: str | None = None
    form: Literal["raw", "tokens"] | None = None
    further: Sequence[RawPrompt] = ()
    ignored: Sequence[str] = ()


class RowReader:
    """Reads the rows of one input.

    Args:
        rules: How.
        numbers: How its reference answers count options.
        notices: What is to be said of what was read.
    """

    def __init__(self, rules: ReadingRules, numbers: OptionNumbers, notices: Notices) -> None:
        self._rules, self._numbers, self._notices = rules, numbers, notices
        self._reads_names = cache(rules.reads_names)
        self._format: tuple[str | None, str] | None = None  # endpoint, if any, and the place that fixed it

    @property
    def endpoint(self) -> str | None:
        """What the input's requests ask; None for plain rows."""
        return self._format[0] if self._format else None

    def read(
        self, batch: SourceBatch, k: int, reading: RowReading, *, number: int
    ) -> Sequence[NormalRow | SchemaError]:
        """Return a row as a query for each of its prompts, or what is wrong with it.

        Args:
            batch: Rows of a source.
            k: Which of them.
            reading: How they are read.
            number: What an id that is made for it is made of.
        """
        row = batch.rows[k]
        if isinstance(row, SchemaError):
            return (row,)
        try:
            return self._queries(row, batch, k, reading, number)
        except SchemaError as error:
            return (at(error, f"{batch.place(k)}, column {error.where}"),)

    def _queries(
        self, values: object, batch: SourceBatch, k: int, reading: RowReading, number: int
    ) -> Sequence[NormalRow]:
        if not isinstance(values, dict):
            raise SchemaError("a row is a dict of its columns", "all", shown(values), "Make it one.")
        rules, columns = self._rules, reading.columns
        row = self._request(values, batch) if batch.is_openai else _plain_row(values, reading)
        sampling = row.asked.sampling
        refuse_equal_answers(row.asked.n, sampling, rules.temperature, row.place)
        goes_on = sampling is not None and bool(sampling.continue_final_message)
        messages = [] if row.form is not None else messages_in(row.values, columns)
        keeps_answer = batch.is_openai or goes_on or (rules.continues and not is_record(messages))
        query = self._normalised(row, reading, keeps_answer=keeps_answer)
        self._expect_one_format(row.endpoint, batch, k)
        if sampling is not None:
            ignored = self._checked(sampling, row, columns, goes_on_with=ends_with_answer(messages))
            query = query._replace(sampling=sampling.dump())
            self._notices.ignore(row.place_of(name) for name in ignored)
        self._notices.ignore(row.ignored if batch.is_openai else settings_beside(row.values, columns))
        self._tell_of(
            messages, row.values, columns, query, keeps_answer=keeps_answer, goes_on=goes_on or rules.continues
        )
        if row.asked.n is not None and row.asked.n > 1:
            query = query._replace(n=row.asked.n)
        if row.makes_id:
            query = query._replace(query_id=made_id(number, query.prompt))
        return self._with_further(query, row, columns) if row.further else (query,)

    def _request(self, values: dict[str, Any], batch: SourceBatch) -> _Row:
        request = read_request(values, columns=batch.columns)
        self._notices.say(request.said)
        self._notices.name_model(request.model)
        return _Row(
            request.row,
            AskedAnswer(request.sampling, None, request.n),
            "params" if request.endpoint == "/v1/messages" else "body",
            request.place_of,
            makes_id=bool(request.said) and request.row["custom_id"] is None,  # Vertex has none
            endpoint=request.endpoint,
            form=request.form,
            further=request.further,
            ignored=request.ignored,
        )

    def _normalised(self, row: _Row, reading: RowReading, *, keeps_answer: bool) -> NormalRow:
        try:
            return normalise(
                row.values,
                columns=reading.columns,
                max_tokens=self._rules.max_tokens,
                form=row.form,
                beside=reading.beside,
                query_id="" if row.makes_id else None,
                is_nested=reading.is_nested,
                keeps_answer=keeps_answer,
                numbers=self._numbers,
                options_of=self._rules.options_of,
            )
        except SchemaError as error:
            raise at(error, row.place_of(error.where)) from error

    def _with_further(self, query: NormalRow, row: _Row, columns: ColumnsConfig) -> list[NormalRow]:
        """Return the queries of a row with several raw prompts, of which the first is read already."""
        if not self._rules.splits:
            what, remedy = "where queries are answered several times a row has one prompt", "Write a row for each."
            raise SchemaError(what, row.place_of(columns.prompt), f"{len(row.further) + 1} prompts", remedy)
        if query.gold is not None:
            what, remedy = "one reference answer stands beside several prompts", "Write a row for each prompt."
            raise SchemaError(what, columns.gold, shown(query.gold), remedy)
        queries = [query]
        for k, (prompt, form) in enumerate(row.further, 1):
            try:
                text = raw_prompt(prompt, form, f"{columns.prompt}[{k}]")
            except SchemaError as error:
                raise at(error, row.place_of(error.where)) from error
            queries.append(query._replace(prompt=text, prompt_form=form))
        return queries

    def _checked(self, sampling: Sampling, row: _Row, columns: ColumnsConfig, *, goes_on_with: bool) -> Sequence[str]:
        """Return what of a row's sampling has no effect, and refuse what cannot be done."""
        try:
            if sampling.continue_final_message and not goes_on_with:
                what, remedy = (
                    "only what the assistant has begun is gone on with",
                    "End with a message of the assistant.",
                )
                raise SchemaError(what, f"{row.place}.continue_final_message", "true", remedy)
            own, least = asked_tokens(row.values, columns), sampling.min_tokens
            if own is not None and least > own:
                what = "the least number of tokens is above the row's ceiling"
                remedy = "Lower it, or raise max_tokens."
                raise SchemaError(what, f"{row.place}.min_tokens", f"{least} above {own}", remedy)
            try:
                ignored = self._rules.check_sampling(sampling)
            except SchemaError as error:
                raise at(error, f"{row.place}.{error.where}") from error
        except SchemaError as error:
            raise at(error, row.place_of(error.where)) from error
        if least > self._rules.max_tokens:
            self._notices.lower("min_tokens", least)
        return ignored

    def _tell_of(
        self,
        messages: list[Any],
        row: dict[str, Any],
        columns: ColumnsConfig,
        query: NormalRow,
        *,
        keeps_answer: bool,
        goes_on: bool,
    ) -> None:
        """Count what a row says that is lowered, or becomes something else than it seems to ask."""
        if is_no_gold(gold := lookup(row, columns.gold)):
            self._notices.ignore((f"{columns.gold} ({'NaN' if is_nan(gold) else 'empty'})",))
        if has_names(messages) and not self._reads_names():
            self._notices.ignore(("messages.name",))
        if ends_with_answer(messages) and not (keeps_answer and goes_on):
            is_gold = query.gold is not None and lookup(row, columns.gold) is None
            self._notices.end("kept" if keeps_answer else "gold" if is_gold else "left out")
        asked = asked_tokens(row, columns)
        if asked is not None and asked > self._rules.max_tokens:
            self._notices.lower("max_tokens", asked)

    def _expect_one_format(self, endpoint: str | None, batch: SourceBatch, k: int) -> None:
        """Refuse what could not be answered in one format: plain rows among requests, or two endpoints."""
        if self._format is None:
            self._format = (endpoint, batch.place(k))
        elif self._format[0] != endpoint:
            what = f"the input mixes formats or endpoints: {self._format[1]} has another"
            raise SchemaError(what, "url", endpoint or "a plain row", "Run them as separate batches.")


def _plain_row(values: dict[str, Any], reading: RowReading) -> _Row:
    columns, asked = reading.columns, AskedAnswer()
    own = lookup(values, columns.sampling_params)
    if own is not None:
        asked = sampling_params_of(own, columns.sampling_params)
        if asked.max_tokens is not None and lookup(values, columns.max_tokens) is None:
            values = {**values, columns.max_tokens: asked.max_tokens}
    return _Row(values, asked, columns.sampling_params, str, reading.makes_ids)
