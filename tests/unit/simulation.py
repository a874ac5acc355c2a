"""A whole run with its crashes in one thread and no clock: what happens when is drawn from a seed.

Real: `MarketActor` with its ledger and its journal on disk, the `Generate` stage, `Rounds` with all that it prices by.
Simulated, because they are what dies: engines that decode token by token, Ray's habit of calling a restarted actor and a
dead task again, the disk's habit of keeping half a write, and the page of a driver that keeps grants and starts callers.

    python -m tests.unit.simulation 1234      plays seed 1234 and prints what happened
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clear_ray.config.allocation import AllocationConfig
from clear_ray.engine.base import FinishReason, Generation, Grant
from clear_ray.errors import EngineError
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.estimation.window import Window
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.entries import entry_of
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import Ledger
from clear_ray.ledger.market import MarketActor
from clear_ray.records import ATTEMPT_SCHEMA, QUERY_SCHEMA
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing, clear
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.widening import Widening
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.rounds.windowed import WindowedOffers
from clear_ray.run_folder.attempts import attempts_of
from clear_ray.stages.attempt_files import slim_attempts
from clear_ray.stages.generate import Dispatch, Generate
from clear_ray.stages.homes import Homes
from clear_ray.stages.lock import ReadWriteLock
from clear_ray.stages.roster import Workers
from clear_ray.storage import open_folder
from tests.unit.local_actors import Method

FAULTS = ("worker", "caller", "market", "driver")
ALLOCATION = AllocationConfig(max_rounds=3, smallest_grant_tokens=2)
OVERLAPPING = AllocationConfig(smallest_grant_tokens=2)
MOST_TICKS = 30_000
BATCHES = 16
COSTS = (0.125, 0.5, 1.0, 2.5, 7.333)


class WorkerDiedError(Exception):
    """What Ray would raise to the caller of an engine that died."""


def is_death(error: BaseException) -> bool:
    return isinstance(error, WorkerDiedError)


@dataclass(frozen=True, eq=False)
class World:
    """A batch and the truth about it.

    Attributes:
        offers: How it is priced.
        length_N: Tokens of each query's answer.
        budget_tokens: The budget.
        is_cut_N: Whether an answer was cut off there instead of ending; none if not given.
        allocation: When rounds end.
        rule: What ends a query; its first answer if not given.
        later_NS: Lengths of each query's further answers, and whether they are right, where it may be asked again.
        votes_NS: The result that each answer of a query gives, where they are compared.
        is_streamed: Whether the price is cleared while prompts are read.
        most_held: Of how many queries curves are held meanwhile; of all if not given.
    """

    offers: Offers
    length_N: list[int]
    budget_tokens: int
    is_cut_N: list[bool] | None = None
    allocation: AllocationConfig = ALLOCATION
    rule: AttemptRule | None = None
    later_NS: list[list[tuple[int, bool]]] | None = None
    votes_NS: list[list[int]] | None = None
    is_streamed: bool = False
    most_held: int | None = None

    def length(self, index: int, sample: int) -> int:
        """Return the tokens of one of a query's answers."""
        return self.length_N[index] if sample == 0 or self.later_NS is None else self.later_NS[index][sample - 1][0]

    def score(self, index: int, sample: int) -> float | None:
        """Return the score of one of a query's answers, once it has ended."""
        return None if self.later_NS is None else float(sample > 0 and self.later_NS[index][sample - 1][1])

    def ends_with(self, index: int) -> FinishReason:
        """Return how an answer ends at its last token."""
        return "length" if self.is_cut_N is not None and self.is_cut_N[index] else "stop"


@dataclass(frozen=True, eq=False)
class SharedOffers(BatchOffers):
    """Offers of one of the batches: they price by a pure function, so schedules share its results."""

    number: int = 0

    def clear(self, states: QueryStates, *, is_free_N: np.ndarray, available_tokens: int, **_: Any) -> Clearing:
        return cleared(self, tuple(states.answer_tokens_N.tolist()), tuple(is_free_N.tolist()), available_tokens)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedOffers) and self.number == other.number


