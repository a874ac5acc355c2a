"""Schemas of what clients get."""

from __future__ import annotations

from typing import Any

from clear_ray.serve.openapi.bodies import Schema, or_null, record, whole

_STATES = ("validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled")
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = whole(0)
_NUMBER: Schema = {"type": "number"}
_MAYBE: Schema = {"type": ["string", "null"]}
_TIME: Schema = {"type": ["integer", "null"], "description": "Unix seconds."}


def _whole_record(**properties: Schema) -> Schema:
    """Return the schema of an object that holds all of these."""
    return record(properties, required=tuple(properties))


def error() -> Schema:
    """Return the schema of every error."""
    return _whole_record(error=_whole_record(message=_TEXT, type=_TEXT, param=_MAYBE, code=_MAYBE))


def model() -> Schema:
    """Return the schema of a model."""
    return _whole_record(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)


def answer(*, is_chat: bool) -> Schema:
    """Return the schema of an answer that is not streamed."""
    said: Schema = {"text": _TEXT}
    if is_chat:
        said = {"message": _whole_record(role={"const": "assistant"}, content=_TEXT)}
    finish = {"enum": ["stop", "length"]}
    choice = _whole_record(index=_COUNT, **said, logprobs={"type": ["object", "null"]}, finish_reason=finish)
    usage = _whole_record(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT, clear_ray=_account())
    kind = {"const": "chat.completion" if is_chat else "text_completion"}
    return _whole_record(
        id=_TEXT, object=kind, created=_COUNT, model=_TEXT, choices={"type": "array", "items": choice}, usage=usage
    )


def response() -> Schema:
    """Return the schema of a response that is not streamed."""
    said = record({"type": {"const": "output_text"}, "text": _TEXT}, required=("type", "text", "annotations"))
    status = {"enum": ["completed", "incomplete"]}
    content = {"type": "array", "items": said}
    item = _whole_record(
        type={"const": "message"}, id=_TEXT, status=status, role={"const": "assistant"}, content=content
    )
    return _whole_record(
        id=_TEXT,
        object={"const": "response"},
        created_at=_COUNT,
        status=status,
        incomplete_details={"type": ["object", "null"]},
        model=_TEXT,
        output={"type": "array", "items": item},
        usage=_usage(clear_ray=_account()),
    )


def file() -> Schema:
    """Return the schema of what is known of a file."""
    return _whole_record(
        id=_TEXT,
        object={"const": "file"},
        bytes=_COUNT,
        created_at=_COUNT,
        filename=_TEXT,
        purpose=_TEXT,
        status={"const": "processed"},
        expires_at=_TIME,
        status_details=_MAYBE,
    )


def deleted_file() -> Schema:
    """Return the schema of what is said of a file that was deleted."""
    return _whole_record(id=_TEXT, object={"const": "file"}, deleted={"const": True})


def batch() -> Schema:
    """Return the schema of a batch."""
    wrong = _whole_record(code=_TEXT, message=_TEXT, line={"type": ["integer", "null"]}, param=_MAYBE)
    errors = _whole_record(object={"const": "list"}, data={"type": "array", "items": wrong})
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    described = _whole_record(
        id=_TEXT,
        object={"const": "batch"},
        endpoint=_TEXT,
        model=_MAYBE,
        errors=or_null(errors),
        input_file_id=_TEXT,
        completion_window=_TEXT,
        status={"enum": list(_STATES)},
        output_file_id=_MAYBE,
        error_file_id=_MAYBE,
        created_at=_COUNT,
        expires_at=_COUNT,
        **{f"{name}_at": _TIME for name in times},
        request_counts=_whole_record(total=_COUNT, completed=_COUNT, failed=_COUNT),
        usage=or_null(_usage()),
        metadata={"type": ["object", "null"]},
    )
    live = record({"stage": _TEXT, "shadow_price": {"type": ["number", "null"]}, "unit": _TEXT} | _amounts())
    described["properties"]["clear_ray"] = {**live, "description": "There once its run has begun."}
    return described


def new_budget() -> Schema:
    """Return the schema of the budget that was ordered."""
    return _whole_record(id=_TEXT, object={"const": "batch.budget"}, budget_tokens=_COUNT, unit=_TEXT)


def page(of: str) -> Schema:
    """Return the schema of a page of files or batches."""
    items: dict[str, Any] = {"type": "array", "items": {"$ref": f"#/components/schemas/{of}"}}
    return _whole_record(
        object={"const": "list"}, data=items, first_id=_MAYBE, last_id=_MAYBE, has_more={"type": "boolean"}
    )


def _amounts() -> Schema:
    return dict.fromkeys(("budget_tokens", "spent_tokens", "reserved_tokens", "wasted_tokens"), _COUNT)


def _account() -> Schema:
    """Return the schema of what an answer took of the budget."""
    return _whole_record(
        budget_tokens={**_COUNT, "description": "What was granted, all choices together."},
        spent_tokens=_COUNT,
        shadow_price={**_NUMBER, "description": "Expected correct answers a token, when it was bought."},
        outcome={"enum": ["granted", "direct"]},
        waited_seconds=_NUMBER,
    )


def _usage(**more: Schema) -> Schema:
    return _whole_record(
        input_tokens=_COUNT,
        input_tokens_details=_whole_record(cached_tokens=_COUNT),
        output_tokens=_COUNT,
        output_tokens_details=_whole_record(reasoning_tokens=_COUNT),
        total_tokens=_COUNT,
        **more,
    )
