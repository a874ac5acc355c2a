"""From a bought grant to an answer: the engine's pieces, put together or passed on, and tried again where a replica dies.

A query whose replica dies goes on once, on another replica and under the same hold, after the last piece that came; a second
death fails it with status 503. What the dead replica had generated since its last piece is lost and not counted: at
most about `stream_tokens` for each choice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clear_ray.errors import EngineError
from clear_ray.serve.answer import ServedReply, event
from clear_ray.serve.asking import Opening, Piece, PromptReading, ServedQuery, merged, scattered
from clear_ray.serve.errors import ApiError
from clear_ray.serve.protocol import QueryRequest

_MOST_TRIES = 2


def unavailable() -> ApiError:
    """Return what a client is told when no engine can take its query."""
    return ApiError(503, "No engine can take this query now.", code="unavailable", retry_after_seconds=2)


def stopping() -> ApiError:
    """Return what a client is told by a server that finishes what it has taken, and ends."""
    message = "The server is stopping: it ends what it has taken, and takes no more."
    return ApiError(503, message, code="stopping", retry_after_seconds=5)


def refusal_of(reading: PromptReading, request: QueryRequest) -> ApiError:
    """Return what a client is told whose prompt cannot be read, or leaves no room.

    Args:
        reading: What the probe found.
        request: What was asked.
    """
    param, context = reading.param or request.prompt_param, reading.context_tokens
    room = context - reading.prompt_tokens
    if reading.is_too_long or (reading.curve is not None and room < 1):
        # Clients look for the code, some for the first words.
        message = f"This model's maximum context length is {context} tokens; the prompt is too long"
        said = f"{message}: {reading.error}." if reading.error else f"{message}: it has {reading.prompt_tokens}."
        return ApiError(400, said, param=param, code="context_length_exceeded")
    if reading.param:  # of what this engine cannot do
        return ApiError(400, f"{reading.error}.", param=param, code="unsupported_parameter")
    return ApiError(400, f"The query cannot be read: {reading.error}.", param=param, code="unreadable")


async def opened(engine: Any, asked: ServedQuery) -> tuple[Opening, AsyncIterator[Any]]:
    """Have a query read, and sold its tokens if they can be had at once; by another replica if the first one dies.

    Args:
        engine: Handle of the engine deployment, for streams.
        asked: The query.

    Returns:
        What was found, and what comes of its answer.

    Raises:
        ApiError: 503: no engine can take it.
    """
    for _ in range(_MOST_TRIES):
        come = scattered(engine.answer.remote(asked))
        try:
            return await anext(come), come
        except BackPressureError as error:
            raise unavailable() from error
        except (RayActorError, EngineError, StopAsyncIteration):
            continue
    raise unavailable()


async def whole_choices(engine: Any, reply: ServedReply, come: AsyncIterator[Any] | None) -> list[dict[str, Any]]:
    """Return all choices of an answer in OpenAI's form.

    Args:
        engine: Handle of the engine deployment, for streams.
        reply: What to write; what comes is added to it.
        come: What comes of it already; None if nothing has been asked for.

    Raises:
        ApiError: A choice could not be written; the others have ended too.
    """
    pieces: list[list[Piece]] = [[] for _ in reply.choices]
    async with aclosing(written_pieces(engine, reply, come)) as written:
        async for choice, piece in written:
            pieces[choice].append(piece)
    return [
        reply.whole(choice, "".join(piece.text for piece in some), some[-1].finish_reason)
        for choice, some in enumerate(pieces)
    ]


async def events(
    engine: Any, reply: ServedReply, come: AsyncIterator[Any] | None, model_name: str
) -> AsyncGenerator[str, None]:
    """Yield the events of a stream, all choices as they come, those together that are there together.

    Arguments are as for `whole_choices`.
    """
    frame = reply.frame(model_name, is_stream=True)
    tells_usage = reply.request.stream_options is not None and reply.request.stream_options.include_usage
    if tells_usage:
        frame["usage"] = None
    beginners = range(reply.request.n if reply.is_chat else 0)
    firsts = [reply.part(choice, "", None, is_first=True) for choice in beginners]
    said = "".join(event({**frame, "choices": [first]}) for first in firsts)
    try:
        async with aclosing(written_pieces(engine, reply, come)) as written:
            async for choice, piece in written:
                if piece.text or piece.finish_reason:
                    yield said + event({**frame, "choices": [reply.part(choice, piece.text, piece.finish_reason)]})
                    said = ""
    except ApiError as error:
        yield said + event(error.body)
        return
    except Exception:
        yield said + event(unavailable().body)
        return
    if tells_usage:
        said += event({**frame, "choices": [], "usage": reply.usage})
    yield f"{said}data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """The events of an answer as a response; what is to be done at its end is done also if its client goes before it begins.

    Args:
        told: The events.
        reply: What they are of.
        stack: Closed at the end.
    """

    def __init__(self, told: AsyncGenerator[str, None], reply: ServedReply, stack: ExitStack) -> None:
        headers = reply.headers(is_over=False) | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(told, media_type="text/event-stream", headers=headers)
        self._told, self._stack = told, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._stack:
            async with aclosing(self._told):
                await super().__call__(scope, receive, send)


async def written_pieces(
    engine: Any, reply: ServedReply, come: AsyncIterator[Any] | None
) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of all choices; if their replica dies, from another one, after what has come."""
    tries = 1
    if come is not None:
        try:
            async for choice, piece in come:
                yield choice, _taken(reply, choice, piece)
        except RayActorError as error:
            if not all(choice.is_over for choice in reply.choices) and not _can_go_on(reply):
                raise unavailable() from error
        tries = _MOST_TRIES
    left = [number for number, choice in enumerate(reply.choices) if not choice.is_over]
    if left:
        async with aclosing(merged([_written(engine, reply, choice, tries) for choice in left])) as written:
            async for number, piece in written:
                yield left[number], piece


def _can_go_on(reply: ServedReply) -> bool:
    """Whether there is something left to generate of each choice that has not ended."""
    return all(choice.is_over or len(choice.token_ids) < reply.sale.tokens for choice in reply.choices)


def _taken(reply: ServedReply, choice: int, piece: Piece) -> Piece:
    reply.take(choice, piece)
    if piece.error:
        raise ApiError(500, "The engine could not answer this query.", code="engine_error")
    return piece


async def _written(engine: Any, reply: ServedReply, choice: int, tries: int) -> AsyncIterator[Piece]:
    """Yield the pieces of one choice that was bought already, after what has come of it; `tries` counts from 1."""
    come = reply.choices[choice]
    for number in range(tries, _MOST_TRIES + 1):
        written = engine.write.remote(reply.grant(choice), reply.asked.stops, reply.asked.every_tokens, len(come.text))
        try:
            async for piece in written:
                yield _taken(reply, choice, piece)
        except BackPressureError as error:
            raise unavailable() from error
        except RayActorError as error:
            if not come.is_over and (number == _MOST_TRIES or len(come.token_ids) == reply.sale.tokens):
                raise unavailable() from error
        if come.is_over:
            return
