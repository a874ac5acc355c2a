"""Calls to one endpoint from one event loop: each waits for its turn, is sent, and is sent again where that costs nothing.

A try of which it is not known what it came to is not tried again here: the grant is used up, and what may be spent beside
it is for the ledger to say.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.endpoint.answers import EndpointReply, UnreadableError, is_closing, read_pieces, read_reply
from clear_ray.engine.endpoint.connection import call_options, client_arguments
from clear_ray.engine.endpoint.faults import Fault, fault_of
from clear_ray.engine.endpoint.limit import LONGEST_WAIT_SECONDS, CallLimit, RatePerMinute, SentCall, jittered
from clear_ray.engine.endpoint.requests import EndpointRequest
from clear_ray.errors import EngineError

_MOST_REFUSALS = 20  # before the first answer, each of another query
_DROPPABLE = ("temperature", "top_p", "seed")
_USAGE = "stream_options"  # without which many say no usage, and every answer counts as its whole grant
_REMEDIES = {
    **dict.fromkeys((301, 302, 303, 307, 308), "Write that address into base_url: no call is sent on with its key."),
    401: "Look whether the key is the right one, and still good.",
    402: "Pay the endpoint's bill; then run the same command again.",
    404: "Look whether base_url and model are right: see `clear-ray validate`.",
    429: "The endpoint's account is used up: raise its limit; then run the same command again.",
}


class FaultError(Exception):
    """A call that came to no answer.

    Args:
        fault: What came instead.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class _LaterError(FaultError):
    """One that may be sent again."""


@dataclass(eq=False, slots=True)
class _Turn:
    """A call that waits."""

    tokens: float
    admitted: asyncio.Future[SentCall]


class Dialect:
    """Under which names an endpoint takes what, and which of the run's fields it does not take, as its refusals say.

    Args:
        streams: Whether answers are to come in pieces.
    """

    def __init__(self, *, streams: bool = False) -> None:
        self._ceiling_field, self._left_out = "max_tokens", set[str]()
        self._of_streams: dict[str, Any] = {"stream": True, _USAGE: {"include_usage": True}} if streams else {}

    def body(self, request: EndpointRequest) -> dict[str, Any]:
        """Return the fields that are sent."""
        body = {**request.body, **self._of_streams}
        body = {name: value for name, value in body.items() if name not in self._left_out - request.own_fields}
        body[self._ceiling_field] = body.pop("max_tokens")
        return body

    @property
    def left_out(self) -> tuple[str, ...]:
        """The run's own fields that are not sent any more."""
        return tuple(sorted(self._left_out))

    def learns(self, request: EndpointRequest, sent: Mapping[str, Any], fault: Fault) -> bool:
        """Return whether a call that was refused would now be sent otherwise than it was."""
        if "max_completion_tokens" in fault.said and "max_tokens" in sent:
            self._ceiling_field = "max_completion_tokens"
        named = [name for name in (*_DROPPABLE, _USAGE) if fault.field == name or _is_named(name, fault.said)]
        named = [name for name in named if name in sent and name not in request.own_fields]
        # Where two of them do not go together, one has to go.
        self._left_out.update(named[-1:] if "both" in fault.said else named)
        return self.body(request) != sent


def _is_named(name: str, said: str) -> bool:
    return any(f"{quote}{name}{quote}" in said for quote in ("'", "`", '"'))


