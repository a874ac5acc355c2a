"""What a server tells Prometheus. No label holds text of a query."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from clear_ray.serve.law import Account

_OF_ACCOUNT = ("available_tokens", "reserved_tokens", "spent_tokens", "earned_tokens", "lost_tokens", "clearings")


class Meters:
    """Prometheus metrics of one ingress replica, and those of the price as it was last asked."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.queries = Counter("clear_ray_queries", "Queries by outcome.", ["outcome"], registry=self._registry)
        self.granted = Counter("clear_ray_granted_tokens", "Tokens granted.", registry=self._registry)
        self.generated = Counter("clear_ray_generated_tokens", "Tokens generated.", registry=self._registry)
        self.seconds = Histogram("clear_ray_query_seconds", "Seconds from request to answer.", registry=self._registry)
        self._gauges: dict[str, Gauge] = {}

    def page(self, account: Account, waiting: int) -> Response:
        """Return all metrics in Prometheus' text form.

        Args:
            account: Account of the price, as of now.
            waiting: Queries in its queue.
        """
        for name in _OF_ACCOUNT:
            self._show(f"price_{name}", getattr(account, name))
        self._show("shadow_price", account.price)
        self._show("waiting_queries", waiting)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _show(self, name: str, value: float) -> None:
        if name not in self._gauges:
            words = name.replace("_", " ").capitalize()
            self._gauges[name] = Gauge(f"clear_ray_{name}", f"{words}.", registry=self._registry)
        self._gauges[name].set(value)
