r"""Numbers as people and models write them, read exactly.

    $1,234.50   1 234   12,34,567   1'234   1.234,50   1_234   -3   1/2   1 1/2   ½   50%   1.2e3   1.2 × 10^3   10^3
    3k   1.2 million   \frac{3}{4}   1{,}234   12 apples   90^\circ   twenty-one   x = 12   about 12   12 and a half

A number is whole: 12 is not in 120, 12.5, 12-13, 12:30 or 1.2.12. Two numbers (`12 or 13`, `2 hours 30 minutes`) are not one,
and neither is a bound (`more than 12`, `not 12`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from clear_ray.tasks.writing import bold_spans, plain, unwrapped

_LONGEST = 2_000
_MOST_DIGITS = 400
_CURRENCIES = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "dollar": "dollar", "dollars": "dollar", "£": "pound", "gbp": "pound",
    "€": "euro", "eur": "euro", "euro": "euro", "euros": "euro", "¥": "yen", "yen": "yen", "₹": "rupee", "rs": "rupee",
    "inr": "rupee", "rupee": "rupee", "rupees": "rupee", "₩": "won", "cent": "cent", "cents": "cent", "¢": "cent",
}  # fmt: skip
_SCALES = {
    "k": 10**3, "thousand": 10**3, "million": 10**6, "mn": 10**6, "bn": 10**9, "billion": 10**9, "trillion": 10**12,
    "hundred": 100,
}  # fmt: skip
_UNITS = {
    "lb": "pound", "lbs": "pound", "pounds": "pound", "kilometers": "km", "kilometres": "km", "kilometer": "km",
    "meters": "m", "metres": "m", "meter": "m", "metre": "m", "centimeters": "cm", "centimetres": "cm", "cms": "cm",
    "grams": "g", "gram": "g", "kilograms": "kg", "kilogram": "kg", "kgs": "kg", "hrs": "hour", "hr": "hour",
    "h": "hour", "hours": "hour", "mins": "minute", "min": "minute", "minutes": "minute", "secs": "second",
    "sec": "second", "s": "second", "seconds": "second", "feet": "ft", "foot": "ft", "inches": "in", "inch": "in",
    "degrees": "degree", "deg": "degree", "percent": "%", "per cent": "%", "people": "person", "children": "child",
    "men": "man", "women": "woman", "liters": "l", "litres": "l", "liter": "l",
}  # fmt: skip
_NO_UNIT = frozenset(
    {
        "in", "total", "altogether", "of", "because", "since", "per", "which", "so", "and", "for", "to", "the", "a",
        "an", "is", "are", "was", "were", "left", "more", "or", "but", "as", "at", "if", "that", "when", "where",
        "with", "by", "on", "from", "than", "then", "each", "it", "he", "she", "they", "we", "you", "i", "this",
        "remaining", "overall", "st", "nd", "rd", "th", "however",
    }
)  # fmt: skip
_SMALL = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_WORD_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}

_DIGITS = (
    r"(?:\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)"  # 1.234,50
    r"|\d{1,3}(?:(?P<group>[,'_ ])\d{3})(?:(?P=group)\d{3})*(?!\d)(?:\.\d+)?"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?"  # 12,34,567
    r"|\d+(?:\.\d+)?|\.\d+)"
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]? ?)(?P<currency>US\$|[$£€¥₹₩]|(?:USD|EUR|GBP|INR|Rs\.?) ?)? ?(?P<inner>-?)"
    rf"(?:(?P<whole>\d+) (?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![\d/])"
    rf"|(?P<over>{_DIGITS.replace('group', 'group_a')}) ?/ ?(?P<under>\d+(?:\.\d+)?)(?![\d/])"
    rf"|(?P<digits>{_DIGITS.replace('group', 'group_b')})"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?![\w.])"
    r"| ?(?:[*x\u00d7\u00b7]|\\times|\\cdot) ?10 ?(?:\^|\*\*) ?[{(]?(?P<power>[-+]?\d{1,3})[)}]?(?!\d)"
    r"|(?:\^|\*\*) ?[{(]?(?P<raised>[-+]?\d{1,3})[)}]?(?!\d))?)",
    re.IGNORECASE,
)
_START = re.compile(r"(?<![\w.,:/^])(?:(?<!\d)-)? ?(?:US\$|[$£€¥₹₩])? ?-?\.?\d", re.IGNORECASE)
_AFTER = re.compile(
    r" ?(?P<percent>%|percent\b|per cent\b)"
    r"|(?P<scale> ?(?:thousand|million|billion|trillion|bn|mn)\b|[kK]\b)? ?"
    r"(?P<unit>[$€£¥¢°]|(?:[^\W\d_]{1,30}(?:(?:\^\{?|\*\*)?[23²³]\}?)?(?:/[^\W\d_]{1,20}(?:\^?[23²³])?)?)"
    r"(?: [^\W\d_]{1,30}){0,3})?"
)
_GLUED = re.compile(r"[\w^]|[.,:/]\d|-\d|[-+*/\u00d7\u00b7^=] ?[\d\\(]")
_OPERATOR = re.compile(r"(?: [a-z]{1,20}){0,3} [-+*/\u00d7\u00b7^] ?[\d(\\]| [-+*/\u00d7\u00b7^] ?[a-z]")
_OTHER_NUMBER = re.compile(r"(?:[ ,;&/]| and| or| to){1,3}(?:[$£€] ?)?[-+]?\.?\d", re.IGNORECASE)
_HALF = re.compile(r" and a half\b", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:[\s*_\"'(\[{~≈=:`]|\\approx\b|\\left\b|about\b|approximately\b|approx\b\.?|around\b|roughly\b|exactly\b|simply\b|just\b|only\b|"
    r"therefore\b|thus\b|then\b|hence\b|a total of\b|equal to\b|is\b|equals\b|[A-Za-z]\w{0,2} ?(?==))*"
)
_LISTED = re.compile(r"\s*1[.)] +[A-Za-z][^\n]*\n\s*2[.)] ")
_COMPARED = re.compile(
    r"[^A-Za-z\n]{1,40} ?(?:[a-z]{1,20} ){0,2}(?:(?:more|less|fewer|greater|higher|lower) than|times as)\b"
)
_THEREFORE = re.compile(r"\b(?:so|thus|therefore|hence|then)\b", re.IGNORECASE)
_VETO = re.compile(
    r"(?:\b(?:not|never|than|least|most|under|over|between|below|above|nor|isn't|without|up to)|[<>≤≥≠±]|\\[lg]eq?|\\pm|\+/-)"
    r"[\s*_$£€(]*\Z",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?](?=\s|$)|\n")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED = re.compile(r"(?<=\d)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac ?(?:\{ ?(-?)([\d.]+) ?\} ?\{ ?([\d.]+) ?\}|()(\d) ?(\d)|()\{ ?(\d+) ?\} ?(\d)|()(\d) ?\{ ?(\d+) ?\})"
)
_REPEATING = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{0,20})\\(?:overline|bar|dot) ?\{?(\d{1,20})\}?")
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ]|,?\{\}|~)(?=\d{3}(?!\d))")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\\(?:left|right|displaystyle)\b|\\[()\[\]]")
_MATH = re.compile(r"\$\$?(?=[^\s$])([^$\n]{0,300}?[^\s$\\]|[^\s$])\$\$?(?!\d)")
_DEGREES = re.compile(r" ?(?:\^ ?\{ ?\\circ ?\}|\^ ?\\circ|\\circ|\\degree|°)")
_ITALIC = re.compile(r"(?<![\w_])_([^_\n]{1,100})_(?![\w_])")
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that was read, with what it counts.

    Attributes:
        value: Exactly what is written, scale words and exponents included.
        unit: `%`, a currency's name, a unit or the word that follows; empty if there is none.
        text: The writing that was read.
    """

    value: Fraction
    unit: str
    text: str

    def equals(self, other: Quantity) -> bool:
        """Tell whether two quantities say the same.

        A unit that only one of them has does not count, but for a percent sign: 50% is 50, and it is 0.5.
        """
        if self.unit == other.unit:
            return self.value == other.value
        if self.unit and other.unit:
            return False
        if self.value == other.value:
            return True
        return "%" in (self.unit, other.unit) and self._share() == other._share()

    def _share(self) -> Fraction:
        return self.value / 100 if self.unit == "%" else self.value


