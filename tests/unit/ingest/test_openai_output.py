"""The files of answers, in the format of the batch file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clear_ray.ingest import write_openai_outputs
from clear_ray.ingest.logprobs import NOT_GIVEN, TokenLogprob, dump_logprobs
from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.storage import Folder, open_folder


def completion(query_id: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COMPLETION_SCHEMA.names)
    row |= {"query_id": query_id, "status": "completed", "finish_reason": "stop", "text": "é\n42", "spent_tokens": 3}
    row |= {"reason": "answered", "prompt_tokens": 5, "ended_at": 1_764_400_000.75, "reservation_price": 0.25}
    return row | changes


NEVER = {"finish_reason": None, "text": None, "ended_at": None, "spent_tokens": 0}
FOLDER = "/home/somebody/batches/"
TOO_LONG = "q.jsonl:5, column prompt: too long"
ROWS = [
    completion("a"),
    completion("b", status="abandoned", error_code="abandoned_by_price", reason="worth less", price=0.5, **NEVER),
    completion("c", status="failed", error_code="engine_failed", error="its engine died"),
    completion("d", finish_reason="length"),
    completion("e", status="failed", error_code="context_length_exceeded", error=f"{FOLDER}{TOO_LONG}", **NEVER),
    completion("f", status="failed", error_code="batch_expired", error="nothing was left", **NEVER),
    completion("g", status="failed", error_code="invalid_request", error="System role not supported", **NEVER),
    completion("h", status="failed", error_code="scorer_failed", error="scorer: ValueError: x"),
    completion("i", status="abandoned", error_code="batch_expired", reason="its turn never came", price=0.5, **NEVER),
]


def read_lines(folder: Folder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.read(name).decode().splitlines()]


def written(tmp_path: Path, url: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    folder = open_folder(str(tmp_path / "run"))
    write_openai_outputs(iter(ROWS), folder, model="m", url=url)
    done, errors = read_lines(folder, "output.jsonl"), read_lines(folder, "errors.jsonl")
    assert [line["custom_id"] for line in done] == ["a", "d"], "in the order of the input"
    assert [line["custom_id"] for line in errors] == ["b", "c", "e", "f", "g", "h", "i"]
    return done, errors


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_errors_are_shaped_as_http_has_them_or_have_a_code_of_their_own(tmp_path: Path, url: str) -> None:
    done, errors = written(tmp_path, url)
    of = {line["custom_id"]: line for line in errors}
    assert len({line["id"] for line in done + errors}) == len(ROWS)
    for custom_id, status, kind, code, message in (
        ("c", 500, "server_error", "engine_failed", "its engine died"),
        ("e", 400, "invalid_request_error", "context_length_exceeded", TOO_LONG),
        ("g", 400, "invalid_request_error", "invalid_request", "System role not supported"),
        ("h", 500, "server_error", "scorer_failed", "scorer: ValueError: x"),
    ):
        line = of[custom_id]
        assert line["error"] is None
        assert line["response"]["status_code"] == status
        error = {"message": message, "type": kind, "param": "prompt" if custom_id == "e" else None, "code": code}
        assert line["response"]["body"] == {"error": error}
    for custom_id in "bfi":
        assert of[custom_id]["response"] is None
    own = {"code": "abandoned_by_price", "message": "worth less", "price": 0.5, "reservation_price": 0.25}
    assert of["b"]["error"] == own
    assert of["f"]["error"] == {"code": "batch_expired", "message": "nothing was left"}
    assert of["i"]["error"]["code"] == "batch_expired"


def test_chat_completions(tmp_path: Path) -> None:
    done, _ = written(tmp_path, "/v1/chat/completions")
    body = done[0]["response"]["body"]
    assert done[0]["error"] is None
    assert done[0]["response"]["status_code"] == 200
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert body["created"] == 1_764_400_000, "when the answer ended"
    message = {"role": "assistant", "content": "é\n42"}
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_responses_are_those_of_the_client(tmp_path: Path) -> None:
    from openai.types.responses import Response

    done, _ = written(tmp_path, "/v1/responses")
    whole, cut = (line["response"]["body"] for line in done)
    assert (whole["status"], whole["incomplete_details"], whole["created_at"]) == ("completed", None, 1_764_400_000)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert Response.model_construct(**whole).output_text == "é\n42"  # type: ignore[arg-type]
    assert whole["usage"]["total_tokens"] == 8


def test_anthropics_lines_have_results(tmp_path: Path) -> None:
    done, errors = written(tmp_path, "/v1/messages")
    message = done[0]["result"]["message"]
    assert done[0]["result"]["type"] == "succeeded"
    assert message["content"] == [{"type": "text", "text": "é\n42"}]
    assert [line["result"]["message"]["stop_reason"] for line in done] == ["end_turn", "max_tokens"]
    assert message["usage"] == {"input_tokens": 5, "output_tokens": 3}
    of = {line["custom_id"]: line["result"] for line in errors}
    assert of["f"] == of["i"] == {"type": "expired"}
    assert of["e"]["error"]["error"]["type"] == "invalid_request_error"
    assert of["c"]["error"]["error"]["type"] == "api_error"
    assert of["b"]["error"]["error"]["reservation_price"] == 0.25


def test_same_rows_same_bytes_and_text_completions(tmp_path: Path) -> None:
    one, two = open_folder(str(tmp_path / "one")), open_folder(str(tmp_path / "two"))
    for folder in (one, two):
        write_openai_outputs(ROWS, folder, model="m", url="/v1/completions")
    assert one.read("output.jsonl") == two.read("output.jsonl")
    body = read_lines(one, "output.jsonl")[0]["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "é\n42"


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_nothing_half_written(tmp_path: Path, scheme: str) -> None:
    folder = open_folder(str(tmp_path / "run") if scheme == "local" else "memory://openai_output_test")

    def dying() -> Iterator[dict[str, Any]]:
        yield from ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_openai_outputs(dying(), folder, model="m")
    assert folder.files() == []
    write_openai_outputs(ROWS[:1], folder, model="m")
    assert len(read_lines(folder, "output.jsonl")) == 1
    assert folder.read("errors.jsonl") == b""


@pytest.mark.parametrize("code", ["batch_cancelled", "batch_expired"])
def test_what_a_stopped_run_left_says_what_stopped_it(tmp_path: Path, code: str) -> None:
    folder = open_folder(str(tmp_path / "run"))
    write_openai_outputs(iter(ROWS), folder, model="m", unserved=code)
    codes = {line["custom_id"]: (line["error"] or {}).get("code") for line in read_lines(folder, "errors.jsonl")}
    assert (codes["f"], codes["i"]) == (code, code)
    assert codes["b"] == "abandoned_by_price", "it had its offer"
    write_openai_outputs(iter(ROWS), folder, model="m", url="/v1/messages", unserved=code)
    kinds = {line["custom_id"]: line["result"]["type"] for line in read_lines(folder, "errors.jsonl")}
    assert kinds["f"] == kinds["i"] == {"batch_cancelled": "canceled", "batch_expired": "expired"}[code]


def test_log_probabilities_are_those_of_the_client(tmp_path: Path) -> None:
    from openai.types import Completion
    from openai.types.chat import ChatCompletion
    from openai.types.responses import ResponseOutputText

    told = (TokenLogprob("é".encode(), -0.5, (("é".encode(), -0.5), (b"e", -2.0))), TokenLogprob(b"\n42", -9999.0))
    rows = [completion("a", logprobs=dump_logprobs(told)), completion("b"), completion("c", logprobs=NOT_GIVEN)]
    bodies = {}
    for url in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        folder = open_folder(str(tmp_path / url.replace("/", "_")))
        write_openai_outputs(rows, folder, model="m", url=url)
        bodies[url] = [line["response"]["body"] for line in read_lines(folder, "output.jsonl")]
    chats = [ChatCompletion.model_validate(body).choices[0].logprobs for body in bodies["/v1/chat/completions"]]
    assert chats[0] is not None
    assert chats[0].content is not None
    assert [(entry.token, entry.logprob) for entry in chats[0].content] == [("é", -0.5), ("\n42", -9999.0)]
    assert [(top.token, top.bytes) for top in chats[0].content[0].top_logprobs] == [("é", [195, 169]), ("e", [101])]
    texts = [Completion.model_validate(body).choices[0].logprobs for body in bodies["/v1/completions"]]
    assert texts[0] is not None
    assert (texts[0].tokens, texts[0].text_offset) == (["é", "\n42"], [0, 1])
    assert texts[0].top_logprobs == [{"é": -0.5, "e": -2.0}, {"\n42": -9999.0}]
    parts = [body["output"][0]["content"][0] for body in bodies["/v1/responses"]]
    found = ResponseOutputText.model_validate(parts[0]).logprobs
    assert found is not None
    assert [entry.token for entry in found] == ["é", "\n42"]
    assert chats[1:] == texts[1:] == [None, None]
    assert "logprobs" not in parts[1]


def test_answers_to_one_request_are_its_choices(tmp_path: Path) -> None:
    given_up = {
        "status": "abandoned",
        "error_code": "abandoned_by_price",
        "reason": "worth less",
        "price": 0.5,
        **NEVER,
    }
    rows = [
        completion("x", **given_up, n=3, choice=0),
        completion("x", text="two", ended_at=1_764_400_009.5, n=3, choice=1),
        completion("x", text="three", finish_reason="length", spent_tokens=11, n=3, choice=2),
        completion("y", status="failed", error_code="engine_failed", error="its engine died", spent_tokens=2, choice=0),
        completion("y", text="other", n=2, choice=1),
        completion("z", **given_up, n=2, choice=0),
        completion("z", **given_up, n=2, choice=1),
        completion("alone"),
    ]
    folder = open_folder(str(tmp_path / "run"))
    write_openai_outputs(iter(rows), folder, model="m")
    done, errors = read_lines(folder, "output.jsonl"), read_lines(folder, "errors.jsonl")
    assert [line["custom_id"] for line in done] == ["x", "y", "alone"]
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("z", "abandoned_by_price")]
    body = done[0]["response"]["body"]
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in body["choices"]] == [
        (0, "", "length"),
        (1, "two", "stop"),
        (2, "three", "length"),
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 14, "total_tokens": 19}
    assert body["created"] == 1_764_400_009
    assert [each["finish_reason"] for each in done[1]["response"]["body"]["choices"]] == ["length", "stop"]
    assert done[1]["response"]["body"]["usage"]["completion_tokens"] == 5, "what was paid for a lost one is told"


def test_answers_to_several_prompts_are_numbered_on_and_each_prompt_counts_once(tmp_path: Path) -> None:
    lengths = (5, 5, 40, 40)
    rows = [completion("x", text=f"{k}", prompt_tokens=length, n=2, choice=k) for k, length in enumerate(lengths)]
    rows += [completion("again", text="of choice 3", n=2, choice=3)]  # what is asked again keeps its place
    folder = open_folder(str(tmp_path / "run"))
    write_openai_outputs(iter(rows), folder, model="m", url="/v1/completions")
    several, again = (line["response"]["body"] for line in read_lines(folder, "output.jsonl"))
    assert [(each["index"], each["text"]) for each in several["choices"]] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert several["usage"] == {"prompt_tokens": 45, "completion_tokens": 12, "total_tokens": 57}
    assert [each["index"] for each in again["choices"]] == [3]
