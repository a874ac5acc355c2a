"""What every request passes before a route sees it: Host and Origin, CORS, and HEAD.

A server without keys answers whatever program runs on its machine. A browser there runs programs of strangers: their pages
may send to loopback (Origin tells it), or come under a name of their own that they let point to loopback (Host tells it).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clear_ray.serve.errors import ApiError
from clear_ray.serve.settings import ServeConfig

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
"""Paths that answer without a key, and by any name."""
_ANY = "*"
_SHOWN = (
    "retry-after, x-clear-ray-budget-tokens, x-clear-ray-spent-tokens, x-clear-ray-shadow-price, x-clear-ray-outcome"
)


class EdgeRules:
    """Which names and pages may ask.

    Args:
        settings: The server's.
    """

    def __init__(self, settings: ServeConfig) -> None:
        self._has_keys = settings.has_keys
        self._hosts = frozenset(host.lower() for host in (settings.host, *settings.allowed_hosts))
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.cors_origins)

    def check(self, path: str, host: str | None, origin: str | None) -> None:
        """Refuse what comes by a wrong name or from a wrong page; with keys, the key alone decides.

        Raises:
            ApiError: 403.
        """
        if self._has_keys:
            return
        name = _name_of(host)
        if path not in OPEN_PATHS and name is not None and name not in self._hosts and not _is_loopback(name):
            message = "Without API keys this server answers by the names of loopback alone; see `allowed_hosts`."
            raise ApiError(403, message, code="host_not_allowed")
        if origin is not None and not self.is_shared_with(origin) and _name_and_port(origin) != (host or "").lower():
            message = "Without API keys this server answers no pages of other origins; see `cors_origins`."
            raise ApiError(403, message, code="origin_not_allowed")

    def is_shared_with(self, origin: str) -> bool:
        """Whether pages of this origin may read answers."""
        return _ANY in self._origins or origin.lower() in self._origins


class Edge:
    """Middleware of an ASGI application.

    Args:
        app: The application.
        rules: Returns the rules; asked at each request, because the application exists before its settings.
    """

    def __init__(self, app: ASGIApp, rules: Callable[[], EdgeRules]) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, rules = Headers(scope=scope), self._rules()
        origin = headers.get("origin")
        is_shared = origin is not None and rules.is_shared_with(origin)
        root = str(scope.get("root_path", ""))
        path = _tidied(str(scope["path"]).removeprefix(root))
        scope = {**scope, "path": root + path}
        if origin is not None and is_shared:
            send = _shared_with(origin, send)
        try:
            rules.check(path, headers.get("host"), origin)
        except ApiError as error:
            await JSONResponse(error.body, error.status, headers=error.headers)(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and is_shared and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._app(scope, receive, send)


def _tidied(path: str) -> str:
    """Return a path without the slashes too many that come of joining an address to one."""
    return "/" + "/".join(filter(None, path.split("/")))


def _preflight(headers: Headers) -> Response:
    """Return what a browser wants to know before it asks."""
    said = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=said)


def _shared_with(origin: str, send: Send) -> Send:
    async def shared(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _SHOWN
            headers.add_vary_header("Origin")
        await send(message)

    return shared


def _without_body(send: Send) -> Send:
    async def bare(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return bare


def _name_of(host: str | None) -> str | None:
    """Return the name in a Host header, without its port."""
    if not host:
        return None  # HTTP/1.0; no browser leaves it out
    name = host.lower().rstrip(".")
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] or name if name.count(":") == 1 else name


def _name_and_port(origin: str) -> str:
    return origin.lower().partition("://")[2]


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
