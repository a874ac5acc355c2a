"""Rounds that are played while prompts are read, with everything real but Ray: what is asked when, and what a kill leaves."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ActorUnavailableError

from clear_ray.batch.context import RunContext
from clear_ray.batch.intake import take_in
from clear_ray.batch.round_loop import play_rounds
from clear_ray.batch.streamed import is_read, is_streamed_run
from clear_ray.cluster.probe_callers import ProbeCalls
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.run_folder.estimates import ESTIMATES, estimated_already
from clear_ray.run_folder.grants import read_grants
from clear_ray.storage import open_folder
from tests.unit.batch import test_round_loop
from tests.unit.batch.test_round_loop import QUERIES, KilledError, check, some, started
from tests.unit.local_actors import Method


@pytest.fixture
def config(replay_settings: dict[str, Any], tmp_path: Path) -> RunConfig:
    whole: RunConfig = test_round_loop.config.__wrapped__(replay_settings, tmp_path)  # type: ignore[attr-defined]
    estimate = whole.estimate.model_copy(update={"batch_rows": 1})
    return whole.model_copy(update={"estimate": estimate})


def known_of(run: RunContext) -> list[int | None]:
    granted = [read_grants(run.folder, number) for number in range(1, run.rounds.number + 1)]
    return [one.known_queries for one in granted if one is not None]


def test_first_answers_come_before_the_last_prompt_is_read(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, reads=True) as run:
        assert run.reader is not None
        reports = play_rounds(run)
        check(run, reports)
        known = known_of(run)
        assert known[0] == QUERIES // 4 + 1, "whole files of estimates"
        assert len([queries for queries in known if queries is not None]) >= 3
        assert [report.known_queries for report in reports] == known
        spent_N, wasted_N = run.market.charges()
        states = run.states
        assert run.answers.asked_tokens > run.reader.growing.prompt_tokens_N.sum() > 0
        place_M = run.reader.place_N[read_grants(folder, 1).clearing.index_M]  # type: ignore[union-attr]
        assert place_M.max() < 16, "the first that were read"
    assert is_read(folder)
    assert not wasted_N.any()
    assert spent_N.sum() > 0.9 * config.budget_tokens
    for again in (True, False):  # a run that was read to its end reads its estimates as ever
        with started(config, reads=again) as run:
            replayed = play_rounds(run)
            assert [one.model_copy(update={"seconds": 0}) for one in replayed] == [
                one.model_copy(update={"seconds": 0}) for one in reports
            ]
            np.testing.assert_array_equal(run.market.charges()[0], spent_N)
            for name in ("answer_tokens_N", "last_round_N", "rounds_N", "surplus_N", "is_open_N"):
                np.testing.assert_array_equal(getattr(run.states, name), getattr(states, name), err_msg=name)


@pytest.mark.parametrize("calls", [1, 12, 25, 40])
def test_a_driver_may_die_while_prompts_are_read(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, calls=calls, reads=True) as run, pytest.raises(KilledError):
        play_rounds(run)
    kept = {path: folder.read(f"grants/{path.rsplit('/')[-1]}") for path in folder.child("grants").files()}
    is_estimated_N, files = estimated_already(folder, QUERIES)
    assert 0 < is_estimated_N.sum() < QUERIES, "it was to die amid the reading"
    with started(config, reads=True) as run:
        check(run, play_rounds(run))
        assert known_of(run)[-1] is None
    assert all(folder.read(f"grants/{path.rsplit('/')[-1]}") == content for path, content in kept.items())
    index = [i for path in folder.child(ESTIMATES).files() for i in pq.read_table(path)["index"].to_pylist()]
    assert sorted(index) == list(range(QUERIES)), "each prompt is read once"
    assert set(files) <= set(folder.child(ESTIMATES).files())


def test_what_a_caller_of_a_start_before_writes_meanwhile_is_not_looked_at(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, reads=True) as run:
        stray = folder.child(ESTIMATES).child("stray")
        stray.write("from-0000000000.parquet", b"half a file")
        check(run, play_rounds(run))
    assert not stray.files()


class Caller:
    """A caller of stage 1 that answers with names, or raises."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    @property
    def read(self) -> Method:
        return Method(self._read)

    def _read(self, index: np.ndarray) -> Future[str]:
        done: Future[str] = Future()
        if self._error is None:
            done.set_result(f"file {index[0]}")
        else:
            done.set_exception(self._error)
        return done


