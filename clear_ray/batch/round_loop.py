"""The rounds of a run on Ray: what the folder holds of them is replayed, then the price is cleared until nothing is left.

    is anything running?  no:  clear, or the run is over
                          yes: clear again if slots are idle and tokens have come back, else wait for a call

While prompts are being read (`streamed`) the price is cleared when a further part of them is known, and a run is not over;
but once its end is ordered, no further part is read.

A clearing has its number and is on disk before anything acts on it, whether others are running or not. What came of a grant
is on disk before the driver hears of it. So a resumed run finds every clearing that was made, and what it rested on.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from clear_ray.batch.asked_again import solved_by_attempt
from clear_ray.batch.context import RunContext
from clear_ray.batch.generate import calls_of, mark_lost_answers
from clear_ray.batch.memory import give_back_memory
from clear_ray.cluster.autoscaling import Granted
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.pace import IDLE_SHARE, ClearingPace
from clear_ray.rounds.running import Round
from clear_ray.run_folder.attempts import attempts_of, read_attempt_rows
from clear_ray.run_folder.grants import read_grants, write_grants
from clear_ray.run_folder.orders import read_orders
from clear_ray.stages.attempt_files import round_folder
from clear_ray.stages.granted import GrantedCall

_LOOK_SECONDS = 1.0  # so often the driver hears signals
_READ_SECONDS = 0.1  # so often it looks for what has been read, while calls come back


def play_rounds(run: RunContext) -> list[RoundReport]:
    """Clear, generate and settle until nothing useful is left to buy; return a report of each round."""
    playing = _Playing(run)
    with playing.engines:
        run.market.close_open_reservations()
        playing.replay()
        while playing.go_on():
            pass
    return [playing.reports[number] for number in sorted(playing.reports)]


class _Playing:
    """The rounds of a run while they are played.

    Attributes:
        reports: Reports of the rounds that are over.
        engines: What keeps the number of engines at what is running; closed at the end, or when the run fails.
    """

    def __init__(self, run: RunContext) -> None:
        self.reports: dict[int, RoundReport] = {}
        self.engines = ExitStack()
        self._run = run
        self._pace = ClearingPace(run.config.slots)
        self._rows_of: dict[int, int] = {}
        self._begun: dict[int, float] = {}
        self._speed = _Speed(len(run.states.cost_N))
        self._read_at = -math.inf
        self._stops_reading = self._has_answers = False

    def replay(self) -> None:
        """Take up what the folder holds of earlier starts, and have run what they left."""
        kept: list[tuple[Round, NDArray[np.bool_]]] = []
        while (granted := read_grants(self._run.folder, self._run.rounds.number + 1)) is not None:
            if not granted.is_beside:  # whatever was made before it was over
                self._end([earlier.number for earlier, _ in kept])
                kept.clear()
            self._begun[granted.number] = time.monotonic()
            kept.append((self._run.rounds.replay(granted), self._note_kept(granted)))
        if self._run.rounds.number:
            mark_lost_answers(self._run, self._run.states.written_tokens_N)
        for granted, is_due_M in kept:
            later = [other.clearing.index_M for other, _ in kept if other.number > granted.number]
            is_due_M &= ~np.isin(granted.clearing.index_M, np.concatenate([np.zeros(0, np.int64), *later]))
            self._generate(granted, is_due_M)

    def go_on(self) -> bool:
        """Clear the price if it is time to, else wait for a call; return whether there is anything left to do."""
        run = self._run
        self._read_on(0.0)
        # Stages of a run that learns follow their answers, whatever is read meanwhile.
        is_news = run.lesson is not None and self._has_answers
        is_known = run.reader is None or run.reader.widening.is_due or is_news
        if not len(run.callers):
            if not is_known:
                self._read_on(_LOOK_SECONDS)
                return True
            was_granted = self._ask()
            self._pace.note(was_granted=was_granted, running=0, available_tokens=0)
            return was_granted or (run.rounds.known_queries is not None and not self._stops_reading)
        if run.config.allocation.overlaps and is_known and self._is_due():
            running, available_tokens = self._slots_taken(), self._unspent_tokens() - run.rounds.promised_tokens
            was_granted = self._ask()
            self._pace.note(was_granted=was_granted, running=running, available_tokens=available_tokens)
        for call, rows in run.callers.come_back(_LOOK_SECONDS):
            self._speed.note(call, rows["attempt_tokens"].to_numpy())
            run.scaler.note(call.engine, int(rows["attempt_tokens"].to_numpy().sum()))
            run.answers.note(rows)
            run.rounds.note(call.round, attempts_of(rows))
            self._has_answers = True
            self._rows_of[call.round] -= len(call.index_M)
            if not self._rows_of[call.round]:
                self._end([call.round])
        if not len(run.callers):
            self.engines.close()
        return True

    def _read_on(self, seconds: float) -> None:
        """Offer what has been read meanwhile, after waiting for it so long if there is nothing yet."""
        run, now = self._run, time.monotonic()
        if run.reader is None or run.rounds.known_queries is None:
            return
        if not seconds and now < self._read_at + _READ_SECONDS:  # a call comes back every few milliseconds
            return
        self._read_at = now
        failed = run.reader.look(seconds)
        if failed is not None:
            widening = run.reader.widening
            run.rounds.widen(None if widening.is_whole else widening.known, failed=failed)
            run.progress.note_probed(widening.known)

    def _ask(self) -> bool:
        """Ask the law for grants, and begin to act on them once they are on disk."""
        run, started, unspent_tokens = self._run, time.monotonic(), self._unspent_tokens()
        self._has_answers = False
        if run.reader is not None and run.rounds.known_queries is not None:
            self._stops_reading |= bool(read_orders(run.folder, run.config.budget_tokens).stop)
            if self._stops_reading:  # a clearing would have more read
                return False
        if not run.rounds.running and run.rounds.may_clear(unspent_tokens):
            run.progress.begin("price", round_number=run.rounds.number + 1)
        granted = run.rounds.next(unspent_tokens, self._speed.progress_tokens_N())
        if granted is not None:
            write_grants(run.folder, granted)
        if run.reader is not None:
            run.reader.note_clearing()
        if granted is None:
            return False
        self._begun[granted.number] = started
        give_back_memory(len(run.states.cost_N))
        self._generate(granted, np.ones(len(granted.clearing.index_M), bool))
        return True

    def _generate(self, granted: Round, is_due_M: NDArray[np.bool_]) -> None:
        """Stage 2: send the grants of a round to the callers."""
        run, clearing, number = self._run, granted.clearing, granted.number
        price, many = clearing.shadow_price, int(run.states.was_granted_N.sum())
        if not run.states.rule.is_single:
            begun_N = run.states.attempt_N
            again = int(np.maximum(begun_N - 1, 0).sum())
            run.progress.asks(int(begun_N.sum()), again, solved_by_attempt(run.states))
        run.progress.begin("generate", round_number=number, price=price, granted=many)
        run.market.open_round(number, {"price": price, "available": granted.available_tokens})
        if not is_due_M.any():
            self._end([number])
            return
        round_folder(run.folder, number).make()
        self._have_engines(granted, is_due_M)
        self._rows_of[number] = int(is_due_M.sum())
        for engine, rows, calls in calls_of(run, granted, is_due_M):
            run.callers.send(map(self._speed.begun, calls), rows=rows, engine=engine)

    def _have_engines(self, granted: Round, is_due_M: NDArray[np.bool_]) -> None:
        clearing, cost_M = granted.clearing, granted.clearing.expected_taken_M(self._run.states.cost_N)
        engine_M = np.zeros(len(is_due_M), np.int64) if clearing.option_M is None else clearing.option_M
        each = []
        for engine in range(len(self._run.config.named_engines)):
            own_M = is_due_M & (engine_M == engine)
            tokens, cost = float(clearing.expected_tokens_M[own_M].sum()), float(cost_M[own_M].sum())
            each.append(Granted(tokens, int(own_M.sum()), cost))
        if len(self._run.callers):
            self._run.scaler.add(each)
            return
        self.engines.enter_context(self._run.scaler.round(each, is_scarce=clearing.shadow_price > 0))

    def _note_kept(self, granted: Round) -> NDArray[np.bool_]:
        """Note the attempts that the folder holds of a round; return which of its grants have none."""
        run, index_M = self._run, granted.clearing.index_M
        has_attempt_N = np.zeros(len(run.states.cost_N), bool)
        for rows in read_attempt_rows(run.folder, granted.number, len(has_attempt_N), run.void_attempts()):
            has_attempt_N[rows["index"].to_numpy()] = True
            run.answers.note(rows)
            run.rounds.note(granted.number, attempts_of(rows))
        is_due_M: NDArray[np.bool_] = ~has_attempt_N[index_M]
        return is_due_M

    def _end(self, numbers: list[int]) -> None:
        for number in numbers:
            seconds = time.monotonic() - self._begun.pop(number)
            self.reports[number] = self._run.rounds.take(number).model_copy(update={"seconds": seconds})

    def _is_due(self) -> bool:
        run = self._run
        self._pace.slots = run.scaler.slots
        running = self._slots_taken()
        waiting = run.callers.waiting_rows + run.callers.open_rows - running
        if waiting or running > self._pace.slots * (1 - IDLE_SHARE):
            return False
        promised_tokens = run.rounds.promised_tokens
        return self._pace.is_due(
            waiting=waiting,
            running=running,
            available_tokens=self._unspent_tokens() - promised_tokens,
            promised_tokens=promised_tokens,
        )

    def _slots_taken(self) -> int:
        return min(self._run.callers.open_rows, self._pace.slots)

    def _unspent_tokens(self) -> int:
        """Return what is not spent of the budget, or of the part of it that what was read by now may take."""
        run, balance = self._run, self._run.market.balance()
        budget_tokens = balance.budget_tokens
        if run.reader is not None:
            budget_tokens = run.reader.widening.share_of(budget_tokens)
        return budget_tokens - balance.spent_tokens


class _Speed:
    """How far running grants have come, as near as that is known: by the time since they were sent, at the mean rate so far.

    Args:
        queries: Number of queries, N.
    """

    def __init__(self, queries: int) -> None:
        self._sent_N = np.full(queries, np.inf)
        self._tokens, self._seconds = 0.0, 0.0

    def begun(self, call: GrantedCall) -> GrantedCall:
        """Note that a call is sent, and return it."""
        self._sent_N[call.index_M] = time.monotonic()
        return call

    def note(self, call: GrantedCall, tokens_M: NDArray[np.int64]) -> None:
        """Note what a call generated."""
        seconds = time.monotonic() - float(self._sent_N[call.index_M[0]])
        self._sent_N[call.index_M] = np.inf
        self._tokens, self._seconds = self._tokens + float(tokens_M.max(initial=0)), self._seconds + seconds

    def progress_tokens_N(self) -> NDArray[np.int64]:
        """Return what each running grant has generated, if it is as fast as the longest answers of calls were, shape (N,)."""
        seconds_N = np.maximum(time.monotonic() - self._sent_N, 0.0)
        rate = self._tokens / max(self._seconds, 1e-3)
        found: NDArray[np.int64] = np.minimum(seconds_N * rate, 1e9).astype(np.int64)
        return found
