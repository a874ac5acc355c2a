"""Whether a file is a batch for an endpoint: every line is looked at, and the first thing wrong with it is told.

Here a batch fails as a whole, before anything is paid for: lines that are no requests, of another endpoint or model, streams
and ids given twice. What is wrong inside a request's body fails that row alone, when the run takes it in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from clear_ray.errors import SchemaError
from clear_ray.ingest.requests import URLS, endpoint_of
from clear_ray.ingest.sampling_fields import MOST_ANSWERS

_MOST_LINE_BYTES = 16 * 1024 * 1024
_MOST_ERRORS = 100
_BOM = b"\xef\xbb\xbf"
_PACKED = {b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive or a spreadsheet", b"PAR1": "a Parquet file"}
_PACKED |= {b"\x28\xb5\x2f\xfd": "a Zstandard archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive"}
_FIELDS: Mapping[str, tuple[type, str]] = {
    "custom_id": (str, "string"),
    "method": (str, "string"),
    "url": (str, "string"),
    "body": (dict, "JSON object"),
}
_OF_A_LINE = re.compile(r"(?:\S*/)?input\.jsonl:(\d+)(?:, column ([^\s:]+))?: (.+)", re.DOTALL)
"""How the reading of a batch's input names a line and a place in it."""
_PROMPTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}
_CEILINGS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at a file found.

    Attributes:
        requests: Lines that are requests.
        most_tokens: What their answers come to at most, tokens.
        model: The model that all of them name.
        errors: As a batch's `errors.data` has them; empty if it may run.
    """

    requests: int
    most_tokens: int
    model: str
    errors: tuple[dict[str, Any], ...]


def error(code: str, message: str, *, line: int | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an entry of a batch's `errors.data`."""
    return {"code": code, "message": message, "line": line, "param": param}


def refusals(said: str) -> list[dict[str, Any]]:
    """Return what was said of an input without a good row as entries of a batch's `errors.data`, one for each line."""
    found = [_OF_A_LINE.fullmatch(line) for line in said.split("\n  ")]
    entries = [error("invalid_request", one[3], line=int(one[1]), param=one[2]) for one in found if one]
    return entries or [error("invalid_request", said)]


def look_at(source: BinaryIO, *, endpoint: str, models: Sequence[str], max_tokens: int, most_requests: int) -> Looked:
    """Look at every line of a batch file.

    Args:
        source: The file.
        endpoint: Endpoint that the batch was made for, one of `ingest.requests.URLS`.
        models: Names of the models that are served, one of which all requests name.
        max_tokens: Ceiling of one answer.
        most_requests: How many requests a batch may have.
    """
    look = _Look(endpoint, models, max_tokens)
    for number, line in enumerate(_lines(source), 1):
        if number == 1:
            line = line.removeprefix(_BOM)
            if (found := _no_lines(line)) is not None:
                return Looked(0, 0, models[0], (error("invalid_file", found, param="input_file_id"),))
        if not line or line.isspace():
            continue
        look.take(number, line)
        if look.requests > most_requests:
            look.errors.append(
                error("too_many_requests", f"A batch has at most {most_requests:,} requests.", line=number)
            )
            break
        if len(look.errors) >= _MOST_ERRORS:
            break
    if not look.requests:
        look.errors.append(error("empty_file", "The file holds no request.", param="input_file_id"))
    return Looked(look.requests, look.most_tokens, look.model or models[0], tuple(look.errors))


def _no_lines(first: bytes) -> str | None:
    """Return why a file is not of one JSON object a line, by its first one; None if it may be."""
    kind = next((name for magic, name in _PACKED.items() if first.startswith(magic)), None)
    if kind is not None:
        return f"This is {kind}. A batch file is text, with a request as JSON on each line."
    if first.strip() in (b"{", b"["):
        return "This is one JSON text over many lines. A batch file has each request as JSON on a line of its own."
    return None


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """Yield the lines; one that is too long is cut, and the last."""
    while line := source.readline(_MOST_LINE_BYTES + 1):
        yield line
        if len(line) > _MOST_LINE_BYTES:
            return


