from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from clear_ray.config import engine as engine_settings
from clear_ray.config import input as input_settings
from clear_ray.config import run as run_settings
from clear_ray.config.base import Settings
from clear_ray.config.engine import OpenAIConfig, ReplayConfig, TransformersConfig, VllmConfig, WorkersConfig
from clear_ray.config.run import RunConfig
from clear_ray.config.units import MOST_BUDGET_TOKENS, budget_in_tokens
from clear_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
LEAST: dict[str, Any] = {"run_dir": "runs/x", "budget": 100}
_KINDS = {
    kind
    for module in (engine_settings, input_settings, run_settings)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Settings)
}
PARTS = sorted(_KINDS, key=lambda kind: kind.__name__)


def refused(changes: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(LEAST | changes, where="job.yaml")
    return caught.value


def test_every_setting_is_documented_where_it_stands() -> None:
    assert RunConfig in PARTS
    assert len(PARTS) >= 12
    bare = [
        f"{part.__name__}.{name}"
        for part in PARTS
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert bare == []
    stubs = [
        f"{part.__name__}.{name}"
        for part in PARTS
        for name, field in part.model_fields.items()
        if not (field.description or "").rstrip().endswith((".", "`"))
    ]
    assert stubs == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_is_frozen_and_refuses_unknown_keys(part: type[BaseModel]) -> None:
    assert part.model_config.get("frozen") is True
    assert part.model_config.get("extra") == "forbid"


def test_defaults_make_a_whole_configuration() -> None:
    config = RunConfig.parse(LEAST)
    assert config.budget_tokens == 100
    assert isinstance(config.engine, TransformersConfig)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_an_engine_without_a_kind_is_the_default_one() -> None:
    config = RunConfig.parse(LEAST | {"engine": {"workers": 3}})
    assert isinstance(config.engine, TransformersConfig)
    assert config.engine.workers == 3


def test_what_is_written_in_the_manifest_reads_back_the_same() -> None:
    replay = {"kind": "replay", "rollouts": "r.parquet", "features": "f.parquet"}
    tasks = [{"task": "chain_sum", "count": 3, "params": {"min_terms": 2}}]
    config = RunConfig.parse(LEAST | {"engine": replay, "input": {"tasks": tasks}, "budget": "2k tokens"})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert isinstance(config.engine, ReplayConfig)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"bugdet": 100}, "bugdet"),
        ({"input": {"pth": "x"}}, "input.pth"),
        ({"input": {"columns": {"promt": "x"}}}, "input.columns.promt"),
        ({"engine": {"kind": "transformers", "gpu": 1}}, "engine.gpu"),
        ({"allocation": {"polcy": "uniform"}}, "allocation.polcy"),
        ({"dispatch": {"caller": 2}}, "dispatch.caller"),
    ],
)
def test_unknown_keys_are_refused_by_name(changes: dict[str, Any], key: str) -> None:
    error = refused(changes)
    assert error.where == f"job.yaml: {key}"
    assert "no such setting" in error.what
    assert error.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"allocation": {"max_tokens": 0}},
        {"allocation": {"max_rounds": 101}},
        {"allocation": {"policy": "greedy"}},
        {"dispatch": {"batch_rows": 0}},
        {"dispatch": {"batch_rows": 1.5}},
        {"engine": {"kind": "llama"}},
        {"engine": {"kind": "vllm", "gpu_memory_utilization": 1.1}},
        {"engine": {"kind": "vllm", "tensor_parallel": 2, "num_gpus": 1}},
        {"engine": {"kind": "vllm", "trust_remote_code": True}},
        {"engine": {"kind": "replay"}},
        {"engine": {"kind": "transformers", "temperature": -0.1}},
        {"engine": {"kind": "transformers", "top_p": 0}},
        {"estimate": {"batch_rows": "many"}},
        {"input": {"path": "x", "tasks": [{"task": "chain_sum", "count": 1}]}},
        {"input": {"tasks": [{"task": "chain_sum", "count": 0}]}},
        {"sample": -1},
        {"sample": 2**31},
        {"seed": -1},
        {"seed": 2**63},
        {"allocation": {"max_tokens": 2**63}},
        {"allocation": {"max_tokens": 2**31}},
        {"allocation": {"max_tokens": math.inf}},
        {"engine": {"num_gpus": math.inf}},
        {"engine": {"num_gpus": 1.5}},
        {"engine": {"num_gpus": math.nan}},
        {"engine": {"num_gpus": 1e300}},
        {"engine": {"temperature": math.nan}},
        {"engine": {"stall_seconds": math.inf}},
        {"engine": {"top_p": math.nan}},
        {"engine": {"kind": "replay", "rollouts": "r", "features": "f", "tokens_per_second": math.inf}},
        {"engine": {"kind": "vllm", "cpu_cache_gib": math.inf}},
        {"scaling": {"max_workers": 2, "tokens_per_second": math.inf}},
        {"scaling": {"max_workers": 2, "deadline": "9" * 400 + "h"}},
        {"dispatch": {"block_rows": 10**30}},
        {"run_dir": None},
        {"seed": "lucky"},
        {1: 2},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    error = refused(changes)
    assert error.where.startswith("job.yaml: ")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_number_of_a_configuration_has_an_end(part: type[BaseModel]) -> None:
    assert part.model_config.get("allow_inf_nan") is False
    counts = {name: field for name, field in part.model_fields.items() if "int" in str(field.annotation).split(".")[0]}
    open_ended = [
        name
        for name, field in counts.items()
        if not any(hasattr(limit, "le") or hasattr(limit, "lt") for limit in field.metadata)
    ]
    assert open_ended in ([], ["budget"]), "the budget is bounded where it is read"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ("{min_terms: 2026-01-01}", "not JSON serializable"),
        ("&loop {again: *loop}", "Circular reference"),
        ("{deep: [&loop [*loop]]}", "Circular reference"),
        ("{share: .inf}", "not JSON compliant"),
        ("{share: [.nan]}", "not JSON compliant"),
        ("{names: !!set {a, b}}", "not JSON serializable"),
        ('{half: "\\ud800"}', "surrogates not allowed"),
        (f"{{digits: 0x{'f' * 5_000}}}", "digits"),
        (f"{{deep: {'[' * 280}{']' * 280}}}", "depth exceeded|too deep"),
    ],
    ids=lambda text: text[:30],
)
def test_params_that_no_manifest_could_hold_are_refused(tmp_path: Path, params: str, said: str) -> None:
    source = f"{{task: chain_sum, count: 1, params: {params}}}"
    path = yaml_file(tmp_path, f"run_dir: runs/a\nbudget: 100\ninput: {{tasks: [{source}]}}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        RunConfig.load(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize("depth", [3_000, 30_000])
def test_what_is_nested_too_deep_is_refused(tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    with pytest.raises(ConfigError, match="nested too deep"):
        RunConfig.load(yaml_file(tmp_path, f"run_dir: {deep}\nbudget: 100\n"))
    with pytest.raises(ConfigError, match="not YAML"):
        RunConfig.load(yaml_file(tmp_path, "run_dir: runs/a\nbudget: 100\n"), (f"run_dir={deep}",))
    value: Any = 1
    for _ in range(depth):
        value = [value]
    assert "too deep to write" in str(refused({"run_dir": value}))


def test_a_missing_setting_is_named_and_the_others_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"run_dir: it is missing\. .* 1 more is refused") as caught:
        RunConfig.parse({})
    assert caught.value.where == "config: run_dir"
    assert caught.value.value == ""


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        (1, 1),
        (200_000, 200_000),
        ("200k tokens", 200_000),
        ("200K", 200_000),
        (" 2M ", 2_000_000),
        ("1.5M tokens", 1_500_000),
        ("1.001M", 1_001_000),
        ("1.005k", 1_005),
        ("3 B tokens", 3_000_000_000),
        ("1 token", 1),
        ("9007199254740", 9_007_199_254_740),
        ("2m", 2_000_000),
        ("2b TOKENS", 2_000_000_000),
        ("2 Million Tokens", 2_000_000),
        ("2,000,000", 2_000_000),
        ("2 000 000 tokens", 2_000_000),
        ("2_000_000", 2_000_000),
        ("1.234.567", 1_234_567),
        (MOST_BUDGET_TOKENS, MOST_BUDGET_TOKENS),
    ],
)
def test_budgets_are_read(written: int | str, tokens: int) -> None:
    config = RunConfig.parse(LEAST | {"budget": written})
    assert config.budget_tokens == tokens
    assert config.budget == written


