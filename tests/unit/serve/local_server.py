"""The real HTTP application over the real price and engine, all in this process: what Serve would put between is left out."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2 as httpx
from ray.serve import context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.schema import ReplicaRank

from clear_ray.serve.deployments import EngineReplica
from clear_ray.serve.ingress import Ingress, api
from clear_ray.serve.price_replica import PriceReplica
from clear_ray.serve.settings import ServeConfig
from tests.conftest import ROLLOUTS
from tests.unit.local_actors import LocalActor

KEY = "sk-a-key-of-the-tests"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
REPLAY = {
    "kind": "replay",
    "rollouts": str(ROLLOUTS / "rollouts.parquet"),
    "features": str(ROLLOUTS / "features.parquet"),
    "max_batch": 64,
}
PRICE = {
    "budget_tokens_per_second": 100_000,
    "carry_over_tokens": 100_000,
    "clearing_seconds": 1.0,
    "window_seconds": 4.0,
}
# Serve wraps the class to carry its application; the innermost is ours.
_OURS: Any = [base for base in Ingress.func_or_class.__mro__ if base.__module__ == Ingress.func_or_class.__module__][-1]  # type: ignore[attr-defined]


class Handle(LocalActor):
    """A deployment's handle over an object in this process."""

    def options(self, **_: Any) -> Handle:
        """Return the handle: calls and streams look alike here."""
        return self


class LocalServer:
    """Ingress, price and engine.

    Args:
        engine: Settings of the replaying engine other than the usual ones.
        changes: Further settings of the server.
    """

    def __init__(self, engine: dict[str, Any] | None = None, **changes: Any) -> None:
        base = {"model_name": "replay", "max_tokens": 400, "engine": engine or {}, "price": PRICE}
        if changes.get("engines"):
            del base["engine"]
        elif base["engine"].get("kind", "replay") == "replay":
            base["engine"] = REPLAY | base["engine"]
        self.settings = ServeConfig.parse(base | changes)
        self.price = PriceReplica(self.settings.model_name, self.settings.tenants)
        self.engines = {
            model: EngineReplica(
                engine, self.settings.estimate_of(model), self.settings.max_tokens, price=Handle(self.price)
            )
            for model, engine in self.settings.each.items()
        }
        self.engine = next(iter(self.engines.values()))
        fixed = self.settings.model_dump(mode="json", exclude={"price", "limits"})
        handles = {model: Handle(engine) for model, engine in self.engines.items()}
        self.ingress = _OURS(fixed, handles, Handle(self.price))
        self.ingress.reconfigure({"limits": self.settings.limits.model_dump(mode="json")})

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        """Yield a client of the application on this machine."""
        self.price.reconfigure(self.settings.price.model_dump(mode="json"))
        transport = httpx.ASGITransport(app=api, client=("127.0.0.1", 5_000), raise_app_exceptions=False)
        with served(self.ingress):
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options) as client:
                yield client


@contextmanager
def served(ingress: Any) -> Iterator[None]:
    """Let this process be the replica of an ingress: routes ask Serve for the object that they are methods of."""
    before = context._INTERNAL_REPLICA_CONTEXT
    context._set_internal_replica_context(
        replica_id=ReplicaID("0", DeploymentID("ingress", "tests")),
        servable_object=ingress,
        _deployment_config=None,
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
    try:
        yield
    finally:
        context._INTERNAL_REPLICA_CONTEXT = before
