"""What a server tells Prometheus. No label holds text of a query."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from clear_ray.serve.law import PriceAccount

_COUNTED = {
    "spent_tokens": "Tokens charged.",
    "refunded_tokens": "Tokens held, and given back unused.",
    "wasted_tokens": "Tokens of holds that were never settled.",
    "earned_tokens": "Tokens that became available, those lost included.",
    "lost_tokens": "Tokens that became available when the most that is kept was there.",
    "clearings": "Clearings of the price.",
}
_HELD = {"available_tokens": "Tokens for sale now.", "reserved_tokens": "Tokens held by queries under way."}
# A query may wait half a minute for its price, and a long answer takes minutes.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Meters:
    """Prometheus metrics of one ingress replica, and those of the price as it was last asked."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.queries = Counter("clear_ray_queries", "Queries by outcome.", ["outcome"], registry=own)
        self.refusals = Counter(
            "clear_ray_refusals", "Requests refused or failed, by reason.", ["reason"], registry=own
        )
        self.under_way = Gauge("clear_ray_queries_under_way", "Queries taken and not ended.", registry=own)
        self.prompts = Counter("clear_ray_prompt_tokens", "Prompt tokens read.", registry=own)
        self.granted = Counter("clear_ray_granted_tokens", "Tokens granted.", registry=own)
        self.generated = Counter("clear_ray_generated_tokens", "Tokens generated.", registry=own)
        waited, first, whole = "for a price", "from request to first tokens", "from request to the answer's end"
        self.waited = Histogram("clear_ray_wait_seconds", f"Seconds {waited}.", registry=own, buckets=_SECONDS)
        self.first = Histogram("clear_ray_first_token_seconds", f"Seconds {first}.", registry=own, buckets=_SECONDS)
        self.seconds = Histogram("clear_ray_query_seconds", f"Seconds {whole}.", registry=own, buckets=_SECONDS)
        self._price = _PriceMetrics()
        own.register(self._price)

    def page(self, account: PriceAccount, waiting: int) -> Response:
        """Return all metrics in Prometheus' text form.

        Args:
            account: Account of the price, as of now.
            waiting: Queries in its queue.
        """
        self._price.take(account, waiting)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class _PriceMetrics(Collector):
    """Metrics of the account, which is another process's."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []

    def take(self, account: PriceAccount, waiting: int) -> None:
        """Show this account from now on."""
        counted = [
            CounterMetricFamily(f"clear_ray_price_{name}", words, value=getattr(account, name))
            for name, words in _COUNTED.items()
        ]
        held = [
            GaugeMetricFamily(f"clear_ray_price_{name}", words, value=getattr(account, name))
            for name, words in _HELD.items()
        ]
        price = GaugeMetricFamily("clear_ray_shadow_price", "Expected correct answers a token.", value=account.price)
        queue = GaugeMetricFamily("clear_ray_waiting_queries", "Queries that wait for their price.", value=waiting)
        self._metrics = [*counted, *held, price, queue]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._metrics
