"""A line of a batch file as OpenAI, Azure or Anthropic write it, read as a query.

OpenAI's lines name an endpoint: chat completions, completions (whose prompts are raw text or token ids), or responses, as
far as they are text. Anthropic's have `params`. Which fields of a body are honoured is in `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import LOGPROBS_OF_RESPONSES, TABLES, Endpoint, check_fields
from clear_ray.ingest.foreign import is_foreign, translated
from clear_ray.ingest.messages import GOES_ON
from clear_ray.ingest.nested import lookup
from clear_ray.ingest.sampling_fields import answers_asked, sampling_of
from clear_ray.ingest.values import shown

# Whatever a service puts before an endpoint: its host, versions, gateways, Azure's names of a deployment.
_ENDPOINT = re.compile(
    r"\A(?:https?://[^/?#]+)?(?!\w+:)(?:[^?#]*?/)??(chat/completions|completions|responses)/*(?:[?#].*)?\Z"
)
_BY_TAIL: dict[str, Endpoint] = {
    "chat/completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
}
URLS = tuple(_BY_TAIL.values())
"""Endpoints whose requests are read."""
_BY_FIELD: dict[str, Endpoint] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/responses",
}
"""Which endpoint a body is for, where its line names none."""
_OF_A_LINE = frozenset(("custom_id", "method", "url", "body", "params"))

MOST_PROMPTS = 2_048
"""Most prompts of one request, as with OpenAI."""

RawPrompt = tuple[Any, Literal["raw", "tokens"]]
"""A text or a list of token ids, and which of them it is."""
_Asked = list[tuple[Any, Literal["raw", "tokens"] | None]]
"""What a body asks: one conversation, or raw prompts, each with its form."""

REQUEST_COLUMNS = {
    "query_id": "custom_id",
    "prompt": "body.prompt",
    "messages": "body.messages",
    "max_tokens": "body.max_tokens",
}
"""Columns of a request as `read_request` names them, whatever the configuration says."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One line, read.

    Attributes:
        row: Values under the columns that `request_columns` names.
        endpoint: What the line asks.
        form: Form of its prompt, as `records.QUERY_SCHEMA` has it.
        ignored: Fields without effect that ask for something.
        sampling: What the line asks of its answer; None for the run's settings.
        n: How many answers it asks for, if it says so.
        place_of: Function from a place in `row` to the place in the line, as errors name it.
        said: How the line was read, where it is another service's; empty otherwise.
        further: Other prompts of the same line, each with its form.
        model: The model that the line names.
    """

    row: dict[str, Any]
    endpoint: Endpoint
    form: Literal["raw", "tokens"] | None
    ignored: list[str]
    sampling: Sampling | None
    n: int | None
    place_of: Callable[[str], str]
    said: str = ""
    further: tuple[RawPrompt, ...] = ()
    model: Any = None


def is_request(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a line of a batch file."""
    return ("custom_id" in row and any(name in row for name in ("body", "url", "params"))) or is_foreign(row)


