"""Bad and odd input: what a file holds, and what must come of it.

Values are put into an otherwise good second line, so every refusal must say line 2; whole files are given as bytes.
"""

import bz2
import gzip
import json
from typing import Any

GOOD: dict[str, Any] = {"query_id": "first", "prompt": "What is 1 + 1?"}
_good = json.dumps(GOOD).encode()
_second = b'{"query_id": "second", "prompt": "b"}'

# column, bad value as JSON text, words of the message
BAD_VALUES: list[tuple[str, str, str]] = [
    ("query_id", "null", "null"),
    ("query_id", '""', "empty"),
    ("query_id", '"   "', "empty"),
    ("query_id", "true", "not a text"),
    ("query_id", "1.5", "not a text"),
    ("query_id", '["a"]', "not a text"),
    ("query_id", '{"a": 1}', "not a text"),
    ("query_id", json.dumps("x" * 513), "longer than 512"),
    ("query_id", '"a\\u0000b"', "NUL"),
    ("query_id", '"a\\nb"', "control character"),
    ("query_id", '"a\\tb"', "control character"),
    ("query_id", '"a\\u001bb"', "control character"),
    ("query_id", '"a\\u007fb"', "control character"),
    ("query_id", '"a\\u0085b"', "control character"),
    ("query_id", '"a\\u2028b"', "control character"),
    ("query_id", '"\\ud800"', "surrogate"),
    ("query_id", '"first"', "given twice"),
    ("prompt", "null", "null"),
    ("prompt", '""', "empty"),
    ("prompt", '" \\n\\t "', "empty"),
    ("prompt", '"\\u3000\\u00a0"', "empty"),
    ("prompt", "5", "not a text"),
    ("prompt", "false", "not a text"),
    ("prompt", '{"text": "a"}', "not a text"),
    ("prompt", '[{"role": "user", "content": "a"}]', "input.columns.messages"),
    ("prompt", '"a\\u0000"', "NUL"),
    ("prompt", '"\\udfff half"', "surrogate"),
    ("weight", '"1"', "number"),
    ("weight", "true", "number"),
    ("weight", "[1]", "number"),
    ("weight", "{}", "number"),
    ("weight", "-1", "not negative"),
    ("weight", "-1e-300", "not negative"),
    ("weight", "NaN", "finite"),
    ("weight", "Infinity", "finite"),
    ("weight", "-Infinity", "finite"),
    ("weight", "1e999", "finite"),
    ("weight", "1" + "0" * 400, "finite"),
    ("max_tokens", "0", "positive"),
    ("max_tokens", "-3", "positive"),
    ("max_tokens", "1.5", "whole number"),
    ("max_tokens", '"12"', "whole number"),
    ("max_tokens", "true", "whole number"),
    ("max_tokens", "NaN", "whole number"),
    ("max_tokens", "Infinity", "whole number"),
    ("max_tokens", "[]", "whole number"),
    ("max_tokens", str(2**63), "2^63"),
    ("max_tokens", "1e300", "2^63"),
    ("gold", "true", "text or a number"),
    ("gold", "[1]", "text or a number"),
    ("gold", "{}", "text or a number"),
    ("gold", "NaN", "finite"),
    ("gold", '"\\u0000"', "NUL"),
    ("gold", '"\\ud83d"', "surrogate"),
    ("task", "5", "not a text"),
    ("task", "[]", "not a text"),
    ("task", '"\\u0000"', "NUL"),
    ("metadata", "NaN", "not JSON"),
    ("metadata", '{"a": [Infinity]}', "not JSON"),
    ("metadata", '"\\u0000"', "NUL"),
    ("metadata", '{"a": "\\ud800"}', "surrogate"),
    ("messages", '"not json"', "not JSON"),
    ("messages", '"{}"', "list of messages"),
    ("messages", json.dumps("[" * 5000), "not JSON"),
    ("messages", "[]", "list of messages"),
    ("messages", "{}", "list of messages"),
    ("messages", "7", "list of messages"),
    ("messages", '["hello"]', "message is an object"),
    ("messages", "[null]", "message is an object"),
    ("messages", '[{"content": "a"}]', "role"),
    ("messages", '[{"role": "", "content": "a"}]', "role"),
    ("messages", '[{"role": ["user"], "content": "a"}]', "role"),
    ("messages", '[{"role": "tool", "content": "a"}]', "role"),
    ("messages", '[{"role": "user"}]', "not a text"),
    ("messages", '[{"role": "user", "content": null}]', "not a text"),
    ("messages", '[{"role": "user", "content": 3}]', "not a text"),
    ("messages", '[{"role": "user", "content": ""}]', "last message is empty"),
    ("messages", '[{"role": "user", "content": []}]', "last message is empty"),
    ("messages", '[{"role": "user", "content": "a\\u0000"}]', "NUL"),
    ("messages", '[{"role": "user", "content": ["a"]}]', "type text"),
    ("messages", '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]', "type text"),
    ("messages", '[{"role": "user", "content": [{"type": "text"}]}]', "not a text"),
    ("messages", '[{"role": "assistant", "content": "a", "tool_calls": [{}]}]', "more than text"),
]