class Calls:
    """Sends calls, no more at once than the endpoint takes.

    Args:
        config: The endpoint.
        key: Its key.
        dialect: What is known of the fields that it takes.
        rng: Of the jitter.

    Attributes:
        limit: How many calls go at once.
        counts: Answers by what they were: `answered`, and the kinds of faults.
    """

    def __init__(self, config: OpenAIConfig, key: SecretStr | None, *, dialect: Dialect, rng: random.Random) -> None:
        self._config, self._rng = config, rng
        self._key = "" if key is None else key.get_secret_value()
        self._client = openai.AsyncOpenAI(**client_arguments(config, key))
        self._options = call_options(config, key)
        self.limit = CallLimit(first=config.first_calls, most=config.max_batch, rng=self._rng)
        self.counts: dict[str, int] = {}
        share = 1.0 / config.workers
        self._calls_pace = RatePerMinute(config.requests_per_minute * share) if config.requests_per_minute else None
        self._tokens_pace = RatePerMinute(config.tokens_per_minute * share) if config.tokens_per_minute else None
        self._line: deque[_Turn] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._dialect = dialect
        self._failure: EngineError | None = None

    async def send(self, request: EndpointRequest, *, prompt_tokens: int) -> EndpointReply:
        """Return the answer to a call.

        Args:
            request: The call.
            prompt_tokens: About how long its prompt is.

        Raises:
            FaultError: It is `refused`, or `lost`.
            EngineError: No call gets an answer any more.
        """
        tokens = prompt_tokens + int(request.body["max_tokens"])
        first_sent: list[float] = []
        retries = AsyncRetrying(
            retry=retry_if_exception_type(_LaterError),
            wait=self._wait_seconds,
            stop=lambda _: self._now() - first_sent[0] > self._config.patience_seconds,
            reraise=True,
        )
        try:
            async for attempt in retries:
                with attempt:
                    return await self._once(request, tokens, first_sent, is_again=bool(first_sent))
        except _LaterError as error:  # others were answered all the while
            raise FaultError(Fault("refused", error.fault.said)) from error
        raise AssertionError("a retry neither returned nor raised")

    async def _once(
        self, request: EndpointRequest, tokens: float, first_sent: list[float], *, is_again: bool
    ) -> EndpointReply:
        """Send a call when it is its turn; `first_sent` is given the time of that, if it has none."""
        call = await self._admitted(tokens, is_again=is_again)
        first_sent += [] if first_sent else [call.sent_at]
        sent = self._dialect.body(request)
        try:
            reply = await self._exchange(request.path, sent)
        except asyncio.CancelledError:
            self.limit.given_up(call)
            self._settle_pace(tokens, tokens)
            raise
        except Exception as error:
            fault = fault_of(error, request, key=self._key)
            self._count(fault.kind)
            is_learned = fault.kind == "refused" and self._dialect.learns(request, sent, fault)
            raised = None if is_learned else self._raised(fault, error)  # first: after an end no other call is sent
            self._note_fault(call, fault, tokens)
            if raised is not None:
                raise raised from error
            return await self._once(request, tokens, first_sent, is_again=True)
        self._count("answered")
        self.limit.answered(call, self._now())
        used = reply.usage
        self._settle_pace(tokens, tokens if used is None else used.prompt_tokens + used.output_tokens)
        return reply

    async def _exchange(self, path: str, body: Mapping[str, Any]) -> EndpointReply:
        """Have one call answered, whole or in pieces."""
        seconds = self._config.timeout_seconds
        if not body.get("stream"):
            async with asyncio.timeout(seconds):  # the client's own is from one byte to the next
                return read_reply(await self._client.post(path, body=body, options=self._options, cast_to=object))
        pieces: list[Any] = []
        async with asyncio.timeout(seconds) as limit:
            stream = await self._client.post(
                path,
                body=body,
                options=self._options,
                cast_to=object,
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
            async with stream:
                if "json" in stream.response.headers.get("content-type", ""):  # it does not stream, or sends an error
                    return read_reply((await stream.response.aread()).decode(errors="replace"))
                async for piece in stream:
                    pieces.append(piece)
                    limit.reschedule(self._now() + seconds)
        reply = read_pieces(pieces)
        if not reply.finish and not is_closing(pieces[-1] if pieces else None):
            raise UnreadableError("the stream ended before the answer did")
        return reply

    def _note_fault(self, call: SentCall, fault: Fault, tokens: float) -> None:
        now = self._now()
        if fault.kind == "limited":
            self.limit.limited(call, now, fault.retry_after_seconds)
        elif fault.kind in ("refused", "fatal"):
            self.limit.answered(call, now, is_whole=False)
        else:
            self.limit.failed(call, now, retry_after_seconds=fault.retry_after_seconds)
        self._settle_pace(tokens, tokens if fault.kind == "lost" else 0.0)

    def _raised(self, fault: Fault, error: Exception) -> Exception:
        """Return what a fault is raised as."""
        if fault.kind == "fatal":
            status = int(fault.said[:3]) if fault.said[:3].isdigit() else 0
            return self._end(
                f"the endpoint answers {fault.said.rstrip('.')}", remedy=_REMEDIES.get(status, _REMEDIES[402])
            )
        if fault.kind == "refused":
            if not self.counts.get("answered") and self.counts["refused"] >= _MOST_REFUSALS:
                return self._end(f"the endpoint refuses whatever it is asked: {fault.said}")
            return FaultError(fault)
        patience, silent = self._config.patience_seconds, self._now() - self.limit.last_sign
        if silent > patience or (fault.retry_after_seconds or 0.0) > patience:
            waits = fault.retry_after_seconds or silent
            what = f"the endpoint has taken no call for {silent:.0f} s: {fault.said}"
            if waits != silent:
                what = f"the endpoint asks to be left alone for {waits:.0f} s: {fault.said}"
            return self._end(what, remedy="Run the same command again when it takes calls.")
        if fault.kind == "lost" and (self._config.charge_server_errors or not fault.is_stated):
            return FaultError(fault)
        return _LaterError(fault)

    def _end(self, what: str, *, remedy: str = "") -> EngineError:
        """Let every call that waits fail, and return why."""
        remedy = remedy or "Mend what it names; then run the same command again."
        self._failure = EngineError(what, self._config.base_url, remedy=remedy)
        return self._failure

    def _wait_seconds(self, state: RetryCallState) -> float:
        """Return how long one call waits by itself, beside what the limit keeps back."""
        fault = self._fault_of(state)
        if fault.retry_after_seconds is not None:
            return jittered(fault.retry_after_seconds, self._rng)
        return jittered(min(LONGEST_WAIT_SECONDS, 0.5 * 2.0 ** min(state.attempt_number - 1, 16)), self._rng)

    @staticmethod
    def _fault_of(state: RetryCallState) -> Fault:
        error = state.outcome.exception() if state.outcome else None
        return error.fault if isinstance(error, FaultError) else Fault("busy", "")

    async def _admitted(self, tokens: float, *, is_again: bool) -> SentCall:
        """Wait until a call may be sent; one that was sent before goes before the others."""
        turn = _Turn(tokens, asyncio.get_running_loop().create_future())
        (self._line.appendleft if is_again else self._line.append)(turn)
        self._pump()
        try:
            return await turn.admitted
        except asyncio.CancelledError:
            if turn.admitted.done() and not turn.admitted.cancelled() and turn.admitted.exception() is None:
                self.limit.given_up(turn.admitted.result())
                self._pump()
            raise

    def _pump(self) -> None:
        """Admit as many calls as may go now, and come again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            turn = self._line[0]
            if turn.admitted.done():
                self._line.popleft()
                continue
            if self._failure is not None:
                turn.admitted.set_exception(self._failure)
                continue
            now = self._now()
            wait = self._wait_of_next(now, turn.tokens)
            if wait > 0.0:
                if math.isfinite(wait):
                    self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
                return
            self._line.popleft()
            self._settle_pace(0.0, turn.tokens, calls=1.0)
            turn.admitted.set_result(self.limit.send(now))

    def _wait_of_next(self, now: float, tokens: float) -> float:
        wait = self.limit.wait_seconds(now)
        if self._calls_pace:
            wait = max(wait, self._calls_pace.wait_seconds(now, 1.0))
        if self._tokens_pace:
            wait = max(wait, self._tokens_pace.wait_seconds(now, tokens))
        return wait

    def _settle_pace(self, taken: float, used: float, *, calls: float = 0.0) -> None:
        """Take what a call may use of the limits a minute, or correct it by what it did use; then let others go."""
        now = self._now()
        if self._calls_pace and calls:
            self._calls_pace.take(now, calls)
        if self._tokens_pace and used != taken:
            self._tokens_pace.take(now, used - taken)
        if not calls:
            self._pump()

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
