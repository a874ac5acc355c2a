"""Values of rows: as messages show them, and as texts that everything later can hold."""

from __future__ import annotations

import reprlib
from typing import Any

from clear_ray.errors import SchemaError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def shown(value: object) -> str:
    """Return a value as a short text that is safe in a message, however long or deep the value is."""
    return _REPR.repr(value)


def text_of(value: Any, column: str) -> str:
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
