"""A run that learns while its prompts are read, all real but Ray: coordinates by parts, and what a kill leaves."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load

from clear_ray.batch.context import RunContext
from clear_ray.batch.coordinates import (
    COORDINATES,
    COORDINATES_MAP,
    COORDINATES_WHOLE,
    coordinates_of,
    read_coordinates,
)
from clear_ray.batch.intake import take_in
from clear_ray.batch.learning import DEFAULT_FEATURES, learned, learned_of_known, widening_offers
from clear_ray.batch.part_coordinates import (
    GrowingCoordinates,
    MappedParts,
    _features,
    _read,
    fit_map,
    guessed_tokens,
    map_parts,
)
from clear_ray.batch.reading import PartsRead
from clear_ray.batch.round_loop import play_rounds
from clear_ray.batch.streamed import is_read
from clear_ray.config.run import RunConfig
from clear_ray.errors import ResumeError
from clear_ray.estimation.factorised import Coordinates, fit_coordinates
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.run_folder.estimates import ESTIMATES, estimated_already
from clear_ray.run_folder.orders import ORDERS
from clear_ray.storage import Folder, open_folder
from tests.unit.batch import test_streamed
from tests.unit.batch.test_round_loop import QUERIES, KilledError, check, check_replayed, started
from tests.unit.batch.test_streamed import known_of

SETS = DEFAULT_FEATURES


@pytest.fixture
def config(replay_settings: dict[str, Any], tmp_path: Path) -> RunConfig:
    """Return settings under which a file of estimates holds two queries."""
    whole: RunConfig = test_streamed.config.__wrapped__(replay_settings, tmp_path)  # type: ignore[attr-defined]
    folder = open_folder(whole.run_dir)
    take_in(None, whole, folder)
    return whole


def played(config: RunConfig) -> RunContext:
    with started(config, reads=True, learns=True) as run:
        check(run, play_rounds(run))
        return run


def names_in(folder: Folder, name: str) -> list[str]:
    child = folder.child(name)
    return [path.removeprefix(f"{child.path}/") for path in child.files()]


def grants_in(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(f"grants/{name}") for name in names_in(folder, "grants")}


def test_first_answers_come_before_the_last_prompt_is_read(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    with started(config, reads=True, learns=True) as run:
        reports = play_rounds(run)
        check(run, reports)
        known = known_of(run)
        states, (spent_N, wasted_N) = run.states, run.market.charges()
    assert known[0] is not None
    assert known[0] < QUERIES / 2
    assert known[-1] is None
    assert [report.known_queries for report in reports] == known
    assert reports[0].granted_tokens < config.budget_tokens / 4, "a pilot"
    assert len(reports) > 4, "and stages"
    assert is_read(folder)
    assert folder.exists(COORDINATES_WHOLE)
    assert names_in(folder, COORDINATES) == names_in(folder, ESTIMATES)
    assert not wasted_N.any()
    assert spent_N.sum() > 0.9 * config.budget_tokens
    with started(config, reads=True, learns=True) as run:  # with all of it on disk
        check_replayed(run, reports, states, spent_N)


def test_what_is_on_disk_in_the_end_is_read_as_that_of_a_batch_that_was_read_first(config: RunConfig) -> None:
    run = played(config)
    offers = run.rounds.offers
    assert isinstance(offers, WideningLearningOffers)
    assert offers.part is not None
    assert run.reader is not None
    prompt_tokens_N = run.reader.growing.prompt_tokens_N
    x_NP = coordinates_of(run.folder, prompt_tokens_N, features=SETS, seed=config.seed)
    assert x_NP.shape[0] == QUERIES
    assert np.ptp(x_NP, axis=0).max() > 0.01
    np.testing.assert_array_equal(offers.part.offers.x_NP, x_NP)
    assert run.lesson is not None
    before = run.reader.growing.batch
    batch, report = learned_of_known(offers, run.states, run.lesson, before)
    law = offers.law_of(np.arange(QUERIES))
    again, other = learned(law, run.states, run.lesson, before)
    assert report == other
    assert report.answers == int((run.states.answer_tokens_N > 0).sum())
    np.testing.assert_array_equal(batch.curves.success_NK, again.curves.success_NK)
    assert law.budget_tokens == config.budget_tokens


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_a_driver_may_die_while_prompts_are_read(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    with started(config, calls=calls, reads=True, learns=True) as run, pytest.raises(KilledError):
        play_rounds(run)
    grants, files = grants_in(folder), names_in(folder, ESTIMATES)
    is_estimated_N, _ = estimated_already(folder, QUERIES)
    assert 0 < is_estimated_N.sum() < QUERIES, "it was to die amid the reading"
    fitted = folder.read(COORDINATES_MAP)
    mapped = {name: folder.read(f"{COORDINATES}/{name}") for name in names_in(folder, COORDINATES)}
    assert set(mapped) <= set(files)
    run = played(config)
    assert known_of(run)[-1] is None
    assert all(folder.read(f"grants/{name}") == content for name, content in grants.items())
    assert folder.read(COORDINATES_MAP) == fitted
    assert all(folder.read(f"{COORDINATES}/{name}") == content for name, content in mapped.items())
    index = [i for path in folder.child(ESTIMATES).files() for i in pq.read_table(path)["index"].to_pylist()]
    assert sorted(index) == list(range(QUERIES)), "each prompt is read once"
    assert names_in(folder, COORDINATES) == names_in(folder, ESTIMATES)


@pytest.mark.parametrize("lost", ["one file", "all", "the map too"])
def test_coordinates_that_a_kill_has_kept_from_the_disk_are_made_before_anything_is_asked(
    config: RunConfig, lost: str
) -> None:
    """The same ones, since the map is there; without it nothing was granted yet."""
    folder = open_folder(config.run_dir)
    with started(config, calls=3, reads=True, learns=True) as run, pytest.raises(KilledError):
        play_rounds(run)
    child, names = folder.child(COORDINATES), names_in(folder, COORDINATES)
    before = {name: child.read(name) for name in names}
    for name in names[:1] if lost == "one file" else names:
        child.filesystem.delete_file(f"{child.path}/{name}")
    if lost == "the map too":
        folder.filesystem.delete_file(f"{folder.path}/{COORDINATES_MAP}")
        shutil.rmtree(f"{folder.path}/grants")
        shutil.rmtree(f"{folder.path}/rounds")
        Path(folder.path, "journal.jsonl").unlink()
    else:
        grants = grants_in(folder)
    run = played(config)
    assert read_coordinates(folder, QUERIES).shape[0] == QUERIES
    if lost != "the map too":
        assert {name: child.read(name) for name in names} == before
        assert all(folder.read(f"grants/{name}") == content for name, content in grants.items())
    assert known_of(run)[-1] is None


def test_a_run_that_is_stopped_maps_no_further_part_and_knows_what_it_has_learned(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    with started(config, calls=2, reads=True, learns=True) as run, pytest.raises(KilledError):
        play_rounds(run)
    folder.child(ORDERS).write("1-a.json", b'{"stop": "batch_cancelled"}')
    grants = grants_in(folder)
    with started(config, reads=True, learns=True) as run:
        check(run, play_rounds(run))
        assert run.reader is not None
        assert run.lesson is not None
        known_N, found = run.reader.growing.is_known_N, run.reader.growing.whole()
        offers, states = run.rounds.offers, run.states
        assert isinstance(offers, WideningLearningOffers)
        batch, report = learned_of_known(offers, states, run.lesson, found.batch)
    assert 0 < known_N.sum() < QUERIES
    assert grants_in(folder) == grants
    assert not is_read(folder)
    assert not folder.exists(COORDINATES_WHOLE)
    assert report.answers == int((states.answer_tokens_N > 0).sum()) > 0
    assert batch.curves.success_NK.shape[0] == QUERIES
    assert (batch.curves.solvability_N[known_N] > 0).all()
    assert not batch.curves.success_NK[~known_N].any()
    np.testing.assert_array_equal(batch.max_tokens_N > 0, known_N)


def test_what_a_task_of_a_start_before_writes_meanwhile_is_not_looked_at(config: RunConfig) -> None:
    folder = open_folder(config.run_dir)
    folder.child(COORDINATES).child("stray").write("from-0000000000.parquet", b"half a file")
    played(config)
    assert names_in(folder, COORDINATES) == names_in(folder, ESTIMATES)


def test_coordinates_that_are_damaged_are_named(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.child(COORDINATES).write("from-0.parquet", b"half a file")
    coordinates = GrowingCoordinates(folder, 9, sets=SETS, seed=0)
    with pytest.raises(ResumeError, match=f"{COORDINATES}/from-0.parquet"):
        coordinates.read(f"{folder.path}/{ESTIMATES}/from-0.parquet")


@pytest.mark.parametrize("torn", [COORDINATES_MAP, ESTIMATES, "queries"])
def test_what_is_damaged_of_what_a_task_reads_is_named(config: RunConfig, torn: str) -> None:
    folder = open_folder(config.run_dir)
    files = files_of(folder, 0)
    folder.write(COORDINATES_MAP, fit_map(folder, files, SETS, 0, QUERIES))
    broken = [folder.path + "/" + torn] if torn == COORDINATES_MAP else folder.child(torn).files(".parquet")
    for path in broken:
        Path(path).write_bytes(b"half a file")
    with pytest.raises(ResumeError, match=f"{torn}: the file is damaged"):
        map_parts(folder, files, SETS)
    if torn != COORDINATES_MAP:
        with pytest.raises(ResumeError, match=f"{torn}: the file is damaged"):
            fit_map(folder, files, SETS, 0, QUERIES)


class Parts:
    """Parts that come back when they are told to."""

    def __init__(self) -> None:
        self.allowed, self.there = 0, list[str]()
        self.back = 0

    def __len__(self) -> int:
        return self.allowed - self.back

    def allow(self, parts: int) -> None:
        self.allowed = parts

    def come_back(self, seconds: float) -> list[str]:
        files, self.there = self.there, []
        self.back += len(files)
        return files


def files_of(folder: Folder, *firsts: int) -> list[str]:
    """Write estimates of ten queries each, with what a map reads of them."""
    files = []
    for first in firsts:
        index = np.arange(first, first + 10)
        child = folder.child(ESTIMATES).child("a")
        child.make()
        files.append(f"{child.path}/from-{first:010d}.parquet")
        pq.write_table(pa.table({"index": index, "prompt_tokens": 3 + index}), files[-1])
    return files


def test_the_map_is_fitted_once_the_first_part_is_whole_and_tasks_are_one_at_a_time(config: RunConfig) -> None:
    folder, begun = open_folder(config.run_dir), list[tuple[str, int]]()
    files, parts = files_of(folder, 0, 10, 20, 30, 40), Parts()

    def begin_task(function: Any, *arguments: Any) -> Future[Any]:
        begun.append((function.__name__, len(arguments[1])))
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    coordinates = GrowingCoordinates(folder, QUERIES, sets=SETS, seed=0)
    mapped = MappedParts(cast(PartsRead, parts), coordinates, folder, begin_task)
    assert mapped.take_up(files[:1]) == [], "of a start before, which had no map yet"
    assert (len(mapped), mapped.come_back(0.0), begun) == (1, [], []), "not open"
    mapped.allow(2)
    parts.there = files[1:2]
    assert (len(mapped), mapped.come_back(0.0), begun) == (3, [], []), "one is being read"
    parts.there = files[2:3]
    assert mapped.come_back(0.0) == []
    assert begun == [("fit_map", 3), ("map_parts", 3)]
    kept = folder.read(COORDINATES_MAP)
    assert (mapped.come_back(0.0), len(mapped)) == (files[:3], 0)
    mapped.allow(4)
    parts.there = files[3:]
    assert mapped.come_back(0.0) == files[3:]
    assert begun[2:] == [("map_parts", 2)]
    assert folder.read(COORDINATES_MAP) == kept
    again = GrowingCoordinates(folder, QUERIES, sets=SETS, seed=0)
    resumed = MappedParts(cast(PartsRead, Parts()), again, folder, begin_task)
    assert resumed.take_up(files) == files
    index_K = np.arange(50)
    np.testing.assert_array_equal(again.of(index_K), coordinates.of(index_K))
    map_parts(folder, files[4:], SETS)
    np.testing.assert_array_equal(again.of(index_K), coordinates.of(index_K))
    broken = MappedParts(cast(PartsRead, parts), coordinates, folder, lambda *_: failed(OSError(28, "full")))
    broken.allow(5)
    parts.there = files_of(folder, 50)
    with pytest.raises(OSError, match="full"):
        broken.come_back(0.0)


def failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def test_lengths_that_are_not_known_are_guessed_by_letters() -> None:
    letters, index = np.array([10, 400, 90, 50, 7]), np.array([1, 4, 5, 8, 9])
    known, tokens = np.array([8, 4, 2, 1]), np.array([12, 100, 77, 3])
    assert guessed_tokens(letters, index, known, tokens).tolist() == [3, 100, 23, 12, 2]
    assert guessed_tokens(np.array([5, 5]), np.arange(2), np.array([0]), np.array([9])).tolist() == [9, 9]


def test_the_map_is_that_of_a_batch_that_was_read_first_but_for_lengths(config: RunConfig) -> None:
    """Not one of the first part: where an input has its kinds one after the other, that part has few of them."""
    folder, queries = open_folder(config.run_dir), np.arange(QUERIES)
    child = folder.child(ESTIMATES)
    child.make()
    _, texts, tasks = _read(folder, queries)
    letters, known = np.array([len(text) for text in texts]), queries[::5]
    pq.write_table(pa.table({"index": known, "prompt_tokens": 9 + letters[known]}), f"{child.path}/from-0.parquet")
    fitted = Coordinates.restore(SETS, load(fit_map(folder, child.files(), SETS, config.seed, QUERIES)))
    tokens = guessed_tokens(letters, queries, known, 9 + letters[known])
    np.testing.assert_array_equal(tokens, 9 + letters)
    assert len(set(letters.tolist())) > 5
    whole = fit_coordinates(_features(tokens), texts, sets=SETS, tasks=tasks, seed=config.seed)
    one, other = (coordinates(_features(tokens), texts) for coordinates in (fitted, whole))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-6)


def test_given_beliefs_of_a_head_that_is_learned_on_from_are_those_of_the_known(config: RunConfig) -> None:
    with started(config, reads=True, learns=True) as run:
        offers = run.rounds.offers
        assert isinstance(offers, WideningLearningOffers)
        assert run.reader is not None
        estimate = config.estimate.model_copy(update={"frozen": False})
        growing, lesson = run.reader.growing, run.lesson
        assert lesson is not None
        on = widening_offers(
            config.model_copy(update={"estimate": estimate}),
            growing.batch,
            growing.is_known_N,
            lambda index: np.zeros((len(index), 1)),
            lesson,
        )
        play_rounds(run)
        law: OverlappingLearningOffers = on.law_of(np.arange(5, 9))
    assert law.given is not None
    np.testing.assert_array_equal(law.given.right_NK, growing.batch.curves.take(np.arange(5, 9)).success_NK)
