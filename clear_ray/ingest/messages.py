"""Conversations as people write them, read as lists of {role, content}.

Roles are OpenAI's, or the speakers of ShareGPT's {from, value}. A message holds text; what else stands in it is refused by
name unless it asks for nothing.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from clear_ray.errors import SchemaError
from clear_ray.ingest.values import shown, text_of

# `developer` is OpenAI's newer word for `system`; chat templates know only the older one.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_CHAT_KEYS = {"from", "value", "weight", "loss", "train"}
_EMPTY: tuple[Any, ...] = ("", [], {}, False)
_READ_KEYS = {"role", "content", "name", "weight"}
"""`weight` is a mark of training."""
_OF_RECORDS = frozenset(
    {
        *(
            "id",
            "message_id",
            "turn_identifier",
            "index",
            "timestamp",
            "created_at",
            "model",
            "language",
            "country",
            "state",
        ),
        *("hashed_ip", "header", "toxic", "redacted"),
    }
)
"""What records of chats keep beside a message, as WildChat does: of whom and when it was, and nothing that a model reads."""
_BEGINS_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
_BEGINS_PYTHON = re.compile(r"""\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:""")
_BETWEEN_LINES = re.compile(r"\}\s*\n\s*\{")
_LONGEST_PYTHON = 1 << 20
GOES_ON = ("prefix", "partial")
"""Words of Mistral, DeepSeek and Moonshot in a last message that the answer is to go on with."""


def read_messages(value: Any, column: str) -> list[dict[str, str]]:
    """Return messages as {role, content}, with a name where the speaker has one.

    A text is taken for such a list, as `loaded_messages` reads it.

    Args:
        value: The conversation.
        column: Where it stands, as errors name it.

    Raises:
        SchemaError: It is none, or holds more than text.
    """
    if isinstance(value, str):
        try:
            value = loaded_messages(value)
        except (ValueError, RecursionError) as error:
            raise SchemaError(
                "the conversation is not JSON", column, str(error), "Write [{role, content}, …]."
            ) from error
    if not isinstance(value, list) or not value:
        raise SchemaError("a conversation is a list of messages", column, shown(value), "Write [{role, content}, …].")
    last = len(value) - 1
    turns = [_message(message, f"{column}[{k}]", is_last=k == last) for k, message in enumerate(value)]
    if is_record(value) and turns[0] == {"role": "system", "content": ""}:  # an empty cell of what was exported
        turns.pop(0)
    if turns and not turns[-1]["content"].strip():
        raise SchemaError("the last message is empty", f"{column}[{last}]", "", "Remove the row or give it a message.")
    return turns


def is_text_of_messages(value: Any) -> bool:
    """Whether a text is messages, as tables have them where a cell holds no list."""
    if not isinstance(value, str) or not _BEGINS_MESSAGES.match(value):
        return False
    try:
        messages = loaded_messages(value)
    except (ValueError, RecursionError):
        return False
    return has_messages(messages)


def loaded_messages(text: str) -> Any:
    """Return what a text of messages holds: JSON, or what Python prints, as tables have it that pandas wrote.

    Raises:
        ValueError: It is neither.
        RecursionError: It is too deep.
    """
    try:
        return json.loads(text)
    except ValueError:
        if not _BEGINS_PYTHON.match(text) or len(text) > _LONGEST_PYTHON:
            raise
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in it
                return ast.literal_eval(_BETWEEN_LINES.sub("}, {", text.strip()))  # arrays have no commas there
        except (SyntaxError, MemoryError, TypeError) as error:
            raise ValueError(str(error)) from None


def has_messages(value: list[Any]) -> bool:
    """Whether all elements of a list look like messages."""
    keys = ({"role", "content"}, {"from", "value"})
    return all(isinstance(message, dict) and any(two <= message.keys() for two in keys) for message in value)


def is_record(value: Any) -> bool:
    """Whether a conversation is the record of a chat, {from, value}."""
    return isinstance(value, list) and bool(value) and isinstance(value[-1], dict) and "from" in value[-1]


def ends_with_answer(messages: list[Any]) -> bool:
    """Whether the last of some messages is the assistant's."""
    last = messages[-1] if messages else None
    role = last.get("role") or _SPEAKERS.get(str(last.get("from"))) if isinstance(last, Mapping) else None
    return role == "assistant"


def has_names(messages: list[Any]) -> bool:
    """Whether a message says what its speaker is called."""
    return any(isinstance(message, Mapping) and bool(message.get("name")) for message in messages)


def without_answer(turns: list[dict[str, str]], column: str) -> tuple[list[dict[str, str]], str | None]:
    """Part a conversation that ends with the assistant's words from them; None if it does not.

    Raises:
        SchemaError: Nothing else is in it.
    """
    asked, answer = list(turns), None
    while asked and asked[-1]["role"] == "assistant":
        answer = asked.pop()["content"]
    if not asked:
        raise SchemaError(
            "the conversation asks nothing", column, shown(answer), "Remove the row or give it a question."
        )
    return asked, answer


def _message(value: Any, column: str, *, is_last: bool) -> dict[str, str]:
    if not isinstance(value, dict):
        raise SchemaError("a message is an object", column, shown(value), "Write {role, content}.")
    role = value.get("role")
    if role is None and "from" in value:
        role, value = _SPEAKERS.get(str(value["from"]), value["from"]), _turn_of_chat(value, column)
    if not isinstance(role, str) or role not in _ROLES:
        raise SchemaError("unknown role", f"{column}.role", shown(role), f"Use one of {', '.join(_ROLES)}.")
    for key, given in value.items():
        if key in _READ_KEYS or key in _OF_RECORDS or given is None or any(given == empty for empty in _EMPTY):
            continue
        if not (key in GOES_ON and given is True and is_last and role == "assistant"):
            raise SchemaError("a message holds more than text", f"{column}.{key}", shown(given), "Leave it out.")
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{column}.content[{k}]") for k, part in enumerate(content))
    turn = {"role": _ROLES[role], "content": text_of(content, f"{column}.content")}
    if value.get("name"):
        turn["name"] = text_of(value["name"], f"{column}.name")
    return turn


def _turn_of_chat(value: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return a {from, value} as a message; marks of training beside them say nothing to a model."""
    for key, given in value.items():
        if given is not None and key not in _CHAT_KEYS and key not in _OF_RECORDS:
            raise SchemaError("a message holds more than text", f"{column}.{key}", shown(given), "Leave it out.")
    return {"content": value.get("value")}


def _part(value: Any, column: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        found = shown(value.get("type")) if isinstance(value, dict) else shown(value)
        raise SchemaError("only parts of type text are read", column, found, "Remove images, audio and files.")
    return text_of(value.get("text"), f"{column}.text")
