"""Answers in the format of the batch file: `output.jsonl` for those completed, `errors.jsonl` for the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Protocol

from clear_ray.ingest.logprobs import chat_logprobs, legacy_logprobs, load_logprobs
from clear_ray.storage import Folder, sync_path

OUTPUT_FILE, ERRORS_FILE = "output.jsonl", "errors.jsonl"

_CODES = {"abandoned": "abandoned_by_price", "failed": "engine_failed"}  # of rows without a code of their own
_COLUMN = re.compile(r", column ([^:\s]+): ")
_STATUS = {
    "invalid_request": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "engine_failed": (500, "server_error"),
    "scorer_failed": (500, "server_error"),
}
_FOLDERS = re.compile(r"\A/(?:[^/:\n]*/)*(?=[^/:\n]+:\d+)")  # before the name of a file and its line
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class _Sink(Protocol):
    def write(self, content: bytes, /) -> object: ...


def write_openai_outputs(
    rows: Iterable[Mapping[str, Any]],
    folder: Folder,
    *,
    model: str,
    url: str = "/v1/chat/completions",
    unserved: str = "batch_expired",
    model_of: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write both files; each appears whole or not at all, and the same rows give the same bytes.

    Completed queries go to `output.jsonl`, all others to `errors.jsonl`, in the order of the rows, which is the input's.
    What a server would have answered with an HTTP status (a bad request, a failed engine) is a `response` of that status;
    what never reached an engine (abandoned, or nothing was left for it) is an `error` of its own code. `usage` counts what
    the query was charged.

    Rows of one id that follow each other are the answers to one request (`n`, or several prompts): one line with all of them
    as `choices`, which is completed if one of them is. A choice that got no tokens is an empty text that was cut off
    (`length`). Each prompt counts once.

    Args:
        rows: Rows of `records.COMPLETION_SCHEMA`; read once.
        folder: Where the files go.
        model: Name that the answers carry.
        url: Endpoint of the requests, which decides the shape of a line.
        unserved: Code of the queries that nothing was left for, in place of `batch_expired`.
        model_of: Of several engines, the name that each one's answers carry.
    """
    line_of = _anthropic_line if url == "/v1/messages" else partial(_line, url=url)
    folder.make()
    with _appearing_whole(folder, OUTPUT_FILE) as output, _appearing_whole(folder, ERRORS_FILE) as errors:
        for _, answers in groupby(rows, key=itemgetter("query_id")):  # ids are the input's own, and each is there once
            row = _of_all(list(answers))
            if row["error_code"] == "batch_expired":
                row = {**row, "error_code": unserved}
            sink = output if row["status"] == "completed" else errors
            sink.write(f"{_encode(line_of(row, model_of.get(row.get('engine') or '', model)))}\n".encode())


