"""One prompt from several columns, where the shape of a data set says how they belong together.

A passage stands before its question, an input after its instruction, options after the question with a letter each, and a
system prompt is a turn of its own.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clear_ray.errors import SchemaError
from clear_ray.ingest.values import shown, text_of


@dataclass(frozen=True, slots=True)
class Beside:
    """Columns that are part of what is asked, beside the prompt's own; empty for none.

    Attributes:
        system: Of a system prompt.
        before: Put before the prompt.
        after: Put after it.
        options: One column with the list of them, or one for each.
    """

    system: str = ""
    before: str = ""
    after: str = ""
    options: tuple[str, ...] = ()

    @property
    def columns(self) -> frozenset[str]:
        """All of these columns."""
        return frozenset((self.system, self.before, self.after, *self.options)) - {""}


NOTHING = Beside()


def composed(prompt: str, row: Mapping[str, Any], beside: Beside, options: Mapping[str, str]) -> str:
    """Return a prompt with what stands beside it in the row.

    Args:
        prompt: The text of the prompt's own column.
        row: The row.
        beside: Which columns belong to it.
        options: From `options_in`.

    Raises:
        SchemaError: A column holds no text; `where` is the column.
    """
    parts = [_text_in(row, beside.before), prompt, _text_in(row, beside.after)]
    parts.append("\n".join(f"{label}. {text}" for label, text in options.items()))
    return "\n\n".join(part for part in parts if part.strip())


def with_system(turns: list[dict[str, str]], row: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    """Return turns with the system prompt of a column before them, unless they have one of their own.

    Raises:
        SchemaError: The column holds no text, or another system prompt.
    """
    text = _text_in(row, column)
    if not text.strip() or turns[0] == {"role": "system", "content": text}:
        return turns
    if turns[0]["role"] == "system":
        raise SchemaError("the conversation has another system prompt", column, shown(text), "Keep one of them.")
    return [{"role": "system", "content": text}, *turns]


def options_in(row: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, str]:
    """Return the options of a row, label to text; labels are the row's own where it has them, else letters.

    Raises:
        SchemaError: They are not texts; `where` is the column.
    """
    if len(columns) > 1:
        given = {name: row.get(name) for name in columns}
        filled = [text_of(text, name) for name, text in given.items() if text not in (None, "")]
        if counts_from_one(columns):
            return {str(k): text for k, text in enumerate(filled, 1)}
        return _lettered(filled, columns[0])
    column = columns[0]
    value = row.get(column)
    if value is None or value == []:
        return {}
    if isinstance(value, list) and all(isinstance(option, Mapping) for option in value):
        value = {name: [option.get(name) for option in value] for name in ("label", "text")}
    if isinstance(value, Mapping) and all(text is None or isinstance(text, str) for text in value.values()):
        return {label: text for label, text in value.items() if text is not None}  # tables give every row every label
    labels = value.get("label") if isinstance(value, Mapping) else None
    texts = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(texts, list) or (
        labels is not None and (not isinstance(labels, list) or len(labels) != len(texts))
    ):
        raise SchemaError("the options are not a list of texts", column, shown(value), 'Write ["a", "b"].')
    texts = [text_of(_plain(text), f"{column}[{k}]") for k, text in enumerate(texts)]
    if labels is None or None in labels:
        return _lettered(texts, column)
    return {text_of(label, column): text for label, text in zip(labels, texts, strict=True)}


def counts_from_one(columns: Sequence[str]) -> bool:
    """Whether options stand in columns that are numbered from 1: answers name them by these numbers, their labels."""
    return len(columns) > 1 and columns[0].endswith("1") and not columns[0].startswith("sol")  # of PIQA, from 0


def _lettered(texts: list[str], column: str) -> dict[str, str]:
    if len(texts) > len(string.ascii_uppercase):
        raise SchemaError("there are more options than letters", column, str(len(texts)), "Write them into the prompt.")
    if len(texts) > 1 and all(
        re.match(rf"\({label}\)|{label}[).:]", text) for label, text in zip(string.ascii_uppercase, texts, strict=False)
    ):
        texts = [
            text[3:].lstrip() if text[0] == "(" else text[2:].lstrip() for text in texts
        ]  # (A) yes, as AGIEval has it
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def _plain(value: Any) -> Any:
    """Return a number among options as the text that it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _text_in(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column) if column else None
    return "" if value is None else text_of(value, column)
