"""The OpenAPI 3.1 document: every route, what it takes, what it gives, and who may ask."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from clear_ray.serve.openapi import answers, bodies
from clear_ray.serve.openapi.bodies import Schema, whole
from clear_ray.serve.settings import ServeConfig

_WHY = {
    400: "What was sent cannot be read or honoured; `param` says where.",
    401: "The API key is missing or wrong.",
    403: "Without keys: a wrong Host or Origin.",
    404: "There is none of this name, or it belongs to another key.",
    408: "The body did not come in time.",
    409: "Its state does not allow that.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "At the price in force, or under the limits of this key, nothing is sold now.",
    500: "The server failed on this query.",
    503: "No engine can take this query now, or the server is stopping.",
}
_ALWAYS = (401, 403)
_LATER = (429, 503)
_EVENTS: Schema = {"text/event-stream": {"schema": bodies.record({"data": {"type": "string"}}, required=("data",))}}
_OPEN: list[dict[str, list[str]]] = []
_ANSWERING = (
    (
        "/v1/chat/completions", "chat_completions", "Answer a conversation under the budget",
        "ChatRequest", "ChatCompletion",
    ),
    ("/v1/completions", "completions", "Go on with a text under the budget", "CompletionRequest", "Completion"),
    (
        "/v1/responses", "responses", "Answer the input of a response under the budget",
        "ResponseRequest", "Response",
    ),
)  # fmt: skip
"""Routes that answer queries: name and summary of the operation, and the schemas of what is asked and answered."""


def describe(settings: ServeConfig) -> dict[str, Any]:
    """Return the OpenAPI document of a server.

    Args:
        settings: The server's.
    """
    components: Schema = {
        "Error": answers.error(),
        "Model": answers.model(),
        "Message": bodies.message(),
        "ResponseFormat": bodies.response_format(),
        "ChatRequest": bodies.query(settings, "/v1/chat/completions"),
        "ChatCompletion": answers.answer(is_chat=True),
        "CompletionRequest": bodies.query(settings, "/v1/completions"),
        "Completion": answers.answer(is_chat=False),
        "ResponseRequest": bodies.response(settings),
        "Response": answers.response(),
    }
    paths = _pages() | _queries()
    if settings.batches is not None:
        components |= {"File": answers.file(), "FileList": answers.page("File")}
        components |= {"Batch": answers.batch(), "BatchList": answers.page("Batch")}
        components |= {"BatchRequest": bodies.batch(settings)}
        paths |= _files() | _batches()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clear_ray",
            "version": version("clear_ray"),
            "description": f"{', '.join(settings.each)} under a budget of tokens a second, and batches under their own.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if settings.has_keys else _OPEN,
    }


def _pages() -> Schema:
    """Return what answers without a key, and the metrics."""
    ready = _operation("readyz", "Whether a query would be answered", _text("text/plain"), errors=(503,))
    return {
        "/": {"get": _open(_operation("page", "Page with live batches", _text("text/html")))},
        "/docs": {"get": _open(_operation("docs", "This description, to read", _text("text/html")))},
        "/openapi.json": {"get": _open(_operation("openapi", "This description", _json({"type": "object"})))},
        "/healthz": {"get": _open(_operation("healthz", "Whether it lives", _text("text/plain")))},
        "/readyz": {"get": _open(ready)},
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus", _text("text/plain"), errors=_ALWAYS)},
    }


def _queries() -> Schema:
    listed = bodies.record(
        {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}, required=("object", "data")
    )
    errors = (*_ALWAYS, 400, 404, 408, 413, 415, 429, 500, 503)
    model = _parameter("path", "name", {"type": "string", "minLength": 1})
    return {
        "/v1/models": {"get": _operation("models", "List the models", _json(listed), errors=_ALWAYS)},
        "/v1/models/{name}": {
            "get": _operation("model", "Return a model", _json(_ref("Model")), errors=(*_ALWAYS, 404), given=(model,))
        },
        **{
            path: {
                "post": _operation(
                    name, summary, _json(_ref(answer)) | _EVENTS, errors=errors, body=_json(_ref(request))
                )
            }
            for path, name, summary, request, answer in _ANSWERING
        },
    }


def _files() -> Schema:
    file_id = _parameter("path", "file_id", {"type": "string", "minLength": 1})
    listing = (
        _parameter("query", "limit", whole(1, 10_000)),
        _parameter("query", "after", {"type": "string"}),
        _parameter("query", "order", {"enum": ["asc", "desc"]}),
        _parameter("query", "purpose", {"type": "string"}),
    )
    one = (*_ALWAYS, 404)
    return {
        "/v1/files": {
            "get": _operation("list_files", "List files", _json(_ref("FileList")), errors=(*one, 400), given=listing),
            "post": _operation(
                "upload_file",
                "Take a file in",
                _json(_ref("File")),
                errors=(*_ALWAYS, 400, 408, 413, 415),
                body={"multipart/form-data": {"schema": bodies.upload()}},
            ),
        },
        "/v1/files/{file_id}": {
            "get": _operation("file", "What is known of a file", _json(_ref("File")), errors=one, given=(file_id,)),
            "delete": _operation(
                "delete_file", "Delete a file", _json(answers.deleted_file()), errors=one, given=(file_id,)
            ),
        },
        "/v1/files/{file_id}/content": {
            "get": _operation(
                "file_content", "Content of a file", _text("application/octet-stream"), errors=one, given=(file_id,)
            )
        },
    }


def _batches() -> Schema:
    batch_id = _parameter("path", "batch_id", {"type": "string", "minLength": 1})
    listing = (_parameter("query", "limit", whole(1, 100)), _parameter("query", "after", {"type": "string"}))
    key = _parameter("header", "Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 255})
    kind = _parameter("query", "format", {"enum": ["jsonl", "csv", "parquet"]})
    one, changed = (*_ALWAYS, 404), (*_ALWAYS, 400, 404, 409, 413, 415)
    batch = _json(_ref("Batch"))

    def change(name: str, words: str, body: Schema, answer: Schema, *, is_needed: bool = True) -> Schema:
        operation = _operation(name, words, answer, errors=changed, given=(batch_id,), body=_json(body))
        operation["requestBody"]["required"] = is_needed
        return operation

    return {
        "/v1/batches": {
            "get": _operation(
                "list_batches",
                "List batches, the newest first",
                _json(_ref("BatchList")),
                errors=(*one, 400),
                given=listing,
            ),
            "post": _operation(
                "create_batch",
                "Make a batch",
                batch,
                errors=(*_ALWAYS, 400, 409, 413, 415),
                given=(key,),
                body=_json(_ref("BatchRequest")),
            ),
        },
        "/v1/batches/{batch_id}": {"get": _operation("batch", "Return a batch", batch, errors=one, given=(batch_id,))},
        "/v1/batches/{batch_id}/cancel": {
            "post": _operation(
                "cancel_batch", "End a batch, and keep its answers", batch, errors=(*one, 409), given=(batch_id,)
            )
        },
        "/v1/batches/{batch_id}/budget": {
            "post": change(
                "change_budget", "Raise or cut its budget while it runs", bodies.budget(), _json(answers.new_budget())
            )
        },
        "/v1/batches/{batch_id}/retry": {
            "post": change("retry_batch", "Make a batch of what this one left", bodies.retry(), batch, is_needed=False)
        },
        "/v1/batches/{batch_id}/export": {
            "get": _operation(
                "export_batch",
                "All rows of a batch that has ended",
                _text("application/octet-stream"),
                errors=(*one, 400, 409),
                given=(batch_id, kind),
            )
        },
    }


def _operation(
    name: str,
    summary: str,
    answer: Schema,
    *,
    errors: tuple[int, ...] = (),
    given: tuple[Schema, ...] = (),
    body: Schema | None = None,
) -> Schema:
    responses: Schema = {"200": {"description": "Done.", "content": answer}}
    for status in sorted({*errors}):
        said: Schema = {"description": _WHY[status], "content": _json(_ref("Error"))}
        if status in _LATER:
            said["headers"] = {"Retry-After": {"schema": whole(1), "description": "Seconds."}}
        responses[str(status)] = said
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    operation |= {"parameters": list(given)} if given else {}
    return operation | ({"requestBody": {"required": True, "content": body}} if body else {})


def _open(operation: Schema) -> Schema:
    return operation | {"security": _OPEN}


def _parameter(place: str, name: str, schema: Schema) -> Schema:
    return {"in": place, "name": name, "schema": schema, "required": place == "path"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _text(kind: str) -> Schema:
    return {kind: {"schema": {"type": "string"}}}
