"""Rows that ask an endpoint for what it counts anew in each call are told of, where answers are gone on with."""

from __future__ import annotations

from typing import Any

import pytest

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.endpoint.seams import SeamWatch
from clear_ray.ingest import NormalRow


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
