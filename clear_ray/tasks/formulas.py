r"""How formulas are written: trimmed, told from words, and in the form in which the same formula is written the same."""

from __future__ import annotations

import re

from clear_ray.tasks.numerals import SUPERSCRIPTS
from clear_ray.tasks.quantities import is_quantity
from clear_ray.tasks.writing import plain, tidy, unwrapped

LONGEST = 4_000
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
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z*]{1,20}\}")
_COMMANDS = {
    "±": "\\pm ",
    "≥": "\\geq ",
    "≤": "\\leq ",
    "≠": "\\ne ",
    "∞": "\\infty ",
    "π": "\\pi ",
    "\u222a": "\\cup ",
    "√": "\\sqrt ",
    "\\neq": "\\ne",
    "\\varnothing": "\\emptyset",
    "\\langle": "(",
    "\\rangle": ")",
    "\\mathbb{R}": "(-\\infty,\\infty)",
    "\u00d7": "\\times ",
    "\u00b7": "\\cdot ",
    "∅": "\\emptyset ",
}
_CASES = re.compile(r"\\begin\{cases\}(.{1,400}?)(?:\\\\)?\s*\\end\{cases\}", re.DOTALL)
_LINE_BREAK = "\x1e"  # of a matrix, which is no LaTeX space
_OR_EQUAL = re.compile(r"\\([gl])eq?(?![a-zA-Z])")
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt ?\(([^()]{1,200})\)")
_CONDITION = re.compile(
    r"(?<=[^\s,]) ?,(?:\\[,;:! ]|\\q?quad|[\s~])*(?:\\text\{ ?)?(?:(?:for|where|if|"
    r"with|provided)\b[^=]{0,60}|)[a-z]\}? ?(?:\\neq?(?![a-z])|\u2260)[^,]{1,40}\Z"
)
_TOGETHER = re.compile(r"\((?P<names>[a-zA-Z](?:,[a-zA-Z]){1,5})\)=\((?P<values>[^()=]{1,200})\)")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_ROOT_SIGN = re.compile("\u221a ?(?:\\(([^()]{1,200})\\)|(\\d+|[a-z]))")
_BARE_COMMAND = re.compile(
    r"(?<![\\a-zA-Z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|pi|infty)(?![a-zA-Z])"
)
_LISTED = re.compile(r"(?<=[^\s,]) ?(?:,? (?:and|or)|\\text\{ ?(?:and|or) ?\}) (?=\S)")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox) ?\{[^{}]*[^\W\d_]{2}[^{}]*\}")
_OPTION = re.compile(r"\A\\text(?:bf|rm)?\{ ?\([A-E]\) ?\}[\s\\~,]*(?=\S)")
_TRAILING_UNIT = re.compile(
    r"(?<=[^\s\\])(?:\\[,;:! ]|[\s~])*\\(?:text|mathrm|mbox|textrm) ?"
    r"\{ ?(?!or\b|and\b|if\b|for\b|not\b)([A-Za-z][A-Za-z /.]{0,24})\}"
    r"(\^\{?[23]\}?)?\Z"
)
_RANGE = re.compile(r"(?P<low>[^<>=]{1,40}?)(?P<above><|\\leq)[a-zA-Z](?P<below><|\\leq)(?P<high>[^<>=]{1,40})")
_AROUND = re.compile(r"\|[a-zA-Z]\|(?P<sign><|\\leq)(?P<end>\w{1,20})")
_BOUND = re.compile(r"[a-zA-Z](?P<sign><|>|\\leq|\\geq)(?P<end>[^<>=]{1,40})")


