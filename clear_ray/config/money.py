"""Amounts of money and GPU time as people write them, `$5`, `5 USD`, `3 gpu-hours`: read exactly, refused where unclear."""

from __future__ import annotations

import re
from fractions import Fraction

COST_PARTS = 1_000
"""A cost is a whole number of thousandths of a unit of the budget, so that the account of a run is exact."""
GPU_SECONDS = "gpu-seconds"
SIGNS = {"$": "USD", "€": "EUR", "£": "GBP"}
"""Signs of money that mean one currency here; `US$` and `usd` mean the same as `$`."""
CURRENCIES = frozenset(
    re.findall(
        "[A-Z]{3}",
        "AED ARS AUD BDT BGN BRL CAD CHF CLP CNY COP CZK DKK EGP EUR GBP HKD HUF IDR ILS INR JPY KES KRW MAD MXN MYR NGN NOK "
        "NZD PEN PHP PKR PLN QAR RON SAR SEK SGD THB TRY TWD UAH USD VND ZAR",
    )
)
"""Codes that a budget or a price list may be in."""
SCALE = {"": 1, "k": 10**3, "thousand": 10**3, "m": 10**6, "million": 10**6, "b": 10**9, "g": 10**9, "billion": 10**9}
"""What a suffix stands for, by its small letters."""
SECONDS = {"second": 1, "minute": 60, "hour": 3600}
NUMBER = r"(\d+(?:\.\d+)?)"
SUFFIX = "((?i:thousand|million|billion|[kmbg]?))"

_WORDS = {"dollar": "USD", "dollars": "USD", "euro": "EUR", "euros": "EUR", "pound": "GBP", "pounds": "GBP"}
_CENTS = {"cent", "cents", "¢", "ct", "cts"}
_MARK = r"(?:[A-Za-z]{0,3}[$€£¥₹¢]|[A-Za-z]{1,7})"
_BEFORE = re.compile(rf"\s*({_MARK})\s*([\d.,_ ]*\d)\s*{SUFFIX}\s*")
_AFTER = re.compile(rf"\s*([\d.,_ ]*\d)\s*{SUFFIX}\s*({_MARK})\s*")
_CODE_AFTER = re.compile(r"\s*([\d.,_ ]*\d)\s*()([A-Za-z]{3})\s*")  # whose first letter may look like a suffix: 5 GBP
_PLAIN = re.compile(NUMBER, re.ASCII)
_GPU_TIME = re.compile(rf"\s*{NUMBER}\s*gpu[- ](second|minute|hour)s?\s*", re.ASCII | re.IGNORECASE)


def amount_of(text: str) -> tuple[Fraction, str] | None:
    """Return an amount and its unit, a currency's code or `gpu-seconds`; None if the text is neither money nor GPU time.

    Raises:
        ValueError: It is money, and which currency or how much is not clear; the error says what is not.
    """
    if matched := _GPU_TIME.fullmatch(text):
        return Fraction(matched[1]) * SECONDS[matched[2].lower()], GPU_SECONDS
    if matched := _BEFORE.fullmatch(text):
        mark, number, suffix = matched.groups()
    elif matched := _after(text):
        number, suffix, mark = matched.groups()
    else:
        return None
    code = _currency_of(mark)
    if code is None:
        return None
    return _number_of(number, text) * SCALE[suffix.lower()], code


def _after(text: str) -> re.Match[str] | None:
    matched = _CODE_AFTER.fullmatch(text)
    return matched if matched and matched[3].upper() in CURRENCIES else _AFTER.fullmatch(text)


def _currency_of(mark: str) -> str | None:
    """Return the code that a mark stands for; None for a word that is no money, such as `tokens`.

    Raises:
        ValueError: The mark is of money, and of more than one currency or of none that is known.
    """
    if mark in SIGNS:
        return SIGNS[mark]
    if mark.upper() in CURRENCIES:
        return mark.upper()
    if mark.lower() in _WORDS:
        return _WORDS[mark.lower()]
    if mark in _CENTS:
        raise ValueError(
            f"'{mark}' is a hundredth of several currencies: write it in whole ones, such as $0.50 or €0.50"
        )
    if mark == "US$":
        return "USD"
    if mark[-1] in "$€£¥₹¢":
        raise ValueError(f"'{mark}' is not clear: write the currency's code, such as 5 USD, 5 CAD, 500 JPY or 5 CNY")
    if len(mark) == 3 and mark.isupper():
        raise ValueError(f"'{mark}' is no currency known here; known are {', '.join(sorted(CURRENCIES))}")
    return None


def _number_of(number: str, text: str) -> Fraction:
    if not _PLAIN.fullmatch(number):
        raise ValueError(
            f"'{number}' in '{text.strip()}' is not clear: digits with at most one point are, such as 1500 or 1.50; "
            "no comma, which groups thousands for some and is a decimal point for others"
        )
    return Fraction(number)