@pytest.mark.parametrize(
    "written",
    [
        0,
        -1,
        1.5,
        None,
        [1],
        {"tokens": 1},
        float("nan"),
        float("inf"),
        MOST_BUDGET_TOKENS + 1,
        10**400,
        10**5_000,
        "9" * 400,
        "0",
        "0.0k",
        "1.5",
        "0.0005k",
        "-200k",
        "",
        "tokens",
        "200 kilo",
        "200k tokens please",
        "1,000",
        "1,5M tokens",
        "2.000",
        "2.000 tokens",
        "1_000",
        "0x10",
        "²",
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) or abs(value) < 10**30 else "huge",
)
def test_what_is_no_positive_whole_number_of_tokens_is_refused(written: object) -> None:
    error = refused({"budget": written})
    assert error.where == "job.yaml: budget"
    assert "positive whole number" in error.what


@pytest.mark.parametrize(
    "written", ["2000000.0", "2e6", "2E+06 tokens", "2 million tokens", "2000 thousand", "2 000 000"]
)
def test_a_budget_may_be_written_as_programs_and_people_write_it(written: str) -> None:
    assert RunConfig.parse(LEAST | {"budget": written}).budget_tokens == 2_000_000


@pytest.mark.parametrize("written", ["2e-3", "1.5e0", "2e99", "2000.5", "2000.00", "e6", "1e6.0"])
def test_a_number_that_is_no_whole_one_is_no_budget(written: str) -> None:
    assert "positive whole number" in refused({"budget": written}).what


