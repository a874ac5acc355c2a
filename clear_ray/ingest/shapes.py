"""Which columns of a file hold prompt, gold and id, where the configuration does not say and the names are others.

The configured names come first, then the default ones, then the shapes that data sets have. What is recognised is said in a
line. Where more than one column could be meant, none is taken: the file is refused with the choices.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError

Kind = Literal["text", "number", "truth", "list", "object", "null", "other"]
Kinds = Mapping[str, frozenset[Kind]]
_PLAIN_KINDS: set[Kind] = {"text", "number"}
_GOLD_KINDS: set[Kind] = {"text", "number", "truth", "list", "object"}

_CONVERSATIONS = ("conversations", "conversation")
_PROMPTS = ("question", "problem", "instruction")
_LATER_PROMPTS = ("query", "input", "text")  # which stand for something else beside one of the others
_IDS = ("id", "custom_id", "uid", "unique_id", "extra_info.index")
_GOLD_OF = {"problem": (("answer",), ("solution",)), "instruction": (("output",), ("response", "answer"))}
_GOLD = (
    ("reward_model.ground_truth",),
    ("answer", "answers", "ground_truth", "target", "completion"),
    ("solution", "response"),
)
_OF_ANY_KIND = ("reward_model.ground_truth", "answer", "answers", "ground_truth", "target")
"""Which hold lists of accepted answers and the like; the others are taken only where they hold texts or numbers."""
_TASK = "data_source"  # of files that have reward_model, too
_ADDED = {"instruction": "input"}
_BESIDE = (
    *("choices", "options", "endings", "context", "passage", "article", "document", "story", "background", "history"),
    *("A", "option_a", "choice_a", "opa"),
)
"""What belongs to a question and stands in a column of its own: without it the question is another one."""
UNREAD = ("image", "images", "audio", "audios", "video", "videos", "tools", "functions", "system", "system_prompt")
"""What belongs to any prompt and is not read from a column of its own."""
_STRUCTS = ("reward_model", "extra_info")
_DEFAULTS = ColumnsConfig()
KNOWN = frozenset(
    {
        *(_CONVERSATIONS + _PROMPTS + _LATER_PROMPTS + _IDS + _BESIDE + _STRUCTS),
        *(name for levels in (_GOLD, *_GOLD_OF.values()) for level in levels for name in level),
        _TASK,
    }
)
"""Columns that may be recognised."""


@dataclass(frozen=True, slots=True)
class RowReading:
    """How the rows of one source are read.

    Attributes:
        columns: Which column holds what.
        added: Column that is put after the prompt where a row has it; empty if there is none.
        makes_ids: Whether the ids are made from position and content.
        said: What was recognised; empty if the columns are called as the configuration says.
        is_nested: Whether a column's name may lead into an object.
    """

    columns: ColumnsConfig
    added: str = ""
    makes_ids: bool = False
    said: str = ""
    is_nested: bool = False


def check_unread(names: Iterable[str], columns: ColumnsConfig, *, where: str) -> None:
    """Refuse a source with columns that belong to its prompts and are not read, unless the user named the prompt's column.

    Raises:
        SchemaError: There is such a column.
    """
    there = set(names)
    found = [name for name in UNREAD if name in there]
    if found and not columns.model_fields_set & {"prompt", "messages"}:
        what = f"the column {found[0]!r} seems to belong to the prompts, and is not read"
        remedy = "Write it into the messages; or name the prompt's column in input.columns, to ask without it."
        raise SchemaError(what, where, ", ".join(found), remedy)


def kinds_of(rows: Iterable[object]) -> Kinds:
    """Return what kinds of values each column of some rows holds; fields of known structs under dotted names."""
    found: dict[str, set[Kind]] = {}
    for row in rows:
        if isinstance(row, Mapping):
            for name, value in row.items():
                found.setdefault(name, set()).add(_kind(value))
                if name in _STRUCTS and isinstance(value, Mapping):
                    for inner, held in value.items():
                        found.setdefault(f"{name}.{inner}", set()).add(_kind(held))
    return {name: frozenset(kinds) for name, kinds in found.items()}


def recognise(kinds: Kinds, columns: ColumnsConfig, *, where: str) -> RowReading:
    """Return how rows with such columns are read.

    Args:
        kinds: Kinds from `kinds_of`.
        columns: The configured names; those that were not set by the user may be replaced.
        where: The source as errors name it.

    Raises:
        SchemaError: No column can be the prompt, or more than one of those could be meant.
    """
    named = {name for name in columns.model_fields_set if getattr(columns, name) != getattr(_DEFAULTS, name)}
    named |= {name for name in ColumnsConfig.model_fields if _is_there(getattr(columns, name), kinds)}
    named |= {name for name in columns.model_fields_set if name == "gold"}  # `gold: gold` asks for no other
    check_unread((name for name in kinds if kinds[name] != {"null"}), columns, where=where)
    found: dict[str, str] = {}
    if not named & {"prompt", "messages"}:
        found |= _prompt(kinds, where)
    prompt = found.get("prompt") or (columns.prompt if _is_there(columns.prompt, kinds) else "")
    added = _ADDED.get(found.get("prompt", ""), "")
    added = added if added in kinds else ""
    if "gold" not in named and (gold := _gold(prompt, kinds, where)):
        found["gold"] = gold
    if "task" not in named and "reward_model" in kinds and _has(_TASK, kinds, {"text"}):
        found["task"] = _TASK
    makes_ids = False
    if "query_id" not in named:
        query_id = next((name for name in _IDS if _has(name, kinds, {"text", "number"})), None)
        makes_ids = query_id is None
        found |= {} if query_id is None else {"query_id": query_id}
    columns = columns.model_copy(update=found)
    is_nested = any("." in name for name in columns.model_dump().values())
    return RowReading(columns, added, makes_ids, _said(found, added, makes_ids), is_nested)


def _is_there(name: str, kinds: Kinds) -> bool:
    return name in kinds or ("." in name and name.partition(".")[0] in kinds)


def _has(name: str, kinds: Kinds, wanted: set[Kind]) -> bool:
    """Whether a column is there and holds values of the wanted kinds alone, beside nulls."""
    held = kinds.get(name, frozenset()) - {"null"}
    return bool(held) and held <= wanted


def _prompt(kinds: Kinds, where: str) -> dict[str, str]:
    conversations = [name for name in _CONVERSATIONS if _has(name, kinds, {"list"})]
    for level in (_PROMPTS, _LATER_PROMPTS):
        texts = [name for name in level if _has(name, kinds, {"text", "list"})]
        choices = [*conversations, *texts]
        if len(choices) > 1:
            remedy = f"Set input.columns.prompt or input.columns.messages to one of {', '.join(choices)}."
            raise SchemaError("more than one column could be the prompt", where, ", ".join(choices), remedy)
        if texts:
            return _alone(texts[0], kinds, where)
        if conversations:
            return {"messages": conversations[0]}
    remedy = "Name the prompt's column: input.columns.prompt, or input.columns.messages for conversations."
    lists = [name for name in kinds if _has(name, kinds, {"list"})]
    if len(lists) == 1 and not any(_has(name, kinds, {"text"}) for name in kinds):
        remedy = f"If {lists[0]!r} holds the queries, write that list as a file of its own."
    names = ", ".join(name for name in kinds if "." not in name)
    raise SchemaError("no column is known to be the prompt", where, f"columns {names or 'none'}", remedy)


def _alone(prompt: str, kinds: Kinds, where: str) -> dict[str, str]:
    beside = [name for name in _BESIDE if _is_there(name, kinds) and kinds[name] != {"null"}]
    if beside:
        what = f"{beside[0]!r} seems to belong to {prompt!r}, which would be another question without it"
        remedy = f"Write both into one column, or set input.columns.prompt to {prompt!r} to ask without it."
        raise SchemaError(what, where, ", ".join(beside), remedy)
    return {"prompt": prompt}


def _gold(prompt: str, kinds: Kinds, where: str) -> str | None:
    for level in _GOLD_OF.get(prompt, _GOLD):
        choices = [name for name in level if _has(name, kinds, _GOLD_KINDS if name in _OF_ANY_KIND else _PLAIN_KINDS)]
        if len(choices) > 1:
            remedy = f"Set input.columns.gold to one of {', '.join(choices)}, or to gold to read none of them."
            raise SchemaError("more than one column could be the reference answer", where, ", ".join(choices), remedy)
        if choices:
            return choices[0]
    return None


def _said(found: Mapping[str, str], added: str, makes_ids: bool) -> str:
    words = {"messages": "conversation", "query_id": "id"}
    parts = [
        f"`{found[name]}` as {words.get(name, name)}"
        for name in ("prompt", "messages", "gold", "task", "query_id")
        if name in found
    ]
    if added:
        parts[0] = f"`{found['prompt']}` and `{added}` as prompt"
    said = ", ".join(parts)
    made = "ids are made from position and content: there is no id column"
    return "; ".join(part for part in (said, made if makes_ids else "") if part)


def _kind(value: Any) -> Kind:
    if value is None or value in ("", []):
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, (numbers.Real, Decimal)):
        return "number"
    if isinstance(value, list):
        return "list"
    return "object" if isinstance(value, Mapping) else "other"