class _Look:
    """What was found so far; of the ids that were seen their hashes are kept."""

    def __init__(self, endpoint: str, models: Sequence[str], max_tokens: int) -> None:
        self.requests = self.most_tokens = 0
        self.model: str | None = None
        self.errors: list[dict[str, Any]] = []
        self._endpoint, self._models, self._max_tokens = endpoint, models, max_tokens
        self._seen: set[int] = set()

    def take(self, number: int, line: bytes) -> None:
        """Look at one line."""
        self.requests += 1
        found = self._wrong_with(line)
        if found is not None:
            code, message, param = found
            self.errors.append(error(code, message, line=number, param=param))

    def _wrong_with(self, line: bytes) -> tuple[str, str, str | None] | None:
        if len(line) > _MOST_LINE_BYTES:
            return "line_too_long", f"A line has at most {_MOST_LINE_BYTES // 2**20} MiB; the rest was not read.", None
        try:
            row = json.loads(line.decode())  # of bytes it would guess the encoding, line by line
        except UnicodeDecodeError:
            return "invalid_json_line", "This line is not UTF-8, as every line of a batch file is.", None
        except (ValueError, RecursionError):
            return "invalid_json_line", "This line is not parseable as valid JSON.", None
        if not isinstance(row, dict):
            return "invalid_request", "Each line is a JSON object.", None
        for name, (kind, called) in _FIELDS.items():
            if name not in row:
                return "missing_required_parameter", f"The parameter {name} is missing.", name
            if not isinstance(row[name], kind):
                return "invalid_request", f"{name} is a {called}.", name
        return self._wrong_in(row) or self._seen_before(row["custom_id"])

    def _wrong_in(self, row: dict[str, Any]) -> tuple[str, str, str | None] | None:
        body = row["body"]
        if row["method"] != "POST":
            return "invalid_method", "The method is POST.", "method"
        if _endpoint(row) != self._endpoint:
            return "invalid_url", f"The url is not the batch's endpoint, {self._endpoint}.", "url"
        if body.get("stream"):
            return "streaming_unsupported", "A batch does not stream: leave `stream` out.", "body.stream"
        for name in ("model", _PROMPTS[self._endpoint]):
            if body.get(name) is None:
                return "missing_required_parameter", f"The parameter {name} is missing in the body.", f"body.{name}"
        if not isinstance(body["model"], str):
            return "invalid_request", "model is a string.", "body.model"
        if body["model"] not in self._models:
            said = f"the model {self._models[0]}" if len(self._models) == 1 else f"the models {', '.join(self._models)}"
            return "model_not_found", f"This server has {said}.", "body.model"
        if self.model not in (None, body["model"]):
            said = f"The requests of a batch name one model, and those before this one name {self.model}."
            return "mismatched_model", said, "body.model"
        self.model = body["model"]
        self.most_tokens += self._ceiling(body)
        return None

    def _ceiling(self, body: dict[str, Any]) -> int:
        given = next((body[name] for name in _CEILINGS if body.get(name) is not None), None)
        ceiling = min(given, self._max_tokens) if type(given) is int and given > 0 else self._max_tokens
        n, prompt = body.get("n"), body.get("prompt")
        listed = prompt if isinstance(prompt, list) and all(isinstance(one, str | list) for one in prompt) else []
        return ceiling * (n if type(n) is int and 1 < n <= MOST_ANSWERS else 1) * max(1, len(listed))

    def _seen_before(self, custom_id: str) -> tuple[str, str, str | None] | None:
        if not custom_id:
            return "invalid_request", "custom_id is empty.", "custom_id"
        try:
            custom_id.encode()
        except UnicodeEncodeError:
            return "invalid_request", "custom_id holds half a surrogate pair.", "custom_id"
        key = hash(custom_id)
        if key in self._seen:
            return "duplicate_custom_id", "This custom_id was on an earlier line.", "custom_id"
        self._seen.add(key)
        return None


def _endpoint(row: dict[str, Any]) -> str | None:
    """Return the endpoint of a line; None if it is not one that is served."""
    try:
        return endpoint_of(row)
    except SchemaError:
        return None


ENDPOINTS = tuple(url for url in URLS if url in _PROMPTS)
"""Endpoints that a batch may have."""
