"""Answers on their way through a continuous batch, and the thread that keeps the batch going.

A batch knows steps and answers; callers know event loops. The thread stands between them: it takes answers in, steps
the batch while there is something to do, and hands every answer back through its `on_end`, exactly once.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from clear_ray.engine.base import FinishReason, Grant
from clear_ray.engine.choice import Stops, TokenChoice
from clear_ray.errors import EngineError, EngineFailedError, told

if TYPE_CHECKING:
    from clear_ray.engine.structured import Matcher


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A token of an answer as the model thought of it.

    Attributes:
        token_id: The token.
        logprob: Its log-probability.
        top: The likeliest tokens in its place, with theirs, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class RunningGrant:
    """One grant on its way through a batch.

    Attributes:
        grant: What was permitted.
        input_ids: Prompt and prefix, at least one token.
        on_end: Called in the batch's thread with the answer when it has ended, or with the failure of the whole engine.
        generated: Tokens generated under the grant so far, end token included.
        is_cancelled: Set from any thread, looked at once a step.
        on_step: Called in the batch's thread with the answer after each step that leaves it running, if given.
        step_tokens: Tokens between which `on_step` need not be called.
        is_closing: Whether its last tokens are forced; see `Closing`.
        finish_reason: Set when the answer has ended.
        error: Why this answer alone failed.
        choice: How its tokens are chosen; set when it enters a batch.
        stops: Texts that end it, if any.
        matcher: How far it has come in the structure that it keeps to, if it keeps to one.
        read: What the model thought of each of `generated`, where that was asked for.
        cached_tokens: Of `input_ids`, those that were not read for it, since what the probe had read was at hand.
    """

    grant: Grant
    input_ids: list[int]
    on_end: Callable[[RunningGrant | EngineError], None]
    generated: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    on_step: Callable[[RunningGrant], None] | None = None
    step_tokens: int = 1
    is_closing: bool = False
    finish_reason: FinishReason | None = None
    error: str = ""
    choice: TokenChoice | None = None
    stops: Stops | None = None
    matcher: Matcher | None = None
    read: list[ReadToken] = field(default_factory=list)
    cached_tokens: int = 0

    @property
    def top_logprobs(self) -> int | None:
        """How many of the likeliest tokens are to be told with each; None if no log-probability is."""
        return None if self.grant.sampling is None else self.grant.sampling.logprobs

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the answer, those of earlier grants first."""
        return [*self.grant.prefix_token_ids, *self.generated]

    @property
    def length(self) -> int:
        """Tokens of the answer, those of earlier grants among them."""
        return len(self.grant.prefix_token_ids) + len(self.generated)

    def end(self, reason: FinishReason, error: str = "") -> RunningGrant:
        """Mark the answer as ended."""
        self.finish_reason, self.error = reason, error
        return self


class AnswerBatch(Protocol):
    """A continuous batch; used by one thread only."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""

    @property
    def progress(self) -> int:
        """A number that changes with every pass of the model, or every token; may be read from any thread."""

    def add(self, answer: RunningGrant) -> None:
        """Queue an answer; it starts in the order of adding."""

    def step(self) -> list[RunningGrant]:
        """Bring the running answers forward; return those that ended, each exactly once."""

    def close(self) -> None:
        """Release what the batch holds."""


class FairLock:
    """A lock that is had in the order of asking.

    A batch that steps takes the model again within microseconds of letting go of it. With a plain lock a probe beside it
    could wait until the batch is idle.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._asked = self._had = 0

    def __enter__(self) -> None:
        """Wait for the turn."""
        with self._condition:
            turn, self._asked = self._asked, self._asked + 1
            self._condition.wait_for(lambda: self._had == turn)

    def __exit__(self, *exc_info: object) -> None:
        """Let the next one in."""
        with self._condition:
            self._had += 1
            self._condition.notify_all()

    def pause(self) -> None:
        """Let those go first that have asked meanwhile; for the one that has the turn."""
        self.__exit__()
        self.__enter__()


