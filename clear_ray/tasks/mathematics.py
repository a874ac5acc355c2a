r"""Mathematical answers: `\frac12` is 0.5, `x^2+2x+1` is `(x+1)^2`, and a word is no product of letters.

What can be told from the writing alone is told here, lists, tuples, intervals and sets element by element. The rest is asked
of math-verify, in the referee's process, and only where both sides are mathematics: it takes any text for a product of the
letters in it, so that an anagram would be equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from clear_ray.tasks.choices import read_choice
from clear_ray.tasks.denials import begins_denied, is_denied
from clear_ray.tasks.formulas import (
    LONGEST,
    canonical_mathematics,
    interval_of,
    is_mathematics,
    split_unit,
    trimmed,
    with_commands,
    without_option,
)
from clear_ray.tasks.marks import Marked
from clear_ray.tasks.quantities import find_quantity, is_quantity, read_quantity
from clear_ray.tasks.units import unit_of
from clear_ray.tasks.writing import bold_spans, first_sentence, plain, tidy, unexplained, unwrapped, words_of

Prove = Callable[[str, str], bool | None]
"""Tells whether an answer is mathematically equal to a gold answer; None if that takes too long."""

_MOST_ELEMENTS = 64
_SPANS = re.compile(
    r"\$\$(?P<a>[^$]{1,1000})\$\$|\\\[(?P<b>[^\[\]]{1,1000}(?:\[[^\[\]]{0,200}\][^\[\]]{0,200})?)\\\]|\\\((?P<c>[^\n]{1,500}?)\\\)|\$(?P<d>[^$\n]{1,500})\$"
)
_NONE_THERE = (
    re.compile(r"\b(?:dne|do(?:es)?(?: not|n't) exist|no (?:such )?limit)\b"),
    re.compile(r"\\emptyset|\\varnothing|\bno (?:real |integer |such )?(?:solutions?|roots?)\b"),
)
_LONGEST_OF_NONE = 40
_LETTERS = re.compile(r"[A-H](?:,[A-H]){1,7}")
_BASE = re.compile(r"\d_\w")
_ASSIGNED = re.compile(r"(?:\\[a-z]{2,10}\{)?[A-Za-z]\w{0,2}\}?(?:\([a-z]\))?(?:=(?!=)|\\in(?![a-z])|\\equiv(?=\d))")
_MODULUS = re.compile(r"\\pmod ?\{?\w+\}?|\(?\\(?:bmod|mod) ?\{?\w+\}?\)?")
_RELATION = re.compile(r"(?<![\w\\)])[A-Za-z]\w?(?: ?\([a-z]\))? ?(?:=|<|>|\u2264|\u2265|\\[lg]eq?(?![a-z]))")
_AND = re.compile(r",? (?:or|and) |, ?")
_STATES = re.compile(r"(?:\b(?:is|are|becomes|gives|equals|be|get|obtain|to)\b:?|(?<=[^\W\d]):) ")
_JOINT = re.compile(r" ?(?:,|,? (?:and|or)) ?")
_FORMULA = re.compile(
    r"\\[a-z]+|[\d)\w] ?[-+*/^:\u221a\u00b7\u00d7<>\u2264\u2265\u222a,] ?[(\w\u221a\u03c0\\]|"
    r"[\u221a\u03c0\u221e]|\d[a-z]|[(\[{].*,.*[)\]}]"
)
_EITHER = re.compile(r" (?:or|and) |\\text\{ ?or ?\}")
_ENDS = (")", "]")
_OPENINGS, _CLOSINGS = "([{", ")]}"
_ATTAINED = re.compile(
    r"(?<=[$\])]), (?:attained|achieved|reached|occurring|which (?:occurs|is attained)|when|where|at) [^\n.]{0,80}\.?\s*\Z"
)
_ANY_ORDER = re.compile(
    r"\b(?:in )?any order\b|\border (?:does not|doesn't|is not important|do not) ?(?:matter)?", re.IGNORECASE
)


def read_mathematics(marked: Marked | None, rest: str) -> str | None:
    """Return the formula or number of a text, marked or not; None if there is none."""
    if marked is not None:
        if marked.how in ("said", "box") and begins_denied(marked.text):
            return None
        found = marked.text if marked.how in ("box", "tag", "hash") else _formula_of(marked.text)
        return trimmed(found) or None
    rest = rest[-LONGEST:]
    line = rest.rstrip().rpartition("\n")[2].strip()
    for span in reversed(bold_spans(line)):
        place = line.find(span)
        if (is_quantity(span) or "$" in span) and not is_denied(line[:place], line[place + len(span) :]):
            return trimmed(tidy(span)) or None
    spans = _spans(_ATTAINED.split(rest, maxsplit=1)[0]) or _spans(rest)
    if spans and not is_denied(rest[: spans[-1][0]], rest[spans[-1][1] :]):
        return trimmed(spans[-1][2]) or None
    if line and len(line.split()) <= 3:
        return trimmed(line) or None
    if (said := _said_formula(line)) is not None:
        return trimmed(said) or None
    number = find_quantity(rest)
    return number.text if number else None


def _said_formula(line: str) -> str | None:
    """Return the solutions, or the formula after the last `is`, `:` or `=`, that a line without mathematics signs ends on."""
    sentence = re.split(r"(?<=[^.\d])\. +(?=[A-Z])", line)[-1].rstrip(" .")
    first = _RELATION.search(sentence)
    if first and not is_denied(sentence[: first.start()]):
        parts = [part for part in _AND.split(sentence[first.start() :]) if part]
        if len(parts) > 1 and all(map(is_mathematics, parts)):
            return sentence[first.start() :]
    states = [*_STATES.finditer(sentence), *re.finditer(r"(?<![<>=!])=(?!=) ?", sentence)]
    if not states:
        return None
    last = max(states, key=lambda found: found.end())
    said = re.sub(r"\Aat ", "", sentence[last.end() :].strip(" *_"))
    if " and " in said and all(map(is_mathematics, _AND.split(said))):
        return said  # The numbers are 5 and 4
    bare = said.rpartition(" ")
    if re.fullmatch(r"[a-z]{2,12}", bare[2]) and is_mathematics(bare[0]) and not is_mathematics(said):
        said = bare[0]  # pi/4 radians
    is_formula = is_mathematics(said) and not is_quantity(said) and _FORMULA.search(said) is not None
    return said if is_formula and not is_denied(sentence[: last.start()], said) else None


def is_any_order(prompt: str) -> bool:
    """Tell whether a question says that its answers may come in any order."""
    return _ANY_ORDER.search(prompt) is not None


def equal_mathematics(answer: str, gold: str, *, prove: Prove, any_order: bool = False) -> bool | None:
    """Tell whether two formulas are equal; None if that could not be told in time.

    Args:
        answer: What was read.
        gold: The reference.
        prove: Asked where the writing does not tell.
        any_order: Whether lists without braces are equal in any order.
    """
    answer, gold = trimmed(answer), trimmed(gold)
    if len(answer) > LONGEST or len(gold) > LONGEST:
        return answer == gold
    a, g = canonical_mathematics(answer), canonical_mathematics(gold)
    if a == g:
        return True
    if (letter := letter_of(gold)) is not None:
        return read_choice(answer, {}) == letter
    if _LETTERS.fullmatch(g):  # several options
        return (
            sorted(re.findall("[A-H]", a)) == g.split(",")
            and _LETTERS.fullmatch(",".join(a.replace(",", ""))) is not None
        )
    answer, gold = _alike(without_option(answer), without_option(gold))
    a, g = canonical_mathematics(answer), canonical_mathematics(gold)
    if a == g:
        return True
    if _MODULUS.search(a) and not _MODULUS.search(g):  # x is 5 modulo 7
        return equal_mathematics(_MODULUS.sub("", a), g, prove=prove)
    if is_quantity(answer) and is_quantity(gold):
        one, other = read_quantity(answer), read_quantity(gold)
        return one is not None and other is not None and one.equals(other)
    left, right = _ASSIGNED.match(a), _ASSIGNED.match(g)
    if left and not right and a.count("=") <= 1 and "=" not in g:
        return equal_mathematics(a[left.end() :], g, prove=prove, any_order=any_order)
    if right and not left and g.count("=") <= 1 and "=" not in a:
        return equal_mathematics(a, g[right.end() :], prove=prove, any_order=any_order)
    ranges = interval_of(a), interval_of(g)
    if ranges[0] and g[-1:] in _ENDS and not ranges[1]:
        return equal_mathematics(ranges[0], g, prove=prove)
    if ranges[1] and a[-1:] in _ENDS and not ranges[0]:
        return equal_mathematics(a, ranges[1], prove=prove)
    if "\\cup" in g and _EITHER.search(answer):  # x < 2 or x > 3
        union = [interval_of(part) or part for part in a.split(",")]
        return sorted(union) == sorted(g.split("\\cup"))
    any_order = any_order or _EITHER.search(answer) is not None or _EITHER.search(gold) is not None
    lists = _elements(a), _elements(g)
    if len(lists[0][1]) > 1 or len(lists[1][1]) > 1:
        return _equal_lists(*lists, prove=prove, any_order=any_order)
    if left and right and left[0] == right[0] and a.count("=") == g.count("=") == 1:
        return equal_mathematics(a[left.end() :], g[right.end() :], prove=prove, any_order=any_order)
    if _BASE.search(a) or _BASE.search(g):  # 17 in base 9, which math-verify takes for 17
        return _BASE.search(a) is None and a == g.partition("_")[0]  # asked in base 9, which the answer need not say
    if is_mathematics(answer) and is_mathematics(gold):
        return prove(with_commands(answer), with_commands(gold))
    return words_of(answer) == words_of(gold)


def _alike(answer: str, gold: str) -> tuple[str, str]:
    """Return both formulas without a unit in words that only one of them has, or that is the same in both."""
    (bare, unit), (bare_gold, unit_gold) = split_unit(answer), split_unit(gold)
    return (bare, bare_gold) if not unit or not unit_gold or _named(unit) == _named(unit_gold) else (answer, gold)


def _named(unit: str) -> str:
    return unit_of(unit, is_glued=False)[0] or unit


def says_none(line: str, gold: str) -> bool:
    """Tell whether a gold answer says that there is no limit, or no solution, and a line says that, too."""
    words, wanted = words_of(line), words_of(gold)
    both = (each for each in _NONE_THERE if len(wanted) < _LONGEST_OF_NONE and each.search(wanted))
    return any(each.search(words) for each in both) and "," not in wanted


def letter_of(gold: str) -> str | None:
    r"""Return the letter that a gold answer is, as `\text{(B)}` is one of the options; None if it is none."""
    words = tidy(unwrapped(plain(gold))).strip(" .")
    return words.strip("()") if re.fullmatch(r"\(?[A-Z]\)?", words) else None


def _inside(found: re.Match[str]) -> str:
    return next(part for part in found.groups() if part is not None)


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Return (start, end, formula) of what is set as mathematics; `$1$, $2$ and $3$` is one list."""
    spans: list[tuple[int, int, str]] = []
    for found in _SPANS.finditer(text):
        inside = _inside(found).strip()
        joint = _JOINT.fullmatch(text, spans[-1][1], found.start()) if spans else None
        if inside and joint:
            start, _, before = spans.pop()
            spans.append((start, found.end(), f"{before}{' or' if 'or' in joint[0] else ','} {inside}"))
        elif inside:
            spans.append((found.start(), found.end(), inside))
    return spans


