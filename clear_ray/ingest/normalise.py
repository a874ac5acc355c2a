"""One row, checked field by field and brought into the one form that the rest of clear_ray reads.

Errors raised here name the column in `where`; file and line are put in front where they are known.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import numbers
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Literal, NamedTuple

from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.composing import NOTHING, Beside, composed, options_in, with_system
from clear_ray.ingest.messages import is_text_of_messages, loaded_messages, read_messages, without_answer
from clear_ray.ingest.nested import lookup
from clear_ray.ingest.option_numbers import OptionNumbers
from clear_ray.ingest.values import shown, text_of
from clear_ray.records import COST_PARTS

MAX_ID_CHARACTERS = 512
MOST_COST = 1_000_000
MOST_WEIGHT = 10**12
_IN_DIGITS = "Write it in digits, decimals after a point, and without quotes."
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_JSON: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
_dump = json.JSONEncoder(**_JSON).encode


def _of_a_table(value: Any) -> Any:
    """Return what JSON has no word for and tables hold."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is not JSON")


_dump_with_dates = json.JSONEncoder(**_JSON, default=_of_a_table).encode


class NormalRow(NamedTuple):
    """A query in the order of `records.QUERY_SCHEMA`, without its index."""

    query_id: str
    prompt: str
    is_conversation: bool
    weight: float
    cost: float
    max_tokens: int
    gold: str | None
    task: str | None
    metadata: str | None
    prompt_form: str | None = None
    input_error: str | None = None
    sampling: str | None = None
    n: int | None = None
    choice: int | None = None


def normalise(
    row: Mapping[str, Any],
    *,
    columns: ColumnsConfig,
    max_tokens: int,
    form: Literal["raw", "tokens"] | None = None,
    beside: Beside = NOTHING,
    query_id: str | None = None,
    is_nested: bool = False,
    keeps_answer: bool = True,
    numbers: OptionNumbers | None = None,
    options_of: Callable[[str, bool], Mapping[str, str]] | None = None,
) -> NormalRow:
    """Return a row as a query.

    Args:
        row: Values under the source's column names; null and missing mean the same for optional columns.
        columns: Which column holds what.
        max_tokens: The run's ceiling; a row's own can only lower it.
        form: Form of its prompt, as `records.QUERY_SCHEMA` has it.
        beside: Columns that are part of what is asked.
        query_id: Its id, where the rows have none of their own.
        is_nested: Whether a column's name may lead into an object.
        keeps_answer: Whether a conversation that ends with the assistant's words is put to the model with them; if not,
            they are the reference answer of a row that has no other.
        numbers: How the reference answers of the input count options; from 0 or from 1, each row by itself, if not given.
        options_of: Function that reads the options in a prompt, where those have no column and answers may be their numbers.

    Raises:
        SchemaError: A value is missing or cannot be what its column says; `where` is the column.
    """
    get = partial(lookup, row) if is_nested else row.get
    if query_id is None:
        query_id = query_id_of(row, columns.query_id)
    prompt, turns = _asked(get(columns.messages), get(columns.prompt), row, columns, form)
    options: Mapping[str, str] = options_in(row, beside.options) if beside.options else {}
    prompt, turns, answer = _put(prompt, turns, row, beside, options, "" if keeps_answer else columns.messages)
    weight = get(columns.weight)
    cost = get(columns.cost)
    ceiling = get(columns.max_tokens)
    gold = _reference(get(columns.gold), answer, columns)
    if gold is not None and (options or options_of is not None):
        if not options and options_of is not None and _may_be_number(gold):
            options = options_of(prompt, turns is not None)
        gold = (numbers or OptionNumbers()).read(gold, options, columns.gold, columns=beside.options)
    task = get(columns.task)
    metadata = get(columns.metadata)
    return NormalRow(
        query_id,
        prompt,
        turns is not None,
        1.0 if weight is None else _weight(weight, columns.weight),
        1.0 if cost is None else _cost(cost, columns.cost),
        max_tokens if ceiling is None else min(_ceiling(ceiling, columns.max_tokens), max_tokens),
        None if gold is None else _gold(gold, columns.gold),
        None if task is None else text_of(task, columns.task),
        None if metadata is None else _metadata(metadata, columns.metadata),
        form,
    )


