"""Which nodes Ray's own scheduler would launch for a run's engines, with the node types of our cluster files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint, ResourceRequestByCount
from ray.core.generated.common_pb2 import LabelSelectorOperator

ROOT = Path(__file__).parents[3]
IN = LabelSelectorOperator.LABEL_OPERATOR_IN


class Silent:
    """Ray's scheduler reports its decisions to an event log, which wants a running cluster."""

    def log_cluster_scheduling_update(self, *_: Any, **__: Any) -> None:
        """Say nothing."""


def launched(
    name: str,
    engines: int,
    *,
    gpus: int = 1,
    size: str = "",
    requested: int = 0,
    availability: Mapping[str, float] | None = None,
) -> tuple[dict[str, int], int]:
    """Return node type -> nodes that Ray would launch, and how many engines find no place.

    `engines` wait for a place; `requested` have been asked for by `request_resources`.
    """
    settings = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    config = AutoscalingConfig(prepare_config(settings), skip_content_hash=True)
    label = [[("clear-ray/size", IN, [size])]] if size else None
    wanted = [ResourceRequestUtil.make({"GPU": gpus}, label_selectors=label) for _ in range(engines)]
    constraints = [
        ClusterResourceConstraint(
            resource_requests=[ResourceRequestByCount(request=ResourceRequestUtil.make({"GPU": gpus}), count=requested)]
        )
    ]
    reply = ResourceDemandScheduler(Silent()).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(wanted),
            cluster_resource_constraints=constraints if requested else [],
            recoverable_resource_availabilities=dict(availability or {}),
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}, len(reply.infeasible_resource_requests)


@pytest.mark.parametrize(
    ("engines", "nodes", "waiting"),
    [
        (0, {}, 0),
        (1, {"gpu_small": 1}, 0),
        (3, {"gpu_large": 1}, 0),
        (8, {"gpu_large": 2}, 0),
        (32, {"gpu_large": 4, "gpu_small": 16}, 0),
        (40, {"gpu_large": 4, "gpu_small": 16}, 8),
    ],
)
def test_engines_of_one_gpu_launch_the_nodes_that_the_guide_lists(
    engines: int, nodes: dict[str, int], waiting: int
) -> None:
    assert launched("cluster.yaml", engines) == (nodes, waiting)


@pytest.mark.parametrize("engines", [1, 3, 8, 32])
def test_what_a_run_asks_for_is_what_its_engines_need_and_is_not_counted_twice(engines: int) -> None:
    """A run asks for its GPUs, and then its engines wait for a place: the same nodes do for both."""
    waiting = launched("cluster.yaml", engines)
    assert launched("cluster.yaml", 0, requested=engines) == waiting
    assert launched("cluster.yaml", engines, requested=engines) == waiting


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_engines_of_several_gpus_come_to_large_nodes_only(name: str) -> None:
    assert launched(name, 1, gpus=2) == ({"gpu_large": 1}, 0)
    assert launched(name, 4, gpus=4) == ({"gpu_large": 4}, 0)
    assert launched(name, 1, gpus=8) == ({}, 1)


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_a_label_keeps_engines_on_small_nodes(name: str) -> None:
    assert launched(name, 8, size="small") == ({"gpu_small": 8}, 0)


def test_gcp_turns_to_on_demand_while_spot_is_marked_as_unavailable() -> None:
    assert launched("deploy/gcp.yaml", 2) == ({"gpu_small": 2}, 0)
    assert launched("deploy/gcp.yaml", 2, availability={"gpu_small": 0.0}) == ({"gpu_small_on_demand": 2}, 0)
