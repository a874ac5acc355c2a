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
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any, Literal, NamedTuple

from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.nested import lookup
from clear_ray.ingest.source import shown
from clear_ray.records import COST_PARTS

MAX_ID_CHARACTERS = 512
MOST_COST = 1_000_000
MOST_WEIGHT = 10**12
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# `developer` is OpenAI's newer word for `system`; chat templates know only the older one.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_CHAT_KEYS = {"from", "value", "weight", "loss", "train"}
_IGNORED_MESSAGE_KEYS = {"role", "content", "name"}
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


def normalise(
    row: Mapping[str, Any],
    *,
    columns: ColumnsConfig,
    max_tokens: int,
    form: Literal["raw", "tokens"] | None = None,
    added: str = "",
    query_id: str | None = None,
    is_nested: bool = False,
) -> NormalRow:
    """Return a row as a query.

    Args:
        row: Values under the source's column names; null and missing mean the same for optional columns.
        columns: Which column holds what.
        max_tokens: The run's ceiling; a row's own can only lower it.
        form: Form of its prompt, as `records.QUERY_SCHEMA` has it.
        added: Column that is put after the prompt where the row has it.
        query_id: Its id, where the rows have none of their own.
        is_nested: Whether a column's name may lead into an object.

    Raises:
        SchemaError: A value is missing or cannot be what its column says; `where` is the column.
    """
    get = partial(lookup, row) if is_nested else row.get
    if query_id is None:
        query_id = query_id_of(row, columns.query_id)
    prompt, is_conversation = _asked(get(columns.messages), get(columns.prompt), row, columns, form)
    if added and (more := get(added)) is not None and not is_conversation and (text := _text(more, added)).strip():
        prompt = f"{prompt}\n\n{text}"
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
        form,
    )


def made_id(number: int, prompt: str) -> str:
    """Return an id for a row that has none: its number in the input, from 0, and a digest of its prompt."""
    return f"row-{number:07d}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:8]}"


def failed_row(query_id: str, error: str, *, max_tokens: int) -> NormalRow:
    """Return a row of the input that is no query, which takes its place and fails."""
    return NormalRow(query_id, "", False, 1.0, 1.0, max_tokens, None, None, None, None, error)


def asked_tokens(row: Mapping[str, Any], columns: ColumnsConfig) -> int | None:
    """Return the ceiling that a row asks for itself, if it does."""
    ceiling = lookup(row, columns.max_tokens)
    return None if ceiling is None else int(ceiling)


def ignored_in_messages(row: Mapping[str, Any], columns: ColumnsConfig) -> tuple[str, ...]:
    """Return what stands in the messages of a row and has no effect: no chat template is told the name of a speaker."""
    for column in (columns.messages, columns.prompt):
        messages = lookup(row, column)
        if (
            isinstance(messages, str)
            and messages.lstrip()[:1] == "["
            and '"name"' in messages
            and column == columns.messages
        ):
            messages = json.loads(messages)
        if isinstance(messages, list) and any(_has_name(message) for message in messages):
            return ("messages.name",)
    return ()


def _has_name(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("name") is not None


def _asked(
    messages: Any, prompt: Any, row: Mapping[str, Any], columns: ColumnsConfig, form: Literal["raw", "tokens"] | None
) -> tuple[str, bool]:
    """Return what a row asks, and whether it is a conversation: texts and lists of messages may stand in either column."""
    if form == "tokens":
        return _dump(prompt), False
    if isinstance(messages, str) and messages.strip() and messages.lstrip()[0] not in '[{"':
        return _text(messages, columns.messages), False
    if messages is not None:
        return _conversation(messages, columns.messages), True
    if isinstance(prompt, list):
        return _conversation(prompt, columns.prompt), True
    return _prompt(prompt, row, columns), False


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
    if isinstance(value[-1], dict) and "from" in value[-1]:  # records of chats end with the answer that was given then
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    if not messages:
        raise SchemaError(
            "the conversation asks nothing", column, shown(value), "Remove the row or give it a question."
        )
    if not messages[-1]["content"].strip():
        raise SchemaError("the last message is empty", column, "", "Remove the row or give it a message.")
    return _dump(messages)


def _message(value: Any, column: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise SchemaError("a message is an object", column, shown(value), "Write {role, content}.")
    role = value.get("role")
    if role is None and "from" in value:
        role, value = _SPEAKERS.get(str(value["from"]), value["from"]), _turn_of_chat(value, column)
    if not isinstance(role, str) or role not in _ROLES:
        raise SchemaError("unknown role", column, shown(role), f"Use one of {', '.join(_ROLES)}.")
    for key, given in value.items():
        if given is not None and key not in _IGNORED_MESSAGE_KEYS:
            raise SchemaError("a message holds more than text", f"{column}.{key}", shown(given), "Leave it out.")
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{column}.content[{k}]") for k, part in enumerate(content))
    return {"role": _ROLES[role], "content": _text(content, f"{column}.content")}


def _turn_of_chat(value: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return a {from, value} as a message; marks of training beside them say nothing to a model."""
    for key, given in value.items():
        if given is not None and key not in _CHAT_KEYS:
            raise SchemaError("a message holds more than text", f"{column}.{key}", shown(given), "Leave it out.")
    return {"content": value.get("value")}


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
    if isinstance(value, (bool, list, dict)):  # accepted answers, `ground_truth`, tests: the scorer reads them as JSON
        return _json(value, column, "the reference answer")
    if not isinstance(value, (float, Decimal)):
        raise SchemaError("a reference answer is a text or a number", column, shown(value), "Write it as a string.")
    if not math.isfinite(value):
        raise SchemaError("a reference answer is finite", column, shown(value), "Write it as a string.")
    return str(value)


def _metadata(value: Any, column: str) -> str:
    return _text(value, column) if isinstance(value, str) else _json(value, column, "the metadata")


def _json(value: Any, column: str, name: str) -> str:
    try:
        return _text(_dump_with_dates(value), column)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SchemaError):
            raise
        raise SchemaError(f"{name} is not JSON", column, str(error), "Write JSON values or a string.") from error


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
