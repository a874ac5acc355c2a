"""One row, checked field by field and brought into the one form that the rest of clear_ray reads.

Errors raised here name the column in `where`; file and line are put in front where they are known.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from clear_ray.config import MOST_TOKENS, ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.source import shown
from clear_ray.records import COST_PARTS

MAX_ID_CHARACTERS = 512
MOST_COST = 1_000_000
MOST_WEIGHT = 10**12
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# `developer` is OpenAI's newer word for `system`; chat templates know only the older one.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_IGNORED_MESSAGE_KEYS = {"role", "content", "name"}
_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


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


def normalise(row: Mapping[str, Any], *, columns: ColumnsConfig, max_tokens: int) -> NormalRow:
    """Return a row as a query.

    Args:
        row: Values under the source's column names; null and missing mean the same for optional columns.
        columns: Which column holds what.
        max_tokens: The run's ceiling; a row's own can only lower it.

    Raises:
        SchemaError: A value is missing or cannot be what its column says; `where` is the column.
    """
    get = row.get
    query_id = _query_id(get(columns.query_id), row, columns)
    messages = get(columns.messages)
    if messages is not None:
        prompt, is_conversation = _conversation(messages, columns.messages), True
    else:
        prompt, is_conversation = _prompt(get(columns.prompt), row, columns), False
    weight = get(columns.weight)
    cost = get(columns.cost)
    ceiling = get(columns.max_tokens)
    gold = get(columns.gold)
    task = get(columns.task)
    metadata = get(columns.metadata)
    return NormalRow(
        query_id,
        prompt,
        is_conversation,
        1.0 if weight is None else _weight(weight, columns.weight),
        1.0 if cost is None else _cost(cost, columns.cost),
        max_tokens if ceiling is None else min(_ceiling(ceiling, columns.max_tokens), max_tokens),
        None if gold is None else _gold(gold, columns.gold),
        None if task is None else _text(task, columns.task),
        None if metadata is None else _metadata(metadata, columns.metadata),
    )


def _query_id(value: Any, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    column = columns.query_id
    if value is None:
        raise _missing(column, row)
    if not isinstance(value, str) and _is_integer(value):
        value = _digits(value, column)
    text = _text(value, column)
    if not text.strip():
        raise SchemaError("the id is empty", column, repr(text), "Give every query an id.")
    if len(text) > MAX_ID_CHARACTERS:
        found = f"{len(text)} characters"
        raise SchemaError(f"the id is longer than {MAX_ID_CHARACTERS} characters", column, found, "Shorten it.")
    if _CONTROL.search(text):
        raise SchemaError("the id holds a control character", column, shown(text), "Remove it.")
    return text


def _prompt(value: Any, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
    column = columns.prompt
    if value is None:
        raise _missing(column, row)
    if isinstance(value, list):
        remedy = f"A conversation belongs in another column: set input.columns.messages to {column!r}."
        raise SchemaError("the prompt is a list, not a text", column, shown(value), remedy)
    text = _text(value, column)
    if not text or text.isspace():
        raise SchemaError("the prompt is empty", column, shown(text), "Remove the row or give it a prompt.")
    return text


def _conversation(value: Any, column: str) -> str:
    """Return messages as canonical JSON; a text is taken for such JSON, as Parquet files often hold it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise SchemaError(
                "the conversation is not JSON", column, str(error), "Write [{role, content}, …]."
            ) from error
    if not isinstance(value, list) or not value:
        raise SchemaError("a conversation is a list of messages", column, shown(value), "Write [{role, content}, …].")
    messages = [_message(message, f"{column}[{k}]") for k, message in enumerate(value)]
    if not messages[-1]["content"].strip():
        raise SchemaError("the last message is empty", column, "", "Remove the row or give it a message.")
    return _dump(messages)


def _message(value: Any, column: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise SchemaError("a message is an object", column, shown(value), "Write {role, content}.")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise SchemaError("unknown role", column, shown(role), f"Use one of {', '.join(_ROLES)}.")
    for key, given in value.items():
        if given is not None and key not in _IGNORED_MESSAGE_KEYS:
            raise SchemaError("a message holds more than text", f"{column}.{key}", shown(given), "Leave it out.")
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{column}.content[{k}]") for k, part in enumerate(content))
    return {"role": _ROLES[role], "content": _text(content, f"{column}.content")}


def _part(value: Any, column: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        found = shown(value.get("type")) if isinstance(value, dict) else shown(value)
        raise SchemaError("only parts of type text are read", column, found, "Remove images, audio and files.")
    return _text(value.get("text"), f"{column}.text")


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
        raise SchemaError(f"{name} is a number", column, shown(value), "Write it without quotes.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _ceiling(value: Any, column: str) -> int:
    """Return a positive whole number; 16.0 is one, since tables with empty cells store whole numbers so."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not _is_integer(value):
        raise SchemaError("a token count is a whole number", column, shown(value), "Write it without quotes.")
    if not 0 < value <= MOST_TOKENS:
        remedy = "Leave it out where the run's own ceiling is enough."
        raise SchemaError(f"a token count is positive and at most {MOST_TOKENS:,}", column, shown(value), remedy)
    return int(value)


def _gold(value: Any, column: str) -> str:
    if isinstance(value, str):
        return _text(value, column)
    if _is_integer(value):
        return _digits(value, column)
    if isinstance(value, bool) or not isinstance(value, (float, Decimal)):
        raise SchemaError("a reference answer is a text or a number", column, shown(value), "Write it as a string.")
    if not math.isfinite(value):
        raise SchemaError("a reference answer is finite", column, shown(value), "Write it as a string.")
    return str(value)


def _metadata(value: Any, column: str) -> str:
    if isinstance(value, str):
        return _text(value, column)
    try:
        return _text(_dump(value), column)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError("the metadata is not JSON", column, str(error), "Write JSON values or a string.") from error


def _text(value: Any, column: str) -> str:
    """Return a text that Parquet, JSON and a tokenizer can all hold."""
    if not isinstance(value, str):
        found = "null" if value is None else f"{type(value).__name__} {shown(value)}"
        raise SchemaError("the value is not a text", column, found, "Write it as a string.")
    if "\0" in value:
        raise SchemaError("the text holds a NUL character", column, shown(value), "Remove it.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = repr(value[error.start])
            raise SchemaError("the text holds half a surrogate pair", column, found, "Write valid Unicode.") from error
    return value


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
