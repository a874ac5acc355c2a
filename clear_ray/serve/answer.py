"""One query on its way to an answer: what was bought, what has come, and how that looks in OpenAI's form."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from clear_ray.engine.base import Grant
from clear_ray.ingest.logprobs import TokenLogprob, chat_logprobs, legacy_logprobs, of_answer
from clear_ray.serve.asking import Piece, PromptReading, ServedQuery
from clear_ray.serve.protocol import ChatRequest, QueryRequest
from clear_ray.serve.sale_queue import Sale


@dataclass(slots=True)
class Choice:
    """What has come of one of the answers that a query asked for."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    is_over: bool = False
    read: tuple[TokenLogprob, ...] | None = ()
    told: int = 0

    def take(self, piece: Piece) -> None:
        """Add a piece."""
        self.token_ids += piece.token_ids
        self.text += piece.text
        self.is_over = piece.finish_reason is not None
        self.read = None if self.read is None or piece.logprobs is None else self.read + piece.logprobs

    def untold(self) -> tuple[tuple[TokenLogprob, ...] | None, int]:
        """Return the log-probabilities of the text so far that were not returned yet, and how many characters were before."""
        entries = of_answer(self.text, self.read)
        if entries is None:
            return None, 0
        before, self.told = self.told, len(entries)
        return entries[before:], len(b"".join(entry.token for entry in entries[:before]).decode(errors="replace"))


@dataclass(slots=True)
class ServedReply:
    """One query under way.

    Attributes:
        request: Request as it came in.
        asked: The query as the engines know it.
        reading: What the probe found.
        sale: What was bought.
        first_at: When its first tokens came, seconds of a steady clock; None before.
        choices: What has come of each choice.
        has_logprobs: Whether log-probabilities are asked for.
    """

    request: QueryRequest
    asked: ServedQuery
    reading: PromptReading
    sale: Sale
    first_at: float | None = None
    choices: list[Choice] = field(init=False)
    has_logprobs: bool = field(init=False)

    def __post_init__(self) -> None:
        self.choices = [Choice() for _ in range(self.request.n)]
        sampling = self.request.sampling
        self.has_logprobs = sampling is not None and sampling.logprobs is not None

    @property
    def granted_tokens(self) -> int:
        """Ceilings of all choices together."""
        return self.sale.tokens * self.request.n

    @property
    def spent_tokens(self) -> int:
        """Tokens generated so far, of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    def take(self, choice: int, piece: Piece) -> None:
        """Add a piece to one of the choices."""
        if self.first_at is None and piece.token_ids:
            self.first_at = time.monotonic()
        self.choices[choice].take(piece)

    def grant(self, number: int) -> Grant:
        """Return permission to generate what a choice may still have, going on after what has come of it."""
        return self.asked.grant(number, self.sale.tokens, self.choices[number].token_ids)

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's usage block, with ours inside."""
        return {
            "prompt_tokens": self.reading.prompt_tokens,
            "completion_tokens": self.spent_tokens,
            "total_tokens": self.reading.prompt_tokens + self.spent_tokens,
            "clear_ray": {
                "budget_tokens": self.granted_tokens,
                "spent_tokens": self.spent_tokens,
                "shadow_price": self.sale.price,
                "outcome": self.sale.outcome,
                "waited_seconds": round(self.sale.waited_seconds, 3),
            },
        }

    def headers(self, *, is_over: bool) -> dict[str, str]:
        """What the usage block says, as headers; the tokens spent only when that is known."""
        said = {
            "x-clear-ray-budget-tokens": str(self.granted_tokens),
            "x-clear-ray-shadow-price": f"{self.sale.price:.6g}",
            "x-clear-ray-outcome": self.sale.outcome,
        }
        return said | ({"x-clear-ray-spent-tokens": str(self.spent_tokens)} if is_over else {})

    @property
    def is_chat(self) -> bool:
        """Whether it is written as a message, not as bare text."""
        return isinstance(self.request, ChatRequest)

    @property
    def identity(self) -> str:
        """What its id ends with."""
        return hashlib.sha256(f"{self.asked.name}{self.sale.hold}".encode()).hexdigest()[:24]

    def frame(self, model_name: str, *, is_stream: bool) -> dict[str, Any]:
        """Return what every body and event of this answer begins with."""
        if self.is_chat:
            identity, kind = f"chatcmpl-{self.identity}", "chat.completion.chunk" if is_stream else "chat.completion"
        else:
            identity, kind = f"cmpl-{self.identity}", "text_completion"
        return {"id": identity, "object": kind, "created": int(time.time()), "model": model_name}

    def whole(self, choice: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        """Return one choice of a body."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {"index": choice, **said, "logprobs": self._logprobs(choice), "finish_reason": finish_reason}

    def part(self, choice: int, text: str, finish_reason: str | None, *, is_first: bool = False) -> dict[str, Any]:
        """Return one choice of an event."""
        logprobs = None if is_first else self._logprobs(choice)
        if not self.is_chat:
            return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        content = {"role": "assistant", "content": text} if is_first else {"content": text} if text else {}
        return {"index": choice, "delta": content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, choice: int) -> dict[str, Any] | None:
        """Return what is new of a choice's log-probabilities, where they are asked for."""
        if not self.has_logprobs:
            return None
        entries, begin = self.choices[choice].untold()
        return chat_logprobs(entries) if self.is_chat else legacy_logprobs(entries, begin=begin)


def event(body: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(body)}\n\n"
