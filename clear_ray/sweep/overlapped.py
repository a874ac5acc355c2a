"""A run in virtual time: the law and its order of dispatch, with rounds that overlap or with a barrier after each of them.

Real: the offers, `Rounds`, the pace. Simulated: engines, which run so many answers at once, one token of each a step; a
prompt takes no time, and neither does a clearing.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.rounds.offers import Offers
from clear_ray.rounds.pace import ClearingPace
from clear_ray.rounds.rounds import Rounds
from clear_ray.sweep.replayed import Answers


@dataclass(frozen=True, eq=False)
class Timed:
    """What came of a run, and when.

    Attributes:
        steps: When the last answer ended.
        tokens_N: Length of each query's answer.
        is_right_N: Ended by itself within its grants, and correct.
        clearings: Clearings that granted something.
        slots: Answers that could run at once.
    """

    steps: int
    tokens_N: NDArray[np.int64]
    is_right_N: NDArray[np.bool_]
    clearings: int
    slots: int

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
) -> Timed:
    """Run a batch in virtual time.

    Args:
        offers: The policy; tokens of cost 1.
        answers: What the engine will generate.
        budget_tokens: What the run may generate.
        slots: Answers that run at once.
        overlaps: Whether the price is cleared again while grants run.
        allocation: When rounds end.
    """
    run = _VirtualRun(Rounds(offers, allocation or AllocationConfig()), answers, budget_tokens, slots)
    run.play(overlaps=overlaps)
    states = run.rounds.states
    is_right_N = answers.is_right_N & states.has_stopped_N
    return Timed(run.now, states.answer_tokens_N, is_right_N, run.rounds.number, slots)


@dataclass(order=True, slots=True)
class _Running:
    ends: int
    index: int
    round: int
    tokens: int
    begun: int


class _VirtualRun:
    def __init__(self, rounds: Rounds, answers: Answers, budget_tokens: int, slots: int) -> None:
        self.rounds, self.now = rounds, 0
        self._answers, self._unspent_tokens, self._slots = answers, budget_tokens, slots
        self._line: deque[tuple[int, int, int]] = deque()
        self._running: list[_Running] = []
        self._left_of: dict[int, int] = {}

    def play(self, *, overlaps: bool) -> None:
        pace, rounds = ClearingPace(self._slots), self.rounds
        while True:
            available = self._unspent_tokens - rounds.promised_tokens
            running = len(self._running)
            if not running and not self._line:
                if not self._ask():
                    return
                pace.note(was_granted=True, running=running, available_tokens=available)
            elif overlaps and pace.is_due(
                waiting=len(self._line),
                running=running,
                available_tokens=available,
                promised_tokens=rounds.promised_tokens,
            ):
                pace.note(was_granted=self._ask(), running=running, available_tokens=available)
            self._start()
            self._end()

    def _ask(self) -> bool:
        progress_N = np.zeros(len(self._answers.length_N), np.int64)
        for one in self._running:
            progress_N[one.index] = self.now - one.begun
        granted = self.rounds.next(self._unspent_tokens, progress_N)
        if granted is None:
            return False
        index_M, tokens_M = granted.clearing.index_M.tolist(), granted.clearing.tokens_M.tolist()
        self._left_of[granted.number] = len(index_M)
        self._line.extend((granted.number, *grant) for grant in zip(index_M, tokens_M, strict=True))
        return True

    def _start(self) -> None:
        while self._line and len(self._running) < self._slots:
            number, index, tokens = self._line.popleft()
            left = int(self._answers.length_N[index] - self.rounds.states.answer_tokens_N[index])
            heapq.heappush(self._running, _Running(self.now + min(tokens, left), index, number, tokens, self.now))

    def _end(self) -> None:
        """Go on to when the next answers end, and note them."""
        self.now = self._running[0].ends
        ended: dict[int, list[_Running]] = {}
        while self._running and self._running[0].ends == self.now:
            one = heapq.heappop(self._running)
            ended.setdefault(one.round, []).append(one)
            self._unspent_tokens -= self.now - one.begun
        for number, some in ended.items():
            index_M, tokens_M = (np.array(column) for column in ([o.index for o in some], [o.tokens for o in some]))
            before_M = self.rounds.states.answer_tokens_N[index_M]
            self.rounds.note(number, self._answers.attempts(index_M, tokens_M, before_M))
            self._left_of[number] -= len(some)
            if not self._left_of[number]:
                self.rounds.take(number)
