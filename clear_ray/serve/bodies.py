"""Bodies of requests, read so that what is wrong with them is said in a user's words and reaches no engine."""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from clear_ray.serve.errors import ApiError

_WORDS = {
    "missing": "is missing",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "too_short": "must not be empty",
}
_BOUNDS = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be more than", "gt"),
    "less_than_equal": ("must be at most", "le"),
}
_PIECE_BYTES = 1 << 18
_UNIONS = {"stop": "must be a text or a list of texts", "prompt": "must be a text or a list of token ids"}
"""Parameters that take one of several kinds, of which the check names one for each kind."""


def check_json(request: Request) -> None:
    """Refuse a body that is not said to be JSON.

    Raises:
        ApiError: 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "Send the body with Content-Type: application/json.", code="unsupported_media_type")


async def unpacked(request: Request) -> AsyncIterator[bytes]:
    """Yield the body of a request as it comes, without the packing that its client says it has.

    Raises:
        ApiError: 400 for one that is not packed so, or ends early; 415 for another packing.
    """
    packing = request.headers.get("content-encoding", "identity").strip().lower()
    if packing in ("", "identity"):
        async for chunk in request.stream():
            yield chunk
        return
    if packing not in ("gzip", "x-gzip", "deflate"):
        message = "Send the body as it is, or with Content-Encoding: gzip."
        taken = {"Accept-Encoding": "gzip, deflate"}
        raise ApiError(415, message, code="unsupported_content_encoding", headers=taken)
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either, by its first bytes
    try:
        async for chunk in request.stream():
            while chunk:
                yield unpacking.decompress(chunk, _PIECE_BYTES)  # however much a little may hold
                chunk = unpacking.unconsumed_tail
        yield unpacking.flush()
    except zlib.error:
        raise ApiError(400, f"The body is no {packing}.", code="invalid_body") from None
    if not unpacking.eof or unpacking.unused_data:
        raise ApiError(400, f"The body is not one whole {packing}.", code="invalid_body")


def json_of(body: bytes) -> Any:
    """Return what a body holds.

    Args:
        body: JSON in UTF-8.

    Raises:
        ApiError: 400: it is none, or a text in it is no Unicode. Such a text breaks tokenizers, and with them engines.
    """
    try:
        value = json.loads(body.removeprefix(codecs.BOM_UTF8).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON in UTF-8.", code="invalid_json") from None
    # Halves of surrogate pairs come only by escapes, for the body is UTF-8.
    if b"\\u" in body and (place := next(_broken_texts(value, ""), None)) is not None:
        message = f"{place}: the text holds half a surrogate pair. Cut texts between characters, not within one."
        raise ApiError(400, message, param=place, code="invalid_value")
    return value


def refusal_of(error: ValidationError) -> ApiError:
    """Return what a client is told of a value of the wrong kind, without the value."""
    first = error.errors(include_url=False)[0]
    where, kind = first["loc"], first["type"]
    if not where:
        return ApiError(400, "The body must be a JSON object.", code="invalid_value")
    name = str(where[0])
    if name in _UNIONS and kind not in (*_BOUNDS, "missing", "too_short"):
        what = _UNIONS[name]
    else:
        name += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where[1:])
        words, bound = _BOUNDS.get(kind, (_WORDS.get(kind, "has a value that is not taken here"), ""))
        what = f"{words} {first['ctx'][bound]}" if bound else words
    return ApiError(400, f"{name} {what}.", param=name, code=_code_of(first))


def _code_of(first: ErrorDetails) -> str:
    """Return the word that OpenAI's API has for a kind of mistake."""
    kind = first["type"]
    if kind == "missing":
        return "missing_required_parameter"
    if kind == "too_short":
        return "empty_string" if isinstance(first["input"], str) else "empty_array"
    if kind in _BOUNDS:
        _, bound = _BOUNDS[kind]
        number = "decimal" if isinstance(first["ctx"][bound], float) else "integer"
        return f"{number}_above_max_value" if bound == "le" else f"{number}_below_min_value"
    return "invalid_type" if kind in _WORDS else "invalid_value"


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _broken_texts(value: Any, place: str) -> Iterator[str]:
    """Yield the places of texts that are no Unicode."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                yield place or "body"
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _broken_texts(part, f"{place}[{number}]")
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _broken_texts(name, place)
            yield from _broken_texts(part, f"{place}.{name}" if place else name)
