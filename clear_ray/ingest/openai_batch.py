"""A line of the OpenAI batch format, read as a query.

Only what can be kept is accepted: fields that would change what an answer is (tools, several choices, streaming, …)
are refused by name; sampling fields are accepted and have no effect, since the run's own settings hold for all queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clear_ray.config import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.source import shown

URLS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose requests are read."""

REQUEST_COLUMNS = {
    "query_id": "custom_id",
    "prompt": "body.prompt",
    "messages": "body.messages",
    "max_tokens": "body.max_tokens",
}
"""Columns of a request as `read_request` names them, whatever the configuration says."""

# Values that ask for nothing beyond one plain text; anything else in these fields is refused.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "stop": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "web_search_options": (),
}


def request_columns(columns: ColumnsConfig) -> ColumnsConfig:
    """Return the columns of what `read_request` makes; those beside `body` keep their configured names."""
    return columns.model_copy(update=REQUEST_COLUMNS)


def read_request(row: Mapping[str, Any], *, columns: ColumnsConfig) -> dict[str, Any]:
    """Return a request as a row with the columns that `request_columns` names.

    `weight`, `cost`, `gold`, `task` and `metadata` may stand beside `body`, under their configured names.

    Args:
        row: One line: custom_id, method, url, body.
        columns: Names of the columns beside `body`.

    Raises:
        SchemaError: The line is no request, or asks for what is not done; `where` names the field.
    """
    for name in ("custom_id", "method", "url", "body"):
        if name not in row:
            raise SchemaError("the field is missing", name, "", "The OpenAI batch format needs it on every line.")
    body, url = row["body"], row["url"]
    if row["method"] != "POST":
        raise SchemaError("the method is not POST", "method", shown(row["method"]), "Write POST.")
    if url not in URLS:
        raise SchemaError("this endpoint is not served", "url", shown(url), f"Use {' or '.join(URLS)}.")
    if not isinstance(body, dict):
        raise SchemaError("the body is no object", "body", shown(body), "Write the request as a JSON object.")
    for name, harmless in _HARMLESS.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise SchemaError("this is not supported", f"body.{name}", shown(body[name]), "Leave the field out.")
    prompt_field = "messages" if url == URLS[0] else "prompt"
    prompt = body.get(prompt_field)
    if prompt is None:
        raise SchemaError("the field is missing", f"body.{prompt_field}", "", f"{url} needs it.")
    if prompt_field == "prompt" and not isinstance(prompt, str):
        raise SchemaError("the prompt is not one text", "body.prompt", shown(prompt), "Write one request per prompt.")
    return {
        "custom_id": row["custom_id"],
        f"body.{prompt_field}": prompt,
        "body.max_tokens": _ceiling(body),
        columns.weight: row.get(columns.weight),
        columns.cost: row.get(columns.cost),
        columns.gold: row.get(columns.gold),
        columns.task: row.get(columns.task),
        columns.metadata: row.get(columns.metadata, body.get("metadata")),
    }


def _ceiling(body: Mapping[str, Any]) -> Any:
    """Return whichever of the old and new name is given; where both are, they must agree."""
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        remedy = "Give one of them."
        raise SchemaError("max_tokens and max_completion_tokens differ", "body", f"{shown(old)}, {shown(new)}", remedy)
    return old if new is None else new
