"""Whole dates and times of day, however they are written: `January 12, 1876`, `1876-01-12`, `12.1.1876`, `5:30 PM`, `17:30`.

`3/4/1876` is two dates by two conventions, so it is equal to either; `5:30` is equal to `5:30 PM`, which it may mean.
"""

from __future__ import annotations

import re
from datetime import date

_MONTHS = (
    "january janvier januar enero gennaio janeiro januari", "february février februar febrero febbraio fevereiro februari",
    "march mars märz marzo março maart", "april avril abril aprile", "may mai mayo maggio maio mei",
    "june juin juni junio giugno junho", "july juillet juli julio luglio julho", "august août agosto augustus",
    "september septembre septiembre settembre setembro sept", "october octobre oktober octubre ottobre outubro",
    "november novembre noviembre novembro", "december décembre dezember diciembre dicembre dezembro",
)  # fmt: skip
_NUMBER_OF = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()} | {
    names[:3]: number for number, names in enumerate(_MONTHS, 1)
}
_NAME = rf"(?P<month>{'|'.join(sorted(_NUMBER_OF, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|\.|er)?"
_YEAR = r"(?P<year>\d{4})"
_WAYS = tuple(
    re.compile(rf"(?<![\w.]){way}(?!\w|[-/.]\d)", re.IGNORECASE)
    for way in (
        rf"(?:the )?{_DAY} (?:of |de |di |d')?{_NAME},? (?:of |de |del |di )?{_YEAR}",
        rf"{_NAME} (?:the )?{_DAY},? (?:of )?{_YEAR}",
        rf"{_YEAR},? {_NAME} {_DAY}",
        r"(?P<year>\d{4})[-/.](?P<number>\d{1,2})[-/.](?P<day>\d{1,2})(?:T00:00(?::00)?Z?)?",
        r"(?P<one>\d{1,2})[-/.] ?(?P<other>\d{1,2})[-/.] ?(?P<year>\d{4})",
        r"(?P<year>\d{4}) ?[\u5e74\ub144] ?(?P<number>\d{1,2}) ?[\u6708\uc6d4] ?(?P<day>\d{1,2}) ?[\u65e5\uc77c]",
    )
)
_CLOCK = re.compile(
    r"(?<![\w.:])(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::00)?(?: ?(?P<half>[ap])\.?m\b\.?)?|"
    r" ?(?P<half_b>[ap])\.?m\b\.?)(?![\w:])",
    re.IGNORECASE,
)
_AROUND = re.compile(r"\A(?:on |the |(?:mon|tues|wednes|thurs|fri|satur|sun)day,? )*", re.IGNORECASE)
Moments = frozenset[date | int]
"""All that a writing may mean: dates, or minutes since midnight."""


def moments_in(line: str) -> list[Moments]:
    """Return the whole dates in a line in their order, each as all that it may mean; without a date, the times of day."""
    places: dict[int, Moments] = {}
    for way in _WAYS:
        for found in way.finditer(line[:2_000]):
            meant = _meant(found.groupdict())
            if meant:
                places.setdefault(found.start(), meant)
    return [places[start] for start in sorted(places)] or [_minutes(found) for found in _CLOCK.finditer(line[:2_000])]


def moment_of(text: str) -> Moments:
    """Return what a text that is one whole date or time of day and nothing else may mean; nothing if it is none."""
    bare = _AROUND.sub("", text.strip().rstrip("."))
    for way in _WAYS:
        if found := way.fullmatch(bare):
            return _meant(found.groupdict())
    clock = _CLOCK.fullmatch(bare)
    return frozenset() if clock is None else _minutes(clock)


def _minutes(found: re.Match[str]) -> Moments:
    hour, minute, half = int(found["hour"]), int(found["minute"] or 0), (found["half"] or found["half_b"] or "").lower()
    if hour > 23 or minute > 59 or (half and not 1 <= hour <= 12):
        return frozenset()
    if half:
        return frozenset({(hour % 12 + 12 * (half == "p")) * 60 + minute})
    is_open = 1 <= hour <= 12 and len(found["hour"]) < 2 + (hour > 9)
    return frozenset(
        {hour * 60 + minute, *([(hour % 12 + 12) * 60 + minute, hour % 12 * 60 + minute] if is_open else [])}
    )


def _meant(parts: dict[str, str | None]) -> Moments:
    year = int(parts["year"] or 0)
    if parts.get("one") and parts.get("other"):
        one, other = int(parts["one"] or 0), int(parts["other"] or 0)
        pairs = {(one, other), (other, one)}
    else:
        named = (parts.get("month") or "").lower()
        pairs = {(_NUMBER_OF[named] if named else int(parts["number"] or 0), int(parts["day"] or 0))}
    return frozenset(date(year, month, day) for month, day in pairs if _exists(year, month, day))


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