def drawn_batch(rng: np.random.Generator, queries: int, *, cost_rng: np.random.Generator, has_costs: bool) -> Batch:
    """Return queries of any curves; their tokens cost 1, or any of `COSTS`."""
    tokens_K = np.array([2, 4, 8, 16, 32])
    success = np.sort(rng.random((queries, 5)), axis=1) * rng.random((queries, 1))
    survival = (1 - success) * np.sort(rng.random((queries, 5)), axis=1)[:, ::-1]
    return Batch(
        curves=curves_from_incidence(success, survival_NK=survival, tokens_K=tokens_K),
        weight_N=np.ones(queries),
        max_tokens_N=np.full(queries, 32),
        tie_break_N=rng.permutation(queries).astype(np.uint64),
        cost_N=cost_rng.choice(COSTS if has_costs else [1.0], queries),
    )


@cache
def world(number: int) -> World:
    """Return one of the batches; its estimates are wrong in the way estimates are."""
    rng = np.random.default_rng(number)
    queries = int(rng.integers(2, 7))
    batch = drawn_batch(rng, queries, cost_rng=np.random.default_rng([number, 1]), has_costs=bool(number % 2))
    length_N = np.maximum(rng.geometric(1 / 12, queries), 1).tolist()
    return World(SharedOffers(batch, number=number), length_N, int(queries * rng.choice([3, 8, 16, 40])))


@cache
def world_of_attempts(number: int) -> World:
    """Return one of the batches, whose queries may be asked three times."""
    once, rng = world(number), np.random.default_rng([number, 2])
    queries = len(once.length_N)
    later_NS = [[(int(rng.geometric(1 / 12)), bool(rng.random() < 0.4)) for _ in range(2)] for _ in range(queries)]
    assert isinstance(once.offers, SharedOffers)
    return replace(
        once,
        offers=AttemptOffers(once.offers.batch),
        budget_tokens=3 * once.budget_tokens,
        allocation=AllocationConfig(objective="solved", attempts=3, max_rounds=12, smallest_grant_tokens=2),
        rule=AttemptRule("solved", np.full(queries, 3, np.int64)),
        later_NS=later_NS,
    )


@cache
def world_of_learning(number: int) -> World:
    """Return a batch of which nothing is known before its first answers; large enough for stages that overlap."""
    rng, queries = np.random.default_rng([number, 3]), 30
    kind_N = rng.integers(0, 2, queries)
    budget_tokens = 12 * queries
    offers = OverlappingLearningOffers(
        x_NP=np.eye(2)[kind_N],
        tokens_K=np.array([2, 4, 8, 16, 32]),
        weight_N=np.ones(queries),
        max_tokens_N=np.full(queries, 32),
        tie_break_N=rng.permutation(queries).astype(np.uint64),
        cost_N=rng.choice(COSTS, queries),
        budget_tokens=budget_tokens,
        label="ended",
    )
    length_N = np.maximum(rng.geometric(np.where(kind_N, 1 / 20, 1 / 4)), 1).tolist()
    return World(offers, length_N, budget_tokens, allocation=OVERLAPPING)


@cache
def world_of_streaming(number: int) -> World:
    """Return a batch that is priced while it is read; its queries come in an order of their own."""
    rng, queries = np.random.default_rng([number, 4]), 26
    batch = drawn_batch(rng, queries, cost_rng=rng, has_costs=bool(number % 2))
    length_N = np.maximum(rng.geometric(1 / 12, queries), 1).tolist()
    budget_tokens = int(queries * rng.choice([3, 8, 16, 40]))
    return World(BatchOffers(batch), length_N, budget_tokens, allocation=OVERLAPPING, is_streamed=True)


@cache
def world_of_windows(number: int) -> World:
    """Return a batch that is priced while it is read, by the curves of few queries at once."""
    return replace(world_of_streaming(number), most_held=8)


@cache
def world_of_streamed_learning(number: int) -> World:
    """Return a batch that learns while it is read; its queries come in an order of their own."""
    return replace(world_of_learning(number), is_streamed=True)