def read_quantity(answer: str) -> Quantity | None:
    """Return the one number that a marked answer begins with or ends on; None if it holds none, or several.

    Args:
        answer: What follows a mark.
    """
    if _LISTED.match(answer):
        return find_quantity(answer)
    line = _cleaned(_first_line(answer))
    words = _number_in_words(line)
    if words is not None:
        return words
    sides = _EQUALS.split(line)
    if len(sides) > 1:
        if len(sides) > 2 and re.search(r",|;| (?:or|and) ", line, re.IGNORECASE):  # x = 12 or x = 13
            return None
        return _at_start(sides[-1]) or _at_start(sides[0])
    if _begins(line) and not _COMPARED.match(line):
        return _at_start(line)
    if _VETO.search(line[:80].split(" ", 1)[0]) or _VETO.match(line):
        return None
    if re.match(
        r"\W{0,5}(?:not|never|more|less|fewer|at least|at most|over|under|between|up to|either)\b", line, re.IGNORECASE
    ):
        return None
    return _last(_SENTENCE_END.split(line, maxsplit=1)[0])


def find_quantity(text: str) -> Quantity | None:
    """Return the number on which an unmarked text ends: in its last line with one, what is bold, follows `=`, or is last."""
    for line in reversed(text[-40 * _LONGEST :].split("\n")):
        if not any(map(str.isdigit, line)) and not _VULGAR.search(line):
            continue
        line = line[-_LONGEST:]
        for span in reversed(bold_spans(line)):
            if (found := read_quantity(span)) is not None:
                return found
        cleaned = _cleaned(line)
        side = _EQUALS.split(cleaned)[-1]
        found = _after_equals(side) if side != cleaned else None
        found = found or _last(cleaned)
        if found is not None:
            return found
        if any(map(str.isdigit, cleaned)):
            return None  # what the last line with a number says is no number: 10:30, more than 12
    return None


