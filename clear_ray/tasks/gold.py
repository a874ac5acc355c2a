r"""Reference answers in the shapes in which data sets publish them, prepared by the rule that reads a model's answer.

12   $1,234.50   B   (B)   B) Paris   yes
… #### 12                                     GSM8K: the whole solution
… \boxed{\frac12} …                            MATH: the whole solution
["Paris", "paris, France"]                    any of them is right
{"ground_truth": "72", "style": "rule"}       verl and TRL; also with a list, and as Python writes it
{"target": [...]}, {"value": ..., "aliases": [...]}, {"text": [...], "answer_start": [...]}, [{"text": ...}, ...]
{"number": "4", "date": {...}, "spans": [...]}  DROP
{"set": ["a", "b"]}                           all of them, in any order
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from clear_ray.tasks.choices import is_choice
from clear_ray.tasks.dates import moment_of
from clear_ray.tasks.marks import locate
from clear_ray.tasks.quantities import is_quantity
from clear_ray.tasks.thinking import without_thinking
from clear_ray.tasks.writing import plain, tidy

_NAMES = ("ground_truth", "target", "answers", "answer", "gold")
_LONGEST_LITERAL = 100_000
_TRUTH = re.compile(r"(?:yes|no|true|false)[.!]?", re.IGNORECASE)
_SHORT_WORDS = 24
UNANSWERABLE = ("unanswerable",)
"""The answer where a data set says that there is none, as SQuAD's empty list does."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What counts as right.

    Attributes:
        answers: Each right by itself; or, of a set, all that are wanted.
        is_set: Whether all are wanted together, in any order.
    """

    answers: tuple[str, ...]
    is_set: bool = False


def reference_of(gold: str, *, are_numbers_a_list: bool) -> Reference:
    """Return the accepted answers of a gold text; none if it holds none.

    Args:
        gold: As it stands in the input.
        are_numbers_a_list: Take `[1, 2]` for one answer that is a list; else for two accepted answers.
    """
    value = _value(gold)
    if isinstance(value, dict):
        for name in _NAMES:
            if name in value:
                return _reference(value[name], str(value[name]), are_numbers_a_list)
        if isinstance(value.get("set"), list):
            return Reference(tuple(_texts(value["set"])), is_set=True)
        if "value" in value and isinstance(value.get("aliases"), list):
            return Reference(tuple(_texts([value["value"], *value["aliases"]])))
        if isinstance(value.get("text"), list):
            return Reference(tuple(_texts(value["text"])) or UNANSWERABLE)
        if isinstance(value.get("spans"), list):
            return _drop(value)
    return _reference(value, gold, are_numbers_a_list)


def _drop(value: dict[str, Any]) -> Reference:
    """Return the answer of DROP: a number, a date in parts, or spans, which are all wanted."""
    day = value.get("date")
    parts = [str(day.get(name) or "") for name in ("day", "month", "year")] if isinstance(day, dict) else []
    single = str(value.get("number") or "") or " ".join(filter(None, parts))
    if single:
        return Reference((single,))
    spans = tuple(dict.fromkeys(_texts(value["spans"])))
    return Reference(spans, is_set=len(spans) > 1 and set(value.get("types") or ["span"]) == {"span"})


def unwrapped_gold(gold: str) -> str:
    """Return the text inside `{"ground_truth": …}`, or the gold as it is: where gold is itself JSON or a program."""
    value = _value(gold) if "ground_truth" in gold[:_LONGEST_LITERAL] else None
    if isinstance(value, dict) and "ground_truth" in value:
        inner = value["ground_truth"]
        return inner if isinstance(inner, str) else json.dumps(inner)
    return gold


def short_answer(gold: str) -> str:
    r"""Return the final answer inside a gold text that is a whole solution: what its last mark points at; else the text."""
    visible = without_thinking(plain(gold))
    if visible is None:
        return ""
    marked = locate(visible).marked
    if marked is None:
        return visible.strip()
    return marked.text.strip() if marked.how != "said" else marked.text.strip().partition("\n")[0]


def look_of(gold: str) -> str:
    """Return what one accepted answer looks like: `number`, `choice`, `truth`, `date`, `text`, or `prose`."""
    answer = short_answer(gold)
    if moment_of(answer):
        return "date"
    if is_choice(answer):
        return "choice"
    if _TRUTH.fullmatch(tidy(answer)):
        return "truth"
    if is_quantity(answer):
        return "number"
    return "prose" if len(answer.split()) > _SHORT_WORDS or "\n" in answer else "text"


def _reference(value: Any, text: str, are_numbers_a_list: bool) -> Reference:
    if isinstance(value, dict):
        return reference_of(json.dumps(value), are_numbers_a_list=are_numbers_a_list)
    if isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
        value = [str(item["text"]) for item in value]
    if isinstance(value, list) and value and all(isinstance(item, (str, int, float)) for item in value):
        if any(isinstance(item, str) for item in value) or not are_numbers_a_list:
            return Reference(tuple(_texts(value)))
        return Reference((text,))
    answers = _texts([value if isinstance(value, str) else text])
    return Reference(tuple(answers))


def _texts(values: list[Any]) -> list[str]:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return [text for text in texts if text.strip()]


def _value(gold: str) -> Any:
    """Return the JSON or Python value that a gold text is, if it is an object, an array or a quoted text; else the text."""
    stripped = gold.strip()
    if not stripped.startswith(("{", "[")):
        return gold
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    if stripped.startswith(("{'", "['")) and len(stripped) <= _LONGEST_LITERAL:
        try:
            return json.loads(json.dumps(ast.literal_eval(stripped)))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    return gold
