"""What a text gives as its number, and what it says again: `1/3, or about 33.3%`, `1 hour 20 minutes (80 minutes)`, `7,5`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from clear_ray.tasks.denials import is_denied
from clear_ray.tasks.numerals import LONGEST, cleaned
from clear_ray.tasks.quantities import Quantity, find_quantity, is_quantity, last_quantity, read_quantity

_RATE = re.compile(r" ?[$£€]?\d[\d.,]* (?:over|per|an?|each|every|in (?:total|all))\b| \d[\d.]* ?%\W{0,3}\Z")
_AGAIN = re.compile(
    r", or(?= \d[\d.]* ?%)|, or(?= [$£€]?\d[\d.,]* (?:over|per|an?|each|every|in (?:total|all))\b)|,? or (?:about|"
    r"approximately|approx\.|roughly|around|equivalently)\b|,? (?:i\.e\.|equivalently|that is),?(?= )"
    r"|,? which rounds(?: up| down)? to\b"
    r"|,? which is (?:about|approximately|roughly|around|equal to|equivalent to|the same as)\b"
    r"|\((?:or|about|approximately|approx\.|roughly|i\.e\.,?|which is|that is)(?= )|\((?=[=\u2248~])|\u2248|\\approx\b",
    re.IGNORECASE,
)
_ODDS = re.compile(
    r"\b(?:chances?|probability|likelihood|odds|proportion|"
    r"fraction)\b[^.;\n]{0,60}?\b(?P<one>\d{1,9}) (?:in|out of)(?: every)? (?P<of>\d{1,9})\b",
    re.IGNORECASE,
)
_COMPOUND = re.compile(
    r"\d [a-z]{1,10},? (?:and )?\d+ [a-z]{1,10}(?:,? or | \((?:or )?)(?P<again>[$£€]?\d[\d.,]* ?[a-z]{1,12})\)?\W{0,3}\Z"
)
_OUT_OF = re.compile(r"(?P<one>\d{1,9}) (?:in|out of)(?: every)? (?P<of>\d{1,9})\.?")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,(\[{])(\d+),(\d{1,2}|\d{4,15}|(?<=\b0,)\d{3})(?![\d,)\]}]|\.\d)")
_POINTED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3})+(?![\d.]*\d)")
_ABROAD = re.compile(
    r"(?i:\b(?:el|los|las|es|son|respuesta|total de|le|les|est|sont|"
    r"r\u00e9ponse|der|die|das|ist|sind|betr\u00e4gt|antwort|il|\u00e8|risposta"
    r"|resposta|o|os|\u00e9|s\u00e3o|het|antwoord|jawaban|adalah|cevap|\u0111\u00e1p|l\u00e0|svar|er|\u00e4r|odpowied\u017a|zijn)\b)|[\u0400-\u04ff]"
)


def readings(text: str, *, is_marked: bool, around: str = "") -> Iterator[Quantity]:
    """Yield what a text gives as its number: first as `read_quantity` or `find_quantity` do, then what says it again.

    `1/3, or about 33.3%` and `2.5 hours (or 150 minutes)` are right by either; a comma before decimals is read where nothing
    else makes sense of it, points between thousands where the text is in a language that writes them.

    Args:
        text: What a mark points at, or a text without one.
        is_marked: Which of the two it is.
        around: The whole text, whose language tells how numbers are written.
    """
    read = read_quantity if is_marked else find_quantity
    if (first := read(text)) is not None:
        yield first
    local = with_points(text, around or text)
    if local != text and (found := read(local)) is not None:
        yield found
    compound = _COMPOUND.search(
        text.rstrip()[-LONGEST:].rpartition("\n")[2] if not is_marked else text.strip().partition("\n")[0]
    )
    if (
        compound is not None and (again := read_quantity(compound["again"])) is not None
    ):  # 3 hours 20 minutes, or 200 minutes
        yield again
    odds = [*_ODDS.finditer(text[-LONGEST:]), *filter(None, [_OUT_OF.fullmatch(text.strip()[:100])])]
    for found_odds in odds:
        if int(found_odds["of"]):
            yield Quantity(Fraction(int(found_odds["one"]), int(found_odds["of"])), "", found_odds[0])
    line = text.strip().partition("\n")[0] if is_marked else text.rstrip().rpartition("\n")[2]
    inside = re.search(r"\(([^()]{1,60})\)\W{0,3}\Z", line)
    again = read_quantity(inside[1]) if inside and is_quantity(inside[1]) else None
    if first is not None and again is not None and _digits(again) == _digits(first):  # 1.250 (1250)
        yield again
    parts = _AGAIN.split(line[:LONGEST], maxsplit=1)
    is_said_again = first is not None or _RATE.match(parts[-1]) or is_quantity(parts[0])
    if len(parts) == 2 and is_said_again and not is_denied(parts[0]):
        for part in parts:
            if (found := last_quantity(cleaned(part))) is not None and any(map(str.isdigit, parts[0])):
                yield found


def _digits(quantity: Quantity) -> str:
    return re.sub(r"\D", "", quantity.text)


def with_points(text: str, around: str) -> str:
    """Return a text with decimal commas as points, and without points between thousands if its language writes those."""
    if _ABROAD.search(around[-LONGEST:]):
        text = _POINTED.sub(lambda found: found[0].replace(".", ""), text)
    return _DECIMAL_COMMA.sub(r"\1.\2", text)
