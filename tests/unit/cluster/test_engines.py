"""What stands against an engine comes back as it was raised, and SIGTERM is Ctrl-C while a cluster is joined."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from clear_ray.cluster.engines import BatchEngineWorker, in_pieces
from clear_ray.cluster.joining import _terminated_as_interrupted
from clear_ray.config.engine import ReplayConfig
from clear_ray.engine.base import Grant
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.estimation.prior import PriorHead
from clear_ray.estimation.resolve import resolve_head
from clear_ray.stages.worker import EngineWorker
from tests.unit.stages.test_probe import known_ids


def test_cards_raise_what_the_constructor_would(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings["engine"] | {"rollouts": "/nowhere.parquet"}
    worker = BatchEngineWorker(ReplayConfig.model_validate(settings), *in_pieces(PriorHead(cap_tokens=320)))
    with pytest.raises(SchemaError, match=r"/nowhere\.parquet") as raised:
        asyncio.run(worker.cards())
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301


def test_cards_of_a_good_engine_are_its_own(replay_settings: dict[str, Any]) -> None:
    head = PriorHead(cap_tokens=320)
    worker = BatchEngineWorker(ReplayConfig.model_validate(replay_settings["engine"]), *in_pieces(head))
    model, card = asyncio.run(worker.cards())
    assert model.name.startswith("replay of")
    assert card == head.card


def test_a_large_head_travels_in_pieces_that_ray_keeps_with_an_actor(replay_settings: dict[str, Any]) -> None:
    head = resolve_head("demo", cap_tokens=160)
    pieces = in_pieces(head)
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 100 * 1024
    assert sum(map(len, pieces)) < 10e6, "what one call may carry"
    with pytest.raises(ConfigError, match="fitted for smollm2"):  # read whole, and refused for a recording
        asyncio.run(BatchEngineWorker(ReplayConfig.model_validate(replay_settings["engine"]), *pieces).cards())


def test_answers_that_end_together_travel_together(replay_settings: dict[str, Any]) -> None:
    config = ReplayConfig.model_validate(replay_settings["engine"])
    grants = [Grant(query_id, "", 32, seed=0) for query_id in known_ids(config, 40)]

    async def lists_of(worker: EngineWorker) -> list[list[str]]:
        return [[one.query_id for one in found] async for found in worker.generate(grants)]

    found = asyncio.run(lists_of(BatchEngineWorker(config, *in_pieces(PriorHead(cap_tokens=320)))))
    assert sorted(name for names in found for name in names) == sorted(grant.query_id for grant in grants)
    assert len(found) <= 3


@pytest.fixture
def sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
def test_sigterm_is_an_interrupt_and_then_what_it_was_before() -> None:
    with _terminated_as_interrupted() as take:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray sets a handler of its own
        take()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("sigterm")
def test_a_caller_that_handles_sigterm_goes_on_doing_so() -> None:
    heard: list[int] = []
    own = lambda number, frame: heard.append(number)  # noqa: E731 - compared below
    signal.signal(signal.SIGTERM, own)
    with _terminated_as_interrupted() as take:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        take()
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is own


FAILING = """
import asyncio, json, sys
from clear_ray.cluster.engines import BatchEngineWorker, in_pieces
from clear_ray.config.engine import ReplayConfig
from clear_ray.engine.base import Grant
from clear_ray.errors import EngineFailedError, SchemaError
from clear_ray.estimation.prior import PriorHead

settings = ReplayConfig.model_validate(json.loads(sys.argv[1]))
worker = BatchEngineWorker(settings, *in_pieces(PriorHead(cap_tokens=320)))

def prefill(query_ids, prompts):
    raise eval(sys.argv[2])

worker._engine.prefill = prefill
try:
    asyncio.run(worker.probe(["a"], ["?"]))
except SchemaError:
    print("alive")
"""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("RuntimeError('CUDA out of memory')", "the engine has failed: RuntimeError: CUDA out of memory"),
        (
            "EngineFailedError('the language model failed')",
            "the engine has failed: EngineFailedError: the language model",
        ),
        ("SchemaError('the prompt is too long')", ""),
    ],
)
def test_a_worker_ends_its_process_when_its_engine_has_failed(
    replay_settings: dict[str, Any], raised: str, said: str
) -> None:
    command = [sys.executable, "-c", FAILING, json.dumps(replay_settings["engine"]), raised]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == ((1, "") if said else (0, "alive\n")), ended.stderr
    assert said in ended.stderr
