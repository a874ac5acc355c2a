"""Several engines under one budget: their names, prices and heads, and what of the other settings does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from clear_ray.config.engine import EngineConfig, TransformersConfig
from clear_ray.config.prices import ANY_MODEL, Prices
from clear_ray.config.refusal import as_written

if TYPE_CHECKING:
    from clear_ray.config.run import RunConfig

EngineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Engines = Annotated[dict[EngineName, EngineConfig], Field(min_length=2, max_length=16)]
"""Engines by their names, in the order in which a query may be asked of them."""
_BESIDE = ("prices", "head")


@dataclass(frozen=True, slots=True)
class NamedEngine:
    """One engine of a run.

    Attributes:
        name: Its name among several; empty of the only one.
        config: Its settings.
        prices: What its tokens cost; None where the budget counts tokens.
        head: Its estimate, as `estimate.head` names one.
        frozen: Whether a head that it has is kept as it is.
    """

    name: str
    config: EngineConfig
    prices: Prices | None
    head: str | None
    frozen: bool = True

    @property
    def is_unknown(self) -> bool:
        """Whether it has no head."""
        return self.head in (None, "learn")

    @property
    def learns(self) -> bool:
        """Whether a run learns of it from its own answers."""
        return self.is_unknown or not self.frozen


def gathered(settings: Any) -> Any:
    """Return settings in which prices and heads that stand beside an engine are where those of all engines are.

    Raises:
        ValueError: Prices stand in two places, or those beside an engine are no group.
    """
    engines = settings.get("engines") if isinstance(settings, dict) else None
    if not isinstance(engines, dict) or not any(_has_beside(engine) for engine in engines.values()):
        return settings
    found = {name: _of_each(engines, name) for name in _BESIDE}
    for name, prices in found["prices"].items():
        if not isinstance(prices, dict):
            what = (
                f"prices of engine {name} are a group, such as {{input: 0.15, output: 0.60}}, not {as_written(prices)}"
            )
            raise ValueError(what)
    bare = {
        name: {key: value for key, value in engine.items() if key not in _BESIDE} if _has_beside(engine) else engine
        for name, engine in engines.items()
    }
    settings = {**settings, "engines": bare}
    if found["prices"]:
        settings["prices"] = {**_lists(settings.get("prices")), **found["prices"]}
    if found["head"]:
        estimate = settings.get("estimate") or {}
        heads = estimate.get("heads") or {} if isinstance(estimate, dict) else {}
        settings["estimate"] = {**estimate, "heads": {**heads, **found["head"]}}
    return settings


def _has_beside(engine: Any) -> bool:
    return isinstance(engine, dict) and any(key in engine for key in _BESIDE)


def _of_each(engines: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {
        name: engine[key]
        for name, engine in engines.items()
        if isinstance(engine, dict) and engine.get(key) is not None
    }


def _lists(prices: Any) -> dict[str, Any]:
    if isinstance(prices, str):
        raise ValueError(f"prices stand in the file {prices} and beside an engine: put them all into one of the two")
    lists = prices if isinstance(prices, dict) else {}
    return {ANY_MODEL: lists} if set(lists) & {"input", "output"} else lists


def first_engine(settings: dict[str, Any]) -> EngineConfig:
    """Return the engine of a run that names none by itself: the first of several, or the embedded model."""
    engines: dict[str, EngineConfig] = settings.get("engines") or {}
    return next(iter(engines.values()), TransformersConfig())


def check_menu(config: RunConfig) -> None:
    """Refuse what a run with several engines cannot do.

    Raises:
        ValueError: A setting does not go with them; it is named.
    """
    if config.engines is None:
        if config.estimate.heads:
            raise ValueError("estimate.heads are those of several engines: name them in engines, or give estimate.head")
        return
    allocation, estimate = config.allocation, config.estimate
    if config.engine != next(iter(config.engines.values())):
        raise ValueError("either engine or engines: the settings of one stand in engines, too")
    if config.prices is None:
        raise ValueError(
            "several engines are bought at one price: give each its prices, in a currency or in gpu-seconds of yours"
        )
    refused = {
        "allocation.objective groups": (
            allocation.objective == "groups",
            "a group is of one model's answers: run each by itself",
        ),
        "allocation.sketched": (
            bool(allocation.sketched),
            "leave it out: they are priced in blocks, whatever the size",
        ),
    }
    for name, (is_set, remedy) in refused.items():
        if is_set:
            raise ValueError(f"{name} does not go with several engines: {remedy}, or name one engine")
    if estimate.head not in (None, "learn", "prior"):
        raise ValueError(
            f"a head is of one engine: give {estimate.head} as `head` of the engine that it was fitted for"
        )
    if strangers := sorted(set(estimate.heads) - set(config.engines)):
        raise ValueError(f"estimate.heads names {strangers[0]}, which is none of {', '.join(config.engines)}")
