"""A refused configuration names the setting as it was written, and what was likely meant."""

from __future__ import annotations

from typing import Any

import pytest

from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError

LEAST = {"run_dir": "runs/x", "budget": "$5", "prices": {"input": 1, "output": 2}}
ENDPOINT = {"kind": "openai", "base_url": "http://127.0.0.1:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": ENDPOINT | {"modl": "x"}}, "engine.modl: kind openai has no such setting; did you mean model?"),
        (
            {"engine": {"base_url": "http://x"}},
            "engine.base_url: kind transformers has no such setting; kind openai has",
        ),
        ({"engine": ENDPOINT | {"base_url": "host/v1"}}, "engine.base_url: an address begins with http://"),
        (
            {"engine": ENDPOINT | {"base_url": "http://h/v1/chat/completions/"}},
            "engine.base_url: an address ends before the path of a call, such as /chat/completions",
        ),
        ({"engine": ENDPOINT | {"base_url": "http://h:0/v1"}}, "engine.base_url: the port of an address is a number"),
        ({"engine": {"kind": "openai"}}, "engine.base_url: it is missing. See"),
        ({"engine": {"kind": "llama"}}, "engine: there is no kind llama; there are 'transformers', 'vllm'"),
        ({"prices": {"input": 1}}, "prices.output: it is missing. See"),
        ({"prices": {"m": {"input": 1, "ouput": 2}}}, "prices.m.ouput: there is no such setting; did you mean output?"),
        (
            {"prices": {"input": -1, "output": 2}},
            "prices.input: Input should be greater than or equal to 0 (got -1). See",
        ),
        (
            {"prices": None},
            "budget_rate: a budget in $ needs a rate such as '$0.60 per 1M tokens', or prices such as {input: 0",
        ),
        ({"prices": {"m": {"input": 1, "output": 2}}}, "the list of prices has none for the model smollm2"),
        ({"input": {"columns": {"promt": "q"}}}, "input.columns.promt: there is no such setting; did you mean prompt?"),
        ({"input": {"tasks": [{"task": "a", "cuont": 1}]}}, "input.tasks.0.cuont: there is no such setting; did you"),
        ({"allocation": {"objective": "solved"}}, "allocation.objective solved needs scoring.scorer"),
        ({"zebra": 1}, "zebra: there is no such setting (got 1)"),
        ({"max_tokens": 50}, "max_tokens: there is no such setting; did you mean allocation.max_tokens? (got 50)"),
        ({"temperature": 1}, "temperature: there is no such setting; did you mean engine.temperature? (got 1)"),
        ({"engine": ENDPOINT | {"url": "x"}}, "engine.url: kind openai has no such setting; did you mean base_url?"),
        (
            {"engine": ENDPOINT | {"api_key": "x"}},
            "engine.api_key: kind openai has no such setting; did you mean key_env",
        ),
        ({"prices": {"prompt": 1, "completion": 2}}, "prices.prompt: there is no such setting; did you mean input?"),
        ({"prices": {"input": 1, "output": 2, "batch": 1}}, "prices.batch: there is no such setting (got 1)"),
        (
            {"prices": {"input": 1.5e-7, "output": 2}},
            "prices: the price of input, of a million tokens, has more than 6",
        ),
        ({"input": "q.jsonl"}, "input: it is a group of settings, such as input: {path: q.jsonl} (got"),
        ({"engine": "my/model"}, "engine: it is a group of settings, such as engine: {model: my/model} (got"),
        (
            {"allocation": "uniform"},
            "allocation: it is a group of settings, such as allocation: {policy: uniform} (got",
        ),
        ({"scoring": ["exact"]}, "scoring: it is a group of settings (got"),
        (
            {"allocation": {"max_tokens": "4k"}},
            "allocation.max_tokens: it is a whole number, written in digits alone (got",
        ),
        (
            {"allocation": {"max_tokens": None}},
            "allocation.max_tokens: it has no value: leave it out, or give it one (got",
        ),
        ({"run_dir": 2024}, "run_dir: it is a text: put it into quotes (got 2024)"),
        ({"engines": {"a": ENDPOINT}}, "engines: it has at least 2 entries, and this one has 1"),
    ],
)
def test_the_key_is_as_written_with_the_likeliest_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(LEAST | changes, where="x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert str(caught.value).removeprefix("x.yaml: ").startswith(said)


def test_a_mistyped_name_comes_before_the_setting_that_is_missing_for_it() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse({"run_dir": "runs/x", "bugdet": 5})
    assert str(caught.value).startswith("config: bugdet: there is no such setting; did you mean budget? (got 5). ")
    assert str(caught.value).endswith("1 more is refused.")


def test_a_value_that_was_not_written_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse({"run_dir": "runs/x", "budget": "$5"})
    assert caught.value.where == "config: budget_rate"
    assert caught.value.value == ""
