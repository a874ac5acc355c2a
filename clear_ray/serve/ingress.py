"""The HTTP side: OpenAI's completions over the probe, the price and the engine.

For each query: an engine reads it, buys its tokens and writes (`EngineReplica.answer`), in one call; one that has to wait for
its price waits here, and is then written. Whatever happens after the purchase, the hold is settled, with what came.
"""

# No postponed annotations here, and nothing that routes use below the class: Serve copies the application by value at the
# moment of decoration, and FastAPI resolves annotations in the copy.
import asyncio
import hashlib
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from clear_ray.serve.answer import ServedReply
from clear_ray.serve.asking import ServedQuery, Weight
from clear_ray.serve.batches.routes import routes as batch_routes
from clear_ray.serve.batches.service import BatchService
from clear_ray.serve.bodies import check_json, unpacked
from clear_ray.serve.edge import Edge, EdgeRules
from clear_ray.serve.errors import ApiError
from clear_ray.serve.guard import Guard, tenant_of
from clear_ray.serve.log import log_event
from clear_ray.serve.meters import Meters
from clear_ray.serve.openapi import describe, reference_page
from clear_ray.serve.page import PAGE_HEADERS, front_page, methods_of, routes_of
from clear_ray.serve.price_replica import SaleSettlement, Wanted
from clear_ray.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    QueryRequest,
    ResponseRequest,
    read_request,
    refuse_equal_choices,
)
from clear_ray.serve.responses import response_events, whole_response
from clear_ray.serve.sale_queue import Sale
from clear_ray.serve.settings import LimitSettings, ServeConfig
from clear_ray.serve.several import Written, all_written, bodies_of, joined
from clear_ray.serve.together import Together
from clear_ray.serve.writing import EventStream, events, opened, refusal_of, stopping, unavailable, whole_choices

_REFUSALS = {
    "no_surplus": "At the price in force no ceiling is worth its tokens for this query.",
    "no_tokens": "The tokens of this moment are sold.",
    "queue_full": "The queue is full.",
    "deadline": "The price did not fall, or no tokens came back, within the longest wait.",
}
_READY_SECONDS = 2.0  # longest wait of a readiness probe for an answer
_SETTLE_SECONDS = 0.1  # in which what queries have spent travels together; it is in no hurry
_FRESH_SECONDS = 5.0  # for so long an engine that has answered a query is known to answer


def _rules() -> EdgeRules:
    """Return the rules of the replica that this process is."""
    replica: Any = serve.get_replica_context().servable_object
    rules: EdgeRules = replica.edge_rules
    return rules


