"""A budget as people write it, in whole numbers: `2M tokens`, `$5` or `3 gpu-hours`, the last two with a rate or prices.

    $5            at  $0.60 per 1M tokens          8,333,333 tokens
    3 gpu-hours   at  2500 tokens per gpu-second   27,000,000 tokens
    $5            with prices                      5,000,000,000 billionths of a dollar

With a rate the run counts tokens. With a list of prices (`config.prices`) it counts billionths of the currency, prompts
included. Everything is computed exactly and rounded down at the end, so a budget is never exceeded by reading it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from clear_ray.config.money import GPU_SECONDS, NUMBER, SCALE, SECONDS, SIGNS, SUFFIX, amount_of
from clear_ray.config.prices import NANO, Prices

MOST_BUDGET_TOKENS = 10**15
"""Whole numbers above 2**53 are not exact in the arithmetic of the price."""

_TIME = r"gpu[- ](second|minute|hour)"
_PER = r"(?:\s+per\s+|\s*/\s*)"
_TOKENS = re.compile(rf"\s*{NUMBER}\s*{SUFFIX}\s*(?:tokens?)?\s*", re.ASCII | re.IGNORECASE)
_IN_THOUSANDS = re.compile(r"\s*(\d{1,3}([,._ ])\d{3}(?:\2\d{3})+)\s*(?:tokens?)?\s*", re.ASCII | re.IGNORECASE)
_AS_FLOAT = re.compile(r"\s*(\d+\.0|\d+(?:\.\d+)?e\+?\d{1,2})\s*(?:tokens?)?\s*", re.ASCII | re.IGNORECASE)
_MONEY_RATE = re.compile(rf"(.+?){_PER}(?:{NUMBER}\s*)?{SUFFIX}\s*tokens?\s*", re.ASCII | re.IGNORECASE)
_GPU_RATE = re.compile(rf"\s*{NUMBER}\s*{SUFFIX}\s*tokens?{_PER}{_TIME}\s*", re.ASCII | re.IGNORECASE)
_IN_GROUPS = re.compile(rf"\s*\d+(?:[,_ ]\d+)+(?:\.\d+)?\s*{SUFFIX}\s*(?:tokens?)?\s*", re.ASCII | re.IGNORECASE)
_SIGN_OF = {code: sign for sign, code in SIGNS.items()}

_WHOLE_TOKENS = "a budget is a positive whole number of tokens"
_WITHOUT_MARKS = "written without marks between its digits, which mean thousands here and decimals there: 2000 or 2k"
_AS_IN = "such as 200000, '1.5M tokens', or '$5' or '3 gpu-hours' with prices or a budget_rate"


@dataclass(frozen=True, slots=True)
class _Amount:
    """Something to be spent.

    Attributes:
        number: How much of it.
        unit: `tokens`, the code of a currency, or `gpu-seconds`.
    """

    number: Fraction
    unit: str


def budget_in_tokens(budget: int | str, rate: str | None = None) -> int:
    """Return a budget in whole tokens, rounded down.

    Args:
        budget: A number of tokens, or text: tokens, money or GPU time.
        rate: What a token costs, for money (`$0.60 per 1M tokens`), or how many tokens a GPU generates, for time
            (`2500 tokens per gpu-second`, `4M tokens per gpu-hour`). None for a budget in tokens.

    Raises:
        ValueError: One of the two cannot be read, they do not fit together, or the budget is not between one token and
            `MOST_BUDGET_TOKENS`.
    """
    amount = _amount_of(budget)
    if amount.unit == "tokens":
        if rate is not None:
            raise ValueError("a rate belongs to a budget in money or GPU time, and this one is in tokens")
        tokens = amount.number
        if tokens.denominator != 1:
            raise ValueError(f"{_WHOLE_TOKENS}, at most {MOST_BUDGET_TOKENS:,}")
    else:
        tokens = amount.number * _tokens_per_unit(amount.unit, rate)
    if not 1 <= tokens <= MOST_BUDGET_TOKENS:
        raise ValueError(f"{_WHOLE_TOKENS}, at most {MOST_BUDGET_TOKENS:,}")
    return int(tokens)


def check_budget_text(budget: object) -> None:
    """Raise unless a budget can be read, whatever its rate.

    Raises:
        ValueError: It is not an amount of tokens, money or GPU time, or a number of tokens out of range.
    """
    if not isinstance(budget, int | str) or isinstance(budget, bool):
        raise ValueError(f"{_WHOLE_TOKENS}, {_AS_IN}")
    if _amount_of(budget).unit == "tokens":
        budget_in_tokens(budget)


def budget_in(budget: int | str, *, rate: str | None, prices: Prices | None) -> int:
    """Return an amount in what a budget with this rate or these prices counts; tokens also where it has a rate.

    Raises:
        ValueError: It cannot be read, or does not fit them.
    """
    if prices is not None:
        return budget_in_units(budget, prices)
    is_in_tokens = _amount_of(budget).unit == "tokens"
    return budget_in_tokens(budget, None if is_in_tokens else rate)


def unit_of_budget(budget: int | str) -> str:
    """Return what a budget is in: `tokens`, the code of a currency, or `gpu-seconds`."""
    return _amount_of(budget).unit


def budget_in_units(budget: int | str, prices: Prices) -> int:
    """Return a budget of money or GPU time in billionths, rounded down, for a run that is charged by a list of prices.

    Raises:
        ValueError: It is in tokens or in another unit than the prices, or out of range.
    """
    amount = _amount_of(budget)
    if amount.unit == "tokens":
        raise ValueError(
            "prices belong to a budget in money or GPU time, such as $5 or 3 gpu-hours; this one is in tokens"
        )
    if prices.unit not in (None, amount.unit):
        raise ValueError(f"the prices are in {prices.unit} and the budget in {amount.unit}: nothing is converted here")
    units = int(amount.number * NANO)
    if not 1 <= units <= MOST_BUDGET_TOKENS:
        most = f"{MOST_BUDGET_TOKENS // NANO:,} {amount.unit}"
        raise ValueError(f"a budget that is charged by prices is above 0 and at most {most}")
    return units


def _amount_of(budget: int | str) -> _Amount:
    if not isinstance(budget, str):
        return _Amount(Fraction(budget), "tokens")
    if matched := _AS_FLOAT.fullmatch(budget):  # as programs write a whole number: `2000000.0`, `2e6`
        return _Amount(Fraction(matched[1]), "tokens")
    if matched := _TOKENS.fullmatch(budget):
        if "." in matched[1] and not matched[2]:
            raise ValueError(f"{_WHOLE_TOKENS}, {_WITHOUT_MARKS}")
        return _Amount(_scaled(matched[1], matched[2]), "tokens")
    if matched := _IN_THOUSANDS.fullmatch(budget):  # several groups of three, so no mark is a decimal point
        return _Amount(Fraction(matched[1].replace(matched[2], "")), "tokens")
    if (amount := amount_of(budget)) is not None:
        return _Amount(*amount)
    is_grouped = _IN_GROUPS.fullmatch(budget)
    raise ValueError(f"{_WHOLE_TOKENS}, {_WITHOUT_MARKS if is_grouped else _AS_IN}")


def _tokens_per_unit(unit: str, rate: str | None) -> Fraction:
    """Return how many tokens one unit of money or one GPU-second pays for."""
    if unit == GPU_SECONDS:
        if rate is None or not (matched := _GPU_RATE.fullmatch(rate)):
            raise ValueError("a budget in GPU time needs a rate such as '4M tokens per gpu-hour'")
        return _scaled(matched[1], matched[2]) / SECONDS[matched[3].lower()]
    sign = _SIGN_OF.get(unit, f"{unit} ")
    matched = None if rate is None else _MONEY_RATE.fullmatch(rate)
    cost = None if matched is None else amount_of(matched[1])
    if matched is None or cost is None or cost[1] != unit:
        rate_or_prices = f"a rate such as '{sign}0.60 per 1M tokens', or prices such as {{input: 0.15, output: 0.60}}"
        raise ValueError(f"a budget in {sign.strip()} needs {rate_or_prices}")
    if not cost[0]:
        raise ValueError("tokens that cost nothing need no budget; the rate must be above 0")
    return _scaled(matched[2] or "1", matched[3]) / cost[0]


def _scaled(number: str, suffix: str) -> Fraction:
    return Fraction(number) * SCALE[suffix.lower()]
