"""The market as the rest of clear_ray sees it: the one place that calls its actor.

Every call and its answer have the types of `MarketActor`'s own method, so mypy finds a call that does not fit. Ray is not
imported here: a driver hands over what waits for an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from clear_ray.ledger.market import MarketActor

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Method = Callable[Concatenate[MarketActor, _P], Awaitable[_R]]


def _awaited(method: _Method[_P, _R]) -> Callable[Concatenate[AsyncMarketClient, _P], Awaitable[_R]]:
    @wraps(method)
    async def call(client: AsyncMarketClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        answer: _R = await _start(client.actor, method, args, kwargs)
        return answer

    return call


def _waited_for(method: _Method[_P, _R]) -> Callable[Concatenate[MarketClient, _P], _R]:
    @wraps(method)
    def call(client: MarketClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        answer: _R = client._get(_start(client.actor, method, args, kwargs), timeout=client._timeout_seconds)
        return answer

    return call


def _start(actor: Any, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(actor, method.__name__).remote(*args, **kwargs)


class AsyncMarketClient:
    """For callers with an event loop of their own; it may be pickled.

    Args:
        actor: Handle of the `MarketActor`.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    reserve = _awaited(MarketActor.reserve)
    settle = _awaited(MarketActor.settle)
    forfeit = _awaited(MarketActor.forfeit)
    give_up = _awaited(MarketActor.give_up)
    void_attempts = _awaited(MarketActor.void_attempts)
    charge = _awaited(MarketActor.charge)


class MarketClient:
    """For the driver: each call waits for its answer, and raises what the market raised.

    Args:
        actor: Handle of the `MarketActor`.
        get: Waits for what a call of the handle returned, as `ray.get` does.
        timeout_seconds: How long a call may wait; None for as long as it takes.
    """

    def __init__(self, actor: Any, get: Callable[..., Any], timeout_seconds: float | None = None) -> None:
        self.actor = actor
        self._get, self._timeout_seconds = get, timeout_seconds

    open_round = _waited_for(MarketActor.open_round)
    balance = _waited_for(MarketActor.balance)
    change_budget = _waited_for(MarketActor.change_budget)
    is_in_place = _waited_for(MarketActor.is_in_place)
    charges = _waited_for(MarketActor.charges)
    charge = _waited_for(MarketActor.charge)
    charged = _waited_for(MarketActor.charged)
    charged_parts = _waited_for(MarketActor.charged_parts)
    void_attempts = _waited_for(MarketActor.void_attempts)
    mark_wasted = _waited_for(MarketActor.mark_wasted)
    close_open_reservations = _waited_for(MarketActor.close_open_reservations)

    def within(self, seconds: float) -> MarketClient:
        """Return a client of the same market whose calls raise when they take longer."""
        return MarketClient(self.actor, self._get, seconds)

    def awaitable(self) -> AsyncMarketClient:
        """Return a client of the same market for callers with an event loop."""
        return AsyncMarketClient(self.actor)
