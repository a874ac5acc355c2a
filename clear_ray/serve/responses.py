"""An answer as OpenAI's responses have it: one object, or the events by which it grows.

What is asked is read as the conversation that it comes to (`protocol.ResponseRequest`), so it is priced, written and settled
as one. Nothing is stored: the earlier turns of a conversation are the client's to send.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from itertools import count
from typing import Any

from clear_ray.ingest.openai_output import response_body
from clear_ray.serve.answer import ServedReply
from clear_ray.serve.errors import ApiError
from clear_ray.serve.writing import unavailable, written_pieces


def whole_response(reply: ServedReply, choice: Mapping[str, Any], model_name: str) -> dict[str, Any]:
    """Return an answer that has ended.

    Args:
        reply: The answer.
        choice: Its one choice, as a chat completion has it.
        model_name: Name of the model in the API.
    """
    usage = reply.usage
    made = response_body(
        reply.identity,
        model=model_name,
        created=int(time.time()),
        text=choice["message"]["content"],
        finish_reason=choice["finish_reason"],
        tokens=(usage["prompt_tokens"], usage["completion_tokens"]),
        logprobs=choice["logprobs"],
    )
    made["usage"]["clear_ray"] = usage["clear_ray"]
    return made | _echoed(reply)


def _echoed(reply: ServedReply) -> dict[str, Any]:
    """Return what clients want to find in a response: what was asked, and what there is none of here."""
    asked = reply.request
    return {
        "instructions": None,
        "max_output_tokens": asked.upper_limit_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": asked.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": asked.top_p,
    }


async def response_events(
    engine: Any, reply: ServedReply, come: AsyncIterator[Any] | None, model_name: str
) -> AsyncGenerator[str, None]:
    """Yield the events of a response, those together that are there together; arguments as for `writing.events`."""
    events = _Events(reply, model_name)
    said, finish = events.beginning(), None
    try:
        async with aclosing(written_pieces(engine, reply, come)) as written:
            async for _, piece in written:
                finish = piece.finish_reason or finish
                if piece.text:
                    yield said + events.delta(piece.text)
                    said = ""
    except ApiError as error:
        yield said + events.failure(error)
        return
    except Exception:
        yield said + events.failure(unavailable())
        return
    yield said + events.ending(finish)


class _Events:
    """The events of one response, numbered on."""

    def __init__(self, reply: ServedReply, model_name: str) -> None:
        self._reply, self._model_name, self._number = reply, model_name, count()
        self._place = {"item_id": f"msg_{reply.identity}", "output_index": 0, "content_index": 0}

    def beginning(self) -> str:
        """Return what comes before the first text."""
        whole = whole_response(self._reply, self._reply.whole(0, "", None), self._model_name)
        begun = whole | {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        item = whole["output"][0] | {"status": "in_progress", "content": []}
        return "".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **self._place, part=_part("")),
            )
        )

    def delta(self, text: str) -> str:
        """Return what is said of more text."""
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def ending(self, finish_reason: str | None) -> str:
        """Return what comes after the last text."""
        text = self._reply.choices[0].text
        whole = whole_response(self._reply, self._reply.whole(0, text, finish_reason), self._model_name)
        (item,) = whole["output"]
        return "".join(
            (
                self._event("response.output_text.done", **self._place, text=text, logprobs=[]),
                self._event("response.content_part.done", **self._place, part=item["content"][0]),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{whole['status']}", response=whole),
            )
        )

    def failure(self, error: ApiError) -> str:
        """Return what is said of an answer that cannot be gone on with."""
        told = error.body["error"]
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _event(self, kind: str, **told: Any) -> str:
        body = {"type": kind, "sequence_number": next(self._number), **told}
        return f"event: {kind}\ndata: {json.dumps(body)}\n\n"


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
