"""What a browser is shown at `/`, and what a client is told that asks for a route that is not there."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator
from typing import Any

from starlette.routing import Match

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f4f4f2; padding: .75rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } pre { background: #262626 } }
"""


def front_page(base_url: str, model_name: str, routes: list[str], *, has_keys: bool) -> str:
    """Return the page: what this is, an example to copy, and the routes.

    Args:
        base_url: Address of the server as its client wrote it, without a slash at its end.
        model_name: Name of the model.
        routes: Methods and paths.
        has_keys: Whether a key is wanted.
    """
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "What is 3 + 4?"}]})
    key = " -H 'Authorization: Bearer YOUR-KEY'" if has_keys else ""
    curl = f"curl {base_url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    python = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}/v1", api_key="{"YOUR-KEY" if has_keys else "unused"}")\n'
        'messages = [{"role": "user", "content": "What is 3 + 4?"}]\n'
        f'print(client.chat.completions.create(model="{model_name}", messages=messages).choices[0].message.content)'
    )
    table = "".join(f"<li><code>{html.escape(route)}</code></li>" for route in routes)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>clear_ray: {html.escape(model_name)}</title><style>{_STYLE}</style><h1>clear_ray</h1>"
        f"<p>The model <code>{html.escape(model_name)}</code>, under a budget of tokens a second.</p>"
        f"<pre>{html.escape(curl)}</pre><pre>{html.escape(python)}</pre><ul>{table}</ul></html>\n"
    )


def routes_of(app: Any) -> list[str]:
    """Return the methods and paths of an application, sorted by path."""
    found = {(route.path, method) for route in _flat(app.routes) for method in getattr(route, "methods", None) or ()}
    return [f"{method} {path}" for path, method in sorted(found) if method in _METHODS]


def methods_of(app: Any, scope: Any) -> list[str]:
    """Return the methods that the path of a request takes."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _flat(inner.routes)
        else:
            yield route