# what the second line is, words of the message
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "open brace": (b"{", "bad JSON"),
    "half a row": (b'{"query_id": "second", "pro', "bad JSON"),
    "trailing comma": (b'{"query_id": "second",}', "bad JSON"),
    "single quotes": (b"{'query_id': 'second'}", "bad JSON"),
    "two objects": (_second + b" " + _second, "bad JSON"),
    "raw tab in a string": (b'{"query_id": "second", "prompt": "a\tb"}', "bad JSON"),
    "carriage returns for newlines": (_second + b"\r" + _second, "bad JSON"),
    "BOM in the middle": (b"\xef\xbb\xbf" + _second, "bad JSON"),
    "comment": (b"# queries", "bad JSON"),
    "python": (b'{"query_id": None}', "bad JSON"),
    "list": (b"[1, 2]", "no JSON object"),
    "number": (b"5", "no JSON object"),
    "text": (b'"hello"', "no JSON object"),
    "null": (b"null", "no JSON object"),
    "NUL byte": (b'{"query_id": "second", "prompt": "a\0b"}', "NUL"),
    "only NUL bytes": (b"\0" * 50, "NUL"),
    "latin-1": ('{"query_id": "second", "prompt": "café"}'.encode("latin-1"), "not UTF-8"),
    "overlong encoding": (b'{"query_id": "second", "prompt": "\xc0\xaf"}', "not UTF-8"),
    "encoded surrogate": (b'{"query_id": "second", "prompt": "\xed\xa0\x80"}', "not UTF-8"),
    "cut character": (b'{"query_id": "second", "prompt": "\xe2\x82"}', "not UTF-8"),
    "too deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
    "too many digits": (b'{"query_id": "second", "prompt": "b", "weight": ' + b"9" * 5000 + b"}", "cannot be read"),
    "no id": (b'{"prompt": "b"}', "column is missing"),
    "no prompt": (b'{"query_id": "second"}', "column is missing"),
    "other names": (b'{"id": "second", "question": "b"}', "column is missing"),
    "empty object": (b"{}", "column is missing"),
}

# file name, content, words of the message
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("q.jsonl", b"", "no query"),
    "blank": ("q.jsonl", b"\n\n  \r\n\t\n", "no query"),
    "only a BOM": ("q.jsonl", b"\xef\xbb\xbf", "no query"),
    "empty gz": ("q.jsonl.gz", gzip.compress(b""), "no query"),
    "UTF-16": ("q.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16"),
    "UTF-16 big endian": ("q.jsonl", b"\xfe\xff" + json.dumps(GOOD).encode("utf-16-be"), "UTF-16"),
    "UTF-32": ("q.jsonl", json.dumps(GOOD).encode("utf-32-le"), "NUL"),
    "one JSON array": ("q.json", json.dumps([GOOD]).encode(), "no JSON object"),
    "pretty JSON": ("q.json", json.dumps(GOOD, indent=2).encode(), "bad JSON"),
    "CSV": ("q.jsonl", b"query_id,prompt\na,b\n", "bad JSON"),
    "ZIP": ("q.jsonl", b"PK\x03\x04\x14\0\0\0\x08\0", "NUL"),
    "PNG": ("q.jsonl", b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
    "truncated gz": ("q.jsonl.gz", gzip.compress(_good * 100)[:-12], "cannot be read"),
    "damaged gz": ("q.jsonl.gz", b"\x1f\x8b\x08\0" + b"\xff" * 60, "cannot be read"),
    "truncated bz2": ("q.jsonl.bz2", bz2.compress(_good * 100)[:-12], "cannot be read"),
    "Parquet by name": ("q.parquet", b"PAR1 no more", "cannot be read"),
    "Parquet magic only": ("q.parquet", b"PAR1PAR1", "cannot be read"),
    "Parquet with a bad footer": ("q.parquet", b"PAR1" + b"\xff" * 64 + b"\x10\0\0\0PAR1", "cannot be read"),
}


def request(**changes: Any) -> dict[str, Any]:
    """Return a good line of the OpenAI batch format with some body fields changed."""
    body = {"model": "any", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5, **changes}
    return {"custom_id": "second", "method": "POST", "url": "/v1/chat/completions", "body": body}


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in request().items() if key != name}