def _formula_of(tail: str) -> str:
    """Return what a marked line says: its formula, if it has one, else the line up to an explanation."""
    stripped = tail.strip()
    if stripped.startswith(("\\[", "$$")):
        found = _SPANS.match(stripped)
        return _inside(found) if found else stripped[2:].partition("\n\n")[0]
    line = stripped.partition("\n")[0][:LONGEST]
    if (spans := _spans(line)) and not re.match(r"\$\d[\d,.]*(?:\s|$)", line):
        return spans[0][2]
    return unexplained(first_sentence(line)).rstrip("!")


def _elements(text: str) -> tuple[str, list[str]]:
    """Return the brackets around a list, and its elements; no brackets around a bare one."""
    text = text.replace("\\{", "{").replace("\\}", "}").replace("\\lbrace", "{").replace("\\rbrace", "}")
    around = ""
    if len(text) > 1 and text[0] in _OPENINGS and text[-1] in _CLOSINGS and _closes_at_end(text):
        around, text = text[0] + text[-1], text[1:-1]
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in _OPENINGS) - (character in _CLOSINGS)
        if character in ",;" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    if len(parts) == 1 and text.count("\\pm") == 1:
        return around or "{}", [text.replace("\\pm", "+").removeprefix("+"), text.replace("\\pm", "-")]
    return around, parts if len(parts) <= _MOST_ELEMENTS else [text]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPENINGS) - (character in _CLOSINGS)
        if depth == 0:
            return position == len(text) - 1
    return False


def _equal_lists(
    answer: tuple[str, Sequence[str]], gold: tuple[str, Sequence[str]], *, prove: Prove, any_order: bool
) -> bool | None:
    (around_a, parts_a), (around_g, parts_g) = answer, gold
    if len(parts_a) != len(parts_g):
        return False
    if around_a != around_g and around_a and around_g:
        return False
    is_system = all(map(_ASSIGNED.match, (*parts_a, *parts_g)))
    names = {found[0] if (found := _ASSIGNED.match(part)) else "" for part in parts_a}
    is_system = is_system or (len(names) == 1 and names != {""})  # x = 1, x = 2: solutions of one unknown
    is_set = is_system or "{}" in (around_a, around_g) or (any_order and around_g in ("", "{}"))
    left = list(parts_a)
    is_late = False
    for wanted in parts_g:
        for k, offered in enumerate(left if is_set else left[:1]):
            equal = equal_mathematics(offered, wanted, prove=prove)
            is_late = is_late or equal is None
            if equal:
                del left[k]
                break
        else:
            return None if is_late else False
    return True