@pytest.mark.parametrize(
    "written", ["2,000", "2.000 tokens", "1,5M", "1_000", "2,000,000k", "2,000,000.5", "2,000.000", "12,34,567"]
)
def test_thousands_are_never_taken_for_decimals(written: str) -> None:
    assert "without marks between its digits" in refused({"budget": written}).what


@pytest.mark.parametrize(
    ("budget", "rate", "tokens"),
    [
        ("$5", "$0.60 per 1M tokens", 8_333_333),
        ("$5", "$0.60/M tokens", 8_333_333),
        ("$5", "$0.60 / million tokens", 8_333_333),
        ("$0.1", "$0.30 per 1M tokens", 333_333),
        ("$1k", "$10 per 1B tokens", 100_000_000_000),
        ("€ 2.50", "€2.5 per 1000 tokens", 1_000),
        *((f"2 {code}", f"2 {code} per 1m Tokens", 1_000_000) for code in ("GBP", "KRW", "mxn", "BRL", "usd")),
        ("2k GBP", "2 GBP per 1M tokens", 1_000_000_000),
        ("$2m", "$2 per 1M tokens", 1_000_000_000_000),
        ("3 gpu-hours", "2500 tokens per gpu-second", 27_000_000),
        ("3 GPU-hours", "4M tokens per gpu-hour", 12_000_000),
        ("1 gpu hour", "0.5k tokens/gpu-minute", 30_000),
        ("90 gpu-seconds", "1M tokens per gpu-hour", 25_000),
    ],
)
def test_money_and_gpu_time_become_tokens(budget: str, rate: str, tokens: int) -> None:
    config = RunConfig.parse(LEAST | {"budget": budget, "budget_rate": rate})
    assert config.budget_tokens == tokens
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("budget", "rate", "said"),
    [
        ("$5", None, r"\$0.60 per 1M tokens"),
        ("3 gpu-hours", None, "4M tokens per gpu-hour"),
        ("$5", "4M tokens per gpu-hour", "needs a rate"),
        ("3 gpu-hours", "$1 per 1M tokens", "needs a rate"),
        ("$5", "€1 per 1M tokens", "needs a rate"),
        ("$5", "$0 per 1M tokens", "above 0"),
        ("$5", "$1 per 0 tokens", "positive whole"),
        ("$5", "$1 per 1M answers", "needs a rate"),
        ("$0", "$1 per 1M tokens", "positive whole"),
        ("$1", "$10 per 1 token", "positive whole"),
        ("$9B", "$1 per 1M tokens", "positive whole"),
        ("200k tokens", "$1 per 1M tokens", "in tokens"),
        (1000, "4M tokens per gpu-hour", "in tokens"),
    ],
)
def test_a_rate_that_does_not_fit_the_budget_is_refused(budget: int | str, rate: str | None, said: str) -> None:
    error = refused({"budget": budget, "budget_rate": rate})
    assert error.where == "job.yaml: budget_rate"
    assert re.search(said, error.what)