def _begins(line: str) -> bool:
    lead = _LEAD.match(line)
    return _NUMBER.match(line, lead.end() if lead else 0) is not None


def _at_start(line: str, *, is_alone: bool = True) -> Quantity | None:
    lead = _LEAD.match(line)
    return _whole(line, lead.end() if lead else 0, is_alone=is_alone)


def _after_equals(side: str) -> Quantity | None:
    goes_on = _THEREFORE.search(side) is not None or not _begins(side)
    return _last(side) if goes_on else _at_start(side, is_alone=False)


def is_quantity(text: str) -> bool:
    """Tell whether a text is one number and nothing else but its unit."""
    line = _cleaned(text.strip()).strip(" .")
    if len(line) > 100 or "\n" in text.strip():
        return False
    if _number_in_words(line) is not None:
        return True
    match = _NUMBER.match(line)
    if match is None:
        return False
    found = _whole(line, 0, is_alone=True)
    return found is not None and line == found.text and len(line.split()) <= 6


def _first_line(answer: str) -> str:
    stripped = answer.strip()
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("```", "```")):
        if stripped.startswith(opening):
            return stripped[len(opening) :].partition(closing)[0][:_LONGEST].replace("\n", " ")
    return stripped.partition("\n")[0][:_LONGEST]


def _cleaned(line: str) -> str:
    """Return a line with LaTeX and typographic ways of writing a number made plain."""
    line = plain(line)[:_LONGEST]
    if "\\" in line:
        line = line.replace("\\$", " $ ").replace("\\%", "%").replace("\\#", "#").replace("\\pounds", "£")
        line = _LATEX_GROUP.sub("", line)
        line = unwrapped(line)
        line = _LATEX_FRACTION.sub(_fraction, line)
        line = _REPEATING.sub(_repeating, line)
    if "$" in line:
        line = _MATH.sub(r" \1 ", line)
    line = _DEGREES.sub(" degree ", line)
    if "\\" in line:
        line = _LATEX_SPACE.sub(" ", line).replace("{,}", ",")
    if not line.isascii():
        line = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), line)
        line = _RAISED.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), line)
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


