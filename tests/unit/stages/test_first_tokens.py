"""How sure an endpoint is of its first token: four numbers a query, for a call of one token each."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from clear_ray.config.prices import Prices
from clear_ray.errors import BudgetError
from clear_ray.estimation.prior import PriorHead
from clear_ray.ingest.logprobs import TokenLogprob
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.market import MarketActor
from clear_ray.records import COST_PARTS
from clear_ray.stages.first_tokens import FirstTokenFee, numbers_of
from clear_ray.stages.probe import Probe
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from tests.endpoint_server import Endpoint, endpoint
from tests.unit.engine.endpoint_engines import config_of
from tests.unit.local_actors import LocalActor
from tests.unit.stages.test_probe import DiedError, batch_of

PROMPTS = ("write 5", "write 9")


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_token_of_each_query_is_asked_for_once(api: str) -> None:
    with endpoint() as served:
        worker = EngineWorker(config_of(served, api=api, continuation="none"), PriorHead(cap_tokens=99))
        before = len(served.bodies)
        columns = asyncio.run(worker.probe(["a", "b"], PROMPTS, False, "", True))
        calls = served.bodies[before:]
        assert [call["max_tokens"] for call in calls] == [1, 1]
        assert {call["top_logprobs" if api == "chat" else "logprobs"] for call in calls} == {20 if api == "chat" else 5}
        assert columns["states"].shape == (2, 4)
        assert np.isfinite(columns["states"]).all()
        assert "states" not in asyncio.run(worker.probe(["a", "b"], PROMPTS))
        assert len(served.bodies) == before + 2
        served.behaviour.logprobs = False
        silent = asyncio.run(worker.probe(["a", "b"], PROMPTS, False, "", True))
        assert np.isnan(silent["states"]).all()


def test_the_numbers_are_those_of_the_likeliest_tokens() -> None:
    half, fifth = math.log(0.5), math.log(0.2)
    entropy, best, lead, rest = numbers_of(TokenLogprob(b"b", fifth, ((b"a", half), (b"b", fifth))))
    assert entropy == pytest.approx(-0.5 * half - 0.2 * fifth - 0.3 * math.log(0.3))
    assert (best, lead, rest) == pytest.approx((half, half - fifth, 0.3))
    sure = numbers_of(TokenLogprob(b"a", 0.0))
    assert sure[0] == 0.0
    assert sure[3] == 0.0
    assert numbers_of(TokenLogprob(b"a", -9999.0))[1:3] == (-9999.0, pytest.approx(0.0, abs=1e-3))


class Dying(EngineWorker):
    """A worker whose process dies when its first call has been answered."""

    calls = 0

    async def probe(self, *asked: object, **settings: object) -> dict[str, object]:
        found = await super().probe(*asked, **settings)  # type: ignore[arg-type]
        self.calls += 1
        if self.calls == 1:
            raise DiedError
        return found


def asked_for_first_tokens(served: Endpoint, folder: Path, *, budget: int, prices: Prices | None = None) -> int:
    """Read four prompts with an engine that dies meanwhile; return what the next life of the market knows of, thousandths."""
    config, head = config_of(served, continuation="none"), PriorHead(cap_tokens=99)

    async def read() -> int:
        market = MarketActor(str(folder), budget, 4)
        fee = FirstTokenFee(AsyncMarketClient(LocalActor(market)), config, prices, "probe")
        workers = Workers([LocalActor(Dying(config, head))], lambda e: isinstance(e, DiedError), lambda _: None, 900.0)
        probe = Probe(workers, tuple(int(tokens) for tokens in head.card.tokens_K), has_states=True, fee=fee)
        try:
            rows = [len(table) async for table in probe(batch_of(["a", "b", "c", "d"]))]
        finally:
            market._journal.close()
        assert sum(rows) == 4
        restarted = MarketActor(str(folder), budget, 4)
        try:
            assert (await restarted.balance()).spent_tokens * COST_PARTS == await restarted.charged("probe")
            return await restarted.charged("probe")
        finally:
            restarted._journal.close()

    return asyncio.run(read())


def test_what_is_asked_twice_is_charged_twice(tmp_path: Path) -> None:
    with endpoint() as served:
        charged = asked_for_first_tokens(served, tmp_path, budget=99)
        assert served.counts["answered"] == served.generated_tokens == 8
    assert charged == 8 * COST_PARTS


def test_prompts_of_first_tokens_are_charged_as_they_are_reserved(tmp_path: Path) -> None:
    prices = Prices.model_validate({"input": 1, "output": 2, "unit": "USD"})
    with endpoint() as served:
        charged = asked_for_first_tokens(served, tmp_path, budget=10**9, prices=prices)
        words = len(str(served.bodies[0]["messages"][0]["content"]).split())
        assert served.counts["answered"] == 8
    assert charged % 8 == 0
    assert charged // 8 >= words * 1_000_000 + 2_000_000


def test_no_first_token_is_asked_for_that_the_budget_does_not_pay_for(tmp_path: Path) -> None:
    with endpoint() as served:
        with pytest.raises(BudgetError):
            asked_for_first_tokens(served, tmp_path, budget=6)
        assert served.counts["answered"] == 4 + 2, "the first call of all four, then one by one"
