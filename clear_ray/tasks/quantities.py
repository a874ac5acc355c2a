r"""Numbers as people and models write them, read exactly.

    $1,234.50   1 234   12,34,567   1'234   1.234,50   1_234   -3   1/2   1 1/2   ½   50%   1.2e3   1.2 × 10^3   10^3
    3k   1.2 million   \frac{3}{4}   1{,}234   12 apples   90^\circ   twenty-one   x = 12   about 12   12 and a half

A number is whole: 12 is not in 120, 12.5, 12-13, 12:30 or 1.2.12. Two numbers (`12 or 13`, `2 hours 30 minutes`) are not one,
and neither is a bound (`more than 12`, `not 12`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from clear_ray.tasks.clauses import is_by_the_way, is_inserted
from clear_ray.tasks.denials import is_denied
from clear_ray.tasks.numerals import LONGEST, NUMBER, VULGAR, cleaned, number_in_words, value_of
from clear_ray.tasks.units import CURRENCIES, SCALES, unit_after_words, unit_of
from clear_ray.tasks.writing import bold_spans, first_sentence, unexplained

_START = re.compile(
    r"(?<![0-9A-Za-z\u00c0-\u024f_.,/^])(?<!\d:)(?:(?<!\d)-)? ?(?:US\$|[$£€¥₹₩])? ?-?\.?\d", re.IGNORECASE
)
_AFTER = re.compile(
    r" ?(?P<percent>%|percent\b|per cent\b)"
    r"|(?P<scale> ?(?:hundred|thousand|million|billion|trillion|bn|mn|dozen)\b|[kKMB]\b)? ?"
    r"(?P<unit>[$€£¥¢°]|(?:[^\W\d_]{1,30}(?:(?:\^\{?|\*\*)?[23²³]\}?)?(?:/[^\W\d_]{1,20}(?:\^?[23²³])?)?)"
    r"(?: [^\W\d_]{1,30}){0,3})?"
)
_GLUED = re.compile(r"[\w^]|[.,:/]\d|-\d|[-+*/\u00d7\u00b7^=] ?[\d\\(]|\+| ?(?:[<>\u2264\u2265\u00b1]|\\pm|\+/-)")
_OPERATOR = re.compile(
    r"(?: [a-z]{1,20}){0,3} [-+*/\u00d7\u00b7^] ?[\d(\\]| [+*/\u00d7\u00b7^] ?[a-z]| - ?[a-z](?![a-z])"
)
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
_THEREFORE = re.compile(r"\b(?:so|thus|therefore|hence|then|gives|yields|means)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r", (?:and )?(?:he|she|it|they|we|you|there|[A-Z][a-z]{1,15}|the [a-z]{2,15}) [a-z]{2,15} [^=]{0,80}\d"
)
_VETO = re.compile(
    r"(?:\b(?:not|never|than|least|most|under|over|between|below|above|nor|isn't|without|"
    r"(?<!round )(?<!rounds )(?<!rounded )(?<!rounding )up to|or|"
    r"or (?:maybe|perhaps|possibly))|[<>≤≥≠±]|\\[lg]eq?|\\pm|\+/-)"
    r"[\s*_$£€(]*\Z",
    re.IGNORECASE,
)
_SEQUENCE = re.compile(r": ?(?:-?\d[\d.]*, ?){2,}[^:]{0,80}\Z")
_EITHER = re.compile(r"\b([A-Za-z]\w?) ?= ?-?[\d./]+ or (?:\1 ?= ?)?-?\d")
_BETWEEN = re.compile(
    r"\b(?:between|either)\b[^;]{1,40}\b(?:and|or)[\s$£€]*\Z|(?<!from )(?<!from \$)\b\d[\d.,]* to [$£€]?\Z"
    r"|[\d)] ?[-+*/\u00d7\u00b7] ?[$£€]?\Z",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?](?=\s|$)|\n")
_ASSIGNED = re.compile(r"\A[A-Za-z]\w{0,2} ?= ?")
_TERM = re.compile(r"[\s(]*[\d.,]+(?:\s*[-+*\u00d7\u00b7x]\s*[(\d][\d.,]*\)?)+[\s.!)]*")
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)")
_ASIDE = re.compile(
    r"\s*\((?![=\u2248~]|or\b|about\b|i\.e)[^()=]{1,200}\)\W{0,3}\Z",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(
    r"\b(?:(?:minus|negative) )?(?:zero|(?<=exactly )one|(?<=only )one|(?<=just )one|two|three|four|five|six|"
    r"seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million)"
    r"(?:[- ](?:and )?(?:one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand|million)\b)*\b",
)
_SOME_OF = re.compile(r"([A-Z][a-z]{2,}(?:-[a-z]+)?) (?:out )?of (?:the|them|those|these|his|her|their)\b")
_NOTHING_LEFT = re.compile(
    r"\bthere (?:are|is|were|was|will be) (?:no|none)\b|\b(?:none|nothing)\b.{0,40}\b(?:left|"
    r"remain)|\b(?:has|have|had) (?:no|none)\b.{0,30}\b(?:left|remain)",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"(?<=\d) (?P<unit>[^\W\d]{1,20}), or (?:about |roughly |approximately )?[$€£]?[\d.,]{1,20} (?!(?P=unit)\b)"
    r"[^\W\d]{1,20}\W{0,3}\Z"
)
_SUM = re.compile(r": ?[^:=]{0,60}\d [-+*/\u00d7] [$€£]?\d[^:=]{0,60}\Z")
_MEASURED = re.compile(r" \([^\W\d]{0,15} ?[$£€]?\d[\d.,]* ?[^\W\d]?[^\d()=]{1,20}\)(?= [a-z])")
_OF_ANOTHER = re.compile(
    r",? (?:who|which (?:was|were|had|cost|originally)|while|whereas|"
    r"instead of|rather than|as opposed to|compared (?:to|with)|unlike|(?:\d+|[a-z]{3,6}) of (?:which|whom))"
    r"\b(?:(?!, (?:so|thus|therefore|hence|which means)\b)[^=]){1,200}\Z",
    re.IGNORECASE,
)


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
    line = _answering(cleaned(_first_line(answer)))
    in_words = _in_words(line)
    if in_words is not None:
        return in_words
    sides = _EQUALS.split(line)
    if len(sides) > 2:
        sides = _EQUALS.split(_THEREFORE.split(line)[-1])
        line = "=".join(sides)
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
    return last_quantity(_SENTENCE_END.split(line, maxsplit=1)[0])


def find_quantity(text: str) -> Quantity | None:
    """Return the number on which an unmarked text ends: in its last line with one, what is bold, follows `=`, or is last."""
    for line in reversed(text[-40 * LONGEST :].split("\n")):
        if not any(map(str.isdigit, line)) and not VULGAR.search(line):
            continue
        line = line[-LONGEST:]
        for span in reversed(bold_spans(line)):
            place = line.find(span)
            if not is_denied(line[:place], line[place + len(span) :]) and (found := read_quantity(span)) is not None:
                return found
        plain_line = _last_counting(cleaned(_without_beside(line)))
        if _EITHER.search(plain_line):
            return None
        sides = _EQUALS.split(plain_line)
        side = sides[-1]
        if len(sides) > 1 and _TERM.fullmatch(side) and re.search(r"[^\W\d]{2}", sides[-2]):  # we get 20 = 4 x 5
            side = sides[-2]
        found = _after_equals(side) if side != plain_line else None
        found = found or last_quantity(plain_line)
        if found is not None:
            return found
        if any(map(str.isdigit, plain_line)):
            return None  # what the last line with a number says is no number: 10:30, more than 12
    return _only_in_words(text[-LONGEST:].rstrip().rpartition("\n")[2])


def _only_in_words(line: str) -> Quantity | None:
    """Return the one number that a line without digits has in words: `There are three branches`."""
    if (alone := _in_words(line)) is not None:
        return alone
    if _NOTHING_LEFT.search(line) and not _IN_WORDS.search(line):
        return Quantity(Fraction(0), "", line)
    if (first := _SOME_OF.match(line)) and (counted := number_in_words(first[1])) and not counted[1]:
        return Quantity(counted[0], "", first[1])
    places = list(_IN_WORDS.finditer(line))
    runs = [found[0] for found in places if not is_by_the_way(line, found.start())] or [found[0] for found in places]
    if len(runs) != 1 or is_denied(line[: line.find(runs[0])]):
        return None
    found = number_in_words(runs[0])
    return None if found is None or found[1] else Quantity(found[0], "", runs[0])


def _without_beside(line: str) -> str:
    """Return a line without what it says beside its number: of another, or in brackets of where it comes from."""
    outside = _MEASURED.sub("", line)
    line = outside if any(map(str.isdigit, outside)) else line
    for pattern in (_ASIDE, _OF_ANOTHER, _ALSO, _SUM, _SEQUENCE):
        found = pattern.search(line)
        if found is not None and any(map(str.isdigit, line[: found.start()])):
            return line[: found.start()]
    return line


def _last_counting(line: str) -> str:
    """Return the last sentence of a line that has a number, without its explanation."""
    sentences = [part for part in _SENTENCE_END.split(line) if any(map(str.isdigit, part))]
    sentence = sentences[-1] if sentences else line
    said = re.split(r",? (?:because|since|due to)\b", sentence, maxsplit=1)[0]
    return said if any(map(str.isdigit, said)) else sentence


def _answering(line: str) -> str:
    """Return a line without what explains its number: another clause, or, after a number alone, all further sentences."""
    said = unexplained(line)
    line = said if any(map(str.isdigit, said)) else line
    first = first_sentence(line)
    return first if is_quantity(_ASSIGNED.sub("", first)) else line


def _in_words(line: str) -> Quantity | None:
    found = number_in_words(line)
    unit = None if found is None else unit_after_words(found[1])
    return None if found is None or unit is None else Quantity(found[0], unit, line)


def _begins(line: str) -> bool:
    lead = _LEAD.match(line)
    return NUMBER.match(line, lead.end() if lead else 0) is not None


def _at_start(line: str, *, is_alone: bool = True) -> Quantity | None:
    lead = _LEAD.match(line)
    return _whole(line, lead.end() if lead else 0, is_alone=is_alone)


def _after_equals(side: str) -> Quantity | None:
    goes_on = _THEREFORE.search(side) is not None or _CLAUSE.search(side) is not None or not _begins(side)
    return last_quantity(side) if goes_on else _at_start(side, is_alone=False)


def is_quantity(text: str) -> bool:
    """Tell whether a text is one number and nothing else but its unit."""
    line = cleaned(text.strip()).strip(" .")
    if len(line) > 100 or "\n" in text.strip():
        return False
    if _in_words(line) is not None:
        return True
    match = NUMBER.match(line)
    if match is None:
        return False
    found = _whole(line, 0, is_alone=True)
    return found is not None and line == found.text and len(line.split()) <= 6


def _first_line(answer: str) -> str:
    stripped = answer.strip()
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("```", "```")):
        if stripped.startswith(opening):
            return stripped[len(opening) :].partition(closing)[0][:LONGEST].replace("\n", " ")
    return stripped.partition("\n")[0][:LONGEST]


def _whole(line: str, start: int, *, is_alone: bool) -> Quantity | None:
    """Read the number at a place; None if what follows makes it another one, or one of several."""
    match = NUMBER.match(line, start)
    if match is None:
        return None
    value = value_of(match)
    if value is None:
        return None
    end = match.end()
    unit, currency = "", match["currency"]
    if currency:
        unit = CURRENCIES.get(currency.strip(" .").lower(), "")
    after = _AFTER.match(line, end)
    if after is not None and after.end() > end:
        if after["percent"]:
            unit, end = "%", after.end()
        else:
            if after["scale"]:
                value *= SCALES[after["scale"].strip().lower()]
                end = after.end("scale")
            if after["unit"]:
                named, length = unit_of(after["unit"], is_glued=after.start("unit") == match.end())
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


def last_quantity(sentence: str) -> Quantity | None:
    """Return the last whole number of a sentence that no bound stands before.

    What it says by the way (`for 16 glasses`, `at the end of the 4 hours`) counts if there is no other number.
    """
    places, covered = [], 0
    for found in _START.finditer(sentence):
        if found.start() >= covered:  # what is no part of the number before: 2 1/2, 5 000
            quantity = _whole(sentence, found.start(), is_alone=False)
            places.append((found.start(), quantity))
            covered = found.start() + len(quantity.text) if quantity is not None else 0
    places = [(start, quantity) for start, quantity in places if not is_inserted(sentence, start)]
    main = [place for place in places if not is_by_the_way(sentence, place[0])]
    for start, quantity in reversed(main or places):
        if quantity is not None:
            before, after = sentence[:start], sentence[start:].lstrip("+-$£€ .,/%0123456789")
            return (
                None
                if _VETO.search(before[-40:]) or _BETWEEN.search(before[-80:]) or is_denied(before, after)
                else quantity
            )
    return None
