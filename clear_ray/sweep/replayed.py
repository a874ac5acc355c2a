"""A whole run on recorded rollouts in one thread: the policy, the law, the ledger and the order of dispatch of a real run.

Real: the offers, `Rounds`, and the ledger with the market's line (first come, first served; the head waits for refunds; what
can never fit is refused). Simulated: the engine, which runs `max_batch` answers at once, one token of each a step, and the
callers, of which so many rows at a time have been let in. There is no Ray, no journal and no clock, so a run takes
milliseconds.

Shapes: N queries, M granted in a round.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import WAIT, Ledger
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.history import SOLVED_SCORE, AttemptRule
from clear_ray.rounds.offers import Offers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round


@dataclass(frozen=True, slots=True)
class Dispatched:
    """How grants travel; the defaults are those of a run with one caller and one engine of 64 slots.

    Attributes:
        max_batch: Answers that run at the same time.
        rows_in_flight: Grants that callers hold at the same time, reserved and waiting for a slot.
    """

    max_batch: int = 64
    rows_in_flight: int = 128


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model would generate under no ceiling, and what came of it.

    Attributes:
        length_N: Tokens of each recorded answer.
        is_stopped_N: Whether it ended by itself there.
        is_right_N: Whether it is correct.
        vote_N: The result that it gives, as a number above 0, where votes are counted.
    """

    length_N: NDArray[np.int64]
    is_stopped_N: NDArray[np.bool_]
    is_right_N: NDArray[np.bool_]
    vote_N: NDArray[np.int64] | None = None

    def of_attempt(self, number_N: NDArray[np.integer]) -> Answers:
        """Return these answers: there is one to each query, whatever the attempt."""
        return self

    def attempts(
        self, index_M: NDArray[np.int64], tokens_M: NDArray[np.int64], before_M: NDArray[np.int64]
    ) -> Attempts:
        """Return what the replay engine generates on grants that go on from `before_M` tokens."""
        answer_M = np.minimum(self.length_N[index_M], before_M + tokens_M)
        is_ended_M = answer_M == self.length_N[index_M]
        has_stopped_M = is_ended_M & self.is_stopped_N[index_M]
        return Attempts(
            index_M=index_M,
            granted_tokens_M=tokens_M,
            attempt_tokens_M=answer_M - before_M,
            answer_tokens_M=answer_M,
            has_stopped_M=has_stopped_M,
            has_failed_M=np.zeros(len(index_M), bool),
            is_at_end_M=~has_stopped_M & (answer_M - before_M < tokens_M),
            correct_M=(has_stopped_M & self.is_right_N[index_M]).astype(np.float64),
            vote_M=None if self.vote_N is None else np.where(has_stopped_M, self.vote_N[index_M], 0),
        )


@dataclass(frozen=True, eq=False)
class SampledAnswers:
    """Several answers of a model to each query, in the order in which attempts draw them.

    Attributes:
        length_NS: Tokens of each recorded answer.
        is_stopped_NS: Whether it ended by itself there.
        is_right_NS: Whether it is correct.
        vote_NS: The result that it gives, as a number above 0, where votes are counted.
    """

    length_NS: NDArray[np.int64]
    is_stopped_NS: NDArray[np.bool_]
    is_right_NS: NDArray[np.bool_]
    vote_NS: NDArray[np.int64] | None = None

    def of_attempt(self, number_N: NDArray[np.integer]) -> Answers:
        """Return the answer that each query gives in its attempt of this number, from 1; past the last they begin anew."""
        rows, sample_N = np.arange(len(self.length_NS)), (np.maximum(number_N, 1) - 1) % self.length_NS.shape[1]
        return Answers(
            length_N=self.length_NS[rows, sample_N],
            is_stopped_N=self.is_stopped_NS[rows, sample_N],
            is_right_N=self.is_right_NS[rows, sample_N],
            vote_N=None if self.vote_NS is None else self.vote_NS[rows, sample_N],
        )


@dataclass(frozen=True, eq=False)
class Replayed:
    """What came of a run.

    Attributes:
        is_right_N: Ended by itself within its grants, and correct; one of its attempts, if there were several.
        spent_tokens_N: Tokens generated.
        rounds: The grants of each round, a minimum service included.
        reports: What each round came to.
        attempts_N: Attempts of each query.
    """

    is_right_N: NDArray[np.bool_]
    spent_tokens_N: NDArray[np.int64]
    rounds: tuple[Round, ...]
    reports: tuple[RoundReport, ...]
    attempts_N: NDArray[np.int32]

    @property
    def clearings(self) -> int:
        """Clearings that granted something."""
        return sum(not report.is_service for report in self.reports)


def replay_run(
    offers: Offers,
    answers: Answers | SampledAnswers,
    *,
    budget_tokens: int,
    allocation: AllocationConfig | None = None,
    dispatched: Dispatched | None = None,
    rule: AttemptRule | None = None,
) -> Replayed:
    """Run rounds until nothing useful is left to buy, as `batch.run` does.

    Args:
        offers: The policy.
        answers: What the engine will generate.
        budget_tokens: What the run may generate.
        allocation: When rounds end, and whether there is a minimum service; as in a run if not given.
        dispatched: How grants travel.
        rule: What ends a query; its first answer if not given.
    """
    rounds = Rounds(offers, allocation or AllocationConfig(), rule=rule)
    ledger, states = Ledger(budget_tokens, len(offers.cost_N), cost_N=offers.cost_N), rounds.states
    granted, reports = [], []
    while (new := rounds.next(ledger.available_tokens)) is not None:
        is_begun_N = np.zeros(len(states.attempt_N), bool)
        is_begun_N[new.clearing.index_M] = states.begins_M(new.clearing)
        before_N = np.where(is_begun_N, 0, states.answer_tokens_N)
        current = answers.of_attempt(states.attempt_N + is_begun_N)
        index_M, tokens_M = _dispatch(ledger, new.clearing, current.length_N - before_N, dispatched or Dispatched())
        reports.append(rounds.take(new.number, [current.attempts(index_M, tokens_M, before_N[index_M])]))
        granted.append(new)
    ledger.check()
    is_right_N = states.chosen_has_stopped_N & (states.chosen_score_N >= SOLVED_SCORE)
    return Replayed(is_right_N, ledger.spent_tokens_N, tuple(granted), tuple(reports), states.attempt_N)


def _dispatch(
    ledger: Ledger, clearing: Clearing, left_N: NDArray[np.int64], how: Dispatched
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Reserve in order, run in slots, settle as answers end; return which grants were not refused: index and tokens."""
    line = deque(zip(clearing.index_M.tolist(), clearing.tokens_M.tolist(), strict=True))
    waiting: deque[tuple[int, int, int]] = deque()
    running: list[tuple[int, int, int, int]] = []
    served: list[tuple[int, int]] = []
    now = 0
    while line or waiting or running:
        while line and len(waiting) + len(running) < how.rows_in_flight:
            index, tokens = line[0]
            admitted = ledger.admit(index, tokens)
            if admitted == WAIT:
                break
            line.popleft()
            if isinstance(admitted, Entry):
                waiting.append((index, admitted.attempt, min(tokens, int(left_N[index]))))
                served.append((index, tokens))
        while waiting and len(running) < how.max_batch:
            index, attempt, spend = waiting.popleft()
            heapq.heappush(running, (now + spend, index, attempt, spend))
        if running:
            now, index, attempt, spend = heapq.heappop(running)
            ledger.settle(index, attempt, spend)
    index_M, tokens_M = np.array(served, np.int64).reshape(-1, 2).T
    return index_M, tokens_M
