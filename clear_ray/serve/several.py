"""A completion of several prompts: each is a query of its own, priced and settled by itself, and all come in one body.

Each counts among the queries that a key has under way. If one of them is refused, the request is, and the others end.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Sequence
from typing import Any

from clear_ray.errors import SchemaError
from clear_ray.ingest.requests import raw_prompts
from clear_ray.serve.answer import ServedReply
from clear_ray.serve.bodies import json_of
from clear_ray.serve.errors import ApiError

_MAY_BE_SEVERAL = re.compile(rb'"prompt"\s*:\s*\[\s*["\[]')
Written = tuple[ServedReply, list[dict[str, Any]]]
"""A query that has ended, and its choices."""


def bodies_of(body: bytes) -> list[bytes]:
    """Return a body for each prompt of a completion's; the body itself if it has one, or cannot be read.

    Raises:
        ApiError: 400: it wants them as a stream, or a prompt is none.
    """
    given = json_of(body) if _MAY_BE_SEVERAL.search(body) else None
    if not isinstance(given, dict):
        return [body]
    prompts = given.get("prompt")
    if not isinstance(prompts, list) or len(prompts) < 2 or not isinstance(prompts[0], str | list):
        return [body]
    try:
        found = [prompt for prompt, _ in raw_prompts(prompts, "prompt")]
    except SchemaError as error:
        raise ApiError(400, f"prompt: {error.what}. {error.remedy}", param="prompt", code="invalid_value") from None
    if given.get("stream"):
        message = "stream: not with several prompts. Send a request for each, or take the answers whole."
        raise ApiError(400, message, param="stream", code="unsupported_value")
    return [json.dumps({**given, "prompt": prompt}).encode() for prompt in found]


async def all_written(queries: Sequence[Coroutine[Any, Any, Written]]) -> list[Written]:
    """Return what came of each query; if one fails, end the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(query) for query in queries]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def joined(written: Sequence[Written], model_name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return one body, and its headers, for the queries of a request: choices numbered on, usage added up.

    The price is the highest at which one of them was sold, and the outcome that of all, or `mixed`.
    """
    replies = [reply for reply, _ in written]
    choices = [choice | {"index": k} for k, choice in enumerate(choice for _, some in written for choice in some)]
    usages = [reply.usage for reply in replies]
    outcomes = {reply.sale.outcome for reply in replies}
    ours = {
        "budget_tokens": sum(reply.granted_tokens for reply in replies),
        "spent_tokens": sum(reply.spent_tokens for reply in replies),
        "shadow_price": max(reply.sale.price for reply in replies),
        "outcome": outcomes.pop() if len(outcomes) == 1 else "mixed",
        "waited_seconds": max(usage["clear_ray"]["waited_seconds"] for usage in usages),
    }
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = {name: sum(usage[name] for usage in usages) for name in counted} | {"clear_ray": ours}
    headers = {
        "x-clear-ray-budget-tokens": str(ours["budget_tokens"]),
        "x-clear-ray-shadow-price": f"{ours['shadow_price']:.6g}",
        "x-clear-ray-outcome": str(ours["outcome"]),
        "x-clear-ray-spent-tokens": str(ours["spent_tokens"]),
    }
    return {**replies[0].frame(model_name, is_stream=False), "choices": choices, "usage": usage}, headers
