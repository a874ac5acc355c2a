"""How numbers are written: in digits, fractions, exponents, LaTeX and words; cleaned, matched, and given their value."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from clear_ray.tasks.writing import plain, unwrapped

LONGEST = 2_000
_MOST_DIGITS = 400
_NAMED = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_WORD_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_HALVED = _WORD_SCALES | {"hundred": 100, "dozen": 12}
_PARTS = {"third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10, "hundredth": 100}
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15, "sixteenth": 16,
    "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20, "thirtieth": 30, "hundredth": 100,
}  # fmt: skip
_MOST_WORDS = 12
_DIGITS = (
    r"(?:\d{1,3}(?:(?:\.\d{3})+|(?: \d{3})+),\d{1,2}(?!\d)"  # 1.234,50 and 1 234,50
    r"|\d{1,3}(?:\.\d{3}){2,}(?![\d.,])"
    r"|\d{1,3}(?:(?P<group>[,'_ ])\d{3})(?:(?P=group)\d{3})*(?!\d)(?:\.\d+)?"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?"  # 12,34,567
    r"|\d+(?:\.\d+)?|\.\d+)"
)
NUMBER = re.compile(
    rf"(?P<sign>[-+]? ?)(?P<currency>US\$|[$£€¥₹₩]|(?:USD|EUR|GBP|INR|Rs\.?) ?)? ?(?P<inner>-?)"
    rf"(?:(?P<whole>\d+) (?:and )?(?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![\d/])"
    rf"|(?P<over>{_DIGITS.replace('group', 'group_a')}) ?/ ?(?P<under>\d+(?:\.\d+)?)(?![\d/])"
    rf"|(?P<digits>{_DIGITS.replace('group', 'group_b')})"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w|\.\d)"
    r"| ?(?:[*x\u00d7\u00b7]|\\times|\\cdot) ?10 ?(?:\^|\*\*) ?[{(]?(?P<power>[-+]?\d{1,3})[)}]?(?!\d)"
    r"|(?:\^|\*\*) ?[{(]?(?P<raised>[-+]?\d{1,3})[)}]?(?!\d))?)",
    re.IGNORECASE,
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile(r"(?<=\d)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
VULGAR = re.compile("[¼½¾⅐-⅞]")
_LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac ?(?:\{ ?(-?)([\d.]+) ?\} ?\{ ?([\d.]+) ?\}|()(\d) ?(\d)|()\{ ?(\d+) ?\} ?(\d)|()(\d) ?\{ ?(\d+) ?\})"
)
_REPEATING = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{0,20})\\(?:overline|bar|dot) ?\{?(\d{1,20})\}?")
_GOES_ON = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{0,6}?)(\d{1,6}?)\3{2,20}(?:\.{3}|\u2026)")
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ]|,?\{\}|~)(?=\d{3}(?!\d))")
_BRACED_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\\(?:left|right|displaystyle)\b|\\[()\[\]]")
_MATH = re.compile(r"\$\$?(?=[^\s$])([^$\n]{0,300}?[^\s$\\]|[^\s$])\$\$?(?!\d)")
_DEGREES = re.compile(r" ?(?:\^ ?\{ ?\\circ ?\}|\^ ?\\circ|\\circ|\\degree|°)")
_MINUS = re.compile(
    r"(?:(?<![\w)%] )|(?<=\bis )|(?<=\bbe )|(?<=equals )|(?<=about ))\b(?:minus|negative) (?=[$]? ?\.?\d)",
    re.IGNORECASE,
)
_ITALIC = re.compile(r"(?<![\w_])_([^_\n]{1,100})_(?![\w_])")


def cleaned(line: str) -> str:
    """Return a line with LaTeX and typographic ways of writing a number made plain."""
    line = _BRACED_COMMA.sub("", plain(line)[:LONGEST])
    if "\\" in line:
        line = line.replace("\\$", " $ ").replace("\\%", "%").replace("\\#", "#").replace("\\pounds", "£")
        line = _LATEX_GROUP.sub("", line)
        line = unwrapped(line)
        line = _LATEX_FRACTION.sub(_fraction, line)
        line = _REPEATING.sub(_repeating, line)
    if "..." in line or "\u2026" in line:
        line = _GOES_ON.sub(_repeating, line)
    if "$" in line:
        line = _MATH.sub(r" \1 ", line)
    line = _DEGREES.sub(" degree ", _MINUS.sub("-", line))
    if "\\" in line:
        line = _LATEX_SPACE.sub(" ", line).replace("{,}", ",")
    if not line.isascii():
        line = VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), line)
        line = _RAISED.sub(lambda found: "^" + found[0].translate(SUPERSCRIPTS), line)
    line = _ITALIC.sub(r"\1", line.replace("**", "").replace("`", ""))
    return re.sub(r" {2,}", " ", line).replace(" ^", "^").strip()


def _fraction(found: re.Match[str]) -> str:
    sign, top, bottom = [part for part in found.groups() if part is not None][:3]
    return f" {sign}{top}/{bottom}"


def _repeating(found: re.Match[str]) -> str:
    whole, fixed, repeated = found.groups()
    scale = 10 ** len(fixed)
    value = Fraction(int(whole + fixed), scale) + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    return f" {value.numerator}/{value.denominator}"


def value_of(match: re.Match[str]) -> Fraction | None:
    """Return the exact value of a match of `NUMBER`; None if it has none, or far too many digits."""
    if len(match[0]) > _MOST_DIGITS:
        return None
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
        elif match["over"]:
            value = _decimal(match["over"]) / _decimal(match["under"])
        else:
            value = _decimal(match["digits"])
            for name in ("exponent", "power"):
                if match[name]:
                    value *= Fraction(10) ** int(match[name])
            if match["raised"]:
                value = _raised(value, int(match["raised"]))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    return -value if (match["sign"].strip() == "-") != (match["inner"] == "-") else value


def _raised(value: Fraction, exponent: int) -> Fraction:
    if abs(exponent) * max(len(str(value.numerator)), len(str(value.denominator))) > _MOST_DIGITS:
        raise OverflowError
    return value**exponent


def _decimal(digits: str) -> Fraction:
    if re.fullmatch(r"\d{1,3}(?:[. ]\d{3})+,\d{1,2}", digits) or digits.count(".") > 1:
        digits = digits.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[,'_ ]", "", digits))


def number_in_words(line: str) -> tuple[Fraction, list[str]] | None:
    """Return the number that a line begins with in words, and the words after it; None without one.

    Cardinals, dozens, fractions and ordinals: `minus twenty-one`, `two dozen`, `three quarters`, `the third`.
    """
    words = re.sub(r"[-\s]+", " ", line.lower().strip(" .!\"'*_")).split(" ")
    is_negative = words[0] in ("minus", "negative")
    words = words[is_negative:]
    if len(words) > 1 and (
        (words[0] in ("a", "an") and _counts_one(words[1])) or (words[0] == "the" and words[1] in _ORDINALS)
    ):
        words = ["one", *words[1:]] if words[0] != "the" else words[1:]
    if not words or len(words) > _MOST_WORDS:
        return None
    total, part, used = 0, 0, 0
    for k, word in enumerate(words):
        if word in _NAMED:
            part += _NAMED[word]
        elif word in ("hundred", "dozen") and used:
            part *= 100 if word == "hundred" else 12
        elif word in _WORD_SCALES and used:
            total, part = total + part * _WORD_SCALES[word], 0
        elif word != "and" or not (total or part >= 100) or k + 1 == len(words) or words[k + 1] not in _NAMED:
            break
        used = k + 1
    value, rest = Fraction(total + part), words[used:]
    if not used and len(words) == 3 and words[0] == "half" and words[1] == "a" and words[2] in _HALVED:
        return Fraction((-1 if is_negative else 1) * _HALVED[words[2]], 2), []
    if used and rest[:1] == ["and"] and (more := number_in_words(" ".join(rest[1:]))) and 0 < more[0] < 1:
        return (-1 if is_negative else 1) * (value + more[0]), more[1]
    if (
        rest
        and (named := _fraction_in_words(value, is_counted=used > 0, word=rest[0], is_last=len(rest) == 1)) is not None
    ):
        value, rest, used = named, rest[1:], used + 1
    return (-value if is_negative else value, rest) if used else None


def _counts_one(word: str) -> bool:
    return word in ("hundred", "dozen", "half") or word in _WORD_SCALES or word in _PARTS


def _fraction_in_words(value: Fraction, *, is_counted: bool, word: str, is_last: bool) -> Fraction | None:
    """Return what a count and the word after it make: three quarters, twenty-first, third; None if that is no number."""
    part = _PARTS.get(word.removesuffix("s"), 2 if word in ("half", "halves") else 0)
    if part and (word.endswith("s") or value == 1 or word == "half") and value < 20:
        return (value if is_counted else Fraction(1)) / part
    if word not in _ORDINALS or not is_last:
        return None
    if not is_counted:
        return Fraction(_ORDINALS[word])
    return value + _ORDINALS[word] if value % 10 == 0 and _ORDINALS[word] < 10 and word != "second" else None
