"""The HTTP side: OpenAI's chat completions over the probe, the price and the engine.

For each query: read (probe) -> buy (price) -> write (engine) -> settle. Whatever happens after the purchase, the hold is
settled, with the tokens that came back.
"""

# No postponed annotations here, and nothing that routes use below the class: Serve copies the application by value at the
# moment of decoration, and FastAPI resolves annotations in the copy.
import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from clear_ray.serve.answer import Reply, prompt_of
from clear_ray.serve.batches.routes import routes as batch_routes
from clear_ray.serve.batches.service import BatchService
from clear_ray.serve.deployments import PromptReading
from clear_ray.serve.guard import Guard
from clear_ray.serve.law import Ask
from clear_ray.serve.meters import Meters
from clear_ray.serve.protocol import ApiError, ChatRequest, read_request
from clear_ray.serve.sale_queue import Sale
from clear_ray.serve.settings import LimitSettings, ServeConfig
from clear_ray.serve.writing import events, unavailable, whole_choices

OPEN_PATHS = frozenset({"/healthz"})
"""Paths that answer without a key."""
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


api.include_router(batch_routes)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """The FastAPI application; see the module's docstring."""

    def __init__(self, settings: dict[str, Any], engine: Any, price: Any, *_: Any) -> None:
        self._settings = ServeConfig.parse(settings)
        self.batches = None if self._settings.batches is None else BatchService(self._settings.batches)
        self._engine, self._price = engine, price
        self._limits = LimitSettings()
        self._guard = Guard(self._settings.api_key_sha256, concurrent_per_key=self._limits.concurrent_per_key)
        self._meters = Meters()
        self._background = set[asyncio.Task[None]]()
        self._started = int(time.time())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Go on under these limits; called by Serve before the first query and at every change."""
        self._limits = LimitSettings.model_validate(user_config.get("limits", {}))
        self._guard.change(concurrent_per_key=self._limits.concurrent_per_key)

    @api.get("/healthz")
    async def healthz(self) -> Response:
        """Say that this replica lives."""
        return PlainTextResponse("ok\n")

    @api.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """Return metrics in Prometheus' text form."""
        self._admit(request)
        return self._meters.page(*await self._price.account.remote())

    @api.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """List the one model."""
        self._admit(request)
        model = {"id": self._settings.model_name, "object": "model", "created": self._started, "owned_by": "clear_ray"}
        return JSONResponse({"object": "list", "data": [model]})

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation under the budget."""
        key, started = self._admit(request), time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(self._guard.under_way(key))
            answer = await self._buy(await self._read_body(request))
            if answer.request.stream:
                told = self._events(answer, stack.pop_all(), started)
                return StreamingResponse(told, media_type="text/event-stream", headers=answer.headers(is_over=False))
            try:
                choices = await whole_choices(self._engine, answer, self._settings.stream_tokens)
            finally:
                self._settle(answer, started)
        body = {**answer.frame(self._settings.model_name, "chat.completion"), "choices": choices}
        return JSONResponse(body | {"usage": answer.usage}, headers=answer.headers(is_over=True))

    def _admit(self, request: Request) -> str:
        return self._guard.admit(request.headers.get("authorization"), request.client.host if request.client else None)

    async def _read_body(self, request: Request) -> ChatRequest:
        limits, body = self._limits, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.body_bytes:
                raise ApiError(413, f"The body has more than {limits.body_bytes} bytes.", code="too_large")
        return read_request(bytes(body), limits=limits, model_name=self._settings.model_name)

    async def _buy(self, request: ChatRequest) -> Reply:
        """Probe a query and buy its tokens."""
        name = uuid.uuid4().hex
        query_id = self._query_id(request, name)
        reading = await self._read(query_id, request)
        if reading.curve is None:
            message = f"The query cannot be read: {reading.error}."
            raise ApiError(400, message, param=reading.param, code="unreadable")
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
        return Reply(request, query_id, reading, sale, seed)

    async def _read(self, query_id: str, request: ChatRequest) -> PromptReading:
        """Probe a query, on another replica if the first one dies."""
        for _ in range(2):
            try:
                reading: PromptReading = await self._engine.read.remote(query_id, prompt_of(request), request.sampling)
            except BackPressureError as error:
                raise unavailable() from error
            except RayActorError:
                continue
            return reading
        raise unavailable()

    def _query_id(self, request: ChatRequest, name: str) -> str:
        """Return the name of the query for the engine: its own where rollouts are replayed, else a new one."""
        if self._settings.engine.kind != "replay":
            return name
        recorded = (request.metadata or {}).get("query_id")
        if recorded is None:
            message = "metadata.query_id must name a recorded query: this server replays rollouts."
            raise ApiError(400, message, param="metadata", code="missing_query_id")
        return f"{recorded}#{name}"  # the same recording may be asked for many times at once

    async def _events(self, answer: Reply, stack: ExitStack, started: float) -> AsyncIterator[str]:
        """Yield the events of a stream, and settle when it ends or the client goes."""
        every, model_name = self._settings.stream_tokens, self._settings.model_name
        try:
            async with aclosing(events(self._engine, answer, every, model_name)) as told:
                async for line in told:
                    yield line
        finally:
            self._settle(answer, started)
            stack.close()

    def _settle(self, answer: Reply, started: float) -> None:
        """Tell the price what was spent, without making the client wait for it."""
        spent = answer.spent_tokens
        self._meters.generated.inc(spent)
        self._meters.seconds.observe(time.monotonic() - started)

        async def tell() -> None:
            await self._price.settle.remote(answer.sale.hold, spent)

        task = asyncio.create_task(tell())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
