"""From a bought grant to an answer: the engine's pieces, put together or passed on, and tried again where a replica dies.

A query whose replica dies goes on once, on another replica and under the same hold, after the last piece that came; a second
death fails it with status 503. What the dead replica had generated since its last piece is lost and not counted: at
most about `stream_tokens` for each choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from clear_ray.serve.answer import Reply, event
from clear_ray.serve.deployments import Piece, PromptReading
from clear_ray.serve.errors import ApiError
from clear_ray.serve.law import Curve
from clear_ray.serve.protocol import QueryRequest

_MOST_TRIES = 2


def unavailable() -> ApiError:
    """Return what a client is told when no engine can take its query."""
    return ApiError(503, "No engine can take this query now.", code="unavailable", retry_after_seconds=2)


def stopping() -> ApiError:
    """Return what a client is told by a server that finishes what it has taken, and ends."""
    message = "The server is stopping: it ends what it has taken, and takes no more."
    return ApiError(503, message, code="stopping", retry_after_seconds=5)


def checked(reading: PromptReading, request: QueryRequest, max_tokens: int) -> tuple[Curve, int]:
    """Return the curve of a query, and the most tokens that its answer may have.

    Args:
        reading: What the probe found.
        request: What was asked.
        max_tokens: Ceiling of every answer.

    Raises:
        ApiError: 400: the prompt cannot be read, or leaves no room.
    """
    param, context = reading.param or request.prompt_param, reading.context_tokens
    room = context - reading.prompt_tokens
    if reading.is_too_long or (reading.curve is not None and room < 1):
        # Clients look for the code, some for the first words.
        message = f"This model's maximum context length is {context} tokens; the prompt is too long"
        said = f"{message}: {reading.error}." if reading.error else f"{message}: it has {reading.prompt_tokens}."
        raise ApiError(400, said, param=param, code="context_length_exceeded")
    if reading.curve is None:
        raise ApiError(400, f"The query cannot be read: {reading.error}.", param=param, code="unreadable")
    return reading.curve, min(request.upper_limit_tokens or max_tokens, max_tokens, room)


async def whole_choices(engine: Any, answer: Reply, every_tokens: int) -> list[dict[str, Any]]:
    """Return all choices of an answer in OpenAI's form.

    Args:
        engine: Handle of the engine deployment.
        answer: What to write; what comes is added to it.
        every_tokens: Tokens of a piece.

    Raises:
        ApiError: A choice could not be written; the others have ended too.
    """

    async def whole(choice: int) -> dict[str, Any]:
        pieces = [piece async for piece in _pieces(engine, answer, choice, every_tokens)]
        return answer.whole(choice, "".join(piece.text for piece in pieces), pieces[-1].finish_reason)

    try:
        # A group, so that a choice that fails ends the others: they would not be read.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(whole(choice)) for choice in range(answer.request.n)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def events(engine: Any, answer: Reply, every_tokens: int, model_name: str) -> AsyncGenerator[str, None]:
    """Yield the events of a stream, all choices as they come; arguments as for `whole_choices`."""
    frame = answer.frame(model_name, is_stream=True)
    merged: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def feed(choice: int) -> None:
        try:
            async for piece in _pieces(engine, answer, choice, every_tokens):
                merged.put_nowait((choice, piece))
            merged.put_nowait((choice, None))
        except Exception as error:
            merged.put_nowait((choice, error))

    feeders = [asyncio.create_task(feed(choice)) for choice in range(answer.request.n)]
    try:
        for choice in range(answer.request.n if answer.is_chat else 0):
            yield event({**frame, "choices": [answer.part(choice, "", None, is_first=True)]})
        open_choices = answer.request.n
        while open_choices:
            choice, piece = await merged.get()
            if isinstance(piece, BaseException):
                yield event((piece if isinstance(piece, ApiError) else unavailable()).body)
                return
            if piece is None:
                open_choices -= 1
            elif piece.text or piece.finish_reason:
                yield event({**frame, "choices": [answer.part(choice, piece.text, piece.finish_reason)]})
        if answer.request.stream_options and answer.request.stream_options.include_usage:
            yield event({**frame, "choices": [], "usage": answer.usage})
        yield "data: [DONE]\n\n"
    finally:
        for feeder in feeders:
            feeder.cancel()


async def _pieces(engine: Any, answer: Reply, choice: int, every_tokens: int) -> AsyncIterator[Piece]:
    """Yield the pieces of one choice; from another replica, after what has come, if the first one dies."""
    come, is_over = answer.choices[choice], False
    for tries in range(1, _MOST_TRIES + 1):
        written = engine.options(stream=True).write.remote(
            answer.grant(choice), answer.request.stops, every_tokens, len(come.text)
        )
        try:
            async for piece in written:
                answer.take(choice, piece)
                if piece.error:
                    raise ApiError(500, "The engine could not answer this query.", code="engine_error")
                yield piece
                is_over = piece.finish_reason is not None
        except BackPressureError as error:
            raise unavailable() from error
        except RayActorError as error:
            if not is_over and (tries == _MOST_TRIES or len(come.token_ids) == answer.sale.tokens):
                raise unavailable() from error
        if is_over:
            return
