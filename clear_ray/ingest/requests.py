"""A line of a batch file as OpenAI, Azure or Anthropic write it, read as a query.

OpenAI's lines name an endpoint: chat completions, completions (whose prompts are raw text or token ids), or responses, as
far as they are text. Anthropic's have `params`. Which fields of a body are honoured is in `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import Endpoint, check_fields
from clear_ray.ingest.nested import lookup
from clear_ray.ingest.sampling_fields import sampling_of
from clear_ray.ingest.source import shown

_BY_TAIL: dict[str, Endpoint] = {
    "chat/completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
}
URLS = tuple(_BY_TAIL.values())
"""Endpoints whose requests are read."""
# Whatever a service puts before an endpoint: its host, a version, Azure's names of a deployment.
_BEFORE = re.compile(r"\A(?:https?://[^/?#]+)?(?:/?openai(?:/deployments/[^/]+)?)?(?:/?v\d+)?/*")

REQUEST_COLUMNS = {
    "query_id": "custom_id",
    "prompt": "body.prompt",
    "messages": "body.messages",
    "max_tokens": "body.max_tokens",
}
"""Columns of a request as `read_request` names them, whatever the configuration says."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line, read.

    Attributes:
        row: Values under the columns that `request_columns` names.
        endpoint: What the line asks.
        form: Form of its prompt, as `records.QUERY_SCHEMA` has it.
        ignored: Fields without effect that ask for something.
        sampling: What the line asks of its answer; None for the run's settings.
    """

    row: dict[str, Any]
    endpoint: Endpoint
    form: Literal["raw", "tokens"] | None
    ignored: list[str]
    sampling: Sampling | None


def is_request(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a line of a batch file."""
    return "custom_id" in row and any(name in row for name in ("body", "url", "params"))


