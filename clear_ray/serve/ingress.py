"""The HTTP door: OpenAI's chat completions over the probe, the price and the engine.

For each query: read (probe) -> buy (price) -> write (engine) -> settle. Whatever happens after the purchase, the hold is
settled: with the tokens that came back where the engine says so. If an engine replica dies before anything came back, the
query is tried once more under the same hold; after that it fails with status 503 and its tokens are given back.
"""

# No postponed annotations here, and nothing that routes use below the class: Serve copies the application by value at the
# moment of decoration, and FastAPI resolves annotations in the copy.
import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from clear_ray.engine.base import Grant
from clear_ray.serve.deployments import Piece, Reading
from clear_ray.serve.guard import Guard
from clear_ray.serve.price import Ask
from clear_ray.serve.protocol import ApiError, ChatRequest, read_request
from clear_ray.serve.seller import Sale
from clear_ray.serve.settings import ServeConfig

OPEN_PATHS = frozenset({"/healthz"})
"""Paths that answer without a key."""
_MOST_TRIES = 2
_REFUSALS = {
    "no_surplus": "At the price in force no ceiling is worth its tokens for this query.",
    "no_tokens": "The tokens of this moment are sold.",
    "queue_full": "The queue is full.",
    "deadline": "The price did not fall, or no tokens came back, within the longest wait.",
}

api = FastAPI(title="clear_ray", docs_url=None, redoc_url=None, openapi_url=None)


@api.exception_handler(ApiError)
async def _say_api_error(request: Request, error: ApiError) -> Response:
    del request
    return JSONResponse(error.body, error.status, headers=error.headers)


@api.exception_handler(HTTPException)
async def _say_http_error(request: Request, error: HTTPException) -> Response:
    return await _say_api_error(request, ApiError(error.status_code, str(error.detail)))


@api.exception_handler(Exception)
async def _say_defect(request: Request, error: Exception) -> Response:
    del error  # it is in the replica's log
    return await _say_api_error(request, ApiError(500, "The server failed on this query.", code="internal_error"))


