"""The page at `/docs`: the OpenAPI document to read, with nothing to load from elsewhere."""

from __future__ import annotations

import html
import json
from typing import Any

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1rem; margin: 1.5rem 0 0; overflow-wrap: anywhere; } b { font-variant: small-caps; }
pre { background: #f4f4f2; padding: .75rem; overflow-x: auto; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } pre { background: #262626 } }
@media (prefers-color-scheme: dark) { a { color: #8bf } }
"""


def reference_page(document: dict[str, Any]) -> str:
    """Return the page.

    Args:
        document: The OpenAPI document.
    """
    routes = "".join(
        _route(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    schemas = "".join(
        f"<details id='{html.escape(name)}'><summary>{html.escape(name)}</summary>{_shown(schema)}</details>"
        for name, schema in document["components"]["schemas"].items()
    )
    key = (
        "Every route but those marked open wants <code>Authorization: Bearer KEY</code>."
        if document["security"]
        else ""
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>clear_ray: routes</title><style>{_STYLE}</style><h1>Routes</h1>"
        f"<p>For programs: <a href='openapi.json'>openapi.json</a>. {key}</p>{routes}<h1>Schemas</h1>{schemas}</html>\n"
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    mark = " (open)" if operation.get("security") == [] else ""
    given = [f"{each['name']} ({each['in']})" for each in operation.get("parameters", ())]
    parts = [_shown(content) for content in _schemas(operation.get("requestBody", {}).get("content", {}))]
    said = "".join(
        f"<li>{status}: {html.escape(answer['description'])} {_names(answer['content'])}</li>"
        for status, answer in operation["responses"].items()
    )
    takes = f"<p>Parameters: {html.escape(', '.join(given))}</p>" if given else ""
    names = _names(operation.get("requestBody", {}).get("content", {}))
    body = f"<details><summary>Body: {names}</summary>{''.join(parts)}</details>"
    return (
        f"<h2><b>{method}</b> <code>{html.escape(path)}</code>{mark}</h2><div>{html.escape(operation['summary'])}.</div>"
        f"{takes}{body if parts else ''}<details><summary>Answers</summary><ul>{said}</ul></details>"
    )


def _schemas(content: dict[str, Any]) -> list[Any]:
    return [kind["schema"] for kind in content.values()]


def _names(content: dict[str, Any]) -> str:
    found = []
    for kind, value in content.items():
        name = value["schema"].get("$ref", "").rpartition("/")[2]
        found.append(f"<a href='#{name}'>{name}</a>" if name else html.escape(kind))
    return ", ".join(found)


def _shown(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1))}</pre>"
