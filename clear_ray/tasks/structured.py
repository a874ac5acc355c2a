"""Answers that are JSON: the last whole value in a text, compared value by value."""

from __future__ import annotations

import json
import re
from typing import Any

from clear_ray.tasks.denials import is_denied
from clear_ray.tasks.fences import fenced_blocks

_START = re.compile(r"[{\[]")
_MOST_TRIES = 200
_LONGEST = 1 << 20
_LONGEST_CLAUSE = 160


class Nothing:
    """Stands for no value, since null is one."""


NOTHING = Nothing()


def read_json(text: str) -> Any:
    """Return the JSON value that a text gives as its answer, or `NOTHING`.

    The whole text, if it is one; else the last fenced block that is one; else the last object or array in it, objects and
    arrays of one line before bare references such as [1].

    Args:
        text: What the model wrote, without its thinking.
    """
    text = text[-_LONGEST:].strip()
    for candidate in (text, re.sub(r"\A[\s*_]{0,4}answer[\s*_:]{1,6}(?=[\w\"{\[-])", "", text, flags=re.IGNORECASE)):
        if (value := _parsed(candidate)) is not NOTHING:
            return value
    for block in reversed(fenced_blocks(text)):
        if (value := _parsed(block.body)) is not NOTHING:
            return value
    return _last_inside(text)


def equal_json(one: Any, other: Any) -> bool:
    """Tell whether two values are equal: 1 is 1.0 and true is neither; the order of arrays matters, that of keys does not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal_json, one, other))
    return type(one) is type(other) and one == other if not _is_number(one) else _is_number(other) and one == other


def levelled(value: Any) -> Any:
    """Return a value in which whole numbers are integers, so that equal values are written the same: 1.0 as 1."""
    if isinstance(value, dict):
        return {key: levelled(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [levelled(inside) for inside in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOTHING


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _last_inside(text: str) -> Any:
    decoder = json.JSONDecoder(parse_constant=_refuse)
    found: list[Any] = []
    position, tries = 0, 0
    while tries < _MOST_TRIES and (start := _START.search(text, position)):
        try:
            value, position = decoder.raw_decode(text, start.start())
            if not is_denied(
                text[max(0, start.start() - _LONGEST_CLAUSE) : start.start()],
                text[position : position + _LONGEST_CLAUSE],
            ):
                found.append(value)
        except (ValueError, RecursionError):
            position, tries = start.end(), tries + 1
    objects = [value for value in found if isinstance(value, dict)]
    return (objects or found or [NOTHING])[-1]
