"""Several engines in a configuration: where their prices and heads may stand, and what does not go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.run_folder.manifest import check_same_run, describe_config
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.storage import open_folder

CHEAP, DEAR = {"input": 0.1, "output": 0.2}, {"input": 1, "output": "$2"}
SMALL, LARGE = {"model": "small"}, {"kind": "replay", "rollouts": "r.parquet"}


def settings(**changes: Any) -> dict[str, Any]:
    engines = {"s": SMALL | {"prices": CHEAP}, "l": LARGE | {"prices": DEAR, "head": "heads/l"}}
    return {"run_dir": "x", "budget": "$1", "engines": engines} | changes


def test_prices_and_heads_may_stand_beside_an_engine_or_by_its_name() -> None:
    beside = RunConfig.parse(settings())
    named = settings(
        prices={"s": CHEAP, "l": DEAR}, estimate={"heads": {"l": "heads/l"}}, engines={"s": SMALL, "l": LARGE}
    )
    assert beside == RunConfig.parse(named)
    assert RunConfig.parse(beside.model_dump(mode="json")) == beside
    small, large = beside.named_engines
    assert (small.name, small.learns, large.head, large.learns) == ("s", True, "heads/l", False)
    assert (small.prices, large.prices) == (beside.model_prices, (beside.prices or {})["l"])
    assert beside.engine == small.config
    assert (beside.unit, beside.budget_tokens, beside.slots, beside.most_attempts) == ("USD", 10**9, 64, 2)


def test_prices_are_those_of_the_model_where_an_engine_has_none_of_its_own() -> None:
    efforts = {
        effort: {"kind": "openai", "base_url": "http://h/v1", "model": "m", "extra_body": {"reasoning_effort": effort}}
        for effort in ("low", "high")
    }
    config = RunConfig.parse(settings(engines=efforts, prices={"m": DEAR}))
    assert {named.prices for named in config.named_engines} == {config.model_prices}
    assert not config.is_probed
    one = RunConfig.parse(settings(prices=CHEAP, engines={"s": SMALL, "l": LARGE | {"prices": DEAR}}))
    assert [named.prices == one.model_prices for named in one.named_engines] == [True, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": {"model": "other"}}, "either engine or engines"),
        ({"engines": {"s": SMALL, "l": LARGE}, "budget": 100}, "give each its prices"),
        ({"engines": {"s": SMALL | {"prices": CHEAP}, "l": LARGE}}, "has none for the model replay"),
        ({"engines": {"s": SMALL | {"prices": CHEAP}}}, "at least 2"),
        (
            {"engines": {"s": SMALL | {"modle": "x", "prices": CHEAP}, "l": LARGE | {"prices": DEAR}}},
            "did you mean model",
        ),
        ({"prices": "prices.yaml"}, "put them all into one of the two"),
        ({"scaling": {"max_workers": {"m": 3}}}, "scaling.max_workers names m, which is none of s, l"),
        (
            {"scaling": {"max_workers": 3, "tokens_per_second": {"m": 3}}},
            "scaling.tokens_per_second names m, which is none of s, l",
        ),
        (
            {
                "engines": {"s": SMALL | {"prices": CHEAP}, "l": LARGE | {"prices": DEAR, "workers": 4}},
                "scaling": {"max_workers": 3},
            },
            "below engines.l.workers",
        ),
        (
            {"allocation": {"objective": "solved", "attempts": 3}, "scoring": {"scorer": "exact"}},
            "temperature 0 gives the same answer",
        ),
        ({"allocation": {"sketched": True}}, "they are priced in blocks, whatever the size"),
        ({"estimate": {"head": "heads/s"}}, "a head is of one engine"),
        ({"estimate": {"heads": {"m": "heads/m"}}}, "heads names m"),
        ({"allocation": {"objective": "solved"}}, "needs scoring.scorer"),
    ],
)
def test_what_does_not_go_with_several_engines_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RunConfig.parse(settings(**changes))
    assert said in str(refused.value)


def test_each_engine_may_grow_to_a_number_of_its_own() -> None:
    of_all = RunConfig.parse(settings(scaling={"max_workers": 3, "tokens_per_second": 50}))
    assert [of_all.most_workers_of(named) for named in of_all.named_engines] == [3, 3]
    assert [of_all.scaling.rate_of(name) for name in "sl"] == [50, 50]
    of_one = RunConfig.parse(settings(scaling={"max_workers": {"s": 5}, "tokens_per_second": {"s": 50}}))
    assert (of_one.most_workers, of_one.scaling.most_of("l"), of_one.scaling.rate_of("l")) == (6, None, None)
    grown = RunConfig.parse(settings()).resumed(("scaling.max_workers.l=2",))
    assert grown.scaling.max_workers == {"l": 2}
    with pytest.raises(ConfigError, match="for several engines: give one number"):
        RunConfig.parse({"run_dir": "x", "budget": 5, "scaling": {"max_workers": {"s": 2}}})


def test_heads_by_name_are_those_of_several_engines() -> None:
    with pytest.raises(ConfigError, match="those of several engines"):
        RunConfig.parse({"run_dir": "x", "budget": 5, "estimate": {"heads": {"s": "heads/s"}}})


def test_a_server_sets_the_engines_of_its_batches() -> None:
    with pytest.raises(
        ValueError, match=r"engines of a batch's run is set by the server: name `engines` beside `batches`"
    ):
        BatchSettings(folder="x", run={"engines": {}})


def test_paths_of_engines_and_heads_are_absolute_and_may_move_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        config = with_absolute_paths(RunConfig.parse(settings()))
        assert config.engines is not None
        assert config.engines["l"].model_dump()["rollouts"] == str(tmp_path / place / "r.parquet")
        assert config.estimate.heads == {"l": str(tmp_path / place / "heads/l")}
        described.append(describe_config(config))
    check_same_run(described[0], described[1], open_folder(str(tmp_path)))
    described[1]["config"]["engines"]["l"]["max_batch"] = 5
    with pytest.raises(ResumeError, match=r"engines\.l\.max_batch"):
        check_same_run(described[0], described[1], open_folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        (5, "prices of engine s are a group, such as {input: 0.15, output: 0.60}, not 5"),
        ("$5", "prices of engine s are a group, such as {input: 0.15, output: 0.60}, not '$5'"),
        ([CHEAP], "prices of engine s are a group"),
        (CHEAP | {"prompt": 1}, "prices.s.prompt: there is no such setting; did you mean input?"),
    ],
)
def test_prices_beside_an_engine_that_are_none_are_refused_by_the_engine(prices: object, said: str) -> None:
    engines = {"s": SMALL | {"prices": prices}, "l": LARGE | {"prices": prices}}
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(settings(engines=engines))
    assert said in str(caught.value)
