"""Ray's own AWS provider and boto3's own client against scripted answers of EC2; nothing leaves the machine."""

from typing import Any

import pytest
from botocore.stub import Stubber
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler.node_launch_exception import NodeLaunchException

from clear_ray.cluster.spot_first import NO_SPOT_CAPACITY, SpotFirstProvider, on_demand

SETTINGS = {
    "type": "external",
    "module": "clear_ray.cluster.spot_first.SpotFirstProvider",
    "region": "us-west-2",
}
NODE: dict[str, Any] = {
    "InstanceType": "g6.2xlarge",
    "ImageId": "ami-0",
    "SubnetIds": ["subnet-0"],
    "InstanceMarketOptions": {"MarketType": "spot"},
}
TAGS = {"ray-node-type": "worker"}
ATTEMPTS = 5  # of Ray, for one launch


def arguments(*, spot: bool, count: int) -> dict[str, Any]:
    tags = [{"Key": "ray-cluster-name", "Value": "test"}, {"Key": "ray-node-type", "Value": "worker"}]
    wanted = {
        "InstanceType": "g6.2xlarge",
        "ImageId": "ami-0",
        "SubnetId": "subnet-0",
        "MinCount": 1,
        "MaxCount": count,
        "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
    }
    return wanted | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})


def launched(*names: str) -> dict[str, Any]:
    return {"Instances": [{"InstanceId": name, "State": {"Name": "pending", "Code": 0}} for name in names]}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> SpotFirstProvider:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    return SpotFirstProvider(SETTINGS | {"cache_stopped_nodes": False}, "test")


def refuse(ec2: Stubber, code: str, *, spot: bool, count: int) -> None:
    for _ in range(ATTEMPTS):
        ec2.add_client_error("run_instances", code, code, expected_params=arguments(spot=spot, count=count))


def test_ray_loads_the_provider_by_the_name_in_cluster_yaml() -> None:
    assert _NODE_PROVIDERS["external"](SETTINGS) is SpotFirstProvider
    assert callable(SpotFirstProvider.bootstrap_config)


def test_spot_is_asked_first_and_taken_where_there_is_some(provider: SpotFirstProvider) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        ec2.add_response("run_instances", launched("i-1", "i-2"), arguments(spot=True, count=2))
        assert sorted(provider.create_node(NODE, TAGS, 2)) == ["i-1", "i-2"]
        ec2.assert_no_pending_responses()


@pytest.mark.parametrize("code", sorted(NO_SPOT_CAPACITY))
def test_without_spot_capacity_the_same_nodes_come_on_demand(provider: SpotFirstProvider, code: str) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, code, spot=True, count=3)
        ec2.add_response("run_instances", launched("i-1", "i-2", "i-3"), arguments(spot=False, count=3))
        assert len(provider.create_node(NODE, TAGS, 3)) == 3
        ec2.add_response("run_instances", launched("i-4"), arguments(spot=True, count=1))  # spot again next time
        assert list(provider.create_node(NODE, TAGS, 1)) == ["i-4"]
        ec2.assert_no_pending_responses()


def test_a_mistake_is_not_paid_for_on_demand(provider: SpotFirstProvider) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, "InvalidAMIID.NotFound", spot=True, count=1)
        with pytest.raises(NodeLaunchException) as refused:
            provider.create_node(NODE, TAGS, 1)
        assert refused.value.category == "InvalidAMIID.NotFound"
        ec2.assert_no_pending_responses()


def test_no_capacity_at_all_is_said_to_the_autoscaler(provider: SpotFirstProvider) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, "InsufficientInstanceCapacity", spot=True, count=1)
        refuse(ec2, "InsufficientInstanceCapacity", spot=False, count=1)
        with pytest.raises(NodeLaunchException):
            provider.create_node(NODE, TAGS, 1)
        ec2.assert_no_pending_responses()


def test_what_was_on_demand_already_is_asked_for_once(provider: SpotFirstProvider) -> None:
    with Stubber(provider.ec2_fail_fast.meta.client) as ec2:
        refuse(ec2, "InsufficientInstanceCapacity", spot=False, count=1)
        with pytest.raises(NodeLaunchException):
            provider.create_node(on_demand(NODE), TAGS, 1)
        ec2.assert_no_pending_responses()


def test_the_configuration_is_left_as_it_was() -> None:
    before = dict(NODE)
    assert "InstanceMarketOptions" not in on_demand(NODE)
    assert before == NODE
