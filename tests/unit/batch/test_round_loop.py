"""The driver's rounds with everything real but Ray: market, callers and a replayed engine live in a thread's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from clear_ray.batch.context import RunContext
from clear_ray.batch.intake import take_in
from clear_ray.batch.learning import DEFAULT_FEATURES, Lesson, widening_offers
from clear_ray.batch.part_coordinates import GrowingCoordinates, MappedParts
from clear_ray.batch.progress import Progress
from clear_ray.batch.reading import PartsRead
from clear_ray.batch.round_loop import play_rounds
from clear_ray.batch.streamed import StreamedProbe
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.callers import Callers
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.estimation.prior import PriorHead
from clear_ray.ledger.client import AsyncMarketClient, MarketClient
from clear_ray.ledger.market import MarketActor
from clear_ray.report.live import QuietDisplay
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.windowed import WindowedOffers
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.estimates import ESTIMATES, Estimates
from clear_ray.run_folder.grants import read_grants
from clear_ray.run_folder.growing import GrowingBatch
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.attempt_files import GenerateToFiles
from clear_ray.stages.gate import Gate
from clear_ray.stages.generate import Dispatch
from clear_ray.stages.probe import Probe, homes_of
from clear_ray.stages.probe_files import ProbeToFiles
from clear_ray.stages.roster import Workers
from clear_ray.stages.worker import EngineWorker
from clear_ray.storage import open_folder
from clear_ray.sweep.recording import read_recording
from tests.conftest import ROLLOUTS
from tests.unit.local_actors import LocalActor, LocalWorker, Method

QUERIES, BUDGET = 60, 60 * 60


class Remote:
    """The handle of an actor in a loop of another thread: a call is a future of this one."""

    def __init__(self, actor: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._actor, self._loop = actor, loop

    def __getattr__(self, name: str) -> Method:
        def call(*arguments: Any, **named: Any) -> Future[Any]:
            return asyncio.run_coroutine_threadsafe(getattr(self._actor, name)(*arguments, **named), self._loop)

        return Method(call)


class OneEngine:
    """The number of engines, which stays."""

    start_seconds = 0.0
    times_ended = 0

    @property
    def each(self) -> tuple[Any, ...]:
        return (self,)

    def __len__(self) -> int:
        return 1

    def up(self) -> int:
        return 1


async def killed() -> None:
    """End what still runs in a loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class KilledError(Exception):
    """The driver dies."""


class Dying(Callers):
    """Callers of a driver that dies when so many calls have come back."""

    left = 10**9

    def come_back(self, seconds: float | None = None) -> Iterator[Any]:
        for call, rows in super().come_back(seconds):
            yield call, rows
            self.left -= 1
            if not self.left:
                raise KilledError