# line, words of the message
BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no custom_id": (_without("custom_id"), "custom_id: the field is missing"),
    "no method": (_without("method"), "method: the field is missing"),
    "no url": (_without("url"), "url: the field is missing"),
    "no body": (_without("body"), "body: the field is missing"),
    "GET": (request() | {"method": "GET"}, "not POST"),
    "embeddings": (request() | {"url": "/v1/embeddings"}, "not served"),
    "responses": (request() | {"url": "/v1/responses"}, "not served"),
    "whole url": (request() | {"url": "https://example.org/v1/chat/completions"}, "not served"),
    "url is a list": (request() | {"url": ["/v1/chat/completions"]}, "not served"),
    "body is text": (request() | {"body": "{}"}, "no object"),
    "empty custom_id": (request() | {"custom_id": ""}, "column custom_id: the id is empty"),
    "null custom_id": (request() | {"custom_id": None}, "column custom_id"),
    "n": (request(n=2), "body.n: this is not supported"),
    "best_of": (request(best_of=3), "body.best_of"),
    "stream": (request(stream=True), "body.stream"),
    "tools": (request(tools=[{"type": "function"}]), "body.tools"),
    "functions": (request(functions=[{"name": "f"}]), "body.functions"),
    "tool_choice": (request(tool_choice="required"), "body.tool_choice"),
    "json mode": (request(response_format={"type": "json_object"}), "body.response_format"),
    "stop": (request(stop=["\n"]), "body.stop"),
    "logprobs": (request(logprobs=True), "body.logprobs"),
    "logit_bias": (request(logit_bias={"5": 1}), "body.logit_bias"),
    "audio": (request(modalities=["text", "audio"]), "body.modalities"),
    "no messages": (request(messages=None), "body.messages: the field is missing"),
    "image": (request(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "body.messages[0].content[0]"),
    "zero max_tokens": (request(max_tokens=0), "body.max_tokens"),
    "text max_tokens": (request(max_tokens="5"), "body.max_tokens"),
    "two ceilings": (request(max_completion_tokens=6), "differ"),
    "other endpoint": (request() | {"url": "/v1/completions", "body": {"prompt": "a"}}, "mixes formats"),
    "prompt list": (request() | {"url": "/v1/completions", "body": {"prompt": ["a", "b"]}}, "not one text"),
}

# content of a file that must be read, and the prompts it must give
ODD_FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "BOM": ("q.jsonl", b"\xef\xbb\xbf" + _second, ["b"]),
    "CRLF": ("q.jsonl", _good + b"\r\n" + _second + b"\r\n", [GOOD["prompt"], "b"]),
    "blank lines": ("q.jsonl", b"\n\n" + _good + b"\n \n\t\r\n" + _second, [GOOD["prompt"], "b"]),
    "no last newline": ("q.jsonl", _good + b"\n" + _second, [GOOD["prompt"], "b"]),
    "spaces around": ("q.jsonl", b"  " + _second + b"  \n", ["b"]),
    "gz": ("q.jsonl.gz", gzip.compress(_second), ["b"]),
    "gz in two members": ("q.jsonl.gz", gzip.compress(_good + b"\n") + gzip.compress(_second), [GOOD["prompt"], "b"]),
    "gz by another name": ("q.jsonl", gzip.compress(_second), ["b"]),
    "plain by a gz name": ("q.jsonl.gz", _second, ["b"]),
    "bz2": ("q.jsonl.bz2", bz2.compress(_second), ["b"]),
    "no ending": ("queries", _second, ["b"]),
    "surrogate pair": ("q.jsonl", b'{"query_id": "s", "prompt": "\\ud83d\\ude00"}', ["\N{GRINNING FACE}"]),
    "unicode newline": ("q.jsonl", '{"query_id": "s", "prompt": "a\u2028b\x85"}'.encode(), ["a\u2028b\x85"]),
    "control character": ("q.jsonl", b'{"query_id": "s", "prompt": "a\\u001b"}', ["a\x1b"]),
    "right to left": ("q.jsonl", '{"query_id": "s", "prompt": "\u202eabc"}'.encode(), ["\u202eabc"]),
    "nulls": ("q.jsonl", b'{"query_id": "s", "prompt": "b", "weight": null, "gold": null, "messages": null}', ["b"]),
    "key twice": ("q.jsonl", b'{"query_id": "s", "prompt": "a", "prompt": "b"}', ["b"]),
    "NaN in an unread column": ("q.jsonl", b'{"query_id": "s", "prompt": "b", "score": NaN}', ["b"]),
    "integer id": ("q.jsonl", b'{"query_id": 7, "prompt": "b"}', ["b"]),
    "long line": ("q.jsonl", b'{"query_id": "s", "prompt": "' + b"y" * 5_000_000 + b'"}\n', ["y" * 5_000_000]),
}
