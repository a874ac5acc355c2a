"""A request of vLLM, and what comes of it: the tokens are chosen by `vllm_choice`, so vLLM is asked for the likeliest.

What vLLM does by itself is to stop, and to tell log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clear_ray.engine.base import FinishReason
from clear_ray.engine.batch import ReadToken, RunningGrant
from clear_ray.engine.choice import Stops, TokenChoice


def stopping(
    answer: RunningGrant, choice: TokenChoice, end_token_ids: tuple[int, ...], *, max_tokens: int
) -> dict[str, Any]:
    """Return arguments of `SamplingParams`, of what ends the answer.

    Args:
        answer: About to go on behind what it holds.
        choice: How its tokens are chosen.
        end_token_ids: Tokens that end every answer.
        max_tokens: Max tokens of the request; vLLM refuses a least length above it.
    """
    arguments: dict[str, Any] = {"stop_token_ids": sorted({*end_token_ids, *choice.stop_token_ids})}
    if answer.stops is None:
        return arguments
    arguments["stop"] = list(answer.stops.texts)
    if answer.matcher is None:  # a structure that is over ends before its least length
        arguments["min_tokens"] = min(max_tokens, max(0, choice.min_tokens - answer.length))
    return arguments


def may_span(stops: Stops, token_ids: Sequence[int]) -> bool:
    """Return whether an answer ends in the middle of what may become a stop, which vLLM does not see behind a prompt."""
    text = stops.text_of(token_ids[-stops.window_tokens :])
    return any(text.endswith(stop[:length]) for stop in stops.texts for length in range(1, len(stop)))


def has_stop(answer: RunningGrant, new_tokens: int) -> bool:
    """Return whether an answer, whose last tokens are new, holds a stop."""
    stops, token_ids = answer.stops, answer.token_ids
    if stops is None or not new_tokens:
        return False
    newest = stops.text_of(token_ids[-(stops.window_tokens + new_tokens) :])
    return any(text in newest for text in stops.texts) and stops.cut(token_ids) is not None


def read_tokens(answer: RunningGrant, output: Any) -> list[ReadToken]:
    """Return what the model thought of the tokens of an output, where the answer asks for it.

    Args:
        answer: The answer.
        output: What vLLM has generated since the last one, its `CompletionOutput`.
    """
    if (most := answer.top_logprobs) is None:
        return []
    read = []
    for token_id, known in zip(output.token_ids, output.logprobs, strict=True):
        top = sorted(((other, entry.logprob) for other, entry in known.items()), key=lambda pair: -pair[1])
        read.append(ReadToken(token_id, known[token_id].logprob, tuple(top[:most])))
    return read


def kept_to_structure(answer: RunningGrant, reason: FinishReason, ends: frozenset[int]) -> RunningGrant:
    """Mark an answer as ended, as its structure has it: over, though its grant is, or failed.

    Args:
        answer: What vLLM has generated of it is all there is.
        reason: How that ended.
        ends: Tokens that end it.
    """
    matcher, generated = answer.matcher, answer.generated
    if matcher is None:
        return answer.end(reason)
    is_ended = bool(generated) and generated[-1] in ends
    if not matcher.take(generated[: -1 if is_ended else None]) or (is_ended and not matcher.is_complete):
        return answer.end("cancelled", f"its structure: {matcher.error or 'the answer does not keep to it'}")
    return answer.end("stop" if reason == "length" and matcher.is_over else reason)