def _of_all(answers: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of a request: that of its first answer that was completed, with all answers that it asked for."""
    first = next((row for row in answers if row["status"] == "completed"), answers[0])
    if len(answers) == 1:
        return first
    ended = max(int(row.get("ended_at") or 0) for row in answers)
    spent = sum(int(row["spent_tokens"]) for row in answers)
    lengths = {(row["choice"] or 0) // (row["n"] or 1): int(row["prompt_tokens"]) for row in answers}
    told = {"ended_at": ended, "spent_tokens": spent, "prompt_tokens": sum(lengths.values())}
    return {**first, **told, "answers": answers}


def _name_of(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(row["query_id"].encode()).hexdigest()[:24]


def _line(row: Mapping[str, Any], model: str, url: str) -> dict[str, Any]:
    name = _name_of(row)
    line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": row["query_id"], "response": None, "error": None}
    code = _code(row)
    if row["status"] == "completed":
        status_code, body = 200, _BODIES[url](row, model, name)
    elif code in _STATUS:
        status_code, kind = _STATUS[code]
        body = {"error": {"message": _message(row), "type": kind, "param": _param(row), "code": code}}
    else:
        line["error"] = {"code": code, "message": _message(row)}
        if row["status"] == "abandoned":
            line["error"] |= {name: row[name] for name in ("price", "reservation_price")}
        return line
    line["response"] = {"status_code": status_code, "request_id": f"req_{name}", "body": body}
    return line


def _param(row: Mapping[str, Any]) -> str | None:
    """Return the field of the request that an error names, if it names one."""
    found = _COLUMN.search(row.get("error") or "")
    return found[1] if found else None


def _code(row: Mapping[str, Any]) -> str:
    return str(row["error_code"] or _CODES.get(row["status"], ""))


def _message(row: Mapping[str, Any]) -> str:
    said = str(row["reason"] if row["status"] == "abandoned" else row.get("error") or row["reason"])
    return _FOLDERS.sub("", said)


def _created(row: Mapping[str, Any]) -> int:
    return int(row.get("ended_at") or 0)


def _chat(row: Mapping[str, Any], model: str, name: str) -> dict[str, Any]:
    return _choices(row, model, f"chatcmpl-{name}", "chat.completion", _message_of)


def _message_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "message": {"role": "assistant", "content": answer.get("text") or ""},
        "logprobs": chat_logprobs(load_logprobs(answer.get("logprobs"))),
    }


def _completion(row: Mapping[str, Any], model: str, name: str) -> dict[str, Any]:
    return _choices(row, model, f"cmpl-{name}", "text_completion", _text_of)


def _text_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": answer.get("text") or "",
        "logprobs": legacy_logprobs(load_logprobs(answer.get("logprobs"))),
    }


def _choices(
    row: Mapping[str, Any], model: str, name: str, kind: str, choice_of: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    prompt, completion = int(row["prompt_tokens"]), int(row["spent_tokens"])
    return {
        "id": name,
        "object": kind,
        "created": _created(row),
        "model": model,
        "choices": [
            {"index": answer["choice"] or 0, **choice_of(answer), "finish_reason": _finish(row, answer)}
            for answer in row.get("answers", (row,))
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _finish(row: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Return why an answer ended; of several, one that was abandoned or failed has no more tokens to come."""
    return str(answer["finish_reason"]) if answer["status"] == "completed" or answer is row else "length"


def _response(row: Mapping[str, Any], model: str, name: str) -> dict[str, Any]:
    return response_body(
        name,
        model=model,
        created=_created(row),
        text=row.get("text") or "",
        finish_reason=row["finish_reason"],
        tokens=(int(row["prompt_tokens"]), int(row["spent_tokens"])),
        logprobs=chat_logprobs(load_logprobs(row.get("logprobs"))),
    )


def response_body(
    name: str,
    *,
    model: str,
    created: int,
    text: str,
    finish_reason: str | None,
    tokens: tuple[int, int],
    logprobs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return a response of OpenAI's, of one message.

    Args:
        name: What its ids end with.
        model: Name that it carries.
        created: Unix seconds.
        text: What was answered.
        finish_reason: `stop`, or the answer is cut off.
        tokens: Of the prompt, and of the answer.
        logprobs: As a chat completion has them, if they are asked for.
    """
    (prompt, completion), is_cut = tokens, finish_reason != "stop"
    status = "incomplete" if is_cut else "completed"
    said: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if logprobs is not None:
        said["logprobs"] = logprobs["content"]
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "model": model,
        "output": [{"type": "message", "id": f"msg_{name}", "status": status, "role": "assistant", "content": [said]}],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        },
    }


_BODIES = {"/v1/chat/completions": _chat, "/v1/completions": _completion, "/v1/responses": _response}


def _anthropic_line(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    code = _code(row)
    if row["status"] == "completed":
        message = {
            "id": f"msg_{_name_of(row)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": row.get("text") or ""}],
            "stop_reason": "end_turn" if row["finish_reason"] == "stop" else "max_tokens",
            "stop_sequence": None,
            "usage": {"input_tokens": int(row["prompt_tokens"]), "output_tokens": int(row["spent_tokens"])},
        }
        result: dict[str, Any] = {"type": "succeeded", "message": message}
    elif code == "batch_expired":
        result = {"type": "expired"}
    elif code == "batch_cancelled":
        result = {"type": "canceled"}
    else:
        kind = "invalid_request_error" if _STATUS.get(code, (0, ""))[0] == 400 else "api_error"
        error = {"type": kind, "message": _message(row), "code": code}
        if row["status"] == "abandoned":
            error |= {name: row[name] for name in ("price", "reservation_price")}
        result = {"type": "errored", "error": {"type": "error", "error": error}}
    return {"custom_id": row["query_id"], "result": result}


@contextlib.contextmanager
def _appearing_whole(folder: Folder, name: str) -> Iterator[_Sink]:
    """Open a file that takes its place only when everything in it is on disk."""
    target = f"{folder.path}/{name}"
    if folder.is_local:
        partial = f"{target}.partial"
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            sync_path(folder.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
        return
    try:
        with folder.filesystem.open_output_stream(target) as stream:
            yield stream
    except BaseException:  # closing the stream has published the part that was written
        with contextlib.suppress(OSError):
            folder.filesystem.delete_file(target)
        raise