api = FastAPI(title="clear_ray", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
api.add_middleware(Edge, rules=_rules)


@api.exception_handler(ApiError)
async def _say_api_error(request: Request, error: ApiError) -> Response:
    del request
    return JSONResponse(error.body, error.status, headers=error.headers)


@api.exception_handler(HTTPException)
async def _say_http_error(request: Request, error: HTTPException) -> Response:
    told = ApiError(error.status_code, str(error.detail), headers=error.headers)
    asked = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = ", ".join(methods_of(request.app, request.scope))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
        told = ApiError(405, f"{asked}: this route takes {allowed}.", headers={"Allow": allowed})
    elif error.status_code == 404:
        message = f"There is no {asked} here. There are: {'; '.join(routes_of(request.app))}."
        told = ApiError(404, message, code="unknown_route")
    return await _say_api_error(request, told)


@api.exception_handler(Exception)
async def _say_defect(request: Request, error: Exception) -> Response:
    del error  # it is in the replica's log
    return await _say_api_error(request, ApiError(500, "The server failed on this query.", code="internal_error"))


api.include_router(batch_routes)


@serve.deployment
@serve.ingress(api)
class Ingress:
    """The FastAPI application; see the module's docstring."""

    def __init__(self, settings: dict[str, Any], engines: dict[str, Any], price: Any, *_: Any) -> None:
        self._settings = ServeConfig.parse(settings)
        batches = self._settings.batches
        runs = [self._settings.run_of(model) for model in self._settings.models]
        self.batches = None if batches is None else BatchService(batches, runs)
        self._engines, self._price = engines, price
        self._streams = {model: engine.options(stream=True) for model, engine in engines.items()}
        self._settled: Together[SaleSettlement, None] = Together(self._settle_all, linger_seconds=_SETTLE_SECONDS)
        self.edge_rules = EdgeRules(self._settings)
        self._limits = LimitSettings()
        self._guard = Guard(
            self._settings.api_key_sha256,
            concurrent_per_key=self._limits.concurrent_per_key,
            tenants={name: tenant.api_key_sha256 for name, tenant in self._settings.tenants.items()},
        )
        self._meters = Meters()
        self._background = set[asyncio.Task[None]]()
        self._started = int(time.time())
        self._engine_seen_at = dict.fromkeys(engines, -math.inf)
        self._is_stopping = False

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Go on under these limits; called by Serve before the first query and at every change."""
        self._limits = limits = LimitSettings.model_validate(user_config.get("limits", {}))
        self._guard.change(
            concurrent_per_key=limits.concurrent_per_key, prompt_tokens_per_second=limits.prompt_tokens_per_second
        )

    @api.get("/")
    async def front(self, request: Request) -> Response:
        """Show what this is, and the batches as they run."""
        has_keys, has_batches = self._settings.has_keys, self.batches is not None
        base_url = str(request.base_url).rstrip("/")
        page = front_page(base_url, tuple(self._settings.each), has_keys=has_keys, has_batches=has_batches)
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @api.get("/docs")
    async def docs(self) -> Response:
        """Show every route, to read."""
        return HTMLResponse(reference_page(self._description))

    @api.get("/openapi.json")
    async def openapi(self) -> Response:
        """Describe every route, for programs."""
        return JSONResponse(self._description)

    @api.get("/healthz")
    async def healthz(self) -> Response:
        """Say that this replica lives."""
        return PlainTextResponse("ok\n")

    @api.get("/readyz")
    async def readyz(self) -> Response:
        """Say that a query would be answered."""
        if not self._is_stopping and await self._is_answered():
            return PlainTextResponse("ready\n")
        why = "The server is stopping." if self._is_stopping else "No engine has loaded its model yet."
        raise ApiError(503, why, code="not_ready", retry_after_seconds=2)

    @api.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """Return metrics in Prometheus' text form."""
        self._admit(request)
        return self._meters.page(*await self._price.account.remote())

    @api.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """List the models."""
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._settings.models]})

    @api.get("/v1/models/{name:path}")
    async def model(self, request: Request, name: str) -> Response:
        """Return one model."""
        self._admit(request)
        if name not in (known := self._settings.models):
            message = f"The only model here is {known[0]}." if len(known) == 1 else f"There are {', '.join(known)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(self._model(name))

    @api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> Response:
        """Answer a conversation under the budget."""
        return await self._answer(request, ChatRequest)

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """Go on with a text under the budget."""
        return await self._answer(request, CompletionRequest)

    @api.post("/v1/responses")
    async def responses(self, request: Request) -> Response:
        """Answer the input of a response under the budget."""
        return await self._answer(request, ResponseRequest)

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe(self._settings)

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "clear_ray"}

    async def _is_answered(self) -> bool:
        """Whether an engine of each model and the price answer."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                is_selling: bool = await self._price.is_selling.remote()
                for model, seen_at in self._engine_seen_at.items() if is_selling else ():
                    if time.monotonic() - seen_at > _FRESH_SECONDS:
                        await self._engines[model].ready.remote()
                        self._engine_seen_at[model] = time.monotonic()
        except BackPressureError:
            return True  # loaded, and busy
        # Whatever it is, a query would fail of it too.
        except Exception:
            return False
        self._is_stopping = not is_selling
        return is_selling

    async def _answer(self, request: Request, kind: type[QueryRequest]) -> Response:
        try:
            return await self._answered(request, kind)
        except ApiError as error:
            self._meters.refusals.labels(error.code or str(error.status)).inc()
            log_event("refused", status=error.status, code=error.code)
            raise

    async def _answered(self, request: Request, kind: type[QueryRequest]) -> Response:
        key, started = self._admit(request), time.monotonic()
        if self._is_stopping:
            raise stopping()
        body = await self._read_body(request)
        bodies = bodies_of(body) if kind is CompletionRequest else [body]
        if len(bodies) > 1:
            return await self._answered_together(bodies, kind, key, started)
        query, told = read_request(body, kind, limits=self._limits, models=self._streams), events
        name, streams = query.model, self._streams[query.model]
        if kind is ResponseRequest:
            told = response_events
        with ExitStack() as stack:
            stack.enter_context(self._guard.under_way(key))
            stack.enter_context(self._meters.under_way.track_inprogress())
            reply, come = await self._buy(query, key, body)
            if reply.request.stream:
                stack.callback(self._settle, reply, started)
                return EventStream(told(streams, reply, come, name), reply, stack.pop_all())
            try:
                choices = await whole_choices(streams, reply, come)
            finally:
                self._settle(reply, started)
        if kind is ResponseRequest:
            whole = whole_response(reply, choices[0], name)
        else:
            whole = {**reply.frame(name, is_stream=False), "choices": choices, "usage": reply.usage}
        return JSONResponse(whole, headers=reply.headers(is_over=True))

    async def _answered_together(
        self, bodies: Sequence[bytes], kind: type[QueryRequest], key: str, started: float
    ) -> Response:
        """Answer the prompts of one request, each as a query of its own."""
        queries = [read_request(body, kind, limits=self._limits, models=self._streams) for body in bodies]

        async def written(query: QueryRequest, body: bytes) -> Written:
            reply, come = await self._buy(query, key, body)
            try:
                return reply, await whole_choices(self._streams[query.model], reply, come)
            finally:
                self._settle(reply, started)

        with ExitStack() as stack:
            for _ in queries:
                stack.enter_context(self._guard.under_way(key))
                stack.enter_context(self._meters.under_way.track_inprogress())
            replies = await all_written([written(*one) for one in zip(queries, bodies, strict=True)])
        whole, headers = joined(replies, queries[0].model)
        return JSONResponse(whole, headers=headers)

    def _admit(self, request: Request) -> str:
        return self._guard.admit(request.headers.get("authorization"), request.client.host if request.client else None)

    async def _read_body(self, request: Request) -> bytes:
        limits, body = self._limits, bytearray()
        check_json(request)
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in unpacked(request):
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise ApiError(413, f"The body has more than {limits.body_bytes} bytes.", code="too_large")
        except TimeoutError:
            message = f"The body did not come within {limits.body_seconds:g} seconds."
            raise ApiError(408, message, code="slow_body", headers={"Connection": "close"}) from None
        return bytes(body)

    async def _buy(self, request: QueryRequest, key: str, body: bytes) -> tuple[ServedReply, AsyncIterator[Any] | None]:
        """Have a query read and sold its tokens; return it with what comes of its answer already, if anything does."""
        engine = self._settings.each[request.model]
        if engine.kind != "replay":  # whose samples are recorded, whatever its temperature
            refuse_equal_choices(request, engine.temperature)
        self._guard.check_prompts(key, time.monotonic())
        asked = self._asked(request, key, body)
        opening, come = await opened(self._streams[request.model], asked)
        self._engine_seen_at[request.model] = time.monotonic()
        reading = opening.reading
        self._guard.charge_prompt(key, reading.prompt_tokens, time.monotonic())
        self._meters.prompts.inc(reading.prompt_tokens)
        if opening.ask is not None:
            sale = await self._wait(Wanted(asked.name, asked.tenant, opening.ask))
        elif opening.sale is not None:
            sale = opening.sale
        else:
            raise refusal_of(reading, request)
        self._note(sale)
        asked.weight.change(sale.tokens * request.n)
        return ServedReply(request, asked, reading, sale), come if opening.sale is not None else None

    def _asked(self, request: QueryRequest, key: str, body: bytes) -> ServedQuery:
        name = uuid.uuid4().hex
        tie_break = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        most_tokens = min(request.upper_limit_tokens or self._settings.max_tokens, self._settings.max_tokens)
        return ServedQuery(
            name=name,
            query_id=self._query_id(request, name),
            prompt=request.as_prompt,
            sampling=request.sampling,
            most_prompt_tokens=self._limits.prompt_tokens,
            most_tokens=most_tokens,
            choices=request.n,
            seed=tie_break % (1 << 31) if request.seed is None else request.seed % (1 << 31),
            tie_break=tie_break,
            stops=request.stops,
            every_tokens=self._settings.stream_tokens,
            tenant=tenant_of(key),
            ticket=hashlib.sha256(key.encode() + b"\0" + body).hexdigest(),
            weight=Weight(most_tokens * request.n),
        )

    async def _wait(self, wanted: Wanted) -> Sale:
        """Wait for the price; once more if its replica dies."""
        for _ in range(2):
            try:
                sale: Sale = await self._price.wait.remote(wanted)
            except RayActorError:
                continue
            return sale
        raise unavailable()

    def _note(self, sale: Sale) -> None:
        """Count what became of a query at the price.

        Raises:
            ApiError: 429: it was sent away; 503: the server is stopping.
        """
        if sale.reason == "stopping":
            self._is_stopping = True
            raise stopping()
        self._meters.queries.labels(sale.outcome).inc()
        self._meters.waited.observe(sale.waited_seconds)
        if sale.hold is None:
            message = f"{_REFUSALS[sale.reason]} The price is {sale.price:.3g} answers per token."
            raise ApiError(429, message, code=sale.reason, retry_after_seconds=sale.retry_after_seconds)
        self._meters.granted.inc(sale.hold.tokens)

    def _query_id(self, request: QueryRequest, name: str) -> str:
        """Return the name of the query for the engine: its own where rollouts are replayed, else a new one."""
        if self._settings.each[request.model].kind != "replay":
            return name
        recorded = (request.metadata or {}).get("query_id")
        if recorded is None:
            message = "metadata.query_id must name a recorded query: this server replays rollouts."
            raise ApiError(400, message, param="metadata", code="missing_query_id")
        return f"{recorded}#{name}"  # the same recording may be asked for many times at once

    def _settle(self, answer: ServedReply, started: float) -> None:
        """Tell the price what was spent, without making the client wait for it."""
        spent, seconds = answer.spent_tokens, time.monotonic() - started
        self._meters.generated.inc(spent)
        self._meters.seconds.observe(seconds)
        log_event("answered", tenant=answer.asked.tenant, seconds=round(seconds, 3), **answer.usage)
        if answer.first_at is not None:
            self._meters.first.observe(answer.first_at - started)

        if answer.sale.hold is None:
            return
        task = asyncio.create_task(self._settled(SaleSettlement(answer.asked.tenant, answer.sale.hold, spent)))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _settle_all(self, settlements: Sequence[SaleSettlement]) -> Sequence[None]:
        await self._price.settle.remote(settlements)
        return [None] * len(settlements)
