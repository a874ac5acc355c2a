"""From what an endpoint sends back to what came of a grant. Nothing in it is believed that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clear_ray.engine.base import UNKNOWN_TOKEN, Generation, Grant, Usage
from clear_ray.errors import EngineError
from clear_ray.ingest.logprobs import TokenLogprob, of_answer, read_content, read_legacy

_LONGEST_SAID = 200
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
_TAG = re.compile(r"<(script|style|head)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_ENDS = frozenset(
    ("stop", "tool_calls", "function_call", "tool_use", "eos", "end_turn", "stop_sequence", "eos_token", "complete")
) | frozenset(("completed", "finish", "finished", "end", "done", "endoftext", "stop_token", "eos_token_id"))
_UNSAID = frozenset(("", "null", "none"))
_CUT = re.compile(r"length|limit|max\w*tokens|context|truncat|time|incomplete|not_finished")
_KEPT_BACK = re.compile(
    r"filter|safe|recit|block|prohibit|spii|guard|refus|moderat|toxic|policy|sensitive|blacklist|violat|flag|malform|cancel"
)
_BROKEN_OFF = frozenset(("error", "abort", "insufficient_system_resource"))
_EVENT = re.compile(r"^data:", re.MULTILINE)
_NO_CHOICE = "it gave no answer"
_TOKENS_A_WORD = 4 / 3
_BAD_GATEWAY, _SERVER_ERROR = 502, 500


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


class StatedError(ValueError):
    """An error that came where an answer was due, with status 200: gateways send them once a call is under way.

    Args:
        stated: What it says of itself.
    """

    def __init__(self, stated: Any) -> None:
        super().__init__(stated)
        self.stated = stated if isinstance(stated, dict) else {"message": str(stated)}

    @property
    def status(self) -> int:
        """The status that it would have had, as far as it says so; one of a server otherwise."""
        code = self.stated.get("code") or self.stated.get("status")
        number = int(code) if isinstance(code, int | str) and str(code).isdigit() else 0
        return number if 400 <= number < 600 else _SERVER_ERROR


def read_reply(body: Any) -> EndpointReply:
    """Return what the JSON of a whole answer says, of a chat or of legacy completions.

    Raises:
        UnreadableError: It is no answer.
        StatedError: It says what went wrong.
    """
    if isinstance(body, str):  # sent as another kind of text than it is
        if _EVENT.search(body) and not body.lstrip().startswith(("{", "[")):  # before the first there may be comments
            return read_pieces(_events(body))
        body = _loaded(body)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not choices and isinstance(body, dict):
        if body.get("error"):
            raise StatedError(body["error"])
        if (usage := read_usage(body, "")) is not None:  # a filter took the answer, or the prompt
            return EndpointReply("", _NO_CHOICE, usage)
    if not isinstance(choice, dict):
        raise UnreadableError(_shown(body))
    _raise_if_broken_off(choice)
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    text = _words_of(message.get("content"))
    if text is None:  # of a call of a tool, a refusal, or thoughts that were cut off
        text = message.get("refusal") or ""
    if not isinstance(text, str):
        raise UnreadableError(_shown(body))
    text = of_whole_characters(text)
    logprobs, finish = of_answer(text, _read_logprobs(choice)), _finish_of(choice)
    return EndpointReply(text, finish, read_usage(body, text), _has_reasoning(message), logprobs)


def read_pieces(pieces: Iterable[Any]) -> EndpointReply:
    """Return what the pieces of a streamed answer say together; without a reason of its end if it was cut off.

    Raises:
        UnreadableError: A piece is none.
        StatedError: A piece says what went wrong.
    """
    text, finish, last, has_reasoning = [], "", {}, False
    entries: list[TokenLogprob] = []
    for piece in pieces:
        choices = (piece.get("choices") or []) if isinstance(piece, dict) else None
        if not isinstance(piece, dict) or not isinstance(choices, list):
            raise UnreadableError(_shown(piece))
        if piece.get("error"):
            raise StatedError(piece["error"])
        if piece.get("usage") is not None:
            last = piece
        for choice in choices[:1]:
            _raise_if_broken_off(choice)
            delta = choice.get("delta")
            part = _words_of(delta.get("content")) if isinstance(delta, dict) else choice.get("text")
            text.append(part if isinstance(part, str) else "")
            has_reasoning |= isinstance(delta, dict) and _has_reasoning(delta)
            entries += _read_logprobs(choice) or ()
            finish = _finish_of(choice) or finish
    whole = of_whole_characters("".join(text))
    logprobs = of_answer(whole, entries) if entries else None
    return EndpointReply(whole, finish, read_usage(last, whole), has_reasoning, logprobs)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _events(text: str) -> list[Any]:
    """Return the pieces of a stream that came as one text."""
    said = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    return [_loaded(line) for line in said if line != "[DONE]"]


def is_closing(piece: Any) -> bool:
    """Return whether a piece is one that comes after an answer's end alone: its usage, without a choice."""
    return isinstance(piece, dict) and not piece.get("choices") and isinstance(piece.get("usage"), dict)