def all_back(calls: ProbeCalls) -> list[str]:
    files: list[str] = []
    while len(calls):
        files += calls.come_back(1.0)
    return files


def calls_to(*errors: Exception | None) -> tuple[ProbeCalls, list[Caller]]:
    """Return calls of six parts to callers that answer, or raise these errors, and those that were ended."""
    left, ended = list(errors), list[Caller]()
    calls = ProbeCalls(lambda: Caller(left.pop(0)), 2, some, Future.result, kill=ended.append)
    for first in range(0, 12, 2):
        calls.send(np.arange(first, first + 2))
    return calls, ended


@pytest.mark.parametrize("deaths", range(4))
def test_a_caller_that_dies_is_replaced_a_few_times(deaths: int) -> None:
    calls, ended = calls_to(*[ActorUnavailableError("gone", None)] * deaths, None)
    assert sorted(all_back(calls)) == sorted(f"file {first}" for first in range(0, 12, 2))
    calls.close()
    assert len(ended) == deaths + 1


@pytest.mark.parametrize("errors", [[ActorUnavailableError("gone", None)] * 4, [OSError(28, "full")]])
def test_what_a_caller_says_ends_the_run_and_so_does_one_that_dies_again_and_again(errors: list[Exception]) -> None:
    calls, _ = calls_to(*errors)
    with pytest.raises(type(errors[0])):
        all_back(calls)


GIVEN = {"allocation": {"max_tokens": 400}}


@pytest.mark.parametrize(
    ("settings", "queries", "is_streamed"),
    [
        ({}, 8_191, False),
        ({}, 8_192, True),
        ({}, 100_000, True),
        ({}, 100_001, False),
        ({"allocation": {"streamed": False}}, 50_000, False),
        ({"allocation": {"streamed": True}}, 5, True),
        ({"allocation": {"streamed": True}}, 200_000, True),
        ({"allocation": {"max_rounds": 3}}, 50_000, False),
        ({"allocation": {"overlap": False}}, 50_000, False),
        ({"allocation": {"policy": "uniform"}}, 50_000, False),
        ({"allocation": {"sketched": True}}, 50_000, False),
        ({"allocation": {"minimum_service_tokens": 3}}, 50_000, False),
        ({"allocation": {"objective": "solved"}}, 50_000, False),
        ({"estimate": {"head": "learn"}}, 50_000, False),
        ({"prices": {"input": "$1", "output": "$2"}, "budget": "$5"}, 50_000, False),
        ({"engine": {"max_batch": 8_192}}, 50_000, False),
    ],
)
def test_which_runs_are_priced_while_they_are_read(
    replay_settings: dict[str, Any], settings: dict[str, Any], queries: int, is_streamed: bool
) -> None:
    merged = replay_settings | GIVEN
    for name, value in settings.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    assert is_streamed_run(RunConfig.parse(merged), queries) == is_streamed


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"allocation": {"max_rounds": 3}}, "allocation.max_rounds"),
        ({"allocation": {"overlap": False}}, "allocation.overlap false"),
        ({"allocation": {"policy": "uniform"}}, "allocation.policy uniform"),
        ({"allocation": {"sketched": True}}, "allocation.sketched"),
        ({"allocation": {"minimum_service_tokens": 3}}, "allocation.minimum_service_tokens"),
        ({"allocation": {"objective": "solved"}}, "allocation.objective solved"),
        ({"estimate": {"head": "learn"}}, "a run that learns"),
    ],
)
def test_what_keeps_a_run_from_it_is_named(
    replay_settings: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    merged = replay_settings | {"allocation": {"max_tokens": 400, "streamed": True}}
    for name, value in settings.items():
        merged[name] = {**merged.get(name, {}), **value}
    with pytest.raises(ConfigError, match=f"allocation.streamed does not go with {named}"):
        RunConfig.parse(merged)