@cache
def world_of_agreement(number: int) -> World:
    """Return a batch that learns which answers are right from those that agree, with up to three answers to a query."""
    rng, queries, cap = np.random.default_rng([number, 3]), 30, 32
    kind = rng.integers(0, 2, queries)
    length_NS = np.minimum(np.maximum(rng.geometric(np.where(kind == 0, 0.2, 0.05), (3, queries)).T, 1), cap)
    right_NS = rng.random((queries, 3)) < np.where(kind == 0, 0.9, 0.1)[:, None]
    agreement = Agreement(answers=3, share=0.5)
    offers = LearningOffers(
        x_NP=np.eye(2)[kind],
        tokens_K=np.array([2, 4, 8, 16, cap]),
        weight_N=np.ones(queries),
        max_tokens_N=np.full(queries, cap),
        tie_break_N=rng.permutation(queries).astype(np.uint64),
        cost_N=np.ones(queries),
        budget_tokens=queries * 10,
        label="agreement",
        seed=number,
        agreement=agreement,
    )
    return World(
        offers,
        length_NS[:, 0].tolist(),
        offers.budget_tokens,
        allocation=AllocationConfig(max_rounds=LEARNING_ROUNDS, smallest_grant_tokens=2),
        rule=agreement.rule(np.ones(queries, bool)),
        later_NS=[list(zip(row, [True] * 2, strict=True)) for row in length_NS[:, 1:].tolist()],
        votes_NS=np.where(right_NS, 1, rng.integers(2, 50, (queries, 3))).tolist(),
    )


@cache
def cleared(
    offers: SharedOffers, generated: tuple[int, ...], is_open: tuple[bool, ...], available_tokens: int
) -> Clearing:
    """Return `clear` of one of the batches."""
    return clear(
        offers.batch,
        generated_tokens_N=np.array(generated, np.int64),
        is_open_N=np.array(is_open),
        available_tokens=available_tokens,
    )


