"""What a browser is shown at `/`, and what a client is told that asks for a route that is not there."""

from __future__ import annotations

import html
import json
import shlex
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.routing import Match

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_STYLE, _SCRIPT = (files("clear_ray.serve").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
_BATCHES = '<h2>Batches</h2><p id="state" role="status">…</p><div id="batches"></div>'
_KEY = (
    '<form id="key"><input name="key" type="password" autocomplete="off" placeholder="API key" aria-label="API key">'
    '<button class="main">Use key</button></form>'
)


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


PAGE_HEADERS = {
    # Nothing runs or loads but what is in the page, it talks to this server alone, and no other page shows it in a frame.
    "Content-Security-Policy": f"default-src 'none'; script-src {_digest(_SCRIPT)}; style-src {_digest(_STYLE)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of the page."""


def front_page(base_url: str, models: Sequence[str], *, has_keys: bool, has_batches: bool) -> str:
    """Return the page: what this is, its batches as they run, and an example to copy.

    Args:
        base_url: Address of the server as its client wrote it, without a slash at its end.
        models: Names of the models that answer.
        has_keys: Whether a key is wanted.
        has_batches: Whether the server keeps batches.
    """
    body = json.dumps({"model": models[0], "messages": [{"role": "user", "content": "What is 3 + 4?"}]})
    key = " -H 'Authorization: Bearer YOUR-KEY'" if has_keys else ""
    curl = f"curl {base_url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    python = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}/v1", api_key="{"YOUR-KEY" if has_keys else "unused"}")\n'
        'messages = [{"role": "user", "content": "What is 3 + 4?"}]\n'
        f'print(client.chat.completions.create(model="{models[0]}", messages=messages).choices[0].message.content)'
    )
    told, path = html.escape(base_url, quote=True), html.escape(urlsplit(base_url).path, quote=True)
    live = (
        (_KEY if has_keys else "") + _BATCHES
        if has_batches
        else "<p>This server keeps no batches: see batches.folder.</p>"
    )
    names = ", ".join(f"<code>{html.escape(name)}</code>" for name in models)
    title = html.escape(", ".join(models))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>clear_ray: {title}</title><style>{_STYLE}</style><body data-told="{told}"><h1>clear_ray</h1>'
        f"<p>The model{'s' * (len(models) > 1)} {names}, under a budget of tokens a second. "
        f'<a id="docs" href="{path}/docs">All routes</a></p>'
        f"{live}<h2>Ask</h2><pre>{html.escape(curl)}</pre><pre>{html.escape(python)}</pre>"
        f"<script>{_SCRIPT}</script></html>\n"
    )


def routes_of(app: Any) -> list[str]:
    """Return the methods and paths of an application, sorted by path."""
    found = {(route.path, method) for route in _flat(app.routes) for method in getattr(route, "methods", None) or ()}
    return [f"{method} {path}" for path, method in sorted(found) if method in _METHODS]


def methods_of(app: Any, scope: Any) -> list[str]:
    """Return the methods that the path of a request takes; HEAD is GET without its body (`edge`)."""
    found = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
    return ["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _flat(inner.routes)
        else:
            yield route