@dataclass(slots=True)
class Answer:
    """One query under way.

    Attributes:
        request: As it came in.
        query_id: Its name for the engine.
        reading: What the probe found.
        sale: What was bought.
        seed: Of its sampling.
        spent_tokens_N: Tokens generated for each choice so far.
    """

    request: ChatRequest
    query_id: str
    reading: Reading
    sale: Sale
    seed: int
    spent_tokens_N: list[int] = field(default_factory=list)

    @property
    def granted_tokens(self) -> int:
        """Ceilings of all choices together."""
        return self.sale.tokens * self.request.n

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's usage block, with ours inside."""
        spent = sum(self.spent_tokens_N)
        return {
            "prompt_tokens": self.reading.prompt_tokens,
            "completion_tokens": spent,
            "total_tokens": self.reading.prompt_tokens + spent,
            "clear_ray": {
                "budget_tokens": self.granted_tokens,
                "spent_tokens": spent,
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
        return said | ({"x-clear-ray-spent-tokens": str(sum(self.spent_tokens_N))} if is_over else {})


class Meters:
    """Prometheus metrics of one ingress replica, and those of the price as it was last asked. No label holds text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queries = Counter("clear_ray_queries", "Queries by outcome.", ["outcome"], registry=self.registry)
        self.granted = Counter("clear_ray_granted_tokens", "Tokens granted.", registry=self.registry)
        self.generated = Counter("clear_ray_generated_tokens", "Tokens generated.", registry=self.registry)
        self.seconds = Histogram("clear_ray_query_seconds", "Seconds from request to answer.", registry=self.registry)
        self._gauges: dict[str, Gauge] = {}

    def show(self, name: str, value: float) -> None:
        """Set a gauge."""
        if name not in self._gauges:
            words = name.replace("_", " ").capitalize()
            self._gauges[name] = Gauge(f"clear_ray_{name}", f"{words}.", registry=self.registry)
        self._gauges[name].set(value)


def _frame(answer: Answer, model_name: str, kind: str) -> dict[str, Any]:
    identity = hashlib.sha256(f"{answer.query_id}{answer.sale.hold}".encode()).hexdigest()[:24]
    return {"id": f"chatcmpl-{identity}", "object": kind, "created": int(time.time()), "model": model_name}


def _delta(choice: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _unavailable() -> ApiError:
    return ApiError(503, "No engine can take this query now.", code="unavailable", retry_after_seconds=2)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """The FastAPI application; see the module's docstring."""

    def __init__(self, settings: dict[str, Any], engine: Any, price: Any) -> None:
        self._settings = ServeConfig.parse(settings)
        self._engine, self._price = engine, price
        limits = self._settings.limits
        self._guard = Guard(self._settings.api_key_sha256, concurrent_per_key=limits.concurrent_per_key)
        self._meters = Meters()
        self._background = set[asyncio.Task[None]]()
        self._started = int(time.time())

    @api.get("/healthz")
    async def healthz(self) -> Response:
        """Say that this replica lives."""
        return PlainTextResponse("ok\n")

    @api.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """Return metrics in Prometheus' text form."""
        self._admit(request)
        account, waiting = await self._price.account.remote()
        for name in (
            "available_tokens",
            "reserved_tokens",
            "spent_tokens",
            "earned_tokens",
            "lost_tokens",
            "clearings",
        ):
            self._meters.show(f"price_{name}", getattr(account, name))
        self._meters.show("shadow_price", account.price)
        self._meters.show("waiting_queries", waiting)
        return Response(generate_latest(self._meters.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """List the one model."""
        self._admit(request)
        model = {"id": self._settings.model_name, "object": "model", "created": self._started, "owned_by": "clear_ray"}
        return JSONResponse({"object": "list", "data": [model]})

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation under the budget."""
        who, started = self._admit(request), time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(self._guard.under_way(who))
            answer = await self._buy(await self._read_body(request))
            if answer.request.stream:
                events = self._events(answer, stack.pop_all(), started)
                return StreamingResponse(events, media_type="text/event-stream", headers=answer.headers(is_over=False))
            choices = await self._choices(answer, started)
        body = {**_frame(answer, self._settings.model_name, "chat.completion"), "choices": choices}
        return JSONResponse(body | {"usage": answer.usage}, headers=answer.headers(is_over=True))

    def _admit(self, request: Request) -> str:
        return self._guard.admit(request.headers.get("authorization"), request.client.host if request.client else None)

    async def _read_body(self, request: Request) -> ChatRequest:
        limits, body = self._settings.limits, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.body_bytes:
                raise ApiError(413, f"The body has more than {limits.body_bytes} bytes.", code="too_large")
        return read_request(
            bytes(body),
            limits=limits,
            model_name=self._settings.model_name,
            temperature=self._settings.engine.temperature,
            top_p=self._settings.engine.top_p,
        )

    async def _buy(self, request: ChatRequest) -> Answer:
        """Probe a query and buy its tokens."""
        name = uuid.uuid4().hex
        query_id = self._query_id(request, name)
        prompt = tuple((message.role, message.content) for message in request.messages)
        try:
            reading: Reading = await self._engine.read.remote(query_id, prompt)
        except (BackPressureError, RayActorError) as error:
            raise _unavailable() from error
        if reading.curve is None:
            raise ApiError(400, f"The query cannot be read: {reading.error}.", param="messages", code="unreadable")
        room = reading.context_tokens - reading.prompt_tokens
        limit = min(request.upper_limit_tokens or self._settings.max_tokens, self._settings.max_tokens, room)
        if limit < 1:
            raise ApiError(400, "The prompt leaves no room for an answer.", param="messages", code="context_length")
        tie_break = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        sale: Sale = await self._price.buy.remote(Ask(reading.curve, limit, tie_break, request.n))
        self._meters.queries.labels(sale.outcome).inc()
        if sale.hold is None:
            message = f"{_REFUSALS[sale.reason]} The price is {sale.price:.3g} answers per token."
            raise ApiError(429, message, code=sale.reason, retry_after_seconds=sale.retry_after_seconds)
        self._meters.granted.inc(sale.tokens * request.n)
        seed = tie_break % (1 << 31) if request.seed is None else request.seed % (1 << 31)
        return Answer(request, query_id, reading, sale, seed, [0] * request.n)

    def _query_id(self, request: ChatRequest, name: str) -> str:
        """Return the name of the query for the engine: its own where rollouts are replayed, else a new one."""
        if self._settings.engine.kind != "replay":
            return name
        recorded = (request.metadata or {}).get("query_id")
        if recorded is None:
            message = "metadata.query_id must name a recorded query: this server replays rollouts."
            raise ApiError(400, message, param="metadata", code="missing_query_id")
        return recorded

    async def _pieces(self, answer: Answer, choice: int) -> AsyncIterator[Piece]:
        """Yield the pieces of one choice, from another replica if the first one dies before it has said anything."""
        is_sliced = answer.request.stream or answer.request.stops
        grant = Grant(
            # Choices run side by side; where queries are not recorded, each must have a name of its own.
            query_id=answer.query_id if self._settings.engine.kind == "replay" else f"{answer.query_id}.{choice}",
            prompt=tuple((message.role, message.content) for message in answer.request.messages),
            max_tokens=answer.sale.tokens,
            seed=answer.seed,
            sample=choice,
        )
        for tries in range(1, _MOST_TRIES + 1):
            pieces = self._engine.options(stream=True).write.remote(
                grant, answer.request.stops, self._settings.stream_tokens if is_sliced else 0
            )
            try:
                async for piece in pieces:
                    answer.spent_tokens_N[choice] += piece.tokens
                    if piece.error:
                        raise ApiError(500, "The engine could not answer this query.", code="engine_error")
                    yield piece
            except (RayActorError, BackPressureError) as error:
                if tries == _MOST_TRIES or answer.spent_tokens_N[choice]:
                    raise _unavailable() from error
            else:
                return

    async def _choices(self, answer: Answer, started: float) -> list[dict[str, Any]]:
        """Return all choices, whole, and settle."""

        async def whole(choice: int) -> dict[str, Any]:
            pieces = [piece async for piece in self._pieces(answer, choice)]
            message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
            return {"index": choice, "message": message, "logprobs": None, "finish_reason": pieces[-1].finish_reason}

        try:
            # A group, so that a choice that fails ends the others: nobody would read them.
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(whole(choice)) for choice in range(answer.request.n)]
            return [task.result() for task in tasks]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._settle(answer, started)

    async def _events(self, answer: Answer, stack: ExitStack, started: float) -> AsyncIterator[str]:
        """Yield the events of a stream, all choices as they come, and settle when it ends or the client goes."""
        frame = _frame(answer, self._settings.model_name, "chat.completion.chunk")
        merged: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def feed(choice: int) -> None:
            try:
                async for piece in self._pieces(answer, choice):
                    merged.put_nowait((choice, piece))
                merged.put_nowait((choice, None))
            except Exception as error:
                merged.put_nowait((choice, error))

        feeders = [asyncio.create_task(feed(choice)) for choice in range(answer.request.n)]
        try:
            for choice in range(answer.request.n):
                yield _event({**frame, "choices": [_delta(choice, {"role": "assistant", "content": ""}, None)]})
            open_choices = answer.request.n
            while open_choices:
                choice, piece = await merged.get()
                if isinstance(piece, BaseException):
                    yield _event((piece if isinstance(piece, ApiError) else _unavailable()).body)
                    return
                if piece is None:
                    open_choices -= 1
                    continue
                delta = {"content": piece.text} if piece.text else {}
                yield _event({**frame, "choices": [_delta(choice, delta, piece.finish_reason)]})
            if answer.request.stream_options and answer.request.stream_options.include_usage:
                yield _event({**frame, "choices": [], "usage": answer.usage})
            yield "data: [DONE]\n\n"
        finally:
            for feeder in feeders:
                feeder.cancel()
            self._settle(answer, started)
            stack.close()

    def _settle(self, answer: Answer, started: float) -> None:
        """Tell the price what was spent, without making the client wait for it."""
        spent = sum(answer.spent_tokens_N)
        self._meters.generated.inc(spent)
        self._meters.seconds.observe(time.monotonic() - started)

        async def tell() -> None:
            await self._price.settle.remote(answer.sale.hold, spent)

        task = asyncio.create_task(tell())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
