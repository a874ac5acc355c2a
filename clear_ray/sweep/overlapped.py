"""A run in virtual time: the law and its order of dispatch, with rounds that overlap or with a barrier after each of them.

Real: the offers, `Rounds`, the pace, the widening of a batch that is priced while it is read. Simulated: engines, which run
so many answers at once, one token of each a step; a clearing takes no time, and neither does a prompt, unless it is said how
many are read in a step. An engine that reads has no step for its answers: where it has both to do, they take turns. Where
few curves are held at once, what prices all of them at the end holds them after all, and waits for what is running.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.window import Window
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.rounds.pace import ClearingPace
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.widening import Widening
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.rounds.windowed import WindowedOffers
from clear_ray.sweep.replayed import Answers


@dataclass(frozen=True, eq=False)
class Reading:
    """How the prompts of a batch are read.

    Attributes:
        prompts_a_step: How many are read in the time in which each running answer comes forward by a token.
        order_N: In which order, all queries.
        is_streamed: Whether the price is cleared meanwhile; else all are read first.
        most_held: Of how many queries curves are held meanwhile; of all if not given.
    """

    prompts_a_step: float
    order_N: NDArray[np.int64]
    is_streamed: bool = True
    most_held: int | None = None


@dataclass(frozen=True, eq=False)
class Timed:
    """What came of a run, and when.

    Attributes:
        steps: When the last answer ended.
        tokens_N: Length of each query's answer.
        is_right_N: Ended by itself within its grants, and correct.
        clearings: Clearings that granted something.
        slots: Answers that could run at once.
        first_steps: When the first answer ended.
        reading_steps: When the last prompt had been read.
        first_queries: How many had been read at the first clearing.
        prices: Of each clearing that granted something, how many queries were known, and its price.
    """

    steps: int
    tokens_N: NDArray[np.int64]
    is_right_N: NDArray[np.bool_]
    clearings: int
    slots: int
    first_steps: int = 0
    reading_steps: int = 0
    first_queries: int = 0
    prices: tuple[tuple[int, float], ...] = ()

    @property
    def least_steps(self) -> float:
        """No order could have been faster: all the work over all the slots, or the longest answer."""
        return max(int(self.tokens_N.sum()) / self.slots, float(self.tokens_N.max(initial=0)))


def timed_run(
    offers: Offers,
    answers: Answers,
    *,
    budget_tokens: int,
    slots: int,
    overlaps: bool,
    allocation: AllocationConfig | None = None,
    reading: Reading | None = None,
) -> Timed:
    """Run a batch in virtual time.

    Args:
        offers: The policy; tokens of cost 1.
        answers: What the engine will generate.
        budget_tokens: What the run may generate.
        slots: Answers that run at once.
        overlaps: Whether the price is cleared again while grants run.
        allocation: When rounds end.
        reading: How prompts are read; they are there if not given. With one the offers are `BatchOffers`, or of a run that
            teaches itself.
    """
    reader = None
    if reading is not None:
        if not isinstance(offers, BatchOffers | OverlappingLearningOffers):
            raise TypeError("only a batch that is held can be priced while it is read")
        reader = _Reader(offers, reading, slots)
        offers = reader.offers
    run = _VirtualRun(Rounds(offers, allocation or AllocationConfig()), answers, budget_tokens, slots, reader)
    run.play(overlaps=overlaps)
    states = run.rounds.states
    is_right_N = answers.is_right_N & states.has_stopped_N
    return Timed(
        run.now + run.read_beside,
        states.answer_tokens_N,
        is_right_N,
        run.rounds.number,
        slots,
        run.first_steps,
        0 if reader is None else reader.is_over_at,
        run.first_queries or len(is_right_N),
        tuple(run.prices),
    )


@dataclass(order=True, slots=True)
class _Running:
    ends: int
    index: int
    round: int
    tokens: int
    begun: int


class _Reader:
    """Reads prompts, as many in a step as it is said, and no more than are wanted before the next clearing.

    Attributes:
        offers: To what has been read, or is held of it.
        widening: How much that is, and is to be.
        is_over_at: When the last was read.
    """

    def __init__(self, offers: BatchOffers | OverlappingLearningOffers, reading: Reading, slots: int) -> None:
        queries = len(reading.order_N)
        self._max_tokens_N, self._order_N = offers.max_tokens_N, reading.order_N
        self._rate, self._read, self._looked = reading.prompts_a_step, 0.0, 0
        self._offered_N, self._is_known_N = np.zeros(queries, np.int64), np.zeros(queries, bool)
        self._window = None if reading.most_held is None else Window(queries, reading.most_held)
        self.offers: Offers
        if isinstance(offers, BatchOffers):
            known = replace(offers, batch=replace(offers.batch, max_tokens_N=self._offered_N))
            self.offers = known
            if self._window is not None:
                self.offers = WindowedOffers(known.batch, self._is_known_N, self._window, known)
        else:
            law = replace(offers, is_streamed=reading.is_streamed).some
            self.offers = WideningLearningOffers(law, self._is_known_N, offers.cost_N, self._offered_N)
        self.widening, self.is_over_at = Widening(queries, slots, reading.most_held), 0
        if not reading.is_streamed:
            self.widening.wanted = queries

    @property
    def due_at(self) -> int:
        """When what is wanted will have been read."""
        return self._looked + max(math.ceil((self.widening.wanted - self._read) / self._rate), 0)

    def look(self, now: int, steps: int) -> None:
        """Offer what has been read by now, which was so many steps after the start."""
        self._read = min(self._read + (now - self._looked) * self._rate, self.widening.wanted)
        self._looked, before, self.widening.known = now, self.widening.known, int(self._read + 1e-9)
        new = self._order_N[before : self.widening.known]
        self._offered_N[new], self._is_known_N[new] = self._max_tokens_N[new], True
        if self._window is not None:
            self._window.take_in(new)
        if self.widening.is_whole and not self.is_over_at:
            self.is_over_at = steps


class _VirtualRun:
    def __init__(
        self, rounds: Rounds, answers: Answers, budget_tokens: int, slots: int, reader: _Reader | None = None
    ) -> None:
        self.rounds, self.now = rounds, 0
        self._reader, self.first_steps, self.first_queries, self.read_beside = reader, 0, 0, 0
        self.prices: list[tuple[int, float]] = []
        self._answers, self._unspent_tokens, self._slots = answers, budget_tokens, slots
        self._budget_tokens, self._has_answers = budget_tokens, False
        self._line: deque[tuple[int, int, int]] = deque()
        self._running: list[_Running] = []
        self._left_of: dict[int, int] = {}

    def play(self, *, overlaps: bool) -> None:
        pace, rounds = ClearingPace(self._slots), self.rounds
        while True:
            self._widen()
            available = self._shared_tokens() - rounds.promised_tokens
            is_news = self._has_answers and isinstance(rounds.offers, WideningLearningOffers)
            running, is_due = len(self._running), self._reader is None or self._reader.widening.is_due or is_news
            if not running and not self._line:
                if is_due and not self._ask() and self.rounds.known_queries is None:
                    return
                pace.note(was_granted=True, running=running, available_tokens=available)
            elif (overlaps and is_due) and pace.is_due(
                waiting=len(self._line),
                running=running,
                available_tokens=available,
                promised_tokens=rounds.promised_tokens,
            ):
                pace.note(was_granted=self._ask(), running=running, available_tokens=available)
            self._start()
            self._end()

    def _ask(self) -> bool:
        self._has_answers = False
        progress_N = np.zeros(len(self._answers.length_N), np.int64)
        for one in self._running:
            progress_N[one.index] = self.now - one.begun
        granted = self.rounds.next(self._shared_tokens(), progress_N)
        if self._reader is not None:
            self._reader.widening.note_clearing()
            self.first_queries = self.first_queries or self._reader.widening.known
        if granted is None:
            return False
        known = granted.known_queries
        self.prices.append((len(progress_N) if known is None else known, granted.clearing.shadow_price))
        index_M, tokens_M = granted.clearing.index_M.tolist(), granted.clearing.tokens_M.tolist()
        self._left_of[granted.number] = len(index_M)
        self._line.extend((granted.number, *grant) for grant in zip(index_M, tokens_M, strict=True))
        return True

    def _widen(self) -> None:
        if self._reader is not None:
            self._reader.look(self.now, self.now + self.read_beside)
            self.rounds.widen(None if self._reader.widening.is_whole else self._reader.widening.known)

    def _shared_tokens(self) -> int:
        if self._reader is None:
            return self._unspent_tokens
        return self._reader.widening.share_of(self._budget_tokens) - (self._budget_tokens - self._unspent_tokens)

    def _start(self) -> None:
        while self._line and len(self._running) < self._slots:
            number, index, tokens = self._line.popleft()
            left = int(self._answers.length_N[index] - self.rounds.states.answer_tokens_N[index])
            heapq.heappush(self._running, _Running(self.now + min(tokens, left), index, number, tokens, self.now))

    def _end(self) -> None:
        """Go on to when the next answers end, or what is to be priced has been read, and note them."""
        ends = [self._running[0].ends] if self._running else []
        if self._reader is not None and not self._reader.widening.is_due:
            ends.append(max(self._reader.due_at, self.now + 1))
        if not ends:  # nothing was granted, and more may be read
            return
        before, self.now = self.now, min(ends)
        if self._reader is not None and self._running:
            self.read_beside += max(min(self._reader.due_at, self.now) - before, 0)
        ended: dict[int, list[_Running]] = {}
        while self._running and self._running[0].ends == self.now:
            one = heapq.heappop(self._running)
            ended.setdefault(one.round, []).append(one)
            self._unspent_tokens -= self.now - one.begun
            self.first_steps = self.first_steps or self.now + self.read_beside
        for number, some in ended.items():
            index_M, tokens_M = (np.array(column) for column in ([o.index for o in some], [o.tokens for o in some]))
            before_M = self.rounds.states.answer_tokens_N[index_M]
            self.rounds.note(number, self._answers.attempts(index_M, tokens_M, before_M))
            self._left_of[number] -= len(some)
            self._has_answers = True
            if not self._left_of[number]:
                self.rounds.take(number)
