"""The driver's rounds with two engines, all real but Ray: a model asked once, and one that knows what is right."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.checking import heads_of, menu_notes
from clear_ray.batch.complete import _with_what_it_learned
from clear_ray.batch.context import RunContext
from clear_ray.batch.first_stage import opened_rounds
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.learning import Lesson, lesson_of
from clear_ray.batch.menu import learned_menu
from clear_ray.batch.pricing import all_reservation_prices, priced
from clear_ray.batch.probe import without_unread
from clear_ray.batch.progress import Progress
from clear_ray.batch.round_loop import play_rounds
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import ModelCard
from clear_ray.estimation.head_store import HeadStore
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient, MarketClient
from clear_ray.ledger.market import MarketActor
from clear_ray.report.live import QuietDisplay
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.menu_courses import seen_answers
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.estimates import Estimates
from clear_ray.run_folder.grants import read_grants
from clear_ray.run_folder.manifest import MANIFEST, describe
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import open_folder
from clear_ray.sweep.recording import read_recording
from tests.conftest import ROLLOUTS
from tests.unit.batch.test_round_loop import Dying, KilledError, OneEngine, Remote, killed, some
from tests.unit.local_actors import LocalActor, LocalWorker

QUERIES = 60
LESSON = Lesson("verdict", ("task",))
PRICES = {"small": {"input": "0.015", "output": "0.045"}, "large": {"input": "0.16", "output": "0.48"}}
READ_PARTS, TOKEN_PARTS = {"small": 15_000, "large": 160_000}, {"small": 45_000, "large": 480_000}


class TwoEngines(OneEngine):
    """Two engines of one worker each, whose number stays."""

    @property
    def each(self) -> tuple[Any, ...]:
        return OneEngine(), OneEngine()

    def __len__(self) -> int:
        return 2


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return recorded answers of a model, and of one that knows which of eight of them is right."""
    folder = tmp_path_factory.mktemp("recorded")
    table = pq.read_table(ROLLOUTS / "rollouts.parquet")
    pq.write_table(table.filter(pc.equal(table["sample"], 0)), folder / "small.parquet")
    ranked = table.append_column("wrong", pc.invert(table["correct"])).sort_by(
        [("query_id", "ascending"), ("wrong", "ascending"), ("sample", "ascending")]
    )
    names = ranked["query_id"].to_pylist()
    first = [row for row, name in enumerate(names) if row == 0 or name != names[row - 1]]
    pq.write_table(ranked.take(pa.array(first)).drop_columns("wrong"), folder / "large.parquet")
    return str(folder / "small.parquet"), str(folder / "large.parquet")


@pytest.fixture
def config(replay_settings: dict[str, Any], tmp_path: Path, recordings: tuple[str, str]) -> RunConfig:
    table = pq.read_table(replay_settings["input"]["path"])
    pq.write_table(table.take(pa.array(range(0, 3 * QUERIES, 3))), tmp_path / "queries.parquet")
    del replay_settings["engine"]
    return RunConfig.parse(
        replay_settings
        | {
            "input": {"path": str(tmp_path / "queries.parquet")},
            "budget": "$0.003",
            "engines": {
                name: {"kind": "replay", "rollouts": path, "max_batch": 16, "prices": PRICES[name]}
                for name, path in zip(PRICES, recordings, strict=True)
            },
            "estimate": {},
            "allocation": {"max_tokens": 400, "objective": "solved"},
            "dispatch": {"rows_per_file": 1, "batch_rows": 1},
        }
    )


def estimates_of(config: RunConfig) -> Estimates:
    """Return what the probes of both engines would find: the uninformed law, and prompts' lengths."""
    recording = read_recording(str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet"))
    table = pq.read_table(open_folder(config.run_dir).child("queries").files(".parquet"))
    place = np.array([recording.rollouts.query_ids.index(name) for name in table["query_id"].to_pylist()])
    curves = PriorHead(cap_tokens=400).curves(
        recording.features, recording.rollouts.prompts, recording.rollouts.query_ids
    )
    ones, tie_break_N = np.ones(QUERIES), np.arange(QUERIES).astype(np.uint64)
    batch = Batch(curves.take(place), ones, np.full(QUERIES, 400), tie_break_N, ones)
    one = Estimates(
        batch,
        np.arange(QUERIES),
        ("all",),
        np.zeros(QUERIES, np.int32),
        recording.features.prompt_tokens_N[place].astype(np.int64),
        batch.max_tokens_N,
        tie_break_N,
        error_of_index={},
    )
    return priced(config, replace(one, others=(one,)), ones)


def write_coordinates(config: RunConfig) -> None:
    """Have the folder hold what is known of each query: its task."""
    folder = open_folder(config.run_dir)
    tasks = pq.read_table(folder.child("queries").files(".parquet"))["task"].to_pylist()
    x_NP = (np.array(tasks)[:, None] == np.array(sorted(set(tasks)))).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x_NP.ravel()), x_NP.shape[1])
    folder.child("coordinates").make()
    pq.write_table(pa.table({"index": np.arange(QUERIES), "x": column}), f"{config.run_dir}/coordinates/all.parquet")
    folder.write("coordinates.json", b"{}")


