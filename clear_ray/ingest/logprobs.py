"""Log-probabilities of an answer's tokens, in the shapes of OpenAI's answers.

They are the model's own, before temperature, penalties and filters, natural logarithms. There is one entry for each token
that has text in the answer: those of its end, and what is cut away at a stop text, have none. So the bytes of all entries are
the answer's text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON does not have; OpenAI's own word for very unlikely."""
NOT_GIVEN = "null"
"""What stands for the entries of an answer whose endpoint gave none though they were asked for."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of an answer.

    Attributes:
        token: Its bytes; they may be a part of a character.
        logprob: Its log-probability.
        top: The likeliest tokens in its place, with theirs, the likeliest first.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


def dump_logprobs(entries: Iterable[TokenLogprob] | None) -> str:
    """Return the JSON text of entries, a chat's `logprobs.content`; `NOT_GIVEN` for None."""
    if entries is None:
        return NOT_GIVEN
    return json.dumps([_told(entry) for entry in entries], ensure_ascii=False, separators=(",", ":"))


def load_logprobs(text: str | None) -> tuple[TokenLogprob, ...] | None:
    """Return what `dump_logprobs` wrote; None also for an answer of which none were asked."""
    return read_content(json.loads(text)) if text else None


def read_content(content: Any) -> tuple[TokenLogprob, ...] | None:
    """Return the entries of a chat's `logprobs.content`; None where it is none."""
    if not isinstance(content, list):
        return None
    try:
        return tuple(_read(entry, _pairs(entry.get("top_logprobs") or ())) for entry in content)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def read_legacy(logprobs: Any) -> tuple[TokenLogprob, ...] | None:
    """Return the entries of the `logprobs` of legacy completions; None where it is none."""
    try:
        tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
        tops = logprobs.get("top_logprobs") or [None] * len(tokens)
        return tuple(
            TokenLogprob(_encoded(token), _number(value), _ordered((top or {}).items()))
            for token, value, top in zip(tokens, values, tops, strict=True)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def chat_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Return entries as a choice of a chat has them; None for None."""
    return None if entries is None else {"content": [_told(entry) for entry in entries], "refusal": None}


def legacy_logprobs(entries: Sequence[TokenLogprob] | None, *, begin: int = 0) -> dict[str, Any] | None:
    """Return entries as a choice of legacy completions has them; None for None.

    The token itself stands among the likeliest ones, as it does there.

    Args:
        entries: The entries.
        begin: Characters of the answer before the first of them.
    """
    if entries is None:
        return None
    offsets, place, decoder = [], begin, _decoder()
    for entry in entries:
        offsets.append(place)
        place += len(decoder.decode(entry.token))
    return {
        "tokens": [_text(entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{_text(token): value for token, value in (*entry.top, _itself(entry))} for entry in entries],
        "text_offset": offsets,
    }


def within(entries: Sequence[TokenLogprob], characters: int) -> int:
    """Return how many entries begin in the first characters of the answer."""
    place, decoder = 0, _decoder()
    for count, entry in enumerate(entries):
        if place >= characters:
            return count
        place += len(decoder.decode(entry.token))
    return len(entries)


def of_answer(
    text: str, new: Sequence[TokenLogprob] | None, earlier: Sequence[TokenLogprob] | None = ()
) -> tuple[TokenLogprob, ...] | None:
    """Return the entries of an answer so far.

    Args:
        text: The answer so far.
        new: Entries of the tokens that its last grant gave; None if they are not known.
        earlier: Entries of the answer before, of which the end may have been cut away before it was gone on with.
    """
    if not text:
        return ()
    if new is None or earlier is None:
        return None
    came = b"".join(entry.token for entry in new).decode(errors="replace")
    if earlier and text.endswith(came):
        earlier = earlier[: within(earlier, len(text) - len(came))]
    entries = (*earlier, *new)
    if entries and entries[0].token.startswith(b" ") and not text.startswith(" "):
        # A tokenizer that marks the beginning of words: its texts begin without the first mark.
        entries = (TokenLogprob(entries[0].token[1:], entries[0].logprob, entries[0].top), *entries[1:])
    return entries[: within(entries, len(text))]


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _encoded(token: str) -> bytes:
    """Return a token as bytes; half of a character, which JSON may hold, is replaced."""
    return token.encode(errors="replace")


def _text(token: bytes) -> str:
    return token.decode(errors="replace")


def _itself(entry: TokenLogprob) -> tuple[bytes, float]:
    return entry.token, entry.logprob


def _told(entry: TokenLogprob) -> dict[str, Any]:
    top = [{"token": _text(token), "logprob": value, "bytes": list(token)} for token, value in entry.top]
    return {
        "token": _text(entry.token),
        "logprob": entry.logprob,
        "bytes": list(entry.token),
        "top_logprobs": top,
    }


def _read(entry: Any, top: tuple[tuple[bytes, float], ...]) -> TokenLogprob:
    return TokenLogprob(_bytes(entry), _number(entry["logprob"]), top)


def _pairs(entries: Iterable[Any]) -> tuple[tuple[bytes, float], ...]:
    return _ordered((_bytes(entry), entry["logprob"]) for entry in entries)


def _bytes(entry: Any) -> bytes:
    known = entry.get("bytes")
    return _encoded(entry["token"]) if known is None else bytes(known)


def _ordered(pairs: Iterable[tuple[bytes | str, Any]]) -> tuple[tuple[bytes, float], ...]:
    read = [(_encoded(token) if isinstance(token, str) else token, _number(value)) for token, value in pairs]
    return tuple(sorted(read, key=lambda pair: -pair[1]))


def _number(value: Any) -> float:
    """Return a log-probability as JSON can hold it; legacy completions have null for a text's first token."""
    if value is None:
        return 0.0
    number = float(value)
    if number != number:
        raise ValueError("it is no number")
    return max(number, LEAST_LOGPROB)
