"""Answers in the OpenAI batch output format: `output.jsonl` for those completed, `errors.jsonl` for the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from clear_ray.storage import Folder, sync_path

OUTPUT_FILE, ERRORS_FILE = "output.jsonl", "errors.jsonl"

_CODES = {"abandoned": "abandoned_by_price", "failed": "generation_failed"}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class _Sink(Protocol):
    def write(self, content: bytes, /) -> object: ...


def write_openai_outputs(
    rows: Iterable[Mapping[str, Any]],
    folder: Folder,
    *,
    model: str,
    url: str = "/v1/chat/completions",
    created: int = 0,
) -> None:
    """Write both files; each appears whole or not at all, and the same rows give the same bytes.

    Completed queries go to `output.jsonl`. Abandoned ones go to `errors.jsonl` with the code `abandoned_by_price` and
    their reason, failed ones with `generation_failed`. `usage` counts what the query was charged; it counts the prompt
    too where the rows have a column `prompt_tokens`.

    Args:
        rows: Rows of `records.COMPLETION_SCHEMA`, in any order; read once.
        folder: Where the files go.
        model: Name that the answers carry.
        url: Endpoint of the requests, which decides the shape of the body.
        created: Unix time that the answers carry, in seconds.
    """
    folder.make()
    with _appearing_whole(folder, OUTPUT_FILE) as output, _appearing_whole(folder, ERRORS_FILE) as errors:
        for row in rows:
            line, sink = _line(row, model, url, created), output if row["status"] == "completed" else errors
            sink.write(f"{_encode(line)}\n".encode())


def _line(row: Mapping[str, Any], model: str, url: str, created: int) -> dict[str, Any]:
    name = hashlib.sha256(row["query_id"].encode()).hexdigest()[:24]
    line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": row["query_id"], "response": None, "error": None}
    if row["status"] != "completed":
        message = row["reason"] if row["status"] == "abandoned" else row.get("error") or row["reason"]
        line["error"] = {"code": _CODES[row["status"]], "message": message}
        return line
    text = row.get("text") or ""
    is_chat = url.endswith("/chat/completions")
    answer: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{name}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, **answer, "logprobs": None, "finish_reason": row["finish_reason"]}],
        "usage": _usage(row),
    }
    line["response"] = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return line


def _usage(row: Mapping[str, Any]) -> dict[str, int]:
    completion = int(row["spent_tokens"])
    prompt = row.get("prompt_tokens")
    if prompt is None:
        return {"completion_tokens": completion}
    return {
        "prompt_tokens": int(prompt),
        "completion_tokens": completion,
        "total_tokens": int(prompt) + completion,
    }


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