@contextmanager
def started(config: RunConfig, *, calls: int = 10**9, lesson: Lesson | None = LESSON) -> Iterator[RunContext]:
    """Start market, callers and both engines for a driver that dies after so many calls."""
    folder, loop = open_folder(config.run_dir), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> tuple[MarketActor, list[GenerateToFiles]]:
        market = MarketActor(
            config.run_dir, config.budget_tokens, QUERIES, np.full(QUERIES, TOKEN_PARTS["large"] / 1_000)
        )
        callers = []
        for named in config.named_engines:
            worker = LocalWorker(EngineWorker(named.config, PriorHead(cap_tokens=400)))
            dispatch = Dispatch(
                Workers([worker], lambda _: False, lambda _: None, 900.0),
                AsyncMarketClient(LocalActor(market)),
                scorer=load_scorer_of(config, folder),
                seed=0,
                prices=named.prices,
                engine=named.name,
            )
            callers.append(GenerateToFiles(dispatch, folder, rows_per_file=1))
        return market, callers

    actor, stages = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    market = MarketClient(Remote(actor, loop), Future.result)
    callers = Dying([Remote(caller, loop) for caller in stages], [32, 32], some, Future.result, engine_of=[0, 1])
    callers.left = calls
    estimates, engines = estimates_of(config), cast(EngineActors, TwoEngines())
    rounds = opened_rounds(folder, config, estimates, np.ones(QUERIES), lesson)
    try:
        with Progress(config.budget_tokens, QuietDisplay(), unit=config.unit) as progress:
            scaler = EngineScaler(config, engines, market, lambda: 0.0)
            answers = AnswerFiles(np.zeros(QUERIES, np.int64))
            yield RunContext(folder, config, scaler, market, callers, answers, estimates, rounds, progress, lesson)
    finally:
        asyncio.run_coroutine_threadsafe(killed(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        actor._journal.close()
        loop.close()


def check(run: RunContext) -> list[dict[str, Any]]:
    """Check attempts, prices, ledger and law against each other; return the attempts in the order of their rounds."""
    spent_N, wasted_N = run.market.charges()
    attempts = run.void_attempts().dropped_from(pq.read_table(f"{run.folder.path}/rounds"))
    written_N = np.bincount(attempts["index"], attempts["attempt_tokens"], minlength=QUERIES).astype(int)
    np.testing.assert_array_equal(spent_N - wasted_N, written_N)
    np.testing.assert_array_equal(run.states.written_tokens_N, written_N)
    rows = sorted(attempts.to_pylist(), key=lambda row: (row["round"], row["index"]))
    before: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        name, key = row["engine"], (row["index"], row["sample"])
        so_far = row["answer_tokens"] - row["attempt_tokens"]
        assert so_far in (0, len(before.get(key, []))), "an answer with a seam"
        read = run.estimates.prompt_tokens_N[row["index"]] + so_far
        assert row["taken_parts"] == READ_PARTS[name] * read + TOKEN_PARTS[name] * row["attempt_tokens"]
        before[key] = before.get(key, [])[:so_far] + row["token_ids"]
    if not wasted_N.any():
        assert run.market.balance().spent_tokens == -(-sum(row["taken_parts"] for row in rows) // 1_000)
    assert run.market.balance().spent_tokens <= run.config.budget_tokens
    return rows


def test_wrong_answers_are_followed_by_the_dear_engine_and_a_resume_replays_that(config: RunConfig) -> None:
    take_in(None, config, open_folder(config.run_dir))
    write_coordinates(config)
    with started(config) as run:
        reports = play_rounds(run)
        rows, states = check(run), run.states
        spent_tokens = run.market.balance().spent_tokens
        assert isinstance(run.rounds.offers, MenuOffers)
        known, learning = learned_menu(run.rounds.offers, states, LESSON, run.estimates)
    assert learning is not None
    assert learning.answers == len({(row["index"], row["sample"]) for row in rows})
    assert not np.array_equal(known.batches[0].curves.success_NK, known.batches[1].curves.success_NK)
    assert (all_reservation_prices(known, run.rounds) > 0).all()
    begun = [(row["index"], row["engine"]) for row in rows if row["attempt_tokens"] == row["answer_tokens"]]
    assert len(begun) == len(set(begun)), "an engine was asked twice"
    by_engine = {name: {index for index, of in begun if of == name} for name in PRICES}
    assert len(by_engine["small"] & by_engine["large"]) >= 5
    assert spent_tokens > 0.7 * config.budget_tokens
    solved = float((np.nan_to_num(states.chosen_score_N) >= 1).sum())
    assert sum(report.correct or 0 for report in reports) == solved
    with started(config) as again:
        replayed = play_rounds(again)
        assert check(again) == rows
        assert [one.model_copy(update={"seconds": 0}) for one in replayed] == [
            one.model_copy(update={"seconds": 0}) for one in reports
        ]
        assert again.market.balance().spent_tokens == spent_tokens
        for name in ("answer_tokens_N", "option_N", "attempt_N", "rounds_N", "chosen_round_N", "is_open_N"):
            np.testing.assert_array_equal(getattr(again.states, name), getattr(states, name), err_msg=name)


@pytest.mark.parametrize("calls", [1, 60])
def test_a_driver_may_die_between_calls_of_both_engines(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    write_coordinates(config)
    with started(config, calls=calls) as run, pytest.raises(KilledError):
        play_rounds(run)
    kept = {path: folder.read(f"grants/{path.rsplit('/')[-1]}") for path in folder.child("grants").files()}
    assert kept
    with started(config) as run:
        play_rounds(run)
        check(run)
    assert all(folder.read(f"grants/{path.rsplit('/')[-1]}") == content for path, content in kept.items())


def test_a_run_begins_with_what_an_earlier_one_has_kept_of_its_engines(config: RunConfig, tmp_path: Path) -> None:
    """Nothing is known of any engine in the first run, and the second begins with a price."""
    models = [ModelCard(name, f"fingerprint of {name}", 4_096, 0) for name in PRICES]
    store = open_folder(str(tmp_path / "store"))
    lesson = replace(LESSON, stores=tuple(HeadStore(store, model, LESSON.features) for model in models))
    begun = []
    for number in range(2):
        own = config.model_copy(update={"run_dir": f"{config.run_dir}-{number}"})
        digest = take_in(None, own, open_folder(own.run_dir))
        write_coordinates(own)
        manifest = describe(own, digest, run_id=f"{number:032x}", model={}, head={})
        open_folder(own.run_dir).write(MANIFEST, json.dumps(manifest).encode())
        with started(own, lesson=lesson) as run:
            play_rounds(run)
            check(run)
            _, learning = _with_what_it_learned(run)
            first = read_grants(run.folder, 1)
            assert first is not None
            assert learning is not None
            begun.append((learning.earlier_answers, first.clearing))
            seen = seen_answers(run.states)
    (nothing, pilot), (answers, priced_at_once) = begun
    assert (nothing, pilot.shadow_price, pilot.expected_utility_M.sum()) == (0, 0.0, 0.0)
    assert priced_at_once.expected_utility_M.sum() > 0
    cards = [card for each in lesson.stores if each is not None for card in each.read().cards]
    assert len(cards) >= 2, "one a run of the engine that is asked first"
    kept = sum(card.answers for card in cards)
    assert answers == kept - int((~seen.has_failed_M).sum())


def test_every_query_gets_its_minimum_service(config: RunConfig) -> None:
    allocation = config.allocation.model_copy(update={"minimum_service_tokens": 4})
    config = config.model_copy(update={"allocation": allocation, "budget": "$0.0003"})
    take_in(None, config, open_folder(config.run_dir))
    write_coordinates(config)
    with started(config) as run:
        reports = play_rounds(run)
        rows, states = check(run), run.states
    assert (states.rounds_N > 0).all()
    assert reports[-1].is_service
    assert 0 < states.is_served_N.sum() < QUERIES
    served = [row for row in rows if states.is_served_N[row["index"]]]
    assert {row["engine"] for row in served} == {"small"}
    assert {row["granted_tokens"] for row in served} == {4}


def test_an_engine_may_be_asked_several_times_before_the_next_one(config: RunConfig) -> None:
    small, large = (config.engines or {}).values()
    engines = {"small": small.model_copy(update={"rollouts": str(ROLLOUTS / "rollouts.parquet")}), "large": large}
    allocation = config.allocation.model_copy(update={"attempts": 3})
    config = config.model_copy(update={"allocation": allocation, "engines": engines})
    take_in(None, config, open_folder(config.run_dir))
    write_coordinates(config)
    with started(config) as run:
        play_rounds(run)
        rows = check(run)
    begun = [row for row in rows if row["attempt_tokens"] == row["answer_tokens"]]
    asked: dict[int, list[str]] = {}
    for row in begun:
        asked.setdefault(row["index"], []).append(row["engine"])
    ways = set(map(tuple, asked.values()))
    assert all(way == tuple(sorted(way, reverse=True)) for way in ways), "small ones first"
    assert max(way.count("small") for way in ways) > 1
    assert all(way.count(name) <= 3 for way in ways for name in PRICES)
    texts = {(row["index"], row["sample"]): row["token_ids"] for row in begun}
    again = [(texts[index, 0], texts[index, 1]) for index, sample in texts if sample == 1 and (index, 0) in texts]
    assert any(one != other for one, other in again), "each is an answer of its own"


def test_efforts_of_one_model_keep_their_lessons_apart(tmp_path: Path) -> None:
    model, folder = ModelCard("m", "same", 4_096, 0), open_folder(str(tmp_path))
    endpoint = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    dear = {
        "kind": "openai",
        "base_url": "http://127.0.0.1:1/v1",
        "model": "m",
        "extra_body": {"reasoning_effort": "high"},
    }
    settings = {"run_dir": str(tmp_path / "run"), "budget": "$1", "prices": {"input": 1, "output": 1}}
    config = RunConfig.parse(
        settings | {"engines": {"low": endpoint, "high": dear}, "estimate": {"store": str(tmp_path / "store")}}
    )
    folder.child("queries").make()
    pq.write_table(
        pa.table({"index": [0], "gold": ["4"], "metadata": pa.nulls(1, pa.string())}), f"{tmp_path}/queries/a.parquet"
    )
    lesson = lesson_of(folder, config, model, model)
    assert lesson is not None
    entries = {store.entry.path for store in lesson.stores if store is not None}
    assert len(entries) == 2


def test_a_head_may_be_where_a_run_begins_to_learn_of_an_engine(config: RunConfig) -> None:
    """Both are priced from the first clearing on, and what they answer teaches unless their heads are kept."""
    take_in(None, config, open_folder(config.run_dir))
    write_coordinates(config)
    heads = dict.fromkeys(PRICES, "prior")
    estimate = config.estimate.model_copy(update={"heads": heads, "frozen": False})
    config = config.model_copy(update={"estimate": estimate})
    assert [(named.learns, named.is_unknown) for named in config.named_engines] == [(True, False)] * 2
    with started(config) as run:
        play_rounds(run)
        check(run)
        offers = run.rounds.offers
        assert isinstance(offers, MenuOffers)
        known, learning = learned_menu(offers, run.states, LESSON, run.estimates)
    first = read_grants(run.folder, 1)
    assert first is not None
    assert first.clearing.expected_utility_M.sum() > 0, "no pilot: heads are there before"
    assert learning is not None
    assert learning.answers > 0
    before, after = (of.each[0].batch.curves.success_NK for of in (run.estimates, known))
    assert not np.allclose(before, after)


def test_a_grant_names_its_engine_and_what_it_may_take(config: RunConfig) -> None:
    take_in(None, config, open_folder(config.run_dir))
    with started(config, lesson=None) as run:
        prompt_tokens_N = run.estimates.prompt_tokens_N
        play_rounds(run)
    granted = read_grants(run.folder, 1)
    assert granted is not None
    clearing = granted.clearing
    assert clearing.option_M is not None
    assert clearing.reserved_parts_M is not None
    names = np.array(list(PRICES))[clearing.option_M]
    for name, index, tokens, parts in zip(
        names, clearing.index_M, clearing.tokens_M, clearing.reserved_parts_M, strict=True
    ):
        assert parts == READ_PARTS[name] * prompt_tokens_N[index] + TOKEN_PARTS[name] * tokens


def test_a_prompt_that_an_engine_cannot_read_has_no_room_there(config: RunConfig) -> None:
    take_in(None, config, open_folder(config.run_dir))
    estimates = replace(estimates_of(config).others[0], error_of_index={3: "unreadable"})
    assert without_unread(estimates).max_tokens_N.tolist()[:5] == [400, 400, 400, 0, 400]
    too_long = replace(estimates, max_tokens_N=np.full(QUERIES, -7), error_of_index={})
    assert not without_unread(too_long).max_tokens_N.any()


def test_an_odd_order_of_engines_is_told(config: RunConfig) -> None:
    assert menu_notes(config) == []
    assert [head.card.kind for head in heads_of(config)] == ["prior", "prior"]
    turned = config.model_copy(update={"engines": dict(reversed(list((config.engines or {}).items())))})
    assert "small is cheaper than large" in menu_notes(turned)[0]
    unscored = config.model_copy(update={"scoring": config.scoring.model_copy(update={"scorer": None})})
    assert "small, large" in menu_notes(unscored)[0]
