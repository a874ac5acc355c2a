"""The services that a Ray of our own goes without: the installed Ray starts each by a method that is put back afterwards."""

from __future__ import annotations

from ray._private.node import Node

from clear_ray.cluster.few_services import SERVICES, few_services


def test_the_installed_ray_starts_each_of_them_by_a_method_of_its_node() -> None:
    """Else a newer one starts them again, and each run with them."""
    assert [name for name in SERVICES if not callable(vars(Node).get(name))] == []


def test_none_is_started_meanwhile_and_all_are_again_afterwards() -> None:
    before = {name: vars(Node)[name] for name in SERVICES}
    node = object.__new__(Node)
    with few_services():
        node.start_monitor()
        node.start_log_monitor()
        node.start_api_server(include_dashboard=False, raise_on_failure=False)
        assert node.webui_url == ""
    assert {name: vars(Node)[name] for name in SERVICES} == before