def _whole(line: str, start: int, *, is_alone: bool) -> Quantity | None:
    """Read the number at a place; None if what follows makes it another one, or one of several."""
    match = _NUMBER.match(line, start)
    if match is None:
        return None
    value = _value(match)
    if value is None:
        return None
    end = match.end()
    unit, currency = "", match["currency"]
    if currency:
        unit = _CURRENCIES.get(currency.strip(" .").lower(), "")
    after = _AFTER.match(line, end)
    if after is not None and after.end() > end:
        if after["percent"]:
            unit, end = "%", after.end()
        else:
            if after["scale"]:
                value *= _SCALES[after["scale"].strip().lower()]
                end = after.end("scale")
            if after["unit"]:
                named, length = _unit(after["unit"], is_glued=after.start("unit") == match.end())
                if named is None:
                    return None
                unit = unit or named
                end = after.start("unit") + length if length else end
    half = _HALF.match(line, end)
    if half is not None:
        value, end = value + Fraction(1, 2), half.end()
    rest = line[end:]
    if _GLUED.match(rest) or _OPERATOR.match(rest):
        return None
    if is_alone and (_OTHER_NUMBER.match(rest) or re.match(r" (?:or|to) ", rest)):
        return None
    return Quantity(value, unit, line[start:end].strip())


def _unit(words: str, *, is_glued: bool) -> tuple[str | None, int]:
    """Return the unit in what follows a number, and its length; no unit for words that only go on; None for `12x`."""
    first = words.split(" ", 1)[0]
    lower = first.lower()
    if lower in _CURRENCIES:
        return _CURRENCIES[lower], len(first)
    if is_glued and len(first) == 1 and lower not in "gmshljnwvackf°":
        return None, 0
    if lower in _NO_UNIT:
        return ("", len(first)) if is_glued else ("", 0)
    kept = len(first)
    if lower in ("square", "cubic", "sq", "cu") and " " in words:
        lower, kept = words.split(" ")[1].lower(), len(" ".join(words.split(" ")[:2]))
    return _UNITS.get(
        lower, lower[:-1] if len(lower) > 3 and lower.endswith("s") and not lower.endswith("ss") else lower
    ), kept


def _value(match: re.Match[str]) -> Fraction | None:
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
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d{1,2}", digits):
        digits = digits.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[,'_ ]", "", digits))


def _last(sentence: str) -> Quantity | None:
    """Return the last whole number of a sentence that no bound stands before."""
    for found in reversed(list(_START.finditer(sentence))):
        start = found.start()
        quantity = _whole(sentence, start, is_alone=False)
        if quantity is not None:
            return None if _VETO.search(sentence[max(0, start - 40) : start]) else quantity
    return None


def _number_in_words(line: str) -> Quantity | None:
    words = re.sub(r"[-\s]+", " ", line.lower().strip(" .!\"'*_")).split(" ")
    if len(words) > 12 or not (words[0] in _SMALL or words[0] in _TENS):
        return None
    total, part, used = 0, 0, 0
    for k, word in enumerate(words):
        if word in _SMALL or word in _TENS:
            part += _SMALL.get(word, _TENS.get(word, 0))
        elif word in _WORD_SCALES and word == "hundred":
            part *= 100
        elif word in _WORD_SCALES:
            total, part = total + part * _WORD_SCALES[word], 0
        elif word != "and" or k + 1 == len(words) or not (words[k + 1] in _SMALL or words[k + 1] in _TENS):
            break
        used = k + 1
    rest = words[used:]
    if len(rest) > 1 or (rest and rest[0] in _NO_UNIT):
        return None
    unit = _unit(rest[0], is_glued=False)[0] if rest else ""
    return Quantity(Fraction(total + part), unit or "", line)