def some(references: list[Any], *, num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """What `ray.wait` does."""
    done, rest = wait(references, timeout, FIRST_COMPLETED if num_returns < len(references) else "ALL_COMPLETED")
    return list(done), list(rest)


@pytest.fixture
def config(replay_settings: dict[str, Any], tmp_path: Path) -> RunConfig:
    table = pq.read_table(replay_settings["input"]["path"]).slice(0, QUERIES)
    pq.write_table(table, tmp_path / "queries.parquet")
    engine = replay_settings["engine"] | {"tokens_per_second": 500.0, "max_batch": 16}
    given = {"input": {"path": str(tmp_path / "queries.parquet")}, "budget": BUDGET, "engine": engine}
    allocation = {"max_tokens": 400, "max_rounds": None, "overlap": True}
    return RunConfig.parse(
        replay_settings | given | {"allocation": allocation, "dispatch": {"rows_per_file": 1, "batch_rows": 1}}
    )


def batch_of(config: RunConfig) -> Batch:
    recording = read_recording(str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet"))
    names = pq.read_table(config.input.path)["query_id"].to_pylist()
    place = np.array([recording.rollouts.query_ids.index(name) for name in names])
    head = PriorHead(cap_tokens=400)
    curves = head.curves(recording.features, recording.rollouts.prompts, recording.rollouts.query_ids).take(place)
    ones = np.ones(QUERIES)
    return Batch(curves, ones, np.full(QUERIES, 400), np.arange(QUERIES).astype(np.uint64), ones)


@contextmanager
def started(
    config: RunConfig,
    *,
    calls: int = 10**9,
    offers: Offers | None = None,
    reads: bool = False,
    most_held: int | None = None,
    learns: bool = False,
) -> Iterator[RunContext]:
    """Start market, callers and engine for a driver that dies after so many calls; the price is that of a given head.

    Prompts are read as the rounds are played, if they are to be; else the estimates are there. Of no more curves than are to
    be held all are priced when they are known, by one process in place of Ray Data. Where it learns while they are read, it
    learns from answers that end, by text and ngrams.
    """
    folder, loop = open_folder(config.run_dir), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> tuple[MarketActor, GenerateToFiles, Workers]:
        market = MarketActor(config.run_dir, BUDGET, QUERIES)
        worker = LocalWorker(EngineWorker(config.engine, PriorHead(cap_tokens=400)))
        workers = Workers([worker], lambda _: False, lambda _: None, 900.0)
        dispatch = Dispatch(workers, AsyncMarketClient(LocalActor(market)), scorer=None, seed=0)
        return market, GenerateToFiles(dispatch, folder, rows_per_file=1), workers

    actor, caller, workers = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    market = MarketClient(Remote(actor, loop), Future.result)
    callers = Dying([Remote(caller, loop)], 32, some, Future.result)
    callers.left = calls
    tasks = ThreadPoolExecutor(1)
    reader = reader_of(config, workers, loop, most_held, tasks if learns else None) if reads else None
    lesson = Lesson("ended", DEFAULT_FEATURES) if learns else None
    if reader is not None:
        offers = offers_while_read(config, reader, lesson)
    offers = offers or BatchOffers(batch_of(config))
    rounds, engines = Rounds(offers, config.allocation, most_alone=24), cast(EngineActors, OneEngine())
    try:
        with Progress(BUDGET, QuietDisplay()) as progress:
            scaler = EngineScaler(config, engines, market, lambda: 0.0)
            if reader is None:
                estimates = estimates_of(batch_of(config))
            else:
                estimates = reader.growing.so_far()
                rounds.widen(0)
                reader.begin()
                reader.open()
            answers = AnswerFiles(estimates.prompt_tokens_N)
            yield RunContext(
                *(folder, config, scaler, market, callers, answers, estimates, rounds, progress, lesson), reader=reader
            )
    finally:
        tasks.shutdown(cancel_futures=True)
        asyncio.run_coroutine_threadsafe(killed(), loop).result()
        if reader is not None:
            reader._parts.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        actor._journal.close()
        loop.close()


def offers_while_read(config: RunConfig, reader: StreamedProbe, lesson: Lesson | None) -> Offers:
    growing = reader.growing
    if lesson is not None and reader.coordinates is not None:
        return widening_offers(config, growing.batch, growing.is_known_N, reader.coordinates.of, lesson)
    if growing.window is None:
        return BatchOffers(growing.batch)
    return WindowedOffers(growing.batch, growing.is_known_N, growing.window, BatchOffers(batch_of(config)))


def estimates_of(batch: Batch) -> Estimates:
    sample, none_N = np.arange(QUERIES), np.zeros(QUERIES, np.int64)
    return Estimates(
        batch,
        sample,
        ("all",),
        none_N.astype(np.int32),
        none_N,
        batch.max_tokens_N,
        batch.tie_break_N,
        error_of_index={},
    )


def reader_of(
    config: RunConfig,
    workers: Workers,
    loop: asyncio.AbstractEventLoop,
    most_held: int | None,
    tasks: ThreadPoolExecutor | None = None,
) -> StreamedProbe:
    """Return what reads the prompts; its caller is in the loop of the other actors, which stands in for Ray Data.

    Where the run learns, tasks that map them are threads.
    """
    folder, head = open_folder(config.run_dir), PriorHead(cap_tokens=400)
    homes, gate = homes_of(config, QUERIES, workers=1), Gate(folder)

    def pipeline(parts: Sequence[NDArray[np.int64]], back: int) -> Iterator[pa.Table]:
        probe = partial(Probe, workers, head.card.tokens_K, "", None, homes)
        into = folder.child(ESTIMATES).child(uuid4().hex)
        caller = ProbeToFiles(probe, folder, into, homes=homes, calls=2, gate=gate, begun=back)

        async def read(part: NDArray[np.int64]) -> pa.Table:
            return await anext(aiter(caller(pa.table({"index": part}))))

        reads = [asyncio.run_coroutine_threadsafe(read(part), loop) for part in parts]
        return (done.result() for done in as_completed(reads))

    growing = GrowingBatch(folder, np.array(head.card.tokens_K), np.ones(QUERIES), config.seed, most_held=most_held)
    read, coordinates = PartsRead(pipeline, gate), None
    parts: PartsRead | MappedParts = read
    if tasks is not None:
        coordinates = GrowingCoordinates(folder, QUERIES, sets=DEFAULT_FEATURES, seed=config.seed)
        parts = MappedParts(read, coordinates, folder, tasks.submit)
    how = {"homes": homes, "slots": 4, "seed": config.seed, "most_held": most_held, "coordinates": coordinates}
    return StreamedProbe(folder, growing, parts, **how)  # type: ignore[arg-type]


def check_replayed(
    run: RunContext, reports: list[RoundReport], states: QueryStates, spent_N: NDArray[np.int64]
) -> None:
    """Play the rounds of a run that is over, and check them against those that were played."""
    replayed = play_rounds(run)
    assert [one.model_copy(update={"seconds": 0}) for one in replayed] == [
        one.model_copy(update={"seconds": 0}) for one in reports
    ]
    np.testing.assert_array_equal(run.market.charges()[0], spent_N)
    for name in ("answer_tokens_N", "last_round_N", "rounds_N", "surplus_N", "is_open_N"):
        np.testing.assert_array_equal(getattr(run.states, name), getattr(states, name), err_msg=name)


def check(run: RunContext, reports: list[RoundReport]) -> int:
    """Check attempts, ledger and law against each other; return how many clearings were made beside running grants."""
    spent_N, wasted_N = run.market.charges()
    attempts = run.void_attempts().dropped_from(pq.read_table(f"{run.folder.path}/rounds"))
    written_N = np.zeros(QUERIES, np.int64)
    np.add.at(written_N, attempts["index"].to_numpy(), attempts["attempt_tokens"].to_numpy())
    np.testing.assert_array_equal(spent_N - wasted_N, written_N)
    np.testing.assert_array_equal(run.states.written_tokens_N, written_N)
    assert spent_N.sum() <= BUDGET
    keys = Counter(zip(attempts["round"].to_pylist(), attempts["index"].to_pylist(), strict=True))
    assert max(keys.values()) == 1, "a grant was run twice"
    assert [report.number for report in reports] == list(range(1, run.rounds.number + 1))
    assert sum(report.spent_tokens for report in reports) == written_N.sum()
    granted = [read_grants(run.folder, report.number) for report in reports]
    rollouts = pq.read_table(f"{ROLLOUTS}/rollouts.parquet", filters=[("sample", "=", 0)])
    recorded = dict(zip(rollouts["query_id"].to_pylist(), rollouts["token_ids"].to_pylist(), strict=True))
    answers: dict[int, list[int]] = {}
    for row in sorted(attempts.to_pylist(), key=lambda row: row["round"]):
        answer = answers.get(row["index"], []) + row["token_ids"]
        assert answer == recorded[row["query_id"]][: len(answer)], "an answer with a seam"
        assert (len(answer), len(row["token_ids"])) == (row["answer_tokens"], row["attempt_tokens"])
        answers[row["index"]] = answer
    parts = AnswerParts(run.folder)
    for index, answer in answers.items():
        (file,), (attempt,) = run.answers.of(np.array([index]))
        assert parts.answer(file, index, int(attempt)).token_ids.tolist() == answer
    return sum(one is not None and one.is_beside for one in granted)


def test_clearings_overlap_and_a_resume_replays_them(config: RunConfig) -> None:
    take_in(None, config, open_folder(config.run_dir))
    with started(config) as run:
        reports = play_rounds(run)
        assert check(run, reports) >= 2
        states, (spent_N, wasted_N) = run.states, run.market.charges()
    assert not wasted_N.any()
    assert spent_N.sum() > 0.9 * BUDGET
    with started(config) as again:
        check_replayed(again, reports, states, spent_N)


@pytest.mark.parametrize("calls", [1, 45, 62, 70])
def test_a_driver_may_die_between_clearings_that_overlap(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, calls=calls) as run, pytest.raises(KilledError):
        play_rounds(run)
    kept = {path: folder.read(f"grants/{path.rsplit('/')[-1]}") for path in folder.child("grants").files()}
    with started(config) as run:
        check(run, play_rounds(run))
    assert all(folder.read(f"grants/{path.rsplit('/')[-1]}") == content for path, content in kept.items())


def learning(config: RunConfig) -> OverlappingLearningOffers:
    """Return offers of a run that teaches itself from answers that end; what it reads says a little of them."""
    batch = batch_of(config)
    rng = np.random.default_rng(0)
    return OverlappingLearningOffers(
        x_NP=np.stack([batch.curves.success_NK[:, -1], rng.standard_normal(QUERIES)], axis=1),
        tokens_K=batch.curves.tokens_K,
        weight_N=batch.weight_N,
        max_tokens_N=batch.max_tokens_N,
        tie_break_N=batch.tie_break_N,
        cost_N=batch.cost_N,
        budget_tokens=BUDGET,
        label="ended",
    )


def test_a_run_that_learns_overlaps_too_and_a_resume_replays_it(config: RunConfig) -> None:
    take_in(None, config, open_folder(config.run_dir))
    with started(config, offers=learning(config)) as run:
        reports = play_rounds(run)
        assert check(run, reports) >= 2
        spent_N, wasted_N = run.market.charges()
    assert not wasted_N.any()
    assert spent_N.sum() > 0.9 * BUDGET
    with started(config, offers=learning(config)) as again:
        replayed = play_rounds(again)
        assert [one.model_copy(update={"seconds": 0}) for one in replayed] == [
            one.model_copy(update={"seconds": 0}) for one in reports
        ]


@pytest.mark.parametrize("calls", [3, 45])
def test_a_driver_that_learns_may_die_between_stages_that_overlap(config: RunConfig, calls: int) -> None:
    folder = open_folder(config.run_dir)
    take_in(None, config, folder)
    with started(config, calls=calls, offers=learning(config)) as run, pytest.raises(KilledError):
        play_rounds(run)
    kept = {path: folder.read(f"grants/{path.rsplit('/')[-1]}") for path in folder.child("grants").files()}
    with started(config, offers=learning(config)) as run:
        check(run, play_rounds(run))
    assert all(folder.read(f"grants/{path.rsplit('/')[-1]}") == content for path, content in kept.items())


def test_with_a_barrier_every_round_ends_before_the_next_is_cleared(config: RunConfig) -> None:
    allocation = config.allocation.model_copy(update={"overlap": False})
    config = config.model_copy(update={"allocation": allocation})
    take_in(None, config, open_folder(config.run_dir))
    with started(config) as run:
        reports = play_rounds(run)
        assert check(run, reports) == 0
    assert len(reports) > 2
