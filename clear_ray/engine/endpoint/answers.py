"""From what an endpoint sends back to what came of a grant. Nothing in it is believed that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clear_ray.engine.base import UNKNOWN_TOKEN, Generation, Grant, Usage
from clear_ray.errors import EngineError
from clear_ray.ingest.logprobs import TokenLogprob, of_answer, read_content, read_legacy

_LONGEST_SAID = 200
_TAG = re.compile(r"<(script|style|head)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_ENDS = ("stop", "tool_calls", "function_call", "eos", "end_turn", "stop_sequence", "eos_token")


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """What a whole answer of an endpoint says.

    Attributes:
        text: What was written.
        finish: Why it ended, in the endpoint's words; empty if it does not say.
        usage: What it took; None if it does not say, or cannot be.
        has_reasoning: Whether something beside the text was written first.
        logprobs: Of the text's tokens; None if it does not say.
    """

    text: str
    finish: str
    usage: Usage | None
    has_reasoning: bool = False
    logprobs: tuple[TokenLogprob, ...] | None = None


class UnreadableError(ValueError):
    """What came is no answer; what it took is not known."""


def read_reply(body: Any) -> EndpointReply:
    """Return what the JSON of a whole answer says, of a chat or of legacy completions.

    Raises:
        UnreadableError: It is no answer.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise UnreadableError(_shown(body))
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    text = message.get("content")
    if text is None:  # of a call of a tool, a refusal, or thoughts that were cut off
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise UnreadableError(_shown(body))
    finish = choice.get("finish_reason")
    logprobs = of_answer(text, _read_logprobs(choice))
    finish = finish if isinstance(finish, str) else ""
    return EndpointReply(text, finish, read_usage(body, text), _has_reasoning(message), logprobs)


def read_pieces(pieces: Iterable[Any]) -> EndpointReply:
    """Return what the pieces of a streamed answer say together; without a reason of its end if it was cut off.

    Raises:
        UnreadableError: A piece is none.
    """
    text, finish, last, has_reasoning = [], "", {}, False
    entries: list[TokenLogprob] = []
    for piece in pieces:
        if not isinstance(piece, dict) or not isinstance(piece.get("choices", []), list):
            raise UnreadableError(_shown(piece))
        if piece.get("usage") is not None:
            last = piece
        for choice in piece.get("choices", [])[:1]:
            delta = choice.get("delta")
            part = delta.get("content") if isinstance(delta, dict) else choice.get("text")
            text.append(part if isinstance(part, str) else "")
            has_reasoning |= isinstance(delta, dict) and _has_reasoning(delta)
            entries += _read_logprobs(choice) or ()
            finish = choice.get("finish_reason") or finish
    whole = "".join(text)
    logprobs = of_answer(whole, entries) if entries else None
    return EndpointReply(whole, str(finish), read_usage(last, whole), has_reasoning, logprobs)


def read_usage(body: Mapping[str, Any], text: str) -> Usage | None:
    """Return the usage that an answer states; None if there is none, or it cannot be that of this text."""
    stated = body.get("usage")
    if not isinstance(stated, dict):
        return None
    prompt, output = _count(stated.get("prompt_tokens")), _count(stated.get("completion_tokens"))
    if output is None or (text and not output):
        return None
    cached = _count(_inner(stated, "prompt_tokens_details").get("cached_tokens")) or 0
    reasoning = _count(_inner(stated, "completion_tokens_details").get("reasoning_tokens")) or 0
    total = _count(stated.get("total_tokens"))
    if reasoning and prompt is not None and total == prompt + output + reasoning:  # some count it apart
        output += reasoning
    prompt = prompt or 0
    return Usage(prompt, min(cached, prompt), output, min(reasoning, output))


def generation_of(grant: Grant, reply: EndpointReply, *, sent_text: str, can_continue: bool) -> Generation:
    """Return what came of a grant.

    Args:
        grant: What was allowed.
        reply: What came.
        sent_text: Answer so far that was gone on with.
        can_continue: Whether the endpoint goes on with a text.

    Raises:
        EngineError: More was generated than was granted.
    """
    # What is not said counts as the worst that it can have been.
    spent = grant.max_tokens if reply.usage is None else reply.usage.output_tokens
    if spent > grant.max_tokens:
        raise EngineError(
            f"the endpoint generated {spent} tokens on a grant of {grant.max_tokens}",
            f"query {grant.query_id}",
            remedy="Look whether it honours max_tokens for this model: a cap that does not hold cannot be budgeted.",
        )
    is_cut, error = reply.finish == "length", ""
    if not is_cut and reply.finish not in _ENDS:
        error = f"the endpoint ended the answer: {reply.finish}" if reply.finish else ""
        # Some never say why; a grant that is used up has cut it.
        is_cut = not reply.finish and spent == grant.max_tokens
    text = sent_text + reply.text
    return Generation(
        query_id=grant.query_id,
        token_ids=(UNKNOWN_TOKEN,) * spent,
        text=text,
        finish_reason="cancelled" if error else "length" if is_cut else "stop",
        error=error,
        sample=grant.sample,
        usage=reply.usage,
        is_at_end=is_cut and not (can_continue and text.strip() and not reply.has_reasoning),
        logprobs=reply.logprobs,
    )


def lost(grant: Grant, reason: str) -> Generation:
    """Return the generation of a grant of which it is not known what it came to: all of it counts as spent."""
    spent = (UNKNOWN_TOKEN,) * max(grant.max_tokens, 0)
    return Generation(grant.query_id, spent, "", "cancelled", error=reason, sample=grant.sample, is_lost=True)


def failed(grant: Grant, error: str) -> Generation:
    """Return the generation of a grant for which nothing was generated."""
    return Generation(grant.query_id, (), "", "cancelled", error=error, sample=grant.sample)


def _read_logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    """Return what a choice says of its tokens, in the shape of a chat or of legacy completions."""
    stated = choice.get("logprobs")
    if not isinstance(stated, dict):
        return None
    return read_content(stated["content"]) if "content" in stated else read_legacy(stated)


def _has_reasoning(message: Mapping[str, Any]) -> bool:
    return any(isinstance(message.get(name), str) and message[name] for name in ("reasoning_content", "reasoning"))


def _inner(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = stated.get(name)
    return inner if isinstance(inner, dict) else {}


def _count(value: Any) -> int | None:
    """Return a number of tokens, or None if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def in_a_line(text: str) -> str:
    """Return words of an endpoint, of a page of HTML those that a reader would see, on one short line."""
    return " ".join(_TAG.sub(" ", text).split())[:_LONGEST_SAID]


def _shown(body: Any) -> str:
    return f"it is no answer: {in_a_line(str(body))}"
