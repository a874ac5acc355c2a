"""How tenants share a server: the law of their shares, their queues on a clock that the tests turn, and their keys."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.errors import ConfigError
from clear_ray.serve.guard import Guard, tenant_of
from clear_ray.serve.law import Ask, Curve
from clear_ray.serve.settings import PriceSettings, ServeConfig, TenantSettings
from clear_ray.serve.shares import shares
from clear_ray.serve.tenant_queues import TenantQueues
from tests.unit.serve.test_sale_queue import LONG, SURE, Clock, started

NAMES = st.text("abcd", min_size=1, max_size=2)
LAW: dict[str, Any] = {"budget_tokens_per_second": 100, "carry_over_tokens": 400}
LAW |= {"clearing_seconds": 1.0, "window_seconds": 5.0}
_GRID_K = np.array([5, 10, 20, 40, 80, 160, 320], np.int64)
_JOINS_AT = 6  # second; a stock of twenty seconds' income is still far from full
GRADUAL = Curve(_GRID_K, (1 - np.exp(-_GRID_K / 60)).astype(np.float32), np.exp(-_GRID_K / 60).astype(np.float32))


@given(
    st.integers(10, 10_000),
    st.dictionaries(NAMES, st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=6),
    st.dictionaries(NAMES, st.none() | st.integers(1, 5_000)),
)
def test_shares_are_by_weight_within_bounds_and_leave_nothing_that_could_be_used(
    rate: int, weights: dict[str, float], bounds: dict[str, int | None]
) -> None:
    found = shares(rate, weights, bounds)
    assert found.keys() == weights.keys()
    assert sum(found.values()) <= rate + len(found)  # each has one at least
    free = {name: share for name, share in found.items() if (bounds.get(name) or rate + 1) > share}
    assert all(share <= (bounds.get(name) or share) for name, share in found.items())
    if free:  # one that its bound does not hold has as much for its weight as any other, and nothing is left over
        assert sum(found.values()) >= rate - len(found)
        for name, share in free.items():  # but for those that have their least, 1
            more = {of: other for of, other in found.items() if other > 1}
            assert all(share / weights[name] >= other / weights[of] - 2 / weights[name] for of, other in more.items())


def queues_of(clock: Clock, law: dict[str, Any] | None = None, **tenants: dict[str, Any]) -> TenantQueues:
    named = {name: TenantSettings(api_key_sha256=(name,), **given) for name, given in tenants.items()}
    return TenantQueues(PriceSettings.model_validate(LAW | (law or {})), named, clock=clock)


async def flooded(
    seconds: int,
    *,
    late: str = "",
    ask_tokens: int = 0,
    law: dict[str, Any] | None = None,
    **asking: tuple[dict[str, Any], int],
) -> dict[str, int]:
    """Let tenants ask so many times a second, one of them later than the others; return the tokens that each was sold."""
    clock = Clock()
    queues = queues_of(clock, law, **{name: given for name, (given, _) in asking.items()})
    sold = dict.fromkeys(asking, 0)

    async def one(tenant: str, number: int) -> None:
        ask = Ask(GRADUAL, ask_tokens if tenant == late else 320, number) if late else Ask(LONG, 200, number)
        sale = queues.buy_now(tenant, ask) or await queues.wait(tenant, ask)
        if sale.hold is not None:
            sold[tenant] += sale.tokens
            queues.settle(tenant, sale.hold, sale.tokens)

    tasks = list[asyncio.Task[None]]()
    for second in range(seconds):
        for tenant, (_, rate) in asking.items():
            if tenant == late and second < _JOINS_AT:
                continue
            tasks += [asyncio.create_task(one(tenant, 1_000 * second + number)) for number in range(rate)]
        for _ in range(4):
            clock.now += 0.25
            await started()
            for queue in queues._queues.values():
                queue.serve_queue()
            await started()
    settings = PriceSettings.model_validate(LAW | (law or {}))
    assert sum(sold.values()) <= settings.budget_tokens_per_second * seconds + settings.carry_over_tokens + seconds
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sold


async def test_a_flood_leaves_others_their_share() -> None:
    sold = await flooded(40, loud=({}, 15), quiet=({}, 1), large=({"weight": 2.0}, 4))
    assert sold["quiet"] >= 0.85 * 40 * 25  # a quarter of what is sold; it asks for twice as much
    assert sold["large"] >= 0.85 * 40 * 50
    assert sold["loud"] <= 1.25 * 40 * 25


@pytest.mark.parametrize(("rate", "tokens"), [(1, 20), (2, 20), (1, 48), (2, 24), (1, 100), (3, 160)])
async def test_one_that_begins_to_ask_amid_a_flood_has_its_share_from_then_on(rate: int, tokens: int) -> None:
    """Half of 100 tokens a second is its own: what that pays for it has whole, of more than that nearly its half."""
    law = {"carry_over_tokens": 2_000}
    sold = await flooded(_JOINS_AT + 20, late="joining", ask_tokens=tokens, law=law, loud=({}, 15), joining=({}, rate))
    assert sold["joining"] >= min(20 * rate * tokens, 0.85 * 20 * 50)


async def test_what_one_does_not_ask_for_is_the_others() -> None:
    sold = await flooded(40, loud=({}, 15), idle=({"weight": 9.0}, 0))
    assert sold["loud"] >= 0.85 * 35 * 100  # all but the first window, in which all have their shares


async def test_none_has_more_than_its_bound() -> None:
    sold = await flooded(30, bound=({"budget_tokens_per_second": 10}, 15))
    assert sold["bound"] <= 10 * 30 + 40


async def test_a_server_without_tenants_has_one_queue_with_all() -> None:
    clock = Clock()
    queues = queues_of(clock)
    clock.now += 100.0
    (account,) = queues.accounts().values()
    assert account[0] == queues.account()
    assert queues.account().available_tokens == LAW["carry_over_tokens"]
    sale = queues.buy_now("", Ask(SURE, 40))
    assert sale is not None
    assert sale.hold is not None
    assert queues.is_open("", sale.hold)
    queues.settle("", sale.hold, 7)
    assert not queues.is_open("", sale.hold)
    assert (queues.account().spent_tokens, queues.account().refunded_tokens) == (7, sale.tokens - 7)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_the_keys_of_a_tenant_are_one_owner() -> None:
    guard = Guard([digest("c")], concurrent_per_key=1, tenants={"search": [digest("a"), digest("b")]})
    owners = [guard.admit(f"Bearer {key}", None) for key in "abc"]
    assert owners[0] == owners[1] != owners[2]
    assert [tenant_of(owner) for owner in owners] == ["search", "search", ""]


@pytest.mark.parametrize(
    "tenants",
    [
        {"a": {"api_key_sha256": ["sk-not-hashed"]}},
        {"a": {"api_key_sha256": [digest("a")]}, "b": {"api_key_sha256": [digest("a")]}},
        {"a": {"api_key_sha256": []}},
        {"": {"api_key_sha256": [digest("a")]}},
        {"a": {"api_key_sha256": [digest("a")], "weight": 0}},
    ],
)
def test_tenants_that_cannot_be_told_apart_are_refused(tenants: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig.parse({"tenants": tenants})
    assert ServeConfig.parse({"host": "0.0.0.0", "tenants": {"a": {"api_key_sha256": [digest("a")]}}}).has_keys  # noqa: S104
