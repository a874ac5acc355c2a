"""The run of a batch: the server's settings, with what its client asks for in `metadata`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clear_ray.config.run import RunConfig
from clear_ray.config.units import budget_in_tokens
from clear_ray.errors import ConfigError
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.serve.errors import ApiError

_OF_ALLOCATION = ("policy", "objective", "attempts", "votes_by")
_NAMES = ("budget", "weight", *_OF_ALLOCATION)
_MEANT = {
    **{name.replace("_", ""): name for name in _NAMES},
    **{f"{name.replace('_', '')}s": name for name in _NAMES if not name.endswith("s")},
    "budgettokens": "budget",
    "tokenbudget": "budget",
}
"""Names as letters alone, and what they mean."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_OF_A_BUDGET = {"max", "maximum", "total", "overall", "limit", "cap", "spend", "spending", "cost", "money", "output"}
_OF_A_BUDGET |= {"budget", "budgets", "dollar", "dollars", "usd", "eur", "token", "tokens", "generation"}
"""Words that make no other thing of a budget."""
_LEAST_WEIGHT, _MOST_WEIGHT = 0.001, 1_000.0


def weight_of(metadata: Mapping[str, str]) -> float:
    """Return the share of a batch beside others.

    Raises:
        ApiError: 400: it is no number, or out of range.
    """
    text = metadata.get("weight", "1")
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
        message = f"The weight lies between {_LEAST_WEIGHT} and {_MOST_WEIGHT:g}."
        raise ApiError(400, message, param="metadata.weight", code="invalid_metadata")
    return weight


def check_names(metadata: Mapping[str, str]) -> None:
    """Refuse names that are written otherwise than those that mean something: taken for notes, they would have no effect.

    Raises:
        ApiError: 400: such as `Budget`, `token_budget` or `maxBudget`; the `budget_code` of a project is a note.
    """
    for name in sorted(metadata.keys() - set(_NAMES)):
        words = {word.lower() for word in _WORD.findall(name)}
        is_budget = bool(words & {"budget", "budgets"}) and words <= _OF_A_BUDGET
        other = "budget" if is_budget else _MEANT.get("".join(filter(str.isalnum, name.lower())))
        if other is not None:
            message = f"metadata.{name} would have no effect: it is written `{other}`."
            raise ApiError(400, message, param=f"metadata.{name}", code="invalid_metadata")


def asked_settings(settings: BatchSettings, metadata: Mapping[str, str], *, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that the server and `metadata` name: a budget if there is one, how it is shared.

    Args:
        settings: Settings of the server's batches.
        metadata: Of one batch.
        own: What the run has of the server, see `ServeConfig.run_of`, which they have to fit.

    Raises:
        ApiError: 400: a value in `metadata` is none.
    """
    found = dict(settings.run)
    rate = found.pop("budget_rate", None)
    budget = metadata.get("budget", found.get("budget"))
    if budget is None and "prices" in found:
        raise ApiError(400, "This server counts money: name a budget, such as $5.", param="metadata.budget")
    if budget is not None:
        found["budget"] = budget
        if rate is not None and not _is_in_tokens(budget):
            found["budget_rate"] = rate
        _check({**found, **own}, ("budget",))
    asked: dict[str, Any] = {name: metadata[name] for name in _OF_ALLOCATION if name in metadata}
    for name, value in asked.items():
        asked[name] = int(value) if value.isascii() and value.isdigit() else value
    found["allocation"] = {**found.get("allocation", {}), **asked}
    if asked:
        _check({**found, **own}, tuple(asked))
    return found


def _is_in_tokens(budget: int | str) -> bool:
    try:
        budget_in_tokens(budget)
    except ValueError:
        return False
    return True


def _check(settings: Mapping[str, Any], names: tuple[str, ...]) -> None:
    try:
        RunConfig.parse({"run_dir": "batch", "budget": 1, **settings}, where="metadata")
    except ConfigError as error:
        at_fault = [name for name in names if error.where.endswith(f".{name}")]
        told = sorted((name for name in names if name in error.what), key=error.what.index)
        name = next(iter((*at_fault, *told, *names)))
        message = f"metadata.{name} cannot be used: {error.what}."
        raise ApiError(400, message, param=f"metadata.{name}", code="invalid_metadata") from None
