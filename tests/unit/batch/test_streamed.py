"""Rounds that are played while prompts are read, with everything real but Ray: what is asked when, and what a kill leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import ActorUnavailableError

from clear_ray.batch.context import RunContext
from clear_ray.batch.intake import take_in
from clear_ray.batch.reading import PartsRead
from clear_ray.batch.round_loop import play_rounds
from clear_ray.batch.streamed import StreamedProbe, is_read, is_streamed_run, streaming_notes
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, EngineError
from clear_ray.run_folder.estimates import ESTIMATES, estimated_already
from clear_ray.run_folder.grants import read_grants
from clear_ray.run_folder.growing import GrowingBatch
from clear_ray.run_folder.orders import ORDERS
from clear_ray.stages.gate import Gate
from clear_ray.stages.homes import Homes
from clear_ray.storage import open_folder
from tests.unit.batch import test_round_loop
from tests.unit.batch.test_round_loop import QUERIES, KilledError, check, check_replayed, started


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
            check_replayed(run, reports, states, spent_N)


@pytest.mark.parametrize("most_held", [None, 16])
@pytest.mark.parametrize("calls", [1, 12, 25, 40])
def test_a_driver_may_die_while_prompts_are_read(config: RunConfig, calls: int, most_held: int | None) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, calls=calls, reads=True, most_held=most_held) as run, pytest.raises(KilledError):
        play_rounds(run)
    kept = {path: folder.read(f"grants/{path.rsplit('/')[-1]}") for path in folder.child("grants").files()}
    is_estimated_N, files = estimated_already(folder, QUERIES)
    assert 0 < is_estimated_N.sum() < QUERIES, "it was to die amid the reading"
    with started(config, reads=True, most_held=most_held) as run:
        check(run, play_rounds(run))
        assert known_of(run)[-1] is None
    assert all(folder.read(f"grants/{path.rsplit('/')[-1]}") == content for path, content in kept.items())
    index = [i for path in folder.child(ESTIMATES).files() for i in pq.read_table(path)["index"].to_pylist()]
    assert sorted(index) == list(range(QUERIES)), "each prompt is read once"
    assert set(files) <= set(folder.child(ESTIMATES).files())


def test_of_a_very_large_batch_the_newest_are_priced_while_prompts_are_read_and_then_all(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, reads=True, most_held=16) as run:
        reports = play_rounds(run)
        check(run, reports)
        assert run.reader is not None
        states, place_N = run.states, run.reader.place_N
        spent_N, wasted_N = run.market.charges()
        kept = [read_grants(folder, number) for number in range(1, run.rounds.number + 1)]
    amid = [one for one in kept if one is not None and one.known_queries is not None]
    assert len(amid) >= 4
    assert amid[0].known_queries == 8, "two fifths of what is held, in whole files"
    for one in amid:
        assert one.known_queries is not None
        place_M = place_N[one.clearing.index_M]
        assert one.known_queries - 16 - 8 <= place_M.min() <= place_M.max() < one.known_queries + 8, "about the newest"
        over = one.clearing.over_queries
        assert over is None if one.known_queries <= 13 else 13 < over <= 16, "and a sample of those before"
    at_the_end = [one.clearing.index_M for one in kept if one is not None and one.known_queries is None]
    assert (place_N[np.concatenate(at_the_end)] < QUERIES - 16 - 8).any(), "all are offered what is left"
    assert not wasted_N.any()
    assert spent_N.sum() > 0.9 * config.budget_tokens
    with started(config, reads=True, most_held=16) as run:
        check_replayed(run, reports, states, spent_N)


@pytest.mark.parametrize("calls", [1, 12])
def test_a_run_that_is_stopped_reads_no_further_part(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, calls=calls, reads=True) as run, pytest.raises(KilledError):
        play_rounds(run)
    folder.child(ORDERS).write("1-a.json", b'{"stop": "batch_cancelled"}')
    read = int(estimated_already(folder, QUERIES)[0].sum())
    grants = folder.child("grants").files()
    with started(config, reads=True) as run:
        check(run, play_rounds(run))
        assert run.reader is not None
        known_N, found = run.reader.growing.is_known_N, run.reader.growing.whole()
    assert int(known_N.sum()) == read < QUERIES
    assert folder.child("grants").files() == grants
    assert not is_read(folder)
    assert found.queries == len(found.batch.weight_N) == QUERIES
    np.testing.assert_array_equal(found.is_known_N, known_N)
    np.testing.assert_array_equal(found.batch.max_tokens_N > 0, known_N)
    np.testing.assert_array_equal(found.prompt_tokens_N > 0, known_N)
    tasks = {
        row["index"]: row["task"]
        for path in folder.child("queries").files(".parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert [found.task_names[task] for task in found.task_N] == [tasks[index] or "all" for index in range(QUERIES)]


def test_what_a_caller_of_a_start_before_writes_meanwhile_is_not_looked_at(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, reads=True) as run:
        stray = folder.child(ESTIMATES).child("stray")
        stray.write("from-0000000000.parquet", b"half a file")
        check(run, play_rounds(run))
    assert not stray.files()


def all_back(parts: PartsRead) -> list[str]:
    files: list[str] = []
    while len(parts):
        files += parts.come_back(1.0)
    return files


def of(*firsts: int) -> list[np.ndarray]:
    return [np.arange(first, first + 2) for first in firsts]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(open_folder(str(tmp_path)))


def parts_of(gate: Gate, *errors: Exception | None) -> tuple[PartsRead, list[tuple[int, int]]]:
    """Return six parts that pipelines have read, each of which raises its error after two more; and what each was given."""
    left, asked = list(errors), list[tuple[int, int]]()

    def pipeline(parts: Sequence[np.ndarray], back: int) -> Iterator[pa.Table]:
        error = left.pop(0)
        asked.append((len(parts), back))
        for number, part in enumerate(parts):
            if error is not None and number == 1:
                raise error
            asyncio.run(gate.passed(back + number))
            yield pa.table({"rows": [len(part)], "first": [int(part[0])], "file": [f"file {part[0]}"]})

    return PartsRead(pipeline, gate), asked


def test_parts_are_read_once_they_are_allowed(gate: Gate) -> None:
    parts, _ = parts_of(gate, None)
    parts.begin(of(0, 2, 4, 6, 8, 10))
    assert (len(parts), parts.come_back(0.2)) == (0, [])
    parts.allow(2)
    assert (all_back(parts), parts.come_back(0.2)) == (["file 0", "file 2"], [])
    parts.allow(2)
    parts.allow(6)
    assert all_back(parts) == ["file 4", "file 6", "file 8", "file 10"]
    parts.close()
    assert not gate.is_there()


def test_what_has_not_begun_is_given_up_with_the_gate(gate: Gate) -> None:
    parts, _ = parts_of(gate, None)
    parts.begin(of(0, 2))
    parts.allow(1)
    assert all_back(parts) == ["file 0"]
    parts.close()
    with pytest.raises(EngineError, match="not to be asked"):
        parts.come_back(1.0)


@pytest.mark.parametrize("deaths", range(4))
def test_a_caller_that_dies_is_replaced_a_few_times(gate: Gate, deaths: int) -> None:
    parts, asked = parts_of(gate, *[ActorUnavailableError("gone", None)] * deaths, None)
    parts.begin(of(0, 2, 4, 6, 8, 10))
    parts.allow(6)
    assert all_back(parts) == [f"file {first}" for first in range(0, 12, 2)]
    assert asked == [(6 - back, back) for back in range(deaths + 1)]
    parts.close()


@pytest.mark.parametrize("errors", [[ActorUnavailableError("gone", None)] * 4, [OSError(28, "full")]])
def test_what_a_caller_says_ends_the_run_and_so_does_one_that_dies_again_and_again(
    gate: Gate, errors: list[Exception]
) -> None:
    parts, _ = parts_of(gate, *errors)
    parts.begin(of(0, 2, 4, 6, 8, 10))
    parts.allow(6)
    with pytest.raises(type(errors[0])):
        all_back(parts)
    parts.close()


class Known:
    """The batch of a reader, which knows of files what queries they are of."""

    def __init__(self, queries: int) -> None:
        self.is_known_N = np.zeros(queries, bool)
        self.of_file: dict[str, np.ndarray] = {}

    def read(self, path: str) -> list[int]:
        self.is_known_N[self.of_file[path]] = True
        return []


def reader_of(gate: Gate, queries: int, *, slots: int) -> StreamedProbe:
    """Return a reader whose last part, which is a short one, is read before the one that it follows."""
    known = Known(queries)

    def pipeline(parts: Sequence[np.ndarray], back: int) -> Iterator[pa.Table]:
        for number, part in enumerate([*parts[:-2], *reversed(parts[-2:])]):
            asyncio.run(gate.passed(back + number))
            known.of_file[f"file {part[0]}"] = part
            yield pa.table({"rows": [len(part)], "first": [int(part[0])], "file": [f"file {part[0]}"]})

    parts, homes = PartsRead(pipeline, gate), Homes(4, 1)
    return StreamedProbe(gate.folder, cast(GrowingBatch, known), parts, homes=homes, slots=slots, seed=0)


@pytest.mark.parametrize("queries", [33, 741, 745, 800])
def test_ray_may_have_a_short_part_read_before_the_one_that_it_follows(gate: Gate, queries: int) -> None:
    reader = reader_of(gate, queries, slots=16)
    reader.begin()
    reader.open()
    for _ in range(1_000):
        reader.look(1.0)
        if reader.widening.is_due:
            reader.note_clearing()
        if reader.widening.is_whole:
            break
    assert reader.widening.known == queries
    reader._parts.close()


def test_what_was_read_in_another_order_is_no_sample(gate: Gate) -> None:
    for first, is_sample in ((range(3_000), False), (None, True)):
        reader = reader_of(gate, 40_000, slots=16)
        known = cast(Known, reader.growing)
        known.of_file["kept"] = np.arange(40_000)[np.array(first)] if first else np.argsort(reader.place_N)[:3_000]
        reader._take_up(["kept"])
        assert (reader.widening.wanted < 40_000) is is_sample


def test_there_may_be_nothing_to_read(gate: Gate) -> None:
    parts, asked = parts_of(gate)
    parts.begin([])
    assert (all_back(parts), asked) == ([], [])
    parts.close()


GIVEN = {"allocation": {"max_tokens": 400}}


@pytest.mark.parametrize(
    ("settings", "queries", "is_streamed"),
    [
        ({}, 8_191, False),
        ({}, 8_192, True),
        ({}, 100_000, True),
        ({}, 100_001, True),
        ({}, 10_000_000, True),
        ({"allocation": {"streamed": False}}, 50_000, False),
        ({"allocation": {"streamed": True}}, 5, True),
        ({"allocation": {"streamed": True}}, 200_000, True),
        ({"allocation": {"max_rounds": 3}}, 50_000, False),
        ({"allocation": {"overlap": False}}, 50_000, False),
        ({"allocation": {"policy": "uniform"}}, 50_000, False),
        ({"allocation": {"sketched": True}}, 50_000, True),
        ({"allocation": {"sketched": False}}, 200_000, True),
        ({"allocation": {"minimum_service_tokens": 3}}, 50_000, False),
        ({"allocation": {"objective": "solved"}}, 50_000, False),
        ({"estimate": {"head": "learn"}}, 50_000, True),
        ({"estimate": {"head": "learn"}, "allocation": {"streamed": True}}, 50_000, True),
        ({"estimate": {"head": "learn"}}, 8_191, False),
        ({"estimate": {"head": "learn"}}, 100_001, False),
        ({"estimate": {"head": "learn"}, "allocation": {"streamed": True}}, 100_001, False),
        ({"estimate": {"head": "learn"}, "allocation": {"streamed": True}}, 100_000, True),
        ({"estimate": {"head": "learn"}, "allocation": {"sketched": True}}, 50_000, False),
        ({"estimate": {"head": "learn", "features": ["text", "hidden"]}}, 50_000, False),
        ({"estimate": {"head": "learn", "encoder": "/encoder"}}, 50_000, False),
        ({"estimate": {"head": "learn", "store": "/store"}}, 50_000, False),
        ({"estimate": {"head": "learn"}, "scoring": {"agreement": "exact"}}, 50_000, False),
        ({"scoring": {"agreement": "exact"}}, 50_000, True),
        ({"prices": {"input": "$1", "output": "$2"}, "budget": "$5"}, 50_000, False),
        ({"engine": {"max_batch": 8_192}}, 50_000, False),
        ({"engine": {"max_batch": 20_001}}, 1_000_000, False),
        ({"engine": {"max_batch": 20_001}, "allocation": {"sketched": False}}, 1_000_000, True),
    ],
)
def test_which_runs_are_priced_while_they_are_read(
    replay_settings: dict[str, Any], settings: dict[str, Any], queries: int, is_streamed: bool
) -> None:
    merged = replay_settings | GIVEN
    for name, value in settings.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    config = RunConfig.parse(merged)
    assert is_streamed_run(config, queries) == is_streamed
    is_asked = config.allocation.streamed is True
    assert bool(streaming_notes(config, queries)) is (is_asked and not is_streamed), (
        "nothing asked for is dropped silently"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"allocation": {"max_rounds": 3}}, "allocation.max_rounds"),
        ({"allocation": {"overlap": False}}, "allocation.overlap false"),
        ({"allocation": {"policy": "uniform"}}, "allocation.policy uniform"),
        ({"allocation": {"minimum_service_tokens": 3}}, "allocation.minimum_service_tokens"),
        ({"allocation": {"objective": "solved"}}, "allocation.objective solved"),
        ({"estimate": {"head": "learn", "encoder": "/encoder"}}, "estimate.encoder"),
        ({"estimate": {"head": "learn", "features": ["text", "hidden"]}}, "estimate.features hidden"),
        ({"estimate": {"head": "learn", "store": "/store"}}, "estimate.store"),
        ({"estimate": {"head": "learn"}, "scoring": {"agreement": "exact"}}, "scoring.agreement"),
        ({"estimate": {"head": "learn"}, "allocation": {"sketched": True}}, "allocation.sketched"),
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
