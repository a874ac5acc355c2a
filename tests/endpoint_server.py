"""A real OpenAI-compatible server for tests and benchmarks: what it answers is known, and it fails as it is told.

Its model writes the words `w1 w2 w3 …`, one token each, and stops after as many as the prompt's last number says (12 if it
has none). It counts honestly what it generated; what it *says* of that may be made a lie.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from aiohttp import web

KEY = "sk-of-a-test-0123456789"
MODEL = "words"


@dataclass
class Behaviour:
    """What the server does; may be changed while it runs.

    Attributes:
        key: What callers must show; None for all comers.
        seconds: How long a call takes.
        most_at_once: Calls at the same time above which it answers 429.
        per_second: Calls a second above which it answers 429, with a burst of `burst` calls.
        retry_after: What 429 and 503 say of it: `seconds`, `date` or nothing.
        goes_on: Whether it honours `continue_final_message`; None refuses the field.
        faults: What becomes of the next calls, in order: see `Endpoint._answer`; None for an answer.
        lists: Whether it lists its models.
        owner: Whose its model is, as the list says.
        ceiling_field: The field that it takes a ceiling in.
        refuses: Fields that it takes not.
        logprobs: Whether it tells them where they are asked for.
        knows: Names that it answers to, beside those that it lists; None for whatever it is asked.
        listed: Names of its models as it lists them.
        list_status: What it answers to whoever asks for its list.
        headers: Of every call.
    """

    key: str | None = None
    seconds: float = 0.0
    logprobs: bool = True
    most_at_once: int | None = None
    per_second: float | None = None
    burst: float = 1.0
    retry_after: str | None = None
    retry_after_seconds: float = 1.0
    goes_on: bool | None = True
    lists: bool = True
    owner: str = "tests"
    ceiling_field: str = "max_tokens"
    refuses: tuple[str, ...] = ()
    usage: Any = "honest"
    knows: tuple[str, ...] | None = ()
    listed: tuple[str, ...] = (MODEL,)
    list_status: int = 200
    faults: deque[Any] = field(default_factory=deque)


class Endpoint:
    """The server; `counts`, `bodies` and `generated_tokens` say what it was asked and did."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.counts: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.generated_tokens = 0
        self.busy_seconds = 0.0
        self.most_seen = self._at_once = 0
        self._left, self._at = behaviour.burst, time.monotonic()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/page/models", self._page)
        app.router.add_post("/v1/chat/completions", self._call)
        app.router.add_post("/v1/completions", self._call)
        return app

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if not self._is_let_in(request):
            return _error(401, "Incorrect API key provided: " + request.headers.get("Authorization", ""), "bad_key")
        if not self.behaviour.lists:
            return web.Response(
                status=404, text="<html><body><h1>Not Found</h1></body></html>", content_type="text/html"
            )
        if self.behaviour.list_status != 200:
            return _error(self.behaviour.list_status, "Missing scopes: api.model.read.", "insufficient_permissions")
        model = {"object": "model", "owned_by": self.behaviour.owner, "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [model | {"id": name} for name in self.behaviour.listed]})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html><h1>Welcome</h1></html>", content_type="text/html")

    def _is_let_in(self, request: web.Request) -> bool:
        return self.behaviour.key is None or request.headers.get("Authorization") == f"Bearer {self.behaviour.key}"

    async def _call(self, request: web.Request) -> web.StreamResponse:
        self.times.append(time.monotonic())
        self.headers.append(dict(request.headers))
        body = await request.json()
        self.bodies.append(body)
        if not self._is_let_in(request):
            return _error(401, "Incorrect API key provided.", "invalid_api_key")
        started = time.monotonic()
        self._at_once += 1
        self.most_seen = max(self.most_seen, self._at_once)
        try:
            return await self._answer(request, body)
        finally:
            self._at_once -= 1
            self.busy_seconds += time.monotonic() - started

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        does = self.behaviour
        if does.knows is not None and body["model"] not in (*does.knows, *does.listed):
            return _error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        fault = does.faults.popleft() if does.faults else None
        if callable(fault):  # which answers itself
            response: web.StreamResponse = await fault(request)
            return response
        if isinstance(fault, tuple):  # a status and a body
            return web.json_response(fault[1], status=fault[0])
        if fault == "429" or self._is_too_much():
            self.counts["limited"] += 1
            return _error(429, "Rate limit reached.", "rate_limit_exceeded", self._retry_after())
        if fault == "no money":
            return _error(429, "You exceeded your current quota.", "insufficient_quota")
        if fault == "503":
            self.counts["busy"] += 1
            return _error(503, "The server is overloaded.", "overloaded", self._retry_after())
        if fault == "slow headers":
            await asyncio.sleep(1.5)
        refused = [name for name in does.refuses if name in body]
        if does.ceiling_field not in body:
            refused.append("max_tokens")
        if fault == "400" or refused:
            self.counts["refused"] += 1
            name = refused[0] if refused else "messages"
            said = f"Unsupported parameter: '{name}'. Use '{does.ceiling_field}' instead."
            return _error(400, said if refused else "This prompt is not liked.", "unsupported_parameter", param=name)
        if does.goes_on is None and "continue_final_message" in body:
            return _error(400, "Unrecognized request argument supplied: continue_final_message", "unknown")
        return await self._generate(request, body, fault)

    async def _generate(self, request: web.Request, body: dict[str, Any], fault: Any) -> web.StreamResponse:
        answer = self._written(body)
        await asyncio.sleep(self.behaviour.seconds)
        self.generated_tokens += answer.tokens
        if fault in ("500", "html 502"):
            self.counts["lost"] += 1
            if fault == "500":
                return _error(500, "The server had an error.", "server_error")
            return web.Response(
                status=502,
                text="<html><head><title>x</title></head><h1>Bad gateway</h1></html>",
                content_type="text/html",
            )
        if fault == "html":
            return web.Response(text="<html><h1>Please log in</h1></html>", content_type="text/html")
        if fault == "reset":
            self.counts["lost"] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.counts["answered"] += 1
        of_stream = ("truncated", "error in a stream", "no choices")
        said = answer.body(self.behaviour.usage if fault is None or fault in of_stream else fault)
        if body.get("logprobs") not in (None, False) and self.behaviour.logprobs:
            said["choices"][0]["logprobs"] = answer.logprobs(_pieces(answer.text), body)
        if body.get("stream"):
            return await self._streamed(request, said, fault)
        if fault == "truncated":
            return await self._truncated(request, json.dumps(said))
        return web.json_response(said)

    async def _streamed(self, request: web.Request, said: dict[str, Any], fault: Any) -> web.StreamResponse:
        is_cut = fault in ("truncated", "error in a stream")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        choice = said["choices"][0]
        pieces = _pieces(choice["message"]["content"] if "message" in choice else choice["text"])
        entries = (choice.get("logprobs") or {}).get("content")
        for place, piece in enumerate(pieces[: len(pieces) // 2] if is_cut else pieces):
            part = {"delta": {"content": piece}} if "message" in choice else {"text": piece}
            part |= {"logprobs": {"content": entries[place : place + 1]}} if entries else {}
            await _event(response, {"choices": [{**part, "finish_reason": None}]})
        if fault == "error in a stream":
            await _event(response, {"error": {"code": 502, "message": "Overheated"}, "choices": []})
            return response
        if is_cut:
            assert request.transport is not None
            request.transport.abort()
            return response
        await _event(response, {"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]})
        await _event(response, {"choices": None if fault == "no choices" else [], "usage": said.get("usage")})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _truncated(self, request: web.Request, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(text))})
        await response.prepare(request)
        await response.write(text[: len(text) // 2].encode())
        assert request.transport is not None
        request.transport.close()
        return response

    def _written(self, body: dict[str, Any]) -> _Written:
        ceiling = body[self.behaviour.ceiling_field]
        if "prompt" in body:
            prompt, _, begun = str(body["prompt"]).partition(" w1")
            begun, read = f"w1{begun}" if begun else "", len(str(body["prompt"]).split())
            is_chat = False
        else:
            turns = body["messages"]
            prompt = next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")
            is_gone_on = bool(body.get("continue_final_message")) and bool(self.behaviour.goes_on)
            begun = turns[-1]["content"] if is_gone_on else ""
            read = sum(len(turn["content"].split()) + 3 for turn in turns) + (0 if is_gone_on else 3)
            is_chat = True
        numbers = re.findall(r"\d+", prompt)
        due = int(numbers[-1]) if numbers else 12
        done = len(begun.split())
        words = [f"w{place + 1}" for place in range(done, min(due, done + ceiling))]
        # The end is a token of its own.
        is_cut = done + ceiling <= due
        text = (" " if words and (begun or not is_chat) else "") + " ".join(words)
        return _Written(text, len(words) + (not is_cut), "length" if is_cut else "stop", read, is_chat)

    def _is_too_much(self) -> bool:
        does, now = self.behaviour, time.monotonic()
        if does.most_at_once is not None and self._at_once > does.most_at_once:
            return True
        if does.per_second is None:
            return False
        self._left = min(does.burst, self._left + (now - self._at) * does.per_second)
        self._at = now
        if self._left < 1.0:
            return True
        self._left -= 1.0
        return False

    def _retry_after(self) -> dict[str, str]:
        does = self.behaviour
        if does.retry_after is None:
            return {}
        if does.retry_after == "seconds":
            return {"Retry-After": f"{does.retry_after_seconds:g}"}
        return {"Retry-After": formatdate(time.time() + does.retry_after_seconds, usegmt=True)}


@dataclass(frozen=True)
class _Written:
    text: str
    tokens: int
    finish: str
    prompt_tokens: int
    is_chat: bool

    def logprobs(self, pieces: list[str], asked: dict[str, Any]) -> dict[str, Any]:
        """Return them as vLLM's server does, which tells of the end token too; that of word k is -k/8."""
        pieces = [*pieces, "<|end|>"] if self.finish == "stop" else pieces
        values = [-int("".join(filter(str.isdigit, piece)) or 0) / 8 for piece in pieces]
        if not self.is_chat:
            tops = [{piece: value, "?": -9.0} for piece, value in zip(pieces, values, strict=True)]
            offsets = [0] * len(pieces)
            return {"tokens": pieces, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
        top = [{"token": "?", "logprob": -9.0, "bytes": None}][: asked.get("top_logprobs") or 0]
        said = zip(pieces, values, strict=True)
        return {"content": [{"token": p, "logprob": v, "bytes": [*p.encode()], "top_logprobs": top} for p, v in said]}

    def body(self, usage: Any) -> dict[str, Any]:
        honest = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        part = {"message": {"role": "assistant", "content": self.text}} if self.is_chat else {"text": self.text}
        said = {"id": "x", "object": "x", "choices": [{"index": 0, "finish_reason": self.finish, **part}]}
        if usage == "honest":
            return said | {"usage": honest}
        return said if usage is None else said | {"usage": honest | usage}


def _pieces(text: str) -> list[str]:
    return re.findall(r" ?[^ ]+| $", text)


def _error(
    status: int, message: str, code: str, headers: dict[str, str] | None = None, *, param: str | None = None
) -> web.Response:
    body = {"error": {"message": message, "type": "error", "code": code, "param": param}}
    return web.json_response(body, status=status, headers=headers or {})


async def _event(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(body)}\n\n".encode())


@contextmanager
def endpoint(**behaviour: Any) -> Iterator[Endpoint]:
    """Serve in a thread of its own, on a port of its own."""
    served, is_up, loop = Endpoint(Behaviour(**behaviour)), threading.Event(), asyncio.new_event_loop()

    stop = asyncio.Event()

    async def start() -> None:
        runner = web.AppRunner(served.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        served.port = runner.addresses[0][1]
        is_up.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(start()), daemon=True)
    thread.start()
    assert is_up.wait(10)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


if __name__ == "__main__":
    with endpoint(**json.loads(sys.argv[1])) as served:
        print(served.base_url, flush=True)
        sys.stdin.read()
        facts = {"counts": served.counts, "generated_tokens": served.generated_tokens, "most_seen": served.most_seen}
        facts["busy_seconds"] = served.busy_seconds
        print(json.dumps(facts), flush=True)
