r"""Mathematical answers: `\frac12` is 0.5, `x^2+2x+1` is `(x+1)^2`, and a word is no product of letters.

What can be told from the writing alone is told here, lists, tuples, intervals and sets element by element. The rest is asked
of math-verify, in the referee's process, and only where both sides are mathematics: it takes any text for a product of the
letters in it, so that an anagram would be equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from clear_ray.tasks.choices import read_choice
from clear_ray.tasks.marks import Marked
from clear_ray.tasks.quantities import find_quantity, is_quantity, read_quantity
from clear_ray.tasks.writing import plain, tidy, unwrapped, words_of

Prove = Callable[[str, str], bool | None]
"""Tells whether an answer is mathematically equal to a gold answer; None if that takes too long."""

_LONGEST = 4_000
_MOST_ELEMENTS = 64
_SPANS = re.compile(
    r"\$\$(?P<a>[^$]{1,1000})\$\$|\\\[(?P<b>[^\[\]]{1,1000}(?:\[[^\[\]]{0,200}\][^\[\]]{0,200})?)\\\]|\\\((?P<c>[^\n]{1,500}?)\\\)|\$(?P<d>[^$\n]{1,500})\$"
)
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right|displaystyle|bigl?|bigr?)(?![a-zA-Z])|[~\s$]")
_ONE_BRACED = re.compile(r"([_^])\{(\w)\}")
_BARE_FRACTION = re.compile(r"\\frac(\w)(\w)|\\frac\{(\w+)\}(\w)(?!\w)|\\frac(\w)\{(\w+)\}")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textit|mbox|operatorname|mathbf)\b")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln",
        "lg", "exp", "sqrt", "pi", "max", "min", "mod", "gcd", "lcm", "det", "inf", "oo", "deg", "alpha", "beta",
        "gamma", "theta", "phi", "infty", "sum", "abs",
    }
)  # fmt: skip
_NO_PRODUCTS = frozenset(
    {
        "is", "no", "to", "or", "of", "on", "in", "an", "as", "at", "be", "by", "do", "go", "he", "if", "it", "me",
        "my", "so", "up", "us", "we", "am", "ok", "the", "and", "not", "yes", "all", "any", "are", "but", "can",
        "for", "had", "has", "her", "him", "his", "how", "its", "may", "new", "now", "old", "one", "our", "out",
        "own", "see", "she", "too", "two", "use", "was", "way", "who", "why", "you", "red", "ten", "six",
    }
)  # fmt: skip
_SIGNS = re.compile(r"[\d+\-*/^=<>()\\]")
_BASE = re.compile(r"\d_\w")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z*]{1,20}\}")
_ASSIGNED = re.compile(r"(?:\\[a-z]{2,10}\{)?[A-Za-z]\w{0,2}\}?(?:\([a-z]\))?(?:=(?!=)|\\in(?![a-z]))")
_COMMANDS = {
    "≥": "\\geq ",
    "≤": "\\leq ",
    "≠": "\\ne ",
    "∞": "\\infty ",
    "π": "\\pi ",
    "\u222a": "\\cup ",
    "√": "\\sqrt ",
    "\\neq": "\\ne",
    "\\varnothing": "\\emptyset",
    "∅": "\\emptyset ",
}
_LINE_BREAK = "\x1e"  # of a matrix, which is no LaTeX space
_OR_EQUAL = re.compile(r"\\([gl])eq?(?![a-zA-Z])")
_OPENINGS, _CLOSINGS = "([{", ")]}"
_ANY_ORDER = re.compile(
    r"\b(?:in )?any order\b|\border (?:does not|doesn't|is not important|do not) ?(?:matter)?", re.IGNORECASE
)


def read_mathematics(marked: Marked | None, rest: str) -> str | None:
    """Return the formula or number of a text, marked or not; None if there is none."""
    if marked is not None:
        found = marked.text if marked.how in ("box", "tag", "hash") else _formula_of(marked.text)
        return _trimmed(found) or None
    spans = [span for span in map(_inside, _SPANS.finditer(rest[-_LONGEST:])) if span.strip()]
    if spans:
        return _trimmed(spans[-1]) or None
    line = rest.rstrip().rpartition("\n")[2].strip()
    if line and len(line.split()) <= 3:
        return _trimmed(line) or None
    number = find_quantity(rest)
    return number.text if number else None


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
    answer, gold = _trimmed(answer), _trimmed(gold)
    if len(answer) > _LONGEST or len(gold) > _LONGEST:
        return answer == gold
    a, g = canonical_mathematics(answer), canonical_mathematics(gold)
    if a == g:
        return True
    if (letter := letter_of(gold)) is not None:
        return read_choice(answer, {}) == letter
    if is_quantity(answer) and is_quantity(gold):
        one, other = read_quantity(answer), read_quantity(gold)
        return one is not None and other is not None and one.equals(other)
    left, right = _ASSIGNED.match(a), _ASSIGNED.match(g)
    if left and not right and a.count("=") <= 1 and "=" not in g:
        return equal_mathematics(a[left.end() :], g, prove=prove, any_order=any_order)
    if right and not left and g.count("=") <= 1 and "=" not in a:
        return equal_mathematics(a, g[right.end() :], prove=prove, any_order=any_order)
    lists = _elements(a), _elements(g)
    if len(lists[0][1]) > 1 or len(lists[1][1]) > 1:
        return _equal_lists(*lists, prove=prove, any_order=any_order)
    if left and right and left[0] == right[0] and a.count("=") == g.count("=") == 1:
        return equal_mathematics(a[left.end() :], g[right.end() :], prove=prove, any_order=any_order)
    if _BASE.search(a) or _BASE.search(g):  # 17 in base 9, which math-verify takes for 17
        return False
    if is_mathematics(answer) and is_mathematics(gold):
        return prove(answer, gold)
    return words_of(answer) == words_of(gold)


def letter_of(gold: str) -> str | None:
    r"""Return the letter that a gold answer is, as `\text{(B)}` is one of the options; None if it is none."""
    words = tidy(unwrapped(plain(gold))).strip(" .")
    return words.strip("()") if re.fullmatch(r"\(?[A-Z]\)?", words) else None


def is_mathematics(text: str) -> bool:
    """Tell a formula or number from words: no word of letters in it that is neither a command nor a function's name."""
    text = plain(text)
    if not text.strip() or len(text) > _LONGEST or _TEXT.search(text):
        return is_quantity(text)
    words = _WORD.findall(_COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text)))
    if not words:
        return bool(re.search(r"\w", text))
    has_signs = _SIGNS.search(text) is not None
    return all(
        word in _FUNCTIONS or (word.lower() not in _NO_PRODUCTS and len(word) <= (3 if has_signs else 2))
        for word in words
    )