@settings(derandomize=True)
@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_money_is_never_exceeded_by_reading_it(cents: int, cents_per_million: int) -> None:
    written, rate = f"${cents / 100:.2f}", f"${cents_per_million / 100:.2f} per 1M tokens"
    tokens = budget_in_tokens(written, rate)
    assert tokens * cents_per_million <= cents * 10**6 < (tokens + 1) * cents_per_million


@settings(derandomize=True)
@given(st.integers(1, 10**9), st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6)]))
def test_a_budget_in_decimals_is_exact(tokens: int, unit: tuple[str, int]) -> None:
    letter, scale = unit
    whole, rest = divmod(tokens, scale)
    digits = len(str(scale)) - 1
    written = f"{whole}.{rest:0{digits}d}{letter}" if digits else f"{whole}"
    assert budget_in_tokens(written) == tokens


def yaml_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_overrides_reach_into_groups(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "run_dir: runs/a\nbudget: 100\nallocation: {max_tokens: 64}\n")
    overrides = (
        "budget=2k",
        "allocation.max_rounds=3",
        "engine.kind=transformers",
        "engine.system_prompt=a=b",
        "seed=7",
    )
    config = RunConfig.load(path, overrides)
    assert (config.budget_tokens, config.seed) == (2_000, 7)
    assert (config.allocation.max_tokens, config.allocation.max_rounds) == (64, 3)
    assert isinstance(config.engine, TransformersConfig)
    assert config.engine.system_prompt == "a=b"


def test_of_two_overrides_the_last_holds(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "run_dir: runs/a\nbudget: 100\n")
    assert RunConfig.load(path, ("seed=1", "seed=2")).seed == 2
    assert RunConfig.load(path, ("engine.system_prompt=null", "engine.kind=transformers")).engine.workers == 1