def is_mathematics(text: str) -> bool:
    """Tell a formula or number from words: no word of letters in it that is neither a command nor a function's name."""
    text = plain(text)
    if not text.strip() or len(text) > LONGEST or _TEXT.search(text):
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
    text = _with_roots(with_powers(_CONDITION.sub("", plain(trimmed(answer)))))
    text = re.sub(r"\\[dtc]frac\b|\\[dtc]frac(?=\d)", r"\\frac", text)
    for sign, command in _COMMANDS.items():
        text = text.replace(sign, command)
    text = _OR_EQUAL.sub(r"\\\1eq", text)
    text = unwrapped(_LISTED.sub(", ", with_commands(text)))
    if (cases := _CASES.fullmatch(text.strip())) is not None:
        text = re.sub(r",?\s*\\\\", ", ", cases[1])
    text = text.replace("\\\\", _LINE_BREAK)
    text = _SPACES.sub("", text.replace("^\\circ", "").replace("^{\\circ}", "").replace("\\%", "%"))
    text = _ONE_BRACED.sub(r"\1\2", text).replace("+\\infty", "\\infty")
    text = _BARE_FRACTION.sub(_braced_fraction, text).rstrip(".")
    if (together := _TOGETHER.fullmatch(text)) is not None:
        names, values = together["names"].split(","), together["values"].split(",")
        if len(names) == len(values):  # (x, y) = (1, 2)
            return ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    return text


def with_commands(text: str) -> str:
    """Return a formula in which functions and constants written as words or signs are LaTeX commands: `sin(x)`, `√2`."""
    if not text.isascii():
        text = _with_roots(with_powers(text))
        for sign, command in _COMMANDS.items():
            text = text if sign.isascii() else text.replace(sign, command)
    return _BARE_COMMAND.sub(r"\\\1 ", _ROOT.sub(r"\\sqrt{\1}", text))


def _with_roots(text: str) -> str:
    return _ROOT_SIGN.sub(lambda found: f"\\sqrt{{{found[1] or found[2]}}}", text)


def with_powers(text: str) -> str:
    """Return a formula with raised digits as powers: of `x²` `x^2`."""
    return text if text.isascii() else _RAISED.sub(lambda found: f"^{{{found[0].translate(SUPERSCRIPTS)}}}", text)


def without_option(formula: str) -> str:
    r"""Return a formula without the letter of an option before it: of `\text{(A)} 5` the 5."""
    return _OPTION.sub("", formula)


def split_unit(formula: str) -> tuple[str, str]:
    """Return a formula without the unit in words that ends it, and that unit; no unit if it has none."""
    found = _TRAILING_UNIT.search(formula)
    return (formula[: found.start()].rstrip(), found[1].strip() + (found[2] or "")) if found else (formula, "")


def interval_of(canonical: str) -> str | None:
    """Return the interval that an inequality of one variable describes, such as `[-1,1)`; None if it is no such inequality.

    Args:
        canonical: As `canonical_mathematics` returns it.
    """
    if between := _RANGE.fullmatch(canonical):
        opening, closing = "(["[between["above"] != "<"], ")]"[between["below"] != "<"]
        return f"{opening}{between['low']},{between['high']}{closing}"
    if around := _AROUND.fullmatch(canonical):
        opening, closing = "(["[around["sign"] != "<"], ")]"[around["sign"] != "<"]
        return f"{opening}-{around['end']},{around['end']}{closing}"
    bound = _BOUND.fullmatch(canonical)
    if bound is None:
        return None
    bracket = bound["sign"] in ("\\leq", "\\geq")
    if bound["sign"] in (">", "\\geq"):
        return f"{'(['[bracket]}{bound['end']},\\infty)"
    return f"(-\\infty,{bound['end']}{')]'[bracket]}"


def _braced_fraction(found: re.Match[str]) -> str:
    top, bottom = [part for part in found.groups() if part is not None]
    return f"\\frac{{{top}}}{{{bottom}}}"


def trimmed(text: str) -> str:
    """Return a formula without the signs around it that only set it as one."""
    text = plain(text).strip()
    for _ in range(3):
        before = text
        text = (text if _WORDS.fullmatch(text) else tidy(text)).strip().rstrip(",;")
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$", "$"), ("\\boxed{", "}")):
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
                text = text[len(opening) : -len(closing)].strip()
        if text == before:
            break
    return text
