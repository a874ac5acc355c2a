"""A budget as people write it, in whole tokens: `2M tokens`, `$5` or `3 gpu-hours`, the last two with a rate beside it.

    $5            at  $0.60 per 1M tokens          8,333,333 tokens
    3 gpu-hours   at  2500 tokens per gpu-second   27,000,000 tokens

The run itself counts tokens, because that is what an engine can be held to. Everything is computed exactly and rounded
down at the end, so a budget of money or time is never exceeded by reading it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MOST_BUDGET_TOKENS = 10**15
"""Whole numbers above 2**53 are not exact in the arithmetic of the price."""

_NUMBER = r"(\d+(?:\.\d+)?)"
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "million": 10**6, "B": 10**9, "G": 10**9, "billion": 10**9}
_SUFFIX = "(million|billion|[kKMBG]?)"
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_TIME = r"gpu[- ](second|minute|hour)"
_PER = r"(?:\s+per\s+|\s*/\s*)"
_TOKENS = re.compile(rf"\s*{_NUMBER}\s*{_SUFFIX}\s*(?:tokens?)?\s*", re.ASCII)
_MONEY = re.compile(rf"\s*([$€£])\s*{_NUMBER}\s*{_SUFFIX}\s*", re.ASCII)
_GPU_TIME = re.compile(rf"\s*{_NUMBER}\s*{_TIME}s?\s*", re.ASCII | re.IGNORECASE)
_MONEY_RATE = re.compile(rf"{_MONEY.pattern}{_PER}(?:{_NUMBER}\s*)?{_SUFFIX}\s*tokens?\s*", re.ASCII)
_GPU_RATE = re.compile(rf"\s*{_NUMBER}\s*{_SUFFIX}\s*tokens?{_PER}{_TIME}\s*", re.ASCII)

_WHOLE_TOKENS = "a budget is a positive whole number of tokens"
_AS_IN = "such as 200000, '1.5M tokens', or '$5' or '3 gpu-hours' with a budget_rate"


@dataclass(frozen=True, slots=True)
class _Amount:
    """Something to be spent.

    Attributes:
        number: How much of it.
        unit: `tokens`, a currency sign, or `gpu-seconds`.
    """

    number: Fraction
    unit: str


def budget_in_tokens(budget: int | str, rate: str | None = None) -> int:
    """Return a budget in whole tokens, rounded down.

    Args:
        budget: A number of tokens, or text: tokens, money (`$`, `€` or `£`) or GPU time.
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


def _amount_of(budget: int | str) -> _Amount:
    if not isinstance(budget, str):
        return _Amount(Fraction(budget), "tokens")
    if matched := _TOKENS.fullmatch(budget):
        return _Amount(_scaled(matched[1], matched[2]), "tokens")
    if matched := _MONEY.fullmatch(budget):
        return _Amount(_scaled(matched[2], matched[3]), matched[1])
    if matched := _GPU_TIME.fullmatch(budget):
        return _Amount(Fraction(matched[1]) * _SECONDS[matched[2].lower()], "gpu-seconds")
    raise ValueError(f"{_WHOLE_TOKENS}, {_AS_IN}")


def _tokens_per_unit(unit: str, rate: str | None) -> Fraction:
    """Return how many tokens one unit of money or one GPU-second pays for."""
    if unit == "gpu-seconds":
        if rate is None or not (matched := _GPU_RATE.fullmatch(rate)):
            raise ValueError("a budget in GPU time needs a rate such as '4M tokens per gpu-hour'")
        return _scaled(matched[1], matched[2]) / _SECONDS[matched[3]]
    if rate is None or not (matched := _MONEY_RATE.fullmatch(rate)) or matched[1] != unit:
        raise ValueError(f"a budget in {unit} needs a rate such as '{unit}0.60 per 1M tokens'")
    cost = _scaled(matched[2], matched[3])
    if not cost:
        raise ValueError("tokens that cost nothing need no budget; the rate must be above 0")
    return _scaled(matched[4] or "1", matched[5]) / cost


def _scaled(number: str, suffix: str) -> Fraction:
    return Fraction(number) * _SCALE[suffix]