def endpoint_of(row: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint of a line, however its service writes it.

    Raises:
        SchemaError: It is not one that is served.
    """
    if "params" in row and "body" not in row:
        return "/v1/messages"
    url = row.get("url")
    tail = _BEFORE.sub("", url.partition("?")[0].rstrip("/")) if isinstance(url, str) else None
    if tail not in _BY_TAIL:
        raise SchemaError("this endpoint is not served", "url", shown(url), f"Use {', '.join(URLS)}.")
    return _BY_TAIL[tail]


def request_columns(columns: ColumnsConfig) -> ColumnsConfig:
    """Return the columns of what `read_request` makes; those beside `body` keep their configured names."""
    return columns.model_copy(update=REQUEST_COLUMNS)


def read_request(row: Mapping[str, Any], *, columns: ColumnsConfig) -> Request:
    """Return a line as a row with the columns that `request_columns` names.

    `weight`, `cost`, `gold`, `task` and `metadata` may stand beside `body`, under their configured names.

    Args:
        row: One line: custom_id, method, url, body; or custom_id, params.
        columns: Names of the columns beside `body`.

    Raises:
        SchemaError: The line is no request, or asks for what is not done; `where` names the field.
    """
    is_anthropic = "params" in row and "body" not in row
    place = "params" if is_anthropic else "body"
    for name in ("custom_id", "params") if is_anthropic else ("custom_id", "method", "url", "body"):
        if name not in row:
            raise SchemaError("the field is missing", name, "", "A batch file needs it on every line.")
    if not is_anthropic and row["method"] != "POST":
        raise SchemaError("the method is not POST", "method", shown(row["method"]), "Write POST.")
    endpoint, body = endpoint_of(row), row[place]
    if not isinstance(body, dict):
        raise SchemaError("the body is no object", place, shown(body), "Write the request as a JSON object.")
    said = check_fields(body, endpoint, place=place)
    prompt, form = _PROMPTS[endpoint](body)
    beside = {name: lookup(row, name) for name in (columns.weight, columns.cost, columns.gold, columns.task)}
    metadata = lookup(row, columns.metadata)
    values = {
        "custom_id": row["custom_id"],
        f"body.{'messages' if isinstance(prompt, list) and form is None else 'prompt'}": prompt,
        "body.max_tokens": _ceiling(body),
        **beside,
        columns.metadata: body.get("metadata") if metadata is None else metadata,
    }
    return Request(values, endpoint, form, said, _asked(body, endpoint, place))


def _asked(body: Mapping[str, Any], endpoint: Endpoint, place: str) -> Sampling | None:
    """Return what a body asks of its answer, whatever its endpoint calls it."""
    words = dict(body)
    if endpoint == "/v1/messages":
        words["stop"] = body.get("stop_sequences")
        if _last_role(body) == "assistant":
            words["continue_final_message"] = True  # an answer that was begun is gone on with
    if endpoint == "/v1/responses":
        words |= {"response_format": _of(body, "text", "format"), "reasoning_effort": _of(body, "reasoning", "effort")}
    sampling = sampling_of(words, place=place)
    if sampling is not None and sampling.continue_final_message and _last_role(body) != "assistant":
        what, remedy = "only what the assistant has begun is gone on with", "End with a message of the assistant."
        raise SchemaError(what, f"{place}.continue_final_message", "true", remedy)
    return sampling


def _of(body: Mapping[str, Any], name: str, part: str) -> Any:
    """Return a part of an object in a response's body, and refuse what else it holds."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise SchemaError("it is an object", f"body.{name}", shown(value), "Write an object.")
    harmless: dict[str, tuple[Any, ...]] = {"verbosity": ("medium",)}
    for key, given in value.items():
        is_told_of = key in ("summary", "generate_summary")  # of thoughts that are in no answer here
        if key != part and given is not None and not is_told_of and given not in harmless.get(key, ()):
            raise SchemaError("this is not supported", f"body.{name}.{key}", shown(given), "Leave it out.")
    return value.get(part)


def _last_role(body: Mapping[str, Any]) -> Any:
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last.get("role") if isinstance(last, dict) else None


def _needed(body: Mapping[str, Any], name: str, place: str = "body") -> Any:
    if body.get(name) is None:
        raise SchemaError("the field is missing", f"{place}.{name}", "", "The endpoint needs it.")
    return body[name]


def _chat(body: Mapping[str, Any]) -> tuple[Any, None]:
    return _list_of_messages(_needed(body, "messages"), "body.messages"), None


def _completion(body: Mapping[str, Any]) -> tuple[Any, Literal["raw", "tokens"]]:
    """Return a raw prompt: one text or the token ids of one, bare or as the one element of a list."""
    prompt = _needed(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt, "raw"
    if isinstance(prompt, list) and prompt and all(type(token) is int and token >= 0 for token in prompt):
        return prompt, "tokens"
    what = "the prompt is not one text, nor the token ids of one"
    raise SchemaError(what, "body.prompt", shown(prompt), "Write one request for each prompt.")


def _response(body: Mapping[str, Any]) -> tuple[list[Any], None]:
    """Return the input of a response as messages, with its instructions before them."""
    given, turns = _needed(body, "input"), []
    if isinstance(given, str):
        turns = [{"role": "user", "content": given}]
    else:
        items = _list_of_messages(given, "body.input")
        turns = [_response_item(item, f"body.input[{k}]") for k, item in enumerate(items)]
    if body.get("instructions") is not None:
        turns.insert(0, {"role": "system", "content": body["instructions"]})
    return turns, None


def _response_item(item: Any, place: str) -> Any:
    if not isinstance(item, dict):
        raise SchemaError("an item of the input is an object", place, shown(item), "Write {role, content}.")
    kind = item.get("type", "message")
    if kind != "message":
        raise SchemaError(
            "only messages are read", f"{place}.type", shown(kind), "Remove tools, reasoning and references."
        )
    content = item.get("content")
    if isinstance(content, list):
        content = [_response_part(part) for part in content]
    # Of messages that an earlier response gave: neither changes what is asked.
    return {key: value for key, value in item.items() if key not in ("type", "id", "status")} | {"content": content}


def _response_part(part: Any) -> Any:
    is_text = isinstance(part, dict) and part.get("type") in ("input_text", "output_text")
    return {"type": "text", "text": part.get("text")} if is_text else part


def _message(body: Mapping[str, Any]) -> tuple[list[Any], None]:
    """Return the messages of Anthropic's params, with the system prompt before them."""
    _needed(body, "max_tokens", "params")
    turns = list(_list_of_messages(_needed(body, "messages", "params"), "params.messages"))
    if body.get("system"):
        turns.insert(0, {"role": "system", "content": body["system"]})
    return turns, None


_PROMPTS: dict[Endpoint, Any] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _message,
}


def _list_of_messages(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError("a conversation is a list of messages", place, shown(value), "Write [{role, content}, …].")
    return value


def _ceiling(body: Mapping[str, Any]) -> Any:
    """Return whichever of the names of a ceiling is given; where two are, they must agree."""
    found = [
        body[name]
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")
        if body.get(name) is not None
    ]
    if len(found) == 2 and found[0] != found[1]:
        remedy = "Give one of them."
        raise SchemaError("max_tokens and max_completion_tokens differ", "body", shown(found), remedy)
    return found[0] if found else None
