"""Rows that ask an endpoint for what it counts anew in each call are told of, where answers are gone on with."""

from __future__ import annotations

from typing import Any

import pytest

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine.endpoint.check import endpoint_notes
from clear_ray.engine.endpoint.seams import SeamWatch
from clear_ray.ingest import NormalRow
from tests.endpoint_server import MODEL, endpoint

AN_OBJECT = Structure(kind="json_object")


def row(form: str | None = None, **sampling: Any) -> NormalRow:
    values = dict.fromkeys(NormalRow._fields) | {"prompt": "?", "prompt_form": form}
    return NormalRow(**values | {"sampling": Sampling(**sampling).dump() if sampling else None})


@pytest.mark.parametrize(
    ("settings", "rows", "said"),
    [
        ({}, [row(), row(temperature=0.5)], ""),
        (
            {},
            [row(), row(stop=("\n",)), row(presence_penalty=0.5, stop=("x",))],
            "2 of 3 rows set presence_penalty, stop, ",
        ),
        ({}, [row(min_tokens=5), row(frequency_penalty=0.0)], "1 of 2 rows set min_tokens, "),
        ({"extra_body": {"stop": ["x"]}}, [row(), row()], "2 of 2 rows set stop, "),
        ({}, [row(structure=AN_OBJECT, stop=("x",)), row()], "1 of 2 rows keep to a structure, "),
        ({"extra_body": {"response_format": {"type": "json_object"}}}, [row()], "1 of 1 rows keep to a structure, "),
        ({"continuation": "none"}, [row(structure=AN_OBJECT)], ""),
        ({"continuation": "none"}, [row(stop=("x",))], ""),
        ({"continuation": "none"}, [row("raw", stop=("x",)), row(stop=("x",))], "1 of 2 rows set stop, "),
        ({"continuation": "none", "api": "completions"}, [row(stop=("x",))], "1 of 1 rows set stop, "),
    ],
)
def test_what_is_counted_anew_is_said(settings: dict[str, Any], rows: list[NormalRow], said: str) -> None:
    watch = SeamWatch(OpenAIConfig(kind="openai", base_url="http://127.0.0.1:1/v1", model="m", **settings))
    for index, one in enumerate(rows):
        watch.see(index, one)
    lines = watch.close(len(rows))
    assert len(lines) == bool(said)
    assert "".join(lines).startswith(said)


@pytest.mark.parametrize(
    ("owner", "settings", "said"),
    [
        ("vllm", {}, "vLLM's server takes top_p, top_k, min_p, repetition_penalty from the model's generation_config"),
        ("vllm", {"top_p": 0.9, "extra_body": {"top_k": -1}}, "vLLM's server takes min_p, repetition_penalty from"),
        ("vllm", {"extra_body": {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}}, ""),
        ("someone", {}, ""),
    ],
)
def test_what_vllms_server_fills_in_is_said(owner: str, settings: dict[str, Any], said: str) -> None:
    with endpoint(owner=owner) as served:
        config = OpenAIConfig(kind="openai", base_url=served.base_url, model=MODEL, **settings)
        notes = endpoint_notes(config)
    assert len(notes) == bool(said)
    assert "".join(notes).startswith(said)
