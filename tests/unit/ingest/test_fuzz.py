"""Whatever happens to the bytes of a good file: a refusal with place and remedy and nothing written, or a whole read.

Slow: `pytest -m slow tests/unit/ingest/test_fuzz.py`. A failing example is printed with its seed.
"""

from __future__ import annotations

import io
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ClearRayError
from clear_ray.ingest.option_numbers import CountsFromOneError
from tests.unit.ingest.corpus import BAD_FILES, BAD_LINES, BAD_VALUES, ODD_FILES, request
from tests.unit.ingest.taking import take, taken

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

EXAMPLES = 4_000


def _parquet(**settings: object) -> bytes:
    table = pa.table(
        {
            "query_id": [f"q{k}" for k in range(50)],
            "prompt": [f"prompt number {k} " * (k % 7 + 1) for k in range(50)],
            "gold": [None if k % 3 else str(k) for k in range(50)],
            "weight": [k / 7 for k in range(50)],
            "messages": [None if k % 2 else [{"role": "user", "content": f"hello {k}"}] for k in range(50)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, **settings)
    return sink.getvalue()


def _lines() -> bytes:
    return b"\n".join(
        json.dumps({"query_id": f"q{k}", "prompt": "a" * k + "b", "weight": k}).encode() for k in range(20)
    )


def _table(delimiter: str) -> bytes:
    rows = [("query_id", "prompt", "weight", "gold")]
    rows += [(f"q{k}", f'"say ""{k}"",\nnow"', str(k / 7), "" if k % 3 else str(k)) for k in range(20)]
    return "\n".join(delimiter.join(row) for row in rows).encode()


def _arrow(*, is_file: bool) -> bytes:
    table = pa.table({"id": [f"q{k}" for k in range(20)], "question": [f"what is {k}?" for k in range(20)]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) if is_file else pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


SEEDS = {
    "jsonl": _lines(),
    "array": json.dumps([json.loads(line) for line in _lines().splitlines()], indent=1).encode(),
    "array of requests": json.dumps([request() | {"custom_id": f"c{k}"} for k in range(8)]).encode(),
    "pretty": b"\n".join(json.dumps(json.loads(line), indent=2).encode() for line in _lines().splitlines()[:5]),
    "csv": _table(","),
    "tsv": _table("\t"),
    "zstd csv": pa.compress(_table(","), codec="zstd", asbytes=True),
    "xz": lzma.compress(_lines()),
    "arrow file": _arrow(is_file=True),
    "arrow stream": _arrow(is_file=False),
    "pandas columns": json.dumps(
        {name: {str(k): f"{name} {k}" for k in range(9)} for name in ("id", "prompt")}
    ).encode(),
    "pandas split": json.dumps({"columns": ["id", "prompt"], "data": [[k, f"p{k}"] for k in range(9)]}).encode(),
    "option numbers": b"\n".join(
        json.dumps({"id": k, "question": "q", "choices": ["a", "b", "c"], "answer": k % 3}).encode() for k in range(9)
    ),
    "conversations": json.dumps([{"conversations": [{"from": "human", "value": f"v{k}"}]} for k in range(9)]).encode(),
    "no ids": b"\n".join(json.dumps({"question": f"q{k}", "answer": k}).encode() for k in range(20)),
    "options": json.dumps(
        [
            {"id": k, "system": "s", "passage": "p", "question": "q", "choices": ["a", f"{k}"], "answer": k % 2}
            for k in range(9)
        ]
    ).encode(),
    "cells of messages": b"\n".join(
        json.dumps(
            {"prompt": json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])}
        ).encode()
        for _ in range(9)
    ),
    "utf-16": _table(";").decode().encode("utf-16"),
    "no url": b"\n".join(json.dumps({"custom_id": k, "body": request()["body"]}).encode() for k in range(8)),
    "anthropic": json.dumps(
        [
            {"custom_id": f"c{k}", "params": {"max_tokens": 5, "messages": request()["body"]["messages"]}}
            for k in range(8)
        ]
    ).encode(),
    "openai": b"\n".join(json.dumps(request() | {"custom_id": f"c{k}"}).encode() for k in range(8)),
    "several prompts": b"\n".join(
        json.dumps({"custom_id": k, "url": "/v1/completions", "body": {"prompt": ["a", [k], "b"], "n": 2}}).encode()
        for k in range(8)
    ),
    "messages of python": b"id,prompt\n"
    + b"".join(b"%d,\"[{'role': 'user', 'content': 'a%d'}]\"\n" % (k, k) for k in range(9)),
    "claude on vertex": b"\n".join(
        json.dumps(
            {"request": {"anthropic_version": "v", "max_tokens": 5, "messages": request()["body"]["messages"]}}
        ).encode()
        for _ in range(8)
    ),
    "programs": b"\n".join(
        json.dumps({"task_id": k, "text": "w", "test_list": [f"assert f() == {k}"]}).encode() for k in range(9)
    ),
    "parquet plain": _parquet(compression="none", use_dictionary=False),
    "parquet zstd": _parquet(compression="zstd"),
    "parquet snappy pages": _parquet(compression="snappy", data_page_version="2.0"),
    **{f"odd {name}": content for name, (_, content, _) in ODD_FILES.items() if len(content) < 100_000},
}
_TOKENS = [
    *(value.encode() for _, value, _ in BAD_VALUES if len(value) < 200),
    *(line for line, _ in BAD_LINES.values() if len(line) < 200),
    *(content[:64] for _, content, _ in BAD_FILES.values()),
    *(b"{", b"}", b"[", b'"', b",", b"\\u0000", b"\n", b"\r\n", b"\xff", b"\0", b"PAR1"),
]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one to six bytes flipped, pieces cut, doubled, swapped or put in."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(changed) + 1)
        to = min(len(changed), at + draw.choice((1, 2, 8, 64)))
        match draw.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at:to]
            case 2:
                changed[at:at] = changed[at:to]
            case 3:
                changed[at:to] = draw.randbytes(to - at)
            case 4:
                del changed[at:]
            case _:
                changed[at:at] = draw.choice(_TOKENS)
    return bytes(changed)


_MANY = ("jsonl", "openai", "array", "csv")


@pytest.mark.parametrize("on_error", ["refuse", "fail_row"])
@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, name: str, on_error: str) -> None:
    path = tmp_path / ("q.csv" if name in ("csv", "tsv") else "q.jsonl")
    for seed in range(EXAMPLES if name in _MANY or name.startswith("parquet") else EXAMPLES // 10):
        path.write_bytes(mutated(SEEDS[name], random.Random(f"{name} {seed}")))
        run = tmp_path / f"run{seed}"
        try:
            digest = take(path, run, on_error=on_error)
        except ClearRayError as error:
            assert str(path) in str(error), seed  # noqa: PT017 - both outcomes are right, each with its own promise
            assert error.remedy or "problems:" in error.what, seed  # noqa: PT017 - a list has one remedy a line
            assert not run.exists(), seed
        except CountsFromOneError:  # a damaged answer, which shows another count: a run would begin anew
            assert not run.exists(), seed
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        else:
            assert digest.rows == len(taken(run)) > 0, seed