def canonical_mathematics(answer: str) -> str:
    """Return a formula in the form in which the same formula is written the same: spaces, sizes and braces levelled."""
    text = plain(_trimmed(answer))
    text = re.sub(r"\\[dtc]frac\b|\\[dtc]frac(?=\d)", r"\\frac", text)
    for sign, command in _COMMANDS.items():
        text = text.replace(sign, command)
    text = _OR_EQUAL.sub(r"\\\1eq", text)
    text = unwrapped(re.sub(r"(?<=[^\s,]) ?(?:,? and|\\text\{ ?and ?\}) (?=\S)", ", ", text))
    text = text.replace("\\\\", _LINE_BREAK)
    text = _SPACES.sub("", text.replace("^\\circ", "").replace("^{\\circ}", "").replace("\\%", "%"))
    text = _ONE_BRACED.sub(r"\1\2", text)
    return _BARE_FRACTION.sub(_braced_fraction, text).rstrip(".")


def _braced_fraction(found: re.Match[str]) -> str:
    top, bottom = [part for part in found.groups() if part is not None]
    return f"\\frac{{{top}}}{{{bottom}}}"


def _trimmed(text: str) -> str:
    text = plain(text).strip()
    for _ in range(3):
        before = text
        text = tidy(text).strip().rstrip(",;")
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$", "$"), ("\\boxed{", "}")):
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
                text = text[len(opening) : -len(closing)].strip()
        if text == before:
            break
    return text


def _inside(found: re.Match[str]) -> str:
    return next(part for part in found.groups() if part is not None)


def _formula_of(tail: str) -> str:
    """Return what a marked line says: its formula, if it has one, else the line up to an explanation."""
    stripped = tail.strip()
    if stripped.startswith(("\\[", "$$")):
        found = _SPANS.match(stripped)
        return _inside(found) if found else stripped[2:].partition("\n\n")[0]
    line = stripped.partition("\n")[0][:_LONGEST]
    found = _SPANS.search(line)
    if found and not re.match(r"\$\d[\d,.]*(?:\s|$)", line):
        return _inside(found)
    return re.split(r",? (?:because|since|as|where|which)\b|\.(?= [A-Z])", line, maxsplit=1)[0].rstrip("!")


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
    is_set = "{}" in (around_a, around_g) or (any_order and around_g in ("", "{}"))
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
