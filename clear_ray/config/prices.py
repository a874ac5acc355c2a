"""Price lists: what a million tokens of a model cost, exactly, and what a call takes from a budget by them.

A run that has prices keeps its account in billionths of its currency, or of a GPU-second, and in whole thousandths of those
(`money.COST_PARTS`). So a price of up to six decimals per million tokens is exact: $0.0375 is 37,500 thousandths a token.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.money import COST_PARTS, CURRENCIES, GPU_SECONDS, amount_of
from clear_ray.config.reading import read_yaml
from clear_ray.config.refusal import as_written

NANO = 10**9
"""Units of the account in one of the currency."""
ANY_MODEL = "*"
_DECIMALS = 6
_PARTS = NANO * COST_PARTS // 10**6  # of a price per million tokens, for one token
_KINDS = ("input", "cached_input", "output", "reasoning", "probe")
Price = Annotated[Decimal, Field(ge=0, le=100_000, allow_inf_nan=False)]


class Prices(Settings):
    """What a million tokens of one model cost; numbers, or texts such as `$0.15`."""

    input: Price
    """A million tokens of prompts, and of answers that are read again when they are gone on with."""
    cached_input: Price | None = None
    """A million tokens of those that the endpoint read from its cache; as `input` if not given."""
    output: Price = Field(gt=0)
    """A million tokens generated."""
    reasoning: Price | None = None
    """A million tokens of reasoning among them; as `output` if not given."""
    probe: Price | None = None
    """A million tokens of prompts that the probe reads, where that is paid for; nothing if not given."""
    unit: str | None = None
    """Currency, such as `USD`, or `gpu-seconds`; the budget's if not given."""

    @model_validator(mode="before")
    @classmethod
    def _amounts_are_read(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        read, units = dict(value), set()
        for kind in _KINDS:
            if read.get(kind) is not None:
                read[kind], unit = _price_of(kind, read[kind])
                units |= {unit} - {None}
        if read.get("unit") is not None:
            units.add(_unit_of(read["unit"]))
        if len(units) > 1:
            raise ValueError(
                f"one list of prices is in one unit, and this one is in {' and '.join(sorted(map(str, units)))}"
            )
        return read | {"unit": units.pop() if units else None}

    @property
    def token_parts(self) -> int:
        """What a generated token takes at most."""
        return max(_parts(self.output), 0 if self.reasoning is None else _parts(self.reasoning))

    @property
    def read_parts(self) -> int:
        """What a token that is read takes at most: no cache can be counted on."""
        return max(_parts(self.input), 0 if self.cached_input is None else _parts(self.cached_input))

    @property
    def probe_parts(self) -> int:
        """What a token takes that the probe reads."""
        return 0 if self.probe is None else _parts(self.probe)

    def taken_parts(
        self, *, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0, reasoning_tokens: int = 0
    ) -> int:
        """Return what a call took, exactly.

        Args:
            prompt_tokens: Tokens read, cached ones included.
            output_tokens: Tokens generated, reasoning included.
            cached_tokens: Part of the tokens read that came from a cache.
            reasoning_tokens: Part of the tokens generated that is reasoning.
        """
        cached = self.input if self.cached_input is None else self.cached_input
        reasoning = self.output if self.reasoning is None else self.reasoning
        return (
            (prompt_tokens - cached_tokens) * _parts(self.input)
            + cached_tokens * _parts(cached)
            + (output_tokens - reasoning_tokens) * _parts(self.output)
            + reasoning_tokens * _parts(reasoning)
        )


def scaled_parts(parts: int, cost: float) -> int:
    """Return what a query of another cost takes, rounded up; `cost` is in whole thousandths, 1 for an ordinary query."""
    return -(-parts * round(cost * COST_PARTS) // COST_PARTS)


def _price_of(kind: str, value: Any) -> tuple[Decimal, str | None]:
    unit = None
    if isinstance(value, str) and (amount := amount_of(value)) is not None:
        number, unit = amount
        found = Decimal(number.numerator) / Decimal(number.denominator)
    else:
        try:
            if isinstance(value, bool):
                raise TypeError
            found = Decimal(str(value))  # of a float: the decimal that was written
        except (InvalidOperation, TypeError, ValueError) as error:
            raise ValueError(
                f"the price of {kind} is a number such as 0.15, or '$0.15', not {as_written(value)}"
            ) from error
    if found.is_finite() and found != round(found, _DECIMALS):
        raise ValueError(f"the price of {kind}, of a million tokens, has more than {_DECIMALS} decimals: {found}")
    return found, unit


def _unit_of(value: Any) -> str:
    found = str(value)
    if found == GPU_SECONDS or found.upper() in CURRENCIES:
        return found if found == GPU_SECONDS else found.upper()
    amount = amount_of(f"{found}1") if isinstance(value, str) else None
    if amount is None:
        raise ValueError(f"the unit of prices is a currency such as USD, or {GPU_SECONDS}, not {as_written(value)}")
    return amount[1]


def _parts(price: Decimal) -> int:
    return int(price * _PARTS)


def _by_model(value: Any) -> Any:
    """Return price lists by the model's name, read from the file that is named."""
    if isinstance(value, str):
        try:
            value = read_yaml(Path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"the file of prices {value} cannot be read: {error}") from error
    is_one_list = isinstance(value, dict) and not any(isinstance(prices, dict) for prices in value.values())
    if isinstance(value, dict) and value and (is_one_list or set(value) & {"input", "output"}):
        return {ANY_MODEL: value}
    if isinstance(value, dict) and not value:
        raise ValueError("a list of prices names at least one model, or `input` and `output`")
    return value


PriceLists = Annotated[dict[str, Prices], BeforeValidator(_by_model)]
"""Prices by the name of a model; `*` for any."""


def prices_of(lists: dict[str, Prices], model: str) -> Prices:
    """Return the prices of a model.

    Raises:
        ValueError: It has none.
    """
    found = lists.get(model) or lists.get(ANY_MODEL)
    if found is None:
        raise ValueError(
            f"the list of prices has none for the model {model}; it has some for {', '.join(sorted(lists))}"
        )
    return found
