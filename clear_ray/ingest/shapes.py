"""Which columns of a file hold prompt, gold and id, where the configuration does not say and the names are others.

The configured names come first, then the default ones, then the shapes that data sets have. What is recognised is said in a
line. Where more than one column could be meant, none is taken: the file is refused with the choices.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.composing import NOTHING, Beside
from clear_ray.ingest.nested import outermost

Kind = Literal["text", "number", "truth", "list", "object", "null", "other"]
Kinds = Mapping[str, frozenset[Kind]]
_PLAIN_KINDS: set[Kind] = {"text", "number"}
_GOLD_KINDS: set[Kind] = {"text", "number", "truth", "list", "object"}

_CONVERSATIONS = ("conversations", "conversation")
_PROMPTS = ("question", "problem", "instruction", "question_stem")
_LATER_PROMPTS = (
    "query",
    "input",
    "text",
    "sentence",
    "ctx",
    "inputs",
    "goal",
    "question_content",
)  # which stand for something else beside one of the others
_IDS = (
    "id",
    "custom_id",
    "uid",
    "unique_id",
    "question_id",
    "record_id",
    "instance_id",
    "_id",
    "qid",
    "extra_info.index",
)
_IDS_OF_TESTS = ("task_id",)  # of programs, which are a task each
_GOLD_OF = {"problem": (("answer",), ("solution",)), "instruction": (("output",), ("response", "answer"))}
_GOLD = (
    ("reward_model.ground_truth",),
    ("answer", "answers", "answers_spans", "ground_truth", "target", "targets", "completion"),
    ("solution", "response"),
    ("ideal", "expected_output", "expected_answer", "reference_answer", "answerkey", "correct_answer", "final_answer"),
    ("correct_answers",),
    ("best_answer",),
)
_TESTS = ("test_list", "test", "input_output")
"""Programs are judged by them: MBPP's list of assertions, HumanEval's `check`, the inputs and outputs of APPS."""
_OF_PROGRAMS = ("task_id", "entry_point", "starter_code", "problem_id")
_GOLD_OF_OPTIONS = (
    "label",
    "cop",
    "correct_option",
    "correct_choice",
    "correct_index",
    "correct_answer_index",
    "correct_answer_id",
    "answer_index",
    "answer_idx",
    "gold_index",
    "correct",
)
"""Which are a reference answer beside options alone."""
_OF_ANY_KIND = (
    *("reward_model.ground_truth", "answer", "answers", "answers_spans", "ground_truth", "target", "targets", "ideal"),
    *("correct_answers", "test_list"),
)
"""Which hold lists of accepted answers and the like; the others are taken only where they hold texts or numbers."""
_TASK = "data_source"  # of files that have reward_model, too
_AFTER = {"instruction": ("input", "context")}
_BEFORE = ("context", "passage", "article", "document", "story", "background", "paragraph", "body")
_OPTIONS = ("choices", "options", "endings")
_OPTION_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("A", "B", "C", "D", "E"),
    ("opa", "opb", "opc", "opd"),
    ("sol1", "sol2"),
    *(tuple(f"{name}_{letter}" for letter in "abcde") for name in ("option", "choice")),
    *(tuple(f"{name}{letter}" for letter in "abcde") for name in ("option", "choice", "answer")),
    *(tuple(f"option{sign}{k}" for k in range(1, 6)) for sign in ("", "_")),
    *(tuple(f"{name}{k}" for k in range(5)) for name in ("answer", "ending", "option", "choice")),
)
_BESIDE = (*_OPTIONS, *_BEFORE, "history", *(names[0] for names in _OPTION_COLUMNS))
"""What belongs to a question and stands in a column of its own: without it the question is another one."""
SYSTEM = ("system", "system_prompt")
UNREAD = ("image", "images", "audio", "audios", "video", "videos", "tools", "functions")
"""What belongs to any prompt and is not read from a column of its own."""
_STRUCTS = ("reward_model", "extra_info")
_DEFAULTS = ColumnsConfig()
_KNOWN = frozenset(
    {
        *(_CONVERSATIONS + _PROMPTS + _LATER_PROMPTS + _IDS + _BESIDE + _STRUCTS + _GOLD_OF_OPTIONS + SYSTEM),
        *(_TESTS + _OF_PROGRAMS),
        *(name for names in _OPTION_COLUMNS for name in names),
        *(name for levels in (_GOLD, *_GOLD_OF.values()) for level in levels for name in level),
        *_DEFAULTS.model_dump().values(),
        _TASK,
    }
)


def is_known(name: str) -> bool:
    """Whether a column may be recognised by its name, in whatever letters."""
    return name in _KNOWN or _small(name) in _KNOWN


def _small(name: str) -> str:
    return name.lower().replace(" ", "_")


@dataclass(frozen=True, slots=True)
class RowReading:
    """How the rows of one source are read.

    Attributes:
        columns: Which column holds what.
        beside: Columns that are part of what is asked.
        makes_ids: Whether the ids are made from position and content.
        said: What was recognised; empty if the columns are called as the configuration says.
        is_nested: Whether a column's name may lead into an object.
    """

    columns: ColumnsConfig
    beside: Beside = NOTHING
    makes_ids: bool = False
    said: str = ""
    is_nested: bool = False

    def unread(self, names: Iterable[str]) -> list[str]:
        """Return which columns of a source are not looked at."""
        there = list(names)
        used = {outermost(name, there) for name in self.columns.model_dump().values()} | self.beside.columns
        return [name for name in there if name not in used and not name.startswith("__index_level_")]  # pandas' own


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


def merged(earlier: Kinds, later: Kinds) -> Kinds:
    """Return the kinds of columns over both, where a column with nulls alone says nothing; the earlier ones decide."""
    null: frozenset[Kind] = frozenset(("null",))
    held = {name: kinds for name, kinds in later.items() if earlier.get(name, null) == null}
    return {**earlier, **held}


def recognise(kinds: Kinds, columns: ColumnsConfig, *, where: str, left_behind: Iterable[str] = ()) -> RowReading:
    """Return how rows with such columns are read.

    Args:
        kinds: Kinds from `kinds_of`.
        columns: The configured names; those that were not set by the user may be replaced.
        where: The source as errors name it.
        left_behind: Its other columns, as errors list them.

    Raises:
        SchemaError: No column can be the prompt, or more than one of those could be meant.
    """
    if {"text", "role", "parent_id"} <= kinds.keys():
        what, remedy = "each row is one message of a conversation", "Write a row a conversation, with its `messages`."
        raise SchemaError(what, where, "columns text, role, parent_id", remedy)
    check_unread((name for name in kinds if kinds[name] != {"null"}), columns, where=where)
    names = [*(name for name in kinds if "." not in name or name.partition(".")[0] not in kinds), *left_behind]
    kinds, spelled = _in_small_letters(kinds)
    named = {name for name in columns.model_fields_set if getattr(columns, name) != getattr(_DEFAULTS, name)}
    named |= {name for name in ColumnsConfig.model_fields if _is_there(getattr(columns, name), kinds)}
    named |= {name for name in columns.model_fields_set if name == "gold"}  # `gold: gold` asks for no other
    found: dict[str, str] = {}
    beside = NOTHING
    is_told_prompt = bool(columns.model_fields_set & {"prompt", "messages"})
    if not named & {"prompt", "messages"}:
        found |= _prompt(kinds, where, names)
        beside = _beside(found.get("prompt", ""), kinds, where)
    if not is_told_prompt:
        beside = replace(beside, system=next((name for name in SYSTEM if _has(name, kinds, {"text"})), ""))
    prompt = found.get("prompt") or (columns.prompt if _is_there(columns.prompt, kinds) else "")
    if "gold" not in named and (gold := _gold(prompt, kinds, beside, where)):
        found["gold"] = gold
    if "task" not in named and "reward_model" in kinds and _has(_TASK, kinds, {"text"}):
        found["task"] = _TASK
    makes_ids = False
    if "query_id" not in named:
        ids = (*_IDS, *(_IDS_OF_TESTS if found.get("gold") in _TESTS else ()))
        query_id = next((name for name in ids if _has(name, kinds, {"text", "number"})), None)
        makes_ids = query_id is None
        found |= {} if query_id is None else {"query_id": query_id}
    respelled = {
        name: getattr(columns, name) for name in ColumnsConfig.model_fields if getattr(columns, name) in spelled
    }
    found = {name: spelled.get(column, column) for name, column in (respelled | found).items()}
    beside = Beside(
        spelled.get(beside.system, beside.system),
        spelled.get(beside.before, beside.before),
        spelled.get(beside.after, beside.after),
        tuple(spelled.get(name, name) for name in beside.options),
    )
    columns = columns.model_copy(update=found)
    is_nested = any("." in name for name in columns.model_dump().values())
    return RowReading(columns, beside, makes_ids, _said(found, beside, makes_ids), is_nested)


def _in_small_letters(kinds: Kinds) -> tuple[Kinds, dict[str, str]]:
    """Return columns under the names by which they may be known, and how those are spelled in the source."""
    spelled = {}
    for name in kinds:
        small = _small(name)
        if name not in _KNOWN and small in _KNOWN and small not in kinds and small not in spelled:
            spelled[small] = name
    if not spelled:
        return kinds, {}
    known_as = {name: small for small, name in spelled.items()}
    return {known_as.get(name, name): kinds[name] for name in kinds}, spelled


def _beside(prompt: str, kinds: Kinds, where: str) -> Beside:
    """Return the columns that belong to a recognised prompt.

    Raises:
        SchemaError: There is one that cannot be put to it as it is.
    """
    if not prompt:
        return NOTHING
    after = [name for name in _AFTER.get(prompt, ()) if _has(name, kinds, {"text"})][:1]
    before = [name for name in _BEFORE if _has(name, kinds, {"text"}) and name not in after][:1]
    options = [name for name in _OPTIONS if _has(name, kinds, {"list", "object"})][:1]
    if (
        not options
        and _has("answers", kinds, {"list"})
        and any(_has(name, kinds, {"number"}) for name in _GOLD_OF_OPTIONS)
    ):
        options = ["answers"]  # of which a number names the right one, as in LSAT and QuAIL
    if not options:
        sets = ([name for name in names if name in kinds] for names in _OPTION_COLUMNS)
        options = next((names for names in sets if len(names) > 1 and all(_plain(name, kinds) for name in names)), [])
    taken = {*after, *before, *options, prompt}
    left = [name for name in _BESIDE if _is_there(name, kinds) and kinds[name] != {"null"} and name not in taken]
    if left:
        what = f"{left[0]!r} seems to belong to {prompt!r}, which would be another question without it"
        remedy = f"Write both into one column, or set input.columns.prompt to {prompt!r} to ask without it."
        raise SchemaError(what, where, ", ".join(left), remedy)
    empty = [name for name in _AFTER.get(prompt, ()) if name in kinds]  # said though no row of those first seen has one
    return Beside("", "".join(before), "".join(after or empty[:1]), tuple(options))


def _plain(name: str, kinds: Kinds) -> bool:
    return kinds[name] <= {"text", "null"}


def _is_there(name: str, kinds: Kinds) -> bool:
    return name in kinds or ("." in name and name.partition(".")[0] in kinds)


def _has(name: str, kinds: Kinds, wanted: set[Kind]) -> bool:
    """Whether a column is there and holds values of the wanted kinds alone, beside nulls."""
    held = kinds.get(name, frozenset()) - {"null"}
    return bool(held) and held <= wanted


def _prompt(kinds: Kinds, where: str, names: list[str]) -> dict[str, str]:
    conversations = [name for name in _CONVERSATIONS if _has(name, kinds, {"list"})]
    for level in (_PROMPTS, _LATER_PROMPTS):
        texts = [name for name in level if _has(name, kinds, {"text", "list"})]
        choices = [*conversations, *texts]
        if len(choices) > 1:
            remedy = f"Set input.columns.prompt or input.columns.messages to one of {', '.join(choices)}."
            raise SchemaError("more than one column could be the prompt", where, ", ".join(choices), remedy)
        if texts:
            return {"prompt": texts[0]}
        if conversations:
            return {"messages": conversations[0]}
    remedy = "Name the prompt's column: input.columns.prompt, or input.columns.messages for conversations."
    lists = [name for name in kinds if "." not in name and _has(name, kinds, {"list"})]
    objects = [name for name in kinds if "." not in name and _has(name, kinds, {"object"})]
    is_article = "body" in kinds and _plain("body", kinds)
    lines_of = (said for name, said in _LINES_OF.items() if name in names and not (name == "body" and is_article))
    if other := next(lines_of, ""):
        remedy = f"{other}: write OpenAI's lines, {{custom_id, method, url, body}}."
    elif objects or len(names) > len(kinds):
        remedy += f" A name with dots leads into an object{f', as in {objects[0]}.NAME' if objects else ''}."
    elif len(lists) == 1:
        remedy += f" If {lists[0]!r} holds the queries, write that list as a file of its own."
    raise SchemaError("no column is known to be the prompt", where, f"columns {', '.join(names) or 'none'}", remedy)


_LINES_OF = {
    "body": "The lines of a batch file need a custom_id each, and are read from JSON alone",
    "request": "Gemini's lines are read from JSON alone, with `request.contents`; otherwise",
    "modelInput": "Bedrock's lines are read from JSON alone, with `recordId` and `modelInput`; otherwise",
}
"""Columns that the batch files of other services have."""


def _gold(prompt: str, kinds: Kinds, beside: Beside, where: str) -> str | None:
    levels: tuple[tuple[str, ...], ...] = _GOLD_OF.get(prompt, _GOLD)
    if beside.options:
        levels = (*levels, *((name,) for name in _GOLD_OF_OPTIONS))
    for level in levels:
        choices = [name for name in level if _has(name, kinds, _GOLD_KINDS if name in _OF_ANY_KIND else _PLAIN_KINDS)]
        choices = [name for name in choices if name not in beside.options]
        if len(choices) > 1:
            remedy = f"Set input.columns.gold to one of {', '.join(choices)}, or to gold to read none of them."
            raise SchemaError("more than one column could be the reference answer", where, ", ".join(choices), remedy)
        if choices:
            return choices[0]
    if any(name in kinds for name in _OF_PROGRAMS):
        return next((name for name in _TESTS if _has(name, kinds, {"text", "list"})), None)
    return None


def _said(found: Mapping[str, str], beside: Beside, makes_ids: bool) -> str:
    words = {"messages": "conversation", "query_id": "id"}
    names = ("prompt", "messages", *(name for name in ColumnsConfig.model_fields if name not in ("prompt", "messages")))
    names = (*(name for name in names if name != "query_id"), "query_id")
    said = {name: f"`{found[name]}` as {words.get(name, name)}" for name in names if name in found}
    if "prompt" in found and beside.columns:
        parts = (beside.before, found["prompt"], beside.after, *beside.options)
        columns = [f"`{name}`" for name in parts if name]
        listed = f"{', '.join(columns[:-1])} and {columns[-1]}" if len(columns) > 1 else columns[0]
        said["prompt"] = f"{listed} as prompt"
    parts_said = [*said.values()]
    if beside.system:
        parts_said.append(f"`{beside.system}` as system prompt")
    made = "ids are made from position and content: there is no id column"
    return "; ".join(part for part in (", ".join(parts_said), made if makes_ids else "") if part)


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
