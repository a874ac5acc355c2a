"""How sure an endpoint is of its first token: four numbers a query, for a call of one token each."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from clear_ray.estimation.prior import PriorHead
from clear_ray.ingest.logprobs import TokenLogprob
from clear_ray.stages.first_tokens import numbers_of
from clear_ray.stages.worker import EngineWorker
from tests.endpoint_server import endpoint
from tests.unit.engine.endpoint_engines import config_of

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
