"""The typed client of the market, over a real market in this process."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from clear_ray.ledger.client import AsyncMarketClient, MarketClient
from clear_ray.ledger.entries import Settlement
from clear_ray.ledger.market import MarketActor
from tests.unit.local_actors import LocalActor

PACKAGE = Path(__file__).parents[3] / "clear_ray"
CALLS = {name for name, _ in inspect.getmembers(MarketActor, inspect.iscoroutinefunction) if not name.startswith("_")}


def calls_of_the_actor(source: str) -> list[str]:
    """Return the methods of a market that a source calls through a handle, `….METHOD.remote(…)`."""
    called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    started = [func.value for func in called if isinstance(func, ast.Attribute) and func.attr == "remote"]
    return [value.attr for value in started if isinstance(value, ast.Attribute) and value.attr in CALLS]


def test_no_other_file_calls_the_market() -> None:
    assert calls_of_the_actor("ray.get(market.balance.remote(), timeout=5)") == ["balance"]
    others = [path for path in PACKAGE.rglob("*.py") if "serve" not in path.parts]  # whose price replica is no market
    assert len(others) > 100
    assert {str(path): found for path in others if (found := calls_of_the_actor(path.read_text("utf-8")))} == {}


def test_every_call_is_there_for_those_that_make_it() -> None:
    offered = {name for client in (MarketClient, AsyncMarketClient) for name in vars(client) if name in CALLS}
    assert offered == CALLS
    for client in (MarketClient, AsyncMarketClient):
        for name in CALLS & set(vars(client)):
            assert inspect.signature(getattr(client, name)) == inspect.signature(getattr(MarketActor, name))
            assert getattr(client, name).__doc__ == getattr(MarketActor, name).__doc__


def test_the_driver_waits_and_callers_await(tmp_path: Path) -> None:
    timeouts: list[float | None] = []

    def get(answer: Any, timeout: float | None) -> Any:
        timeouts.append(timeout)
        return asyncio.run(asyncio.wait_for(answer, timeout))

    actor = MarketActor(str(tmp_path), 100, 3)
    driver = MarketClient(LocalActor(actor), get)

    async def caller() -> list[int]:
        client = driver.awaitable()
        attempts = await client.reserve(1, [(0, 30), (2, 50)])
        await client.settle(
            [Settlement(index=0, attempt=attempts[0], spent_tokens=12, has_ended=True, correct=None, label="q")]
        )
        await client.forfeit([(2, attempts[1])])
        return [attempt for _, attempt in await client.void_attempts()]

    try:
        assert asyncio.run(caller()) == [1]
        assert driver.within(7.0).balance().spent_tokens == 62
        spent_N, wasted_N = driver.charges()
        assert (spent_N.tolist(), wasted_N.tolist()) == ([12, 0, 50], [0, 0, 50])
        assert driver.void_attempts() == [(2, 1)]
        assert timeouts == [7.0, None, None]
        with pytest.raises(TypeError, match="unexpected keyword"):
            driver.balance(at="noon")  # type: ignore[call-arg]
    finally:
        actor._journal.close()