@pytest.mark.parametrize(
    "override", ["seed", "=3", "", "seed.deep=1", "budget=0", "budgt=1", "engine.threads=[", "run_dir=2026-99-99"]
)
def test_overrides_that_make_no_sense_are_refused(tmp_path: Path, override: str) -> None:
    path = yaml_file(tmp_path, "run_dir: runs/a\nbudget: 100\nseed: 1\n")
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(path, (override,))
    assert caught.value.where


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "just words",
        "a: [1",
        "run_dir: 2026-99-99\n",
        b"\xff\xfe\x00",
        "a: b: c",
        "\tx: 1",
        "? {a: 1}\n: 2",
        'seed: !!int ""',
        "seed: !!bool maybe",
        "seed: !!timestamp today",
    ],
    ids=repr,
)
def test_files_that_hold_no_mapping_are_refused(tmp_path: Path, text: str | bytes) -> None:
    path = yaml_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize("path", ["nowhere.yaml", ".", "nul\0byte.yaml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.load(path)


def run_configs() -> list[Path]:
    files = itertools.chain((ROOT / "jobs" / "configs").glob("*.yaml"), (ROOT / "jobs" / "configs").glob("*.yml"))
    loaded = [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(files)]
    return [path for path, content in loaded if isinstance(content, dict) and "run_dir" in content]


@pytest.mark.parametrize("path", run_configs(), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = RunConfig.load(path)
    assert config.budget_tokens > 0
    assert bool(config.input.path) != bool(config.input.tasks)


def test_there_is_a_demo_to_load() -> None:
    assert "demo.yaml" in [path.name for path in run_configs()]


def test_engines_share_what_they_have_in_common() -> None:
    engines = get_args(get_args(engine_settings.EngineConfig)[0])
    assert set(engines) == {TransformersConfig, VllmConfig, ReplayConfig, OpenAIConfig}
    assert all(issubclass(engine, WorkersConfig) for engine in engines)


PRICES = {"input": 0.15, "output": "$0.60"}


@pytest.mark.parametrize(
    ("budget", "units", "unit"),
    [
        ("$5", 5_000_000_000, "USD"),
        ("5 USD", 5_000_000_000, "USD"),
        ("usd 0.05", 50_000_000, "USD"),
        ("5 $", 5_000_000_000, "USD"),
        ("US$2.50", 2_500_000_000, "USD"),
        ("12 dollars", 12_000_000_000, "USD"),
        ("$1k", 1_000_000_000_000, "USD"),
        ("$0.0000000019", 1, "USD"),
    ],
)
def test_a_budget_of_money_with_prices_is_counted_in_billionths(budget: str, units: int, unit: str) -> None:
    config = RunConfig.parse(LEAST | {"budget": budget, "prices": PRICES})
    assert (config.budget_tokens, config.unit) == (units, unit)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_prices_are_decimals_exact_to_the_sixth_place() -> None:
    prices = {"input": 0.0375, "cached_input": "0.000001", "output": "USD 0.1", "reasoning": "$0.3"}
    found = RunConfig.parse(LEAST | {"budget": "$5", "prices": prices}).model_prices
    assert found is not None
    assert (found.read_parts, found.token_parts) == (37_500, 300_000)
    taken = found.taken_parts(prompt_tokens=10, cached_tokens=4, output_tokens=7, reasoning_tokens=2)
    assert taken == 6 * 37_500 + 4 * 1 + 5 * 100_000 + 2 * 300_000


def test_prices_by_model_may_lie_in_a_file_and_are_kept_with_the_run(tmp_path: Path) -> None:
    listed = yaml_file(tmp_path, "other: {input: 1, output: 2}\nsmollm2-135m-instruct: {input: 3, output: 4}\n")
    config = RunConfig.parse(LEAST | {"budget": "€3", "prices": str(listed)})
    assert config.model_prices is not None
    assert config.model_prices.token_parts == 4_000_000
    Path(listed).unlink()
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": "¥500", "prices": PRICES}, "'¥' is not clear"),
        ({"budget": "CA$5", "prices": PRICES}, r"'CA\$' is not clear"),
        ({"budget": "1,000 USD", "prices": PRICES}, "'1,000' in '1,000 USD' is not clear"),
        ({"budget": "€1.000,50", "prices": PRICES}, "is not clear"),
        ({"budget": "50 cents", "prices": PRICES}, "hundredth of several currencies"),
        ({"budget": "5 XYZ", "prices": PRICES}, "no currency known"),
        ({"budget": "€5", "prices": PRICES}, "in USD and the budget in EUR"),
        ({"budget": 5_000, "prices": PRICES}, "this one is in tokens"),
        ({"budget": "$5", "prices": PRICES, "budget_rate": "$1 per 1M tokens"}, "not both"),
        ({"budget": "$2B", "prices": PRICES}, "at most 1,000,000 USD"),
        ({"budget": "$5", "prices": {"input": 1, "output": 0}}, "greater than 0"),
        ({"budget": "$5", "prices": {"input": -1, "output": 1}}, "greater than or equal to 0"),
        ({"budget": "$5", "prices": {"input": 0.1234567, "output": 1}}, "more than 6 decimals"),
        ({"budget": "$5", "prices": {"input": "cheap", "output": 1}}, "price of input is a number"),
        ({"budget": "$5", "prices": {"input": "$1", "output": "€1"}}, "EUR and USD"),
        ({"budget": "$5", "prices": {"gpt": {"input": 1, "output": 2}}}, "none for the model smollm2"),
        ({"budget": "$5", "prices": "no/such/file.yaml"}, "cannot be read"),
        ({"budget": "$5", "prices": {}}, "at least one model"),
    ],
)
def test_money_and_prices_that_are_not_clear_are_refused_by_name(changed: dict[str, Any], said: str) -> None:
    assert re.search(said, refused(changed).what)


def test_a_part_of_a_budget_is_of_its_kind() -> None:
    money = RunConfig.parse(LEAST | {"budget": "$0.10", "prices": PRICES})
    assert RunConfig.parse(LEAST | {"budget": money.part_of_budget(3), "prices": PRICES}).budget_tokens == 33_333_333
    assert RunConfig.parse(LEAST).part_of_budget(3) == 33
