"""How numbers read in every view of a run: one wording for terminal, summary and page."""

from __future__ import annotations

import math
from collections.abc import Sequence

UNKNOWN = "\N{EN DASH}"
"""Stands where a number is not known, or does not exist."""


def count(number: float) -> str:
    """Return a number of tokens or queries with thousands separated, such as `4,800`."""
    return f"{number:,.0f}"


def answers(correct: float | None) -> str:
    """Return a number of correct answers: whole where it is whole, else with one decimal, two below ten."""
    if correct is None or not math.isfinite(correct):
        return UNKNOWN
    if correct == int(correct):
        return f"{correct:,.0f}"
    return f"{correct:,.1f}" if abs(correct) >= 10 else f"{correct:.2f}"


def expected(utility: float) -> str:
    """Return an expectation of correct answers, always with one decimal: it is no count."""
    return f"{utility:,.1f}" if math.isfinite(utility) else UNKNOWN


def per_thousand(price: float | None) -> str:
    """Return a price as expected correct answers per 1,000 tokens, in three significant digits."""
    if price is None or not math.isfinite(price):
        return UNKNOWN
    scaled = 1_000 * price
    return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def percent(share: float | None) -> str:
    """Return a share of one as a percentage with one decimal."""
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}
_NANO = 10**9


def amount(number: float, unit: str = "tokens") -> str:
    """Return an amount of what a budget is in: `4,800 tokens`, `$4.98`, `1.25 gpu-hours`.

    Args:
        number: Tokens, or billionths of the unit.
        unit: `tokens`, `gpu-seconds` or the code of a currency.
    """
    if unit == "tokens":
        return f"{count(number)} tokens"
    whole = number / _NANO
    if unit == "gpu-seconds":
        return f"{_decimal(whole / 3600)} gpu-hours" if abs(whole) >= 3600 else f"{_decimal(whole)} gpu-seconds"
    return f"{_SIGNS[unit]}{_decimal(whole)}" if unit in _SIGNS else f"{_decimal(whole)} {unit}"


def _decimal(number: float) -> str:
    """Return a number with two decimals; of a small one so many that two digits can be seen."""
    decimals = 2 if number == 0 or abs(number) >= 0.1 else min(1 - math.floor(math.log10(abs(number))), 9)
    return f"{number:,.{decimals}f}"


def scale_of_price(unit: str) -> tuple[float, str]:
    """Return what a shadow price is multiplied by to be read, and what it is then the price of."""
    if unit == "tokens":
        return 1_000.0, "1,000 tokens"
    return (3_600.0 * _NANO, "gpu-hour") if unit == "gpu-seconds" else (float(_NANO), unit)


def priced(price: float, unit: str = "tokens") -> str:
    """Return a shadow price: expected correct answers per further 1,000 tokens, dollar or GPU-hour."""
    scale, name = scale_of_price(unit)
    return f"{per_thousand(price * scale / 1_000)} expected correct answers per further {name}"


LABELS = {
    "verdict": "the scorer's verdicts",
    "agreement": "how often answers to one query agree",
    "ended": "which answers ended by themselves",
}
"""What a run may learn from."""


def taught(label: str, features: Sequence[str]) -> str:
    """Return what a run learns from, such as `the scorer's verdicts, by text and ngrams of the prompts`."""
    read = " and ".join(part for part in (", ".join(features[:-1]), *features[-1:]) if part)
    return f"{LABELS.get(label, label)}, by {read} of the prompts"


def duration(seconds: float | None) -> str:
    """Return a length of time in its two largest units, such as `3 min 12 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600:,} h {whole % 3_600 // 60:02d} min"


def plural(number: int, noun: str) -> str:
    """Return `1 query`, `2 queries`, `1 round`, `3 rounds`."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count(number)} {noun if number == 1 else many}"


def times(value: float, baseline: float) -> str:
    """Return how many times `baseline` goes into `value`, such as `2.4 times`; empty if the baseline is nothing."""
    return f"{value / baseline:.1f} times" if baseline > 0 else ""


def solved_by(queries_of: Sequence[int]) -> str:
    """Return how many queries each attempt has solved, such as `12 by attempt 1, 3 by attempt 2`; empty if none did."""
    return ", ".join(f"{count(queries)} by attempt {number}" for number, queries in enumerate(queries_of, 1) if queries)