def _reference(gold: Any, answer: str | None, columns: ColumnsConfig) -> Any:
    """Return a row's reference answer; a conversation's last words if there is no column for one."""
    if gold is not None and not is_no_gold(gold):
        return gold
    return None if "gold" in columns.model_fields_set else answer


def _may_be_number(gold: Any) -> bool:
    """Whether a reference answer may be the number of an option."""
    return _is_integer(gold) or (isinstance(gold, str) and len(gold) <= 3 and gold.strip().isdecimal())


def _put(
    prompt: str,
    turns: list[dict[str, str]] | None,
    row: Mapping[str, Any],
    beside: Beside,
    options: Mapping[str, str],
    answers_in: str,
) -> tuple[str, list[dict[str, str]] | None, str | None]:
    """Return prompt and turns with what stands beside them, and the assistant's answer at their end if that is left out.

    `answers_in` is the column whose conversations are asked without it; empty for none.
    """
    if turns is None and beside is not NOTHING:
        prompt = composed(prompt, row, beside, options)
    if beside.system:
        turns = with_system(turns or [{"role": "user", "content": prompt}], row, beside.system)
    if turns is None:
        return prompt, None, None
    answer = None
    if turns[-1]["role"] == "assistant" and answers_in:
        turns, answer = without_answer(turns, answers_in)
    return _dump(turns), turns, answer


def made_id(number: int, prompt: str) -> str:
    """Return an id for a row that has none: its number in the input, from 0, and a digest of its prompt."""
    return f"row-{number:07d}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"


def failed_row(query_id: str, error: str, *, max_tokens: int) -> NormalRow:
    """Return a row of the input that is no query, which takes its place and fails."""
    return NormalRow(query_id, "", False, 1.0, 1.0, max_tokens, None, None, None, None, error)


def is_nan(value: Any) -> bool:
    """Whether a value is what tables of numbers have in empty cells."""
    return isinstance(value, float | Decimal) and value != value


def is_no_gold(value: Any) -> bool:
    """Whether a value stands for no reference answer: what tables have in empty cells, or a text without a word."""
    return is_nan(value) or (isinstance(value, str) and not value.strip())


def asked_tokens(row: Mapping[str, Any], columns: ColumnsConfig) -> int | None:
    """Return the ceiling that a row asks for itself, if it does."""
    ceiling = lookup(row, columns.max_tokens)
    return None if ceiling is None else int(ceiling)


def messages_in(row: Mapping[str, Any], columns: ColumnsConfig) -> list[Any]:
    """Return the messages of a row as they stand there; none of a row that is a text, or no query."""
    for column in (columns.messages, columns.prompt):
        messages = lookup(row, column)
        if isinstance(messages, str) and (
            (messages.lstrip()[:1] == "[" and column == columns.messages) or is_text_of_messages(messages)
        ):
            try:
                messages = loaded_messages(messages)
            except (ValueError, RecursionError):  # it is refused where it is read
                return []
        if isinstance(messages, list) and messages:
            return messages
    return []


def _asked(
    messages: Any, prompt: Any, row: Mapping[str, Any], columns: ColumnsConfig, form: Literal["raw", "tokens"] | None
) -> tuple[str, list[dict[str, str]] | None]:
    """Return what a row asks, or the turns of a conversation: texts and lists of messages may stand in either column."""
    if form is not None:
        return raw_prompt(prompt, form, columns.prompt), None
    if isinstance(messages, str) and messages.strip() and messages.lstrip()[0] not in '[{"':
        return text_of(messages, columns.messages), None
    if messages is not None:
        return "", read_messages(messages, columns.messages)
    if isinstance(prompt, list) or is_text_of_messages(prompt):
        return "", read_messages(prompt, columns.prompt)
    if prompt is None:
        raise _missing(columns.prompt, row)
    return _text(prompt, columns.prompt), None


def raw_prompt(prompt: Any, form: Literal["raw", "tokens"], column: str) -> str:
    """Return a prompt that no chat template is put around, as `records.QUERY_SCHEMA` has it.

    Raises:
        SchemaError: It is empty, or can be no text.
    """
    return _dump(prompt) if form == "tokens" else _text(prompt, column)