def endpoint_of(row: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint of a line, however its service writes it.

    Raises:
        SchemaError: It is not one that is served.
    """
    if "params" in row and "body" not in row:
        return "/v1/messages"
    url, body = row.get("url"), row.get("body")
    if url is None and isinstance(body, dict) and (named := next((name for name in _BY_FIELD if name in body), None)):
        return _BY_FIELD[named]
    if url is None:
        raise SchemaError("the field is missing", "url", "", "It says which endpoint the body is for.")
    found = _ENDPOINT.match(url) if isinstance(url, str) else None
    if found is None:
        raise SchemaError("this endpoint is not served", "url", shown(url), f"Use {', '.join(URLS)}.")
    return _BY_TAIL[found[1]]


def request_columns(columns: ColumnsConfig) -> ColumnsConfig:
    """Return the columns of what `read_request` makes; those beside `body` keep their configured names."""
    return columns.model_copy(update=REQUEST_COLUMNS)


def read_request(row: Mapping[str, Any], *, columns: ColumnsConfig) -> RequestLine:
    """Return a line as a row with the columns that `request_columns` names.

    `weight`, `cost`, `gold`, `task` and `metadata` may stand beside `body`, under their configured names.

    Args:
        row: One line: custom_id, method, url, body, of which the middle ones may be missing; or custom_id, params.
        columns: Names of the columns beside `body`.

    Raises:
        SchemaError: The line is no request, or asks for what is not done; `where` names the field.
    """
    return _read_foreign(row, columns) if is_foreign(row) else _read(row, columns)


def _read_foreign(row: Mapping[str, Any], columns: ColumnsConfig) -> RequestLine:
    line = translated(row)
    try:
        request = _read({"custom_id": None, **line.row}, columns)
    except SchemaError as error:
        raise at(error, line.place_of(error.where)) from error
    inner = request.place_of
    return replace(request, place_of=lambda where: line.place_of(inner(where)), said=line.said)


def _read(row: Mapping[str, Any], columns: ColumnsConfig) -> RequestLine:
    is_anthropic = "params" in row and "body" not in row
    place = "params" if is_anthropic else "body"
    for name in ("custom_id", place):
        if name not in row:
            raise SchemaError("the field is missing", name, "", "A batch file needs it on every line.")
    method = row.get("method")
    if method is not None and not (isinstance(method, str) and method.upper() == "POST"):
        raise SchemaError("the method is not POST", "method", shown(method), "Write POST.")
    endpoint, body = endpoint_of(row), row[place]
    if not isinstance(body, dict):
        raise SchemaError("the body is no object", place, shown(body), "Write the request as a JSON object.")
    said = check_fields(body, endpoint, place=place)
    (prompt, form), *more = _PROMPTS[endpoint](body)
    further = tuple((other, raw) for other, raw in more if raw is not None)
    beside = (columns.weight, columns.cost, columns.gold, columns.task, columns.metadata)
    known = _OF_A_LINE.union(name.partition(".")[0] for name in beside)
    said += [name for name, value in row.items() if name not in known and value is not None]
    metadata = lookup(row, columns.metadata)
    ceiling_name, ceiling = _ceiling(body, place)
    values = {
        "custom_id": row["custom_id"],
        f"body.{'messages' if isinstance(prompt, list) and form is None else 'prompt'}": prompt,
        "body.max_tokens": ceiling,
        **{name: lookup(row, name) for name in beside},
        columns.metadata: body.get("metadata") if metadata is None else metadata,
    }
    place_of = partial(_place_in, endpoint, _turns_before(body, endpoint), ceiling_name)
    try:
        sampling = _asked(body, endpoint, place)
    except SchemaError as error:
        raise at(error, place_of(error.where)) from error
    n = answers_asked(body.get("n"), f"{place}.n")
    return RequestLine(values, endpoint, form, said, sampling, n, place_of, further=further, model=body.get("model"))


def at(error: SchemaError, where: str) -> SchemaError:
    """Return an error with another place."""
    return SchemaError(error.what, where, error.value, error.remedy)


def _turns_before(body: Mapping[str, Any], endpoint: Endpoint) -> str:
    """Return the field whose text becomes a turn before those of the list, if one does."""
    name = {"/v1/responses": "instructions", "/v1/messages": "system"}.get(endpoint, "")
    return name if name and body.get(name) else ""


def _place_in(endpoint: Endpoint, before: str, ceiling: str, where: str) -> str:
    """Return where a value stood in the body as it was written, from where it stands in what was made of it."""
    whole, rest = next(
        ((name, where[len(name) :]) for name in ("body.messages", "body.max_tokens") if where.startswith(name)),
        (where, ""),
    )
    place = "params" if endpoint == "/v1/messages" else "body"
    if whole == "body.max_tokens":
        return f"{place}.{ceiling}"
    if whole == "body.messages":
        if before and (turn := _TURN.match(rest)):
            number = int(turn[1]) - 1
            if number < 0:
                return f"{place}.{before}"
            rest = f"[{number}]{rest[turn.end() :]}"
        return f"{place}.{'input' if endpoint == '/v1/responses' else 'messages'}{rest}"
    for made, written in _WRITTEN.get(endpoint, {}).items():
        if where == made or where.startswith(f"{made}."):
            return written + where[len(made) :]
    return where


_TURN = re.compile(r"\[(\d+)\]")
_WRITTEN: dict[Endpoint, dict[str, str]] = {
    "/v1/responses": {
        "body.response_format": "body.text.format",
        "body.reasoning_effort": "body.reasoning.effort",
    },
    "/v1/messages": {"params.stop": "params.stop_sequences"},
}
"""What stands elsewhere in a body than `sampling_of` looks for it."""


def _asked(body: Mapping[str, Any], endpoint: Endpoint, place: str) -> Sampling | None:
    """Return what a body asks of its answer, whatever its endpoint calls it."""
    words = dict(body)
    if endpoint == "/v1/messages":
        words["stop"] = body.get("stop_sequences")
        if _last_message(body).get("role") == "assistant":
            words["continue_final_message"] = True  # an answer that was begun is gone on with
    if endpoint == "/v1/responses":
        words = _words_of_response(body)
    if endpoint == "/v1/chat/completions" and body.get("reasoning_effort") is None:  # OpenRouter's word
        words["reasoning_effort"] = _of(body, "reasoning", "effort")
    if endpoint == "/v1/chat/completions" and any(_last_message(body).get(name) is True for name in GOES_ON):
        words["continue_final_message"] = True
    return sampling_of(words, place=place)


def response_as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a chat completion that asks what the body of a response does, but for its ceiling.

    Raises:
        SchemaError: Its input is no conversation of texts; `where` names the place.
    """
    ((turns, _),) = _response(body)
    words = {name: value for name, value in _words_of_response(body).items() if name in TABLES["/v1/chat/completions"]}
    words.pop("reasoning", None)  # its effort is there by another name
    return words | {"messages": turns}


def place_in_response(body: Mapping[str, Any], where: str) -> str:
    """Return where a value stands in the body of a response, from where it stands in what `response_as_chat` makes of it."""
    return _place_in("/v1/responses", _turns_before(body, "/v1/responses"), "max_output_tokens", where)


def _words_of_response(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a response's body with what is elsewhere in it where a chat completion has it."""
    form, effort = _of(body, "text", "format"), _of(body, "reasoning", "effort")
    words = {**body, "response_format": form, "reasoning_effort": effort}
    if body.get("top_logprobs") or LOGPROBS_OF_RESPONSES in (body.get("include") or ()):
        words["logprobs"] = True
    return words


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


def _last_message(body: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last if isinstance(last, dict) else {}


def _needed(body: Mapping[str, Any], name: str, place: str = "body") -> Any:
    if body.get(name) is None:
        raise SchemaError("the field is missing", f"{place}.{name}", "", "The endpoint needs it.")
    return body[name]


def _chat(body: Mapping[str, Any]) -> _Asked:
    return [(_list_of_messages(_needed(body, "messages"), "body.messages"), None)]


def raw_prompts(prompt: Any, place: str) -> list[RawPrompt]:
    """Return the raw prompts of a body, each with its form: a text or the token ids of one, or a list of such.

    Raises:
        SchemaError: It is none of these, or there are too many.
    """
    if not (isinstance(prompt, list) and prompt and all(isinstance(one, str | list) for one in prompt)):
        return [_raw_prompt(prompt, place)]
    if len(prompt) > MOST_PROMPTS:
        found = f"{len(prompt):,} prompts"
        raise SchemaError(f"a request has at most {MOST_PROMPTS:,} prompts", place, found, "Write several requests.")
    return [_raw_prompt(one, f"{place}[{k}]" if k else place) for k, one in enumerate(prompt)]


def _raw_prompt(prompt: Any, place: str) -> RawPrompt:
    if isinstance(prompt, str):
        return prompt, "raw"
    if isinstance(prompt, list) and prompt:
        tokens = [int(token) if isinstance(token, float) and token.is_integer() else token for token in prompt]
        if all(type(token) is int and token >= 0 for token in tokens):
            return tokens, "tokens"
    remedy = "Write a text, a list of token ids, or a list of these."
    raise SchemaError("a prompt is a text, or the token ids of one", place, shown(prompt), remedy)


def _completion(body: Mapping[str, Any]) -> _Asked:
    return list(raw_prompts(_needed(body, "prompt"), "body.prompt"))


def _response(body: Mapping[str, Any]) -> _Asked:
    """Return the input of a response as messages, with its instructions before them."""
    given, turns = _needed(body, "input"), []
    if isinstance(given, str):
        turns = [{"role": "user", "content": given}]
    else:
        items = _list_of_messages(given, "body.input")
        turns = [_response_item(item, f"body.input[{k}]") for k, item in enumerate(items)]
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise SchemaError("instructions are a text", "body.instructions", shown(instructions), "Write a text.")
    if instructions:
        turns.insert(0, {"role": "system", "content": instructions})
    return [(turns, None)]


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


def _message(body: Mapping[str, Any]) -> _Asked:
    """Return the messages of Anthropic's params, with the system prompt before them."""
    _needed(body, "max_tokens", "params")
    turns = list(_list_of_messages(_needed(body, "messages", "params"), "params.messages"))
    if body.get("system"):
        turns.insert(0, {"role": "system", "content": body["system"]})
    return [(turns, None)]


_PROMPTS: dict[Endpoint, Callable[[Mapping[str, Any]], _Asked]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/messages": _message,
}


def _list_of_messages(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError("a conversation is a list of messages", place, shown(value), "Write [{role, content}, …].")
    return value


def _ceiling(body: Mapping[str, Any], place: str) -> tuple[str, Any]:
    """Return whichever of the names of a ceiling is given, with its value; where two are, they must agree."""
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    found = {name: body[name] for name in names if body.get(name) is not None}
    if len(found) == 2 and len({*map(repr, found.values())}) == 2:
        what, value = f"{' and '.join(found)} differ", shown(list(found.values()))
        raise SchemaError(what, f"{place}.{list(found)[1]}", value, "Give one of them.")
    return next(iter(found.items()), ("max_tokens", None))
