"""AWS nodes from the spot market first, on demand where the spot market has none.

Ray 2.60 asks for spot instances again and again when EC2 refuses them: autoscaler v2 marks a node type as unavailable
after an allocation that timed out, never after one that was refused (`ray/autoscaler/v2/instance_manager/subscribers/
cloud_resource_monitor.py`), and v1's scorer leaves the record of refusals unread. So a node type that is to fall back
must do so where its instances are requested. `cluster.yaml` names this class as its provider; everything else is Ray's.

Loaded by `ray up` on the laptop and by the autoscaler on the head; needs boto3.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.cli_logger import cli_logger
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_SPOT_CAPACITY = frozenset(
    ("InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow", "UnfulfillableCapacity")
)
"""EC2's error codes that mean: no such instance on the spot market now. Others are mistakes that on demand has too."""


class SpotFirstProvider(AWSNodeProvider):
    """Ray's AWS provider, with one more attempt for spot instances that EC2 has none of."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
        """Launch up to `count` instances, on demand if they were wanted as spot instances and there are none.

        The spot market is asked first at every launch, so a cluster goes back to it by itself.

        Args:
            node_config: Arguments of EC2's RunInstances, as in `cluster.yaml`.
            tags: Ray's tags of the nodes.
            count: Instances wanted.

        Returns:
            Instance id -> instance, of what was launched.

        Raises:
            NodeLaunchException: EC2 refused on demand too, or for a reason other than the spot market.
        """
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as refusal:
            if not is_spot(node_config) or refusal.category not in NO_SPOT_CAPACITY:
                raise
            cli_logger.warning(  # type: ignore[no-untyped-call]
                f"No spot capacity for {node_config.get('InstanceType')} ({refusal.category}): launching on demand."
            )
        return super().create_node(on_demand(node_config), tags, count)


def is_spot(node_config: dict[str, Any]) -> bool:
    """Whether these RunInstances arguments ask for spot instances."""
    options = node_config.get("InstanceMarketOptions") or {}
    return bool(options.get("MarketType") == "spot")


def on_demand(node_config: dict[str, Any]) -> dict[str, Any]:
    """Return the same RunInstances arguments for on-demand instances."""
    return {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