def query_id_of(row: Mapping[str, Any], column: str) -> str:
    """Return the id in a column of a row.

    Raises:
        SchemaError: There is none, or it can be no id.
    """
    value = lookup(row, column)
    if value is None:
        raise _missing(column, row)
    if isinstance(value, float) and value.is_integer():  # tables with empty cells store whole numbers so
        value = int(value)
    if not isinstance(value, str) and _is_integer(value):
        value = _digits(value, column)
    text = text_of(value, column)
    if not text.strip():
        raise SchemaError("the id is empty", column, repr(text), "Give every query an id.")
    if len(text) > MAX_ID_CHARACTERS:
        found = f"{len(text)} characters"
        raise SchemaError(f"the id is longer than {MAX_ID_CHARACTERS} characters", column, found, "Shorten it.")
    if _CONTROL.search(text):
        raise SchemaError("the id holds a control character", column, shown(text), "Remove it.")
    return text


def _text(value: Any, column: str) -> str:
    text = text_of(value, column)
    if not text or text.isspace():
        raise SchemaError("the prompt is empty", column, shown(text), "Remove the row or give it a prompt.")
    return text


def _weight(value: Any, column: str) -> float:
    weight = _real(value, column, "a weight")
    if not 0 <= weight <= MOST_WEIGHT:
        remedy = "Use 0 for a worthless answer; only the ratios of weights count."
        raise SchemaError(f"a weight is not negative and at most {MOST_WEIGHT:,}", column, shown(value), remedy)
    return weight + 0.0  # -0.0 and 0.0 are the same weight and must give the same digest


def _cost(value: Any, column: str) -> float:
    """Return a cost in whole thousandths, rounded up: the ledger keeps its account in whole numbers."""
    cost = _real(value, column, "a cost")
    if not 0 < cost <= MOST_COST:
        remedy = "Give it relative to the tokens that the budget counts: 2 for tokens that cost twice as much."
        raise SchemaError(f"a cost is above 0 and at most {MOST_COST:,}", column, shown(value), remedy)
    return math.ceil(round(cost * COST_PARTS, 6)) / COST_PARTS


def _real(value: Any, column: str, name: str) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal))):
        raise SchemaError(f"{name} is a number", column, shown(value), _IN_DIGITS)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _ceiling(value: Any, column: str) -> int:
    """Return a positive whole number; 16.0 is one, since tables with empty cells store whole numbers so."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _is_integer(value):
        raise SchemaError("a token count is a whole number", column, shown(value), _IN_DIGITS)
    if not 0 < value <= MOST_TOKENS:
        remedy = "Leave it out where the run's own ceiling is enough."
        raise SchemaError(f"a token count is positive and at most {MOST_TOKENS:,}", column, shown(value), remedy)
    return int(value)


def _gold(value: Any, column: str) -> str:
    if isinstance(value, str):
        return text_of(value, column)
    if _is_integer(value):
        return _digits(value, column)
    if isinstance(value, (bool, list, dict)):  # accepted answers, `ground_truth`, tests: the scorer reads them as JSON
        return _json(value, column, "the reference answer")
    if not isinstance(value, (float, Decimal)):
        raise SchemaError("a reference answer is a text or a number", column, shown(value), "Write it as a string.")
    if not math.isfinite(value):
        raise SchemaError("a reference answer is finite", column, shown(value), "Write it as a string.")
    return str(value)


def _metadata(value: Any, column: str) -> str:
    return text_of(value, column) if isinstance(value, str) else _json(value, column, "the metadata")


def _json(value: Any, column: str, name: str) -> str:
    try:
        return text_of(_dump_with_dates(value), column)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{name} is not JSON", column, str(error), "Write JSON values or a string.") from error


def _digits(value: Any, column: str) -> str:
    try:
        return str(int(value))
    except ValueError as error:  # more digits than Python converts
        raise SchemaError("the number is too long", column, str(error), "Write it as a string.") from error


def _is_integer(value: Any) -> bool:
    # The exact type first: the general question is slow, and NumPy's integers are rare.
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def _missing(column: str, row: Mapping[str, Any]) -> SchemaError:
    if column in row:
        return SchemaError("the value is null", column, "null", "Fill it in or remove the row.")
    found = ", ".join(map(str, row))
    return SchemaError("the column is missing", column, f"columns {found or 'none'}", "Map it under input.columns.")