class Disk(ThreadPoolExecutor):
    """Runs what is handed to threads in this one, some ticks later; a crash in between keeps it, drops it or tears it."""

    def __init__(self, rng: random.Random, file: Path) -> None:
        super().__init__(max_workers=1)
        self._rng, self._file = rng, file
        self._due: list[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._due.append((lambda: call(*args, **kwargs), done))
        self._later(self._rng.randrange(4))
        return done

    def crash(self) -> None:
        for write, done in self._due:
            done.cancel()
            fate = self._rng.random()
            if fate < 0.3:
                continue
            before = self._file.stat().st_size
            write()
            if fate < 0.6:
                with self._file.open("r+b") as file:
                    file.truncate(self._rng.randint(before, self._file.stat().st_size))
                break
        self._due.clear()

    def _later(self, ticks: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._later, ticks - 1) if ticks else loop.call_soon(self._write_one)

    def _write_one(self) -> None:
        if self._due:
            write, done = self._due.pop(0)
            write()
            done.set_result(None)


class MarketHandle:
    """The market's handle: Ray starts a dead market again and repeats every call that it had not answered."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._calls: list[asyncio.Task[Any]] = []
        self.actor = simulation.start_market()

    def __getattr__(self, name: str) -> Method:
        return Method(lambda *arguments: self._answer(name, arguments))

    async def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        while True:
            actor = self.actor
            call = asyncio.ensure_future(getattr(actor, name)(*arguments))
            self._calls.append(call)
            await asyncio.wait([call])  # a caller that dies here leaves its call behind, as in Ray
            if actor is self.actor and not call.cancelled():
                return call.result()

    def crash(self) -> None:
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        self._simulation.disk.crash()
        self.actor._journal.close()
        self._simulation.check_what_is_on_disk()

    def restart(self) -> None:
        self.crash()
        self.actor = self._simulation.start_market()


class Worker:
    """An engine: decodes what it was granted, whoever is left to hear of it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._open: list[asyncio.Queue[list[Generation] | WorkerDiedError | None]] = []
        self._decoding: list[asyncio.Task[None]] = []
        self._lock = ReadWriteLock()

    @property
    def generate(self) -> Method:
        return Method(self._references)

    @property
    def cards(self) -> Method:
        return Method(self._answer)

    async def _answer(self) -> None:
        """A dead engine is started again at once."""

    async def _references(self, grants: Sequence[Grant], is_alone: bool) -> AsyncIterator[Awaitable[list[Generation]]]:
        ended: asyncio.Queue[list[Generation] | WorkerDiedError | None] = asyncio.Queue()
        async with self._lock.alone() if is_alone else self._lock.together():
            self._open.append(ended)
            self._decoding.append(asyncio.ensure_future(self._decode(list(grants), ended)))
            while (item := await ended.get()) is not None:
                yield _outcome(item)

    async def _decode(
        self, grants: list[Grant], ended: asyncio.Queue[list[Generation] | WorkerDiedError | None]
    ) -> None:
        simulation, rng = self._simulation, self._simulation.rng
        simulation.check_what_is_on_disk()
        tokens: dict[str, list[int]] = {grant.query_id: [] for grant in grants}
        while grants:
            await asyncio.sleep(0)
            grant = rng.choice(grants)
            index, new = int(grant.query_id), tokens[grant.query_id]
            length = simulation.world.length(index, grant.sample)
            for _ in range(rng.randint(1, 6)):
                if index == simulation.poison:
                    self.crash()
                new.append(len(grant.prefix_token_ids) + len(new))
                simulation.generated_N[index] += 1
                has_stopped = len(grant.prefix_token_ids) + len(new) >= length
                if has_stopped or len(new) == grant.max_tokens:
                    grants.remove(grant)
                    reason = simulation.world.ends_with(index) if has_stopped else "length"
                    await ended.put([Generation(grant.query_id, tuple(new), "", reason, sample=grant.sample)])
                    break
        await ended.put(None)

    def crash(self) -> None:
        self._lock = ReadWriteLock()
        for decoding in self._decoding:
            decoding.cancel()
        for ended in self._open:
            ended.put_nowait(WorkerDiedError())
        self._decoding.clear()
        self._open.clear()


async def _outcome(item: list[Generation] | WorkerDiedError) -> list[Generation]:
    if isinstance(item, WorkerDiedError):
        raise item
    return item


@dataclass(eq=False)
class Simulation:
    """One schedule.

    Attributes:
        seed: All there is to know about it.
        run_dir: An empty folder.
        faults: What dies, at which tick.
        due: What of that is still to come.
        poison: The query that kills whatever engine decodes it.
        rows: What reached the disk: attempts by round.
        generated_N: Tokens that engines really generated for each query.
        told: What happened, in order.
        beside: What dies besides, so many ticks after which clearing beside running grants was kept: (1, 0, "driver") at once
            after the first.
        given: The batch, if it is none of those that seeds draw.
        is_faultless: Nothing dies.
        overlaps: Whether the price is cleared while grants run.
        came_back: Set whenever some grants have come back.
        rounds: The law of the run, as the last driver left it.
        reports: What that driver's rounds came to.
        wasted_tokens: What was lost on the way, known at the end.
        spent_N: Tokens charged for each query by the journal, known at the end.
        estimated: Queries whose estimates reached the disk, where the price is cleared while prompts are read.
        reading: What reads them.
    """

    seed: int
    run_dir: Path
    given: World | None = None
    is_faultless: bool = False
    beside: tuple[tuple[int, int, str], ...] = ()
    overlaps: bool = field(init=False)
    came_back: asyncio.Event = field(init=False)
    rounds: Rounds = field(init=False)
    reports: dict[int, RoundReport] = field(default_factory=dict)
    rng: random.Random = field(init=False)
    faults: list[tuple[int, str]] = field(init=False)
    poison: int | None = field(init=False)
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    grants: dict[int, Round] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    wasted_tokens: int = 0
    spent_N: np.ndarray = field(init=False)
    callers: list[asyncio.Task[None]] = field(default_factory=list)
    ticks: int = 0
    due: list[tuple[int, str]] = field(default_factory=list)
    estimated: list[int] = field(default_factory=list)
    reading: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.world = self.given or world(self.seed % BATCHES)
        self.queries = len(self.world.length_N)
        self.generated_N = [0] * self.queries
        self.poison = self.seed % 7 if self.seed % 5 == 0 and not self.is_faultless else None
        if self.poison is not None:  # what it costs must not end the schedule before its last attempt
            self.world = replace(self.world, budget_tokens=20 * self.world.budget_tokens)
        learns = isinstance(self.world.offers, OverlappingLearningOffers) and self.world.allocation.overlaps
        self.overlaps = learns or self.world.is_streamed or (self.given is None and self.seed % 3 > 0)
        if self.overlaps:
            self.world = replace(self.world, allocation=OVERLAPPING)
        kinds = self.rng.sample(FAULTS, self.rng.randint(1, 4))
        count = self.rng.choice((0, 1, 1, 2, 2, 3, 5)) * (not self.is_faultless)
        self.faults = sorted((int(self.rng.expovariate(1 / 40)), self.rng.choice(kinds)) for _ in range(count))

    def play(self) -> None:
        """Run to the end, checking all the way."""
        self.disk = Disk(self.rng, self.run_dir / "journal.jsonl")
        loop = asyncio.new_event_loop()  # a Runner would start a thread to end the executor, a thousand times
        try:
            loop.set_default_executor(self.disk)
            loop.run_until_complete(self._play())
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        self.check_the_end()

    def start_market(self) -> MarketActor:
        return MarketActor(str(self.run_dir), self.world.budget_tokens, self.queries, self.world.offers.cost_N)

    async def _play(self) -> None:
        faults = self.due = list(self.faults)
        runs = 0
        while True:
            runs += 1
            self.market, self.workers = (
                MarketHandle(self),
                [Worker(self) for _ in range(2 if self.poison is None else 1)],
            )
            driver = asyncio.ensure_future(self._drive())
            while not driver.done():
                await asyncio.sleep(0)
                self.ticks += 1
                assert self.ticks < MOST_TICKS, "nothing moves any more"
                while faults and faults[0][0] <= self.ticks and not driver.done():
                    self._strike(faults.pop(0)[1], driver)
                    if driver.cancelling():
                        await asyncio.wait([driver])
            self._end_of_job()
            if not driver.cancelled() and driver.exception() is None:
                return
            if not driver.cancelled() and not isinstance(driver.exception(), EngineError):
                driver.result()
            self.told.append(f"{self.ticks} run again")
            assert runs <= len(self.faults) + 1, "more runs than faults"

    def _strike(self, kind: str, driver: asyncio.Task[None]) -> None:
        self.told.append(f"{self.ticks} {kind} dies")
        if kind == "worker":
            self.rng.choice(self.workers).crash()
        elif kind == "market":
            self.market.restart()
        elif kind == "driver":
            driver.cancel()
        elif kind == "reader":
            if self.reading is not None:
                self.reading.cancel()
        elif alive := [task for task in self.callers if not task.done()]:
            self.rng.choice(alive).cancel("killed")

    def _arrange_faults(self, new: Round) -> None:
        """Have die what is to die once this clearing, made beside running grants or amid the reading, has been kept."""

        def is_amid(granted: Round) -> bool:
            return granted.is_beside or granted.known_queries is not None

        which = sum(map(is_amid, self.grants.values())) if is_amid(new) else 0
        struck = [(self.ticks + after, kind) for number, after, kind in self.beside if number == which]
        self.faults += struck
        self.due[:] = sorted(self.due + struck)

    def _end_of_job(self) -> None:
        for task in self.callers:
            task.cancel("job over")
        self.callers.clear()
        for worker in self.workers:
            worker.crash()
        self.market.crash()

    async def _drive(self) -> None:
        """The page of `batch.round_loop`, which clears beside running grants whenever something has come back."""
        offers, reader = self.world.offers, None
        if self.world.is_streamed:
            reader = Reader(self)
            offers = reader.offers
        self.rounds, self.reports = Rounds(offers, self.world.allocation, rule=self.world.rule), {}
        self.came_back = asyncio.Event()
        running: dict[int, asyncio.Task[None]] = {}
        await self.market.close_open_reservations.remote()
        try:
            kept = self._replay()
            await self._mark_lost_answers()
            for granted in kept:
                later = {int(i) for other in kept if other.number > granted.number for i in other.clearing.index_M}
                running[granted.number] = asyncio.ensure_future(self._run_round(granted, later))
            while True:
                if reader is not None:
                    reader.look()
                if (not running or self.overlaps) and (reader is None or reader.widening.is_due):
                    balance = await self.market.balance.remote()
                    shared_tokens = balance.budget_tokens if reader is None else reader.share_of(balance.budget_tokens)
                    new = self.rounds.next(shared_tokens - balance.spent_tokens)
                    if reader is not None:
                        assert new is None or self.rounds.promised_tokens <= shared_tokens - balance.spent_tokens
                        reader.widening.note_clearing()
                    if new is not None:
                        self.grants[new.number], self.rows[new.number] = new, []
                        self._arrange_faults(new)
                        running[new.number] = asyncio.ensure_future(self._run_round(new, set()))
                    elif not running and self.rounds.known_queries is None:
                        break
                self.came_back.clear()
                if reader is not None and reader.is_behind:
                    continue
                waiting = asyncio.ensure_future(self.came_back.wait())
                try:
                    await asyncio.wait({waiting, *running.values()}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
                for number in [number for number, task in running.items() if task.done()]:
                    running.pop(number).result()
        finally:
            for task in running.values():
                task.cancel()
            if self.reading is not None:
                self.reading.cancel()
        await self._mark_lost_answers()

    def _replay(self) -> list[Round]:
        """Take up what earlier drivers left; return the rounds that may have left grants without an attempt."""
        kept: list[Round] = []
        while (granted := self.grants.get(self.rounds.number + 1)) is not None:
            if not granted.is_beside:
                for earlier in kept:
                    self._end(earlier.number)
                kept.clear()
            kept.append(self.rounds.replay(granted))
            self.rounds.note(granted.number, attempts_of_rows(self.rows[granted.number]))
        return kept

    async def _run_round(self, granted: Round, later: set[int]) -> None:
        """Run the grants of a round; those that are granted again later have lost their attempt."""
        await self.market.open_round.remote(granted.number, {"available": granted.available_tokens})
        await self._generate(granted.number, granted.clearing, later)
        self._end(granted.number)

    def _end(self, number: int) -> None:
        self.told.append(f"{self.ticks} round {number}: {len(self.rows[number])} rows")
        self.reports[number] = self.rounds.take(number)

    async def _mark_lost_answers(self) -> None:
        spent_N, wasted_N = await self.market.charges.remote()
        lost_N = spent_N - wasted_N - self.written_N
        assert (lost_N >= 0).all(), "answers hold more tokens than the ledger charged"
        await self.market.mark_wasted.remote({int(i): int(wasted_N[i] + lost_N[i]) for i in np.flatnonzero(lost_N)})

    @property
    def written_N(self) -> np.ndarray:
        written_N = np.zeros(self.queries, np.int64)
        for row in (row for rows in self.rows.values() for row in rows):
            written_N[row["index"]] += row["attempt_tokens"]
        return written_N

    async def _generate(self, number: int, clearing: Clearing, later: set[int]) -> None:
        """What callers do: a few calls of some rows; a call that dies is made again."""
        done = {row["index"] for row in self.rows[number]} | later
        answers = {row["index"]: row["token_ids"] for n in sorted(self.rows) if n < number for row in self.rows[n]}
        begins_M, attempt_N = self.rounds.states.begins_M(clearing), self.rounds.states.attempt_N
        due = [
            self._granted_row(number, int(index), int(tokens), [] if begins else answers.get(int(index), []))
            | {"sample": int(attempt_N[index]) + bool(begins) - 1}
            for index, tokens, begins in zip(clearing.index_M, clearing.tokens_M, begins_M, strict=True)
            if int(index) not in done
        ]
        size = self.rng.randint(1, 3)
        blocks = [due[at : at + size] for at in range(0, len(due), size)]
        dispatch = Dispatch(
            workers=Workers(self.workers, is_death, restart=Worker.crash, stall_seconds=1e6),
            market=AsyncMarketClient(self.market),
            scorer=None,
            seed=0,
        )
        in_flight = asyncio.Semaphore(self.rng.randint(1, 3) if self.poison is None else 8)
        async with asyncio.TaskGroup() as calls:
            for at, block in enumerate(blocks):
                named = replace(dispatch, this_caller=lambda at=at: f"round {number} block {at}")
                calls.create_task(self._call(number, block, named, in_flight))

    async def _call(
        self, number: int, block: list[dict[str, Any]], dispatch: Dispatch, in_flight: asyncio.Semaphore
    ) -> None:
        async with in_flight:
            while True:
                caller = asyncio.ensure_future(self._block(number, block, dispatch))
                self.callers.append(caller)
                try:
                    await asyncio.wait([caller])
                finally:
                    self.callers.remove(caller) if caller in self.callers else None
                    caller.cancel()
                if not caller.cancelled():
                    caller.result()
                    indices = {row["index"] for row in block}
                    rows = [row for row in self.rows[number] if row["index"] in indices]
                    self.rounds.note(number, attempts_of_rows(rows))
                    self.came_back.set()
                    return

    async def _block(self, number: int, block: list[dict[str, Any]], dispatch: Dispatch) -> None:
        written = {row["index"] for row in self.rows[number]}  # by a caller that died before its block was done
        due = [row for row in block if row["index"] not in written]
        async for attempts in Generate(dispatch)(pa.Table.from_pylist(due, schema=GRANTED_SCHEMA)):
            for attempt in attempts:
                for _ in range(self.rng.randrange(5)):
                    await asyncio.sleep(0)  # the row is on its way to the disk
                if attempt["finish_reason"] == "stop":
                    attempt["correct"] = self.world.score(attempt["index"], attempt["sample"])
                    if (votes := self.world.votes_NS) is not None:
                        attempt["vote"] = votes[attempt["index"]][attempt["sample"]]
                self.rows[number].append(attempt)

    def _granted_row(self, number: int, index: int, tokens: int, token_ids: list[int]) -> dict[str, Any]:
        return query_row(index) | {"token_ids": token_ids, "round": number, "granted_tokens": tokens}

    def check_what_is_on_disk(self) -> None:
        """Whatever dies now, the journal covers every token that was generated."""
        ledger = self.read_ledger()
        reserved_N = np.zeros(self.queries, np.int64)
        for entry in ledger.open_entries():
            reserved_N[entry.index] = entry.tokens
        covered_N = ledger.spent_tokens_N + reserved_N
        assert (covered_N >= self.generated_N).all(), f"unknown tokens: {covered_N} {self.generated_N}"
        assert covered_N @ self.world.offers.cost_N <= self.world.budget_tokens

    def read_ledger(self) -> Ledger:
        ledger = Ledger(self.world.budget_tokens, self.queries, cost_N=self.world.offers.cost_N)
        for record in read_journal(open_folder(str(self.run_dir))):
            if "op" in record:
                ledger.apply(entry_of(record))
        ledger.check()
        return ledger

    def check_the_end(self) -> None:
        """No overspending, no lost row, no double charge."""
        ledger = self.read_ledger()
        spent_N, wasted_N = ledger.spent_tokens_N, ledger.wasted_tokens_N
        self.wasted_tokens, self.spent_N = ledger.wasted_tokens, spent_N
        assert ledger.reserved_tokens == 0
        assert self.generated_N @ self.world.offers.cost_N <= ledger.spent_tokens <= self.world.budget_tokens
        np.testing.assert_array_equal(spent_N - wasted_N, self.written_N)
        keys = [(row["round"], row["index"]) for rows in self.rows.values() for row in rows]
        assert len(keys) == len(set(keys)), "a row was written twice"
        for number in sorted(self.rows):
            for row in self.rows[number]:
                length = self.world.length(row["index"], row["sample"])
                assert row["token_ids"] == list(range(len(row["token_ids"]))), "an answer with a seam"
                assert len(row["token_ids"]) <= length
                is_whole = len(row["token_ids"]) == length
                assert (row["finish_reason"] == "stop") == (is_whole and self.world.ends_with(row["index"]) == "stop")
                assert row["attempt_tokens"] <= row["granted_tokens"]
        answer_N, sample_N = np.zeros(self.queries, np.int64), np.zeros(self.queries, np.int64)
        for number in sorted(self.rows):
            for row in self.rows[number]:
                before = answer_N[row["index"]] if row["sample"] == sample_N[row["index"]] else 0
                assert sample_N[row["index"]] <= row["sample"] <= sample_N[row["index"]] + 1, "an attempt left out"
                assert len(row["token_ids"]) == before + row["attempt_tokens"]
                answer_N[row["index"]], sample_N[row["index"]] = len(row["token_ids"]), row["sample"]
        np.testing.assert_array_equal(self.rounds.states.answer_tokens_N, answer_N)
        failed = {row["index"] for rows in self.rows.values() for row in rows if row["error"]}
        assert self.poison not in set(np.flatnonzero(answer_N)), "an answer of a query that kills its engine"
        if "worker dies" not in "\n".join(self.told):
            assert failed <= {self.poison}, "failed, though no engine died under it alone"
        if self.poison is None and not any(kind in "\n".join(self.told) for kind in FAULTS):
            assert ledger.wasted_tokens == 0
            np.testing.assert_array_equal(spent_N, self.generated_N)


class Reader:
    """Reads prompts for one driver, a part at a time: what `batch.streamed` does, with its widening and order.

    Attributes:
        offers: To what this driver knows.
        widening: How much that is, and is to be.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation, self._whole = simulation, simulation.world.offers
        queries, most_held = simulation.queries, simulation.world.most_held
        self._is_known_N, self._offered_N = np.zeros(queries, bool), np.zeros(queries, np.int64)
        self._window = None if most_held is None else Window(queries, most_held)
        self.offers: Offers
        if isinstance(self._whole, OverlappingLearningOffers):
            law, cost_N = replace(self._whole, is_streamed=True).some, self._whole.cost_N
            self.offers = WideningLearningOffers(law, self._is_known_N, cost_N, self._offered_N)
        else:
            assert isinstance(self._whole, BatchOffers)
            known = replace(self._whole, batch=replace(self._whole.batch, max_tokens_N=self._offered_N))
            self.offers = known
            if self._window is not None:
                self.offers = WindowedOffers(known.batch, self._is_known_N, self._window, known)
        self.widening = Widening(queries, 1, most_held)
        self._order = Homes(2, 1).spread(queries, seed=simulation.seed).tolist()

    @property
    def is_behind(self) -> bool:
        """Whether more is on disk than this driver knows."""
        return len(self._simulation.estimated) > self.widening.known

    def share_of(self, budget_tokens: int) -> int:
        return self.widening.share_of(budget_tokens)

    def look(self) -> None:
        """Take up what is on disk, and have more read; a reader that died is replaced."""
        known, reading = self._simulation.estimated, self._simulation.reading
        new = [index for index in known if not self._is_known_N[index]]
        self._is_known_N[new], self._offered_N[new] = True, self._whole.max_tokens_N[new]
        if self._window is not None:
            self._window.take_in(np.array(new, np.int64))
        self.widening.known = len(known)
        self._simulation.rounds.widen(None if self.widening.is_whole else len(known))
        if not self.widening.is_whole and (reading is None or reading.done()):
            self._simulation.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        simulation, rng = self._simulation, self._simulation.rng
        while due := [index for index in self._order if index not in simulation.estimated]:
            while len(simulation.estimated) >= self.widening.wanted:
                await asyncio.sleep(0)
            try:
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                if rng.random() < 0.3:  # it is not known to be dead before its last part is on disk
                    simulation.estimated += due[:2]
                simulation.came_back.set()
                raise
            simulation.estimated += due[:2]
            simulation.told.append(f"{simulation.ticks} {len(simulation.estimated)} estimated")
            simulation.came_back.set()


GRANTED_SCHEMA = pa.schema(
    [
        *QUERY_SCHEMA,
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("round", pa.int32()),
        pa.field("sample", pa.int32()),
        pa.field("granted_tokens", pa.int64()),
    ]
)


def query_row(index: int) -> dict[str, Any]:
    """Return a row of `QUERY_SCHEMA`; its id is its index."""
    fields = {"index": index, "query_id": str(index), "prompt": "?", "is_conversation": False}
    return fields | {"weight": 1.0, "cost": 1.0, "max_tokens": 32, "gold": None, "task": None, "metadata": None}


def attempts_of_rows(rows: list[dict[str, Any]]) -> Attempts:
    """Return attempts as `run_folder.read_attempts` yields them."""
    return attempts_of(slim_attempts(pa.Table.from_pylist(rows, schema=ATTEMPT_SCHEMA), ""))


def simulate(seed: int, **how: Any) -> Simulation:
    """Play one schedule; what fails says its seed. `how` goes to `Simulation`."""
    # A disk in memory where there is one: thousands of journals are written with an fsync for every record.
    shared_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="clear_ray_simulation_", dir=shared_memory) as folder:
        simulation = Simulation(seed, Path(folder), **how)
        try:
            simulation.play()
        except BaseException as error:
            error.add_note(f"seed {seed}, faults {simulation.faults}: python -m tests.unit.simulation {seed}")
            raise
    return simulation


def main(arguments: Sequence[str]) -> None:
    """Play the seeds named on the command line."""
    for seed in map(int, arguments):
        played = simulate(seed)
        print(f"seed {seed}: budget {played.world.budget_tokens}, lengths {played.world.length_N}, {played.faults}")
        print("\n".join(played.told))


if __name__ == "__main__":
    main(sys.argv[1:])
