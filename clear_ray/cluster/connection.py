"""Joins the Ray cluster that is there, or starts a local one; a cluster that cannot be had is said in one line, and soon.

Ray itself tries for minutes to reach an address at which nothing answers, and says so in C++. So the head is asked first, the
way Ray asks it: whether anything listens, whether it is a Ray, of which version, and whether it takes our token.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import ExitStack
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.core.generated import gcs_service_pb2
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from clear_ray.cluster.few_services import few_services
from clear_ray.errors import ClusterError

_MESSAGES: Any = gcs_service_pb2
_CONNECT_SECONDS = 8.0
_ANSWER_SECONDS = 12.0
_CLIENT = "ray://"
_REMEDY = "Start it with `ray start --head`, correct RAY_ADDRESS, or unset it to run on this machine alone."
_TOKEN = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to what the head was started with."  # noqa: S105
_ACCESS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def join(address: str | None, **options: Any) -> None:
    """Connect this process to the cluster at `address`, or to a local one that is started for it.

    Args:
        address: As of `ray.init`; None starts a local cluster.
        options: More of `ray.init`.

    Raises:
        ClusterError: Nothing answers there, or no Ray, or another version; or it does not let us in; or none starts here.
    """
    where = _place(address)
    try:
        reach(address)
        with ExitStack() as own:
            if address in (None, "local"):
                own.enter_context(few_services())
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except ClusterError:
        raise
    except Exception as error:
        ray.shutdown()
        raise cause_of(error, where, is_local=address in (None, "local")) from error


def reach(address: str | None) -> str | None:
    """Return the control store of the cluster at an address that answers; None for a cluster of this machine's own.

    Nothing is started there, and this process does not join it.

    Args:
        address: As of `ray.init`.

    Raises:
        ClusterError: Nothing answers there, or no Ray, or another version; or it does not let us in.
    """
    if not address or address == "local":
        return None
    where = _place(address)
    if address == "auto":
        try:
            address = str(canonicalize_bootstrap_address_or_die("auto"))
        except Exception as error:
            raise cause_of(error, where, is_local=False) from error
    _ask_head(address, where)
    return address


def _place(address: str | None) -> str:
    return f"Ray cluster {address}" if address else "Ray on this machine"


def _ask_head(address: str, where: str) -> None:
    """Raise unless a Ray of our version at `host:port` answers and lets us in."""
    target = address.removeprefix(_CLIENT).partition("/")[0]
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError("a Ray address reads host:port", "RAY_ADDRESS", address, _REMEDY)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError("nothing answers there", where, str(error), _REMEDY) from error
    if not address.startswith(_CLIENT):
        _ask_control_store(target, where)


def _ask_control_store(target: str, where: str) -> None:
    try:
        channel = init_grpc_channel(target)
    except Exception as error:  # the token that is asked for cannot be found
        raise cause_of(error, where, is_local=False) from error
    with channel:
        stub: Any = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            found = stub.CheckAlive(_MESSAGES.CheckAliveRequest(), timeout=_ANSWER_SECONDS, wait_for_ready=True)
            stub.GetClusterId(_MESSAGES.GetClusterIdRequest(), timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() in _ACCESS:
                raise ClusterError(
                    "it asks for a token and does not take ours", where, error.details(), _TOKEN
                ) from error
            value = f"{error.code().name}: {error.details()}"
            raise ClusterError("what answers there is no Ray head, or hangs", where, value, _REMEDY) from error
        except Exception as error:
            raise cause_of(error, where, is_local=False) from error
    if found.ray_version != ray.__version__:
        value = f"{found.ray_version} there, {ray.__version__} here"
        remedy = f"Install ray=={found.ray_version} here, or start the cluster with {ray.__version__}."
        raise ClusterError("it runs another version of Ray", where, value, remedy)


def cause_of(error: Exception, where: str, *, is_local: bool) -> ClusterError:
    """Return what Ray's own error comes to in one line."""
    lines = str(error).strip().splitlines() or [repr(error)]
    if "token" in str(error).lower() and ("auth" in str(error).lower()):
        return ClusterError("it asks for a token", where, lines[0], _TOKEN)
    if "ersion mismatch" in str(error):
        value = " ".join(line.strip() for line in lines)
        return ClusterError(
            "it runs another version of Ray or Python", where, value, "Use the cluster's versions here."
        )
    if is_local:
        what, remedy = (
            "it did not start",
            "See whether memory or disk are full or the machine is busy, and run it again.",
        )
        if os.environ.get("RAY_AUTH_MODE") == "token":
            remedy += f" {_TOKEN}"
        return ClusterError(what, where, lines[0], remedy)
    return ClusterError("it cannot be joined", where, lines[0], _REMEDY)
