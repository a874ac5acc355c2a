"""Engines come and go with the work, and no request for nodes outlives its run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get

from clear_ray.batch.run import run
from clear_ray.cluster.engines import engine_workers
from clear_ray.cluster.gpu_requests import gpus_for
from clear_ray.cluster.several import several_engines
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.estimation.prior import PriorHead
from tests.ray.test_run import check_account


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def requested() -> list[dict[str, float]]:
    """Return what the autoscaler is asked for, as Ray keeps it on a cluster that has none."""
    bundles: list[dict[str, float]] = json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")
    return bundles


class Holder:
    """Stands for the market of a run."""


def test_no_request_outlives_its_run() -> None:
    holder: Any = ray.remote(num_cpus=0)(Holder)
    one, other = holder.remote(), holder.remote()
    with gpus_for(one, [1]) as ask_for_one:
        ask_for_one([2])
        assert requested() == [{"GPU": 1}] * 2
        with gpus_for(other, [0.5, 0, 2]) as ask_for_other:
            ask_for_other([1, 3, 1])
            assert requested() == [{"GPU": 1}] * 2 + [{"GPU": 0.5}, {"GPU": 2}], "the requests of all runs are one"
            ask_for_one([1])
            assert requested() == [{"GPU": 1}, {"GPU": 0.5}, {"GPU": 2}]
        assert requested() == [{"GPU": 1}]
        ray.kill(one)  # what becomes of a market whose driver was killed
        until(lambda: requested() == [])
    until(lambda: not any("gpu requests" in actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)))


def test_no_gpus_no_request() -> None:
    with gpus_for(ray.remote(num_cpus=0)(Holder).remote(), [0]) as ask_for:
        ask_for([8])
        assert requested() == []
    assert not [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "requests" in actor["name"]]


def test_engines_are_added_and_ended(replay_settings: dict[str, Any]) -> None:
    config = RunConfig.parse(replay_settings).engine
    head, asked = PriorHead(cap_tokens=400), []
    with engine_workers(config, head, run_dir="engines", ask_for=asked.append, rows_each=2) as engines:
        workers = engines.workers
        find = workers.find
        assert find is not None
        assert (len(workers.handles), engines.up(), find(1)) == (1, 1, None)
        engines.resize(2)
        until(lambda: engines.up() == 2)
        assert ray.get(find(1).cards.remote())[0] == engines.model
        assert len(engines.workers.handles) == 1, "those that were added are found, and called once they answer"
        engines.resize(1)
        until(lambda: find(1) is None)
    assert asked == [1, 2, 1, 0]


def test_a_run_that_is_late_has_as_many_engines_as_it_may(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings | {"scaling": {"max_workers": 2, "deadline": "1s", "tokens_per_second": 160.0}}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 100.0, "max_batch": 4}
    settings["dispatch"] = {"batch_rows": 1}
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    assert result.report.workers == 2
    assert result.report.wasted_tokens == 0
    run(None, RunConfig.parse(settings | {"scaling": {}}))  # is only read: how fast does not matter
    with pytest.raises(ResumeError, match="max_batch"):
        run(None, RunConfig.parse(settings | {"engine": settings["engine"] | {"max_batch": 5}}))


def test_each_of_several_engines_has_as_many_workers_as_its_work_calls_for(replay_settings: dict[str, Any]) -> None:
    """The dear one may not grow, and how many the cheap one has is the work of its own tokens."""
    recorded = replay_settings.pop("engine") | {"max_batch": 4}
    engines = {
        "small": recorded | {"tokens_per_second": 100.0, "prices": {"input": "0.015", "output": "0.045"}},
        "large": recorded | {"prices": {"input": "0.16", "output": "0.48"}},
    }
    scaling = {"max_workers": {"small": 2}, "deadline": "1s", "tokens_per_second": {"small": 160.0}}
    menu = {"engines": engines, "scaling": scaling, "budget": "$0.008", "estimate": {}}
    settings = replay_settings | menu | {"allocation": {"max_tokens": 400, "objective": "solved"}}
    config = RunConfig.parse(settings | {"dispatch": {"batch_rows": 1}})
    report = run(None, config).report
    assert report.workers == 3
    assert report.wasted_tokens == 0
    assert report.spent_tokens <= report.budget_tokens
    assert [engine.calls > 0 for engine in report.engines] == [True, True]


def test_each_of_several_engines_is_resized_by_itself(replay_settings: dict[str, Any]) -> None:
    config, asked = RunConfig.parse(replay_settings).engine, []
    two = [(config, PriorHead(cap_tokens=400))] * 2
    told: Callable[[int, int], None] = lambda place, count: asked.append((place, count))  # noqa: E731
    with several_engines(two, run_dir="engines", ask_for=told, rows_each=[None, 2]) as engines:
        engines.wait()
        fixed, growing = engines.each
        find = growing.workers.find
        assert fixed.workers.find is None
        assert find is not None
        growing.resize(2)
        until(lambda: engines.up() == 3)
        assert ray.get(find(1).cards.remote())[0] == growing.model
        assert (len(fixed), len(growing), find(2)) == (1, 2, None)
    assert asked == [(0, 1), (1, 1), (1, 2), (1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"deadline": "2h"}, "need max_workers"),
        ({"max_workers": 8, "deadline": "soon"}, "1h30m"),
        ({"max_workers": 0}, "greater than or equal to 1"),
    ],
)
def test_scaling_that_cannot_be_kept_is_refused(
    scaling: dict[str, Any], said: str, replay_settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.parse(replay_settings | {"scaling": scaling})


def test_a_run_cannot_begin_with_more_than_it_may_have(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings | {"scaling": {"max_workers": 2}}
    with pytest.raises(ConfigError, match=r"below engine\.workers"):
        RunConfig.parse(settings | {"engine": settings["engine"] | {"workers": 3}})