def _words_of(content: Any) -> Any:
    """Return the text of what is written in parts, some of which may be thoughts; anything else as it is."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
    return "".join(str(part.get("text") or "") for part in parts)


def _finish_of(choice: Mapping[str, Any]) -> str:
    finish = choice.get("finish_reason")
    if isinstance(finish, dict):
        finish = finish.get("type")
    return of_whole_characters(finish) if isinstance(finish, str) and finish.lower() not in _UNSAID else ""


def _raise_if_broken_off(choice: Mapping[str, Any]) -> None:
    stated, finish = choice.get("error"), _finish_of(choice)
    if stated or finish.lower() in _BROKEN_OFF:
        raise StatedError(stated or {"code": _BAD_GATEWAY, "message": f"it was broken off: {finish}"})


def read_usage(body: Mapping[str, Any], text: str) -> Usage | None:
    """Return the usage that an answer states; None if there is none, or it cannot be that of this text.

    What the total has beside prompt and answer is thoughts: some count them there alone, and all charge them.
    """
    stated = body.get("usage")
    if not isinstance(stated, dict):
        return None
    prompt, output = (
        _first(stated, "prompt_tokens", "input_tokens"),
        _first(stated, "completion_tokens", "output_tokens"),
    )
    total = _count(stated.get("total_tokens"))
    if output is None and not text and prompt and total is not None:
        output = 0
    if output is None or (text and not output):
        return None
    cached = _count(_inner(stated, "prompt_tokens_details").get("cached_tokens"))
    if cached is None:
        cached = max((_count(stated.get(name)) or 0 for name in _CACHED), default=0)
    reasoning = _count(_inner(stated, "completion_tokens_details").get("reasoning_tokens")) or 0
    if prompt and total is not None and (unnamed := total - prompt - output) > 0:
        output, reasoning = output + unnamed, max(reasoning, unnamed)
    prompt = prompt or 0
    return Usage(prompt, min(cached, prompt), output, min(reasoning, output))


def _first(stated: Mapping[str, Any], *names: str) -> int | None:
    """Return the number under the first of some names that has one."""
    return next((number for name in names if (number := _count(stated.get(name))) is not None), None)


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
    was_cut, error = is_cut(reply), ""
    if is_kept_back(reply):
        error = f"the endpoint ended the answer: {reply.finish}"
    elif not was_cut and reply.finish.lower() not in _ENDS:
        # Some never say why; a grant that is used up has cut it. Where nobody counted there are four tokens to three words.
        used = len(reply.text.split()) * _TOKENS_A_WORD if reply.usage is None else spent
        was_cut = used >= grant.max_tokens
    text = sent_text + reply.text
    return Generation(
        query_id=grant.query_id,
        token_ids=(UNKNOWN_TOKEN,) * spent,
        text=text,
        finish_reason="cancelled" if error else "length" if was_cut else "stop",
        error=error,
        sample=grant.sample,
        usage=reply.usage,
        is_at_end=was_cut
        and (is_cut_short(grant, reply) or not (can_continue and text.strip() and not reply.has_reasoning)),
        logprobs=reply.logprobs,
    )


def is_cut(reply: EndpointReply) -> bool:
    """Return whether an answer says that a ceiling ended it, in whichever words."""
    return not is_kept_back(reply) and bool(_CUT.search(reply.finish.lower()))


def is_kept_back(reply: EndpointReply) -> bool:
    """Return whether an answer says that it is none: a filter ended it, or something unknown before a word was written."""
    finish = reply.finish.lower()
    if not finish or finish in _ENDS:
        return False
    return bool(_KEPT_BACK.search(finish)) or not (reply.text or reply.has_reasoning or _CUT.search(finish))


def is_unknown_end(reply: EndpointReply) -> bool:
    """Return whether why an answer ended is said in words that are not known: it counts as ended by itself, then."""
    return bool(reply.finish) and reply.finish.lower() not in _ENDS and not is_cut(reply) and not is_kept_back(reply)


def is_cut_short(grant: Grant, reply: EndpointReply) -> bool:
    """Return whether a limit of the endpoint's own has cut an answer, below what was granted: more would bring nothing."""
    spent = grant.max_tokens if reply.usage is None else reply.usage.output_tokens
    return is_cut(reply) and spent < grant.max_tokens


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
    content = message.get("content")
    if isinstance(content, list) and any(isinstance(part, dict) and "thinking" in part for part in content):
        return True
    return any(isinstance(message.get(name), str) and message[name] for name in ("reasoning_content", "reasoning"))


def _inner(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = stated.get(name)
    return inner if isinstance(inner, dict) else {}


def _count(value: Any) -> int | None:
    """Return a number of tokens, or None if it is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def in_a_line(text: str) -> str:
    """Return words of an endpoint, of a page of HTML those that a reader would see, on one short line."""
    return of_whole_characters(" ".join(_TAG.sub(" ", text).split()))[:_LONGEST_SAID]


def of_whole_characters(text: str) -> str:
    """Return a text that can be written: JSON may hold halves of characters, which no file does.

    Halves that belong together, as pieces of a stream may have them, are joined; others are replaced.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _shown(body: Any) -> str:
    return f"it is no answer: {in_a_line(str(body))}"