class OpenAnswers:
    """The answers that are waited for: each is handed back exactly once, whichever thread does it."""

    def __init__(self) -> None:
        self._open: set[RunningGrant] = set()
        self._lock = threading.Lock()
        self._failure: EngineError | None = None

    def add(self, answers: Sequence[RunningGrant], start: Callable[[RunningGrant], object]) -> None:
        """Keep answers until they are handed back, and start each, in order, before anything can fail them.

        Raises:
            EngineError: The engine has failed or is closed.
        """
        with self._lock:
            if self._failure is not None:
                raise type(self._failure)(*self._failure.args)
            self._open.update(answers)
            for answer in answers:
                start(answer)

    def cancel(self, query_ids: Iterable[str]) -> list[RunningGrant]:
        """Mark the open answers of these queries as cancelled, and return them."""
        cancelled = frozenset(query_ids)
        with self._lock:
            found = [answer for answer in self._open if answer.grant.query_id in cancelled]
            for answer in found:
                answer.is_cancelled = True
        return found

    def hand_back(self, answer: RunningGrant) -> None:
        """Give an answer that has ended to what waits for it, unless it was failed meanwhile."""
        with self._lock:
            if answer not in self._open:
                return
            self._open.discard(answer)
        answer.on_end(answer)

    def fail(self, failure: EngineError) -> None:
        """Fail what is open and whatever is added from now on; the first failure stays."""
        with self._lock:
            self._failure = self._failure or failure
            waiting, self._open = self._open, set()
        for answer in waiting:
            answer.on_end(failure)


class BatchThread:
    """Runs a batch in a thread of its own.

    Args:
        batch: The batch; belongs to the thread from now on.
        model_turns: Had while the batch steps, so that a prefill does not compete with it for the same cores and memory.

    Attributes:
        progress: The batch's, after its last step.
    """

    def __init__(self, batch: AnswerBatch, *, model_turns: FairLock) -> None:
        self._batch, self._model_turns = batch, model_turns
        self._inbox: queue.SimpleQueue[RunningGrant | None] = queue.SimpleQueue()
        self._open = OpenAnswers()
        self._watched: list[RunningGrant] = []  # of the batch's thread alone
        self.progress = batch.progress
        self._thread = threading.Thread(target=self._run, name="clear_ray-batch", daemon=True)
        self._thread.start()

    def submit(self, answers: Sequence[RunningGrant]) -> None:
        """Hand answers to the batch; each one's `on_end` will be called.

        Raises:
            EngineError: The batch has failed or is closed.
        """
        self._open.add(answers, self._inbox.put)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """Let the open answers of these queries end at the next step."""
        self._open.cancel(query_ids)

    def abandon(self, answers: Iterable[RunningGrant]) -> None:
        """Let these answers end at the next step: nothing waits for them any more."""
        for answer in answers:
            answer.is_cancelled = True

    def close(self) -> None:
        """Stop after the current step; what is open fails. Calling it again does nothing."""
        self._open.fail(EngineError("the engine is closed", remedy="Make a new one."))
        self._inbox.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._take():
                with self._model_turns:
                    ended = self._batch.step()
                self.progress = self._batch.progress
                for answer in ended:
                    self._open.hand_back(answer)
                self._tell_watchers()
        # Whatever ends the thread has to reach all that wait for it: nothing else will tell them.
        except BaseException as error:
            self._open.fail(EngineFailedError("the language model failed", "generate", told(error)))
        finally:
            with contextlib.suppress(Exception):
                self._batch.close()
            # The batch holds the model, whose memory a closed engine gives back.
            del self._batch

    def _take(self) -> bool:
        """Move new answers into the batch, waiting for one if there is nothing to do; False when closed."""
        must_wait = self._batch.is_idle
        while True:
            try:
                answer = self._inbox.get(block=must_wait)
            except queue.Empty:
                return True
            if answer is None:
                return False
            self._batch.add(answer)
            if answer.on_step is not None:
                self._watched.append(answer)
            must_wait = False

    def _tell_watchers(self) -> None:
        self._watched = [answer for answer in self._watched if answer.finish_reason is None]
        for answer in self._watched:
            if answer.on_step is not None:
                answer.on_step(answer)
