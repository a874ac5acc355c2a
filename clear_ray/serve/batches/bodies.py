"""A batch as OpenAI's clients know it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from clear_ray.serve.batches.store import new_id
from clear_ray.serve.batches.upload import expiry_of
from clear_ray.serve.batches.validation import ENDPOINTS, error
from clear_ray.serve.errors import ApiError

CANCELLABLE = frozenset({"validating", "in_progress"})
WINDOW_SECONDS = 24 * 3_600
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
_ASKED = ("completion_window", "endpoint", "input_file_id", "metadata", "output_expires_after")
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def asked_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request to make a batch asks for, checked.

    Raises:
        ApiError: 400; it names the parameter.
    """
    for name in ("input_file_id", "endpoint", "completion_window"):
        if given.get(name) is None:
            raise ApiError(400, f"{name} is missing.", param=name, code="missing_required_parameter")
        if not isinstance(given[name], str):
            raise ApiError(400, f"{name} is a string.", param=name, code="invalid_type")
        if not given[name]:
            raise ApiError(400, f"{name} is empty.", param=name, code="empty_string")
    if given["endpoint"] not in ENDPOINTS:
        message = f"A batch may have the endpoint {', '.join(ENDPOINTS)}."
        raise ApiError(400, message, param="endpoint", code="invalid_endpoint")
    if given["completion_window"] != "24h":
        raise ApiError(
            400, "The completion window is 24h.", param="completion_window", code="invalid_completion_window"
        )
    unknown = given.keys() - {*_ASKED, "idempotency_key"}
    if unknown:
        raise ApiError(400, "There is no such parameter.", param=min(unknown), code="unknown_parameter")
    asked = {name: given.get(name) for name in _ASKED}
    asked["metadata"] = _metadata(given.get("metadata"))
    if asked["output_expires_after"] is not None:
        expiry_of(asked, 0, default_seconds=None, name="output_expires_after")
    return asked


def _metadata(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > MOST_PAIRS:
        code = "object_above_max_properties" if isinstance(given, dict) else "invalid_type"
        raise ApiError(400, f"metadata is an object of at most {MOST_PAIRS} strings.", param="metadata", code=code)
    for key, value in given.items():
        if code := _wrong_with(key, value):
            if code == "invalid_type":
                message = f"metadata.{key[:MOST_KEY]} is a string: write it in quotes."
                raise ApiError(400, message, param=f"metadata.{key[:MOST_KEY]}", code=code)
            message = f"A key of metadata has 1 to {MOST_KEY} characters, a value is a string of at most {MOST_VALUE}."
            raise ApiError(400, message, param=f"metadata.{key[:MOST_KEY]}", code=code)
    return given


def _wrong_with(key: str, value: Any) -> str:
    """Return the code of what is wrong with a pair of metadata; empty if nothing is."""
    if not isinstance(value, str):
        return "invalid_type"
    if not 0 < len(key) <= MOST_KEY:
        return "property_name_above_max_length" if key else "invalid_value"
    return "string_above_max_length" if len(value) > MOST_VALUE else ""


def new_body(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a new batch."""
    now = int(time.time())
    return {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": asked["endpoint"],
        "model": None,
        "errors": None,
        "input_file_id": asked["input_file_id"],
        "completion_window": asked["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + WINDOW_SECONDS,
        **{f"{name}_at": None for name in _TIMES},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": None,
        "metadata": asked["metadata"],
    }


def failure(*errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that make a batch a failed one."""
    return {"status": "failed", "errors": {"object": "list", "data": [dict(each) for each in errors]}}


def defect(message: str) -> dict[str, Any]:
    """Return the changes of a batch whose run failed as a whole."""
    return failure(error("run_failed", message))
