"""The deployment that sells: one account and one price of a server, or of each of its tenants."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from clear_ray.cluster import metrics
from clear_ray.cluster.metrics import AccountMetrics, Throttle
from clear_ray.serve.law import Ask, Hold, PriceAccount
from clear_ray.serve.sale_queue import Sale, settings_of
from clear_ray.serve.settings import TenantSettings
from clear_ray.serve.tenant_queues import TenantQueues

_COMING_SECONDS = 5.0  # in which a query that was told to wait comes to do so, unless its client has gone
_MOST_SOLD = 8_192  # sales that are remembered by name


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What one query wants of the price.

    Attributes:
        name: Of the query.
        tenant: On whose account it is.
        ask: What it wants.
    """

    name: str
    tenant: str
    ask: Ask


@dataclass(frozen=True, slots=True)
class SaleSettlement:
    """What one query has spent.

    Attributes:
        tenant: On whose account it was.
        hold: What it held.
        spent_tokens: What was generated.
    """

    tenant: str
    hold: Hold
    spent_tokens: int


class PriceReplica:
    """The sale queues of a server. New settings arrive through Serve's `user_config`, without a restart.

    Args:
        model_name: Name of the model, for metrics.
        tenants: Those that share the server.
    """

    _queues: TenantQueues

    def __init__(self, model_name: str = "", tenants: Mapping[str, TenantSettings] | None = None) -> None:
        self._model_name, self._tenants = model_name, dict(tenants or {})
        self._metrics: dict[str, AccountMetrics] = {}
        self._due = Throttle()
        self._sold: dict[str, Sale] = {}
        self._coming: dict[str, float] = {}  # queries that were told to wait, and are on their way to do so

    def check_health(self) -> None:
        """Called by Serve every few seconds; tells Ray's metrics what the account is."""
        self._publish()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Begin, or go on, under these settings; called by Serve before the first query and at every change."""
        settings = settings_of(user_config)
        if hasattr(self, "_queues"):
            self._queues.change(settings)
        else:
            self._queues = TenantQueues(settings, self._tenants)

    async def buy_now(self, wanted: Sequence[Wanted]) -> list[Sale | None]:
        """Sell tokens to queries at once, or refuse them; None to those that are to wait."""
        self._publish()
        return [self._buy_now(each) for each in wanted]

    def _buy_now(self, wanted: Wanted) -> Sale | None:
        known = self._sold.get(wanted.name)
        if known is not None and known.hold is not None and self._queues.is_open(wanted.tenant, known.hold):
            return known  # its engine died before it could tell
        sale = self._queues.buy_now(wanted.tenant, wanted.ask)
        if sale is None:
            self._coming[wanted.name] = time.monotonic()
        elif sale.hold is not None:
            self._sold[wanted.name] = sale
            if len(self._sold) > _MOST_SOLD:
                del self._sold[next(iter(self._sold))]
        return sale

    async def wait(self, wanted: Wanted) -> Sale:
        """Sell tokens to a query that is to wait, when its turn in the queue has come."""
        self._coming.pop(wanted.name, None)
        return await self._queues.wait(wanted.tenant, wanted.ask)

    async def settle(self, settlements: Sequence[SaleSettlement]) -> None:
        """Charge what was generated."""
        self._publish()
        for each in settlements:
            self._queues.settle(each.tenant, each.hold, each.spent_tokens)

    async def stop_selling(self) -> None:
        """Refuse every query from now on; those in the queue keep their places."""
        self._queues.stop_selling()

    async def is_selling(self) -> bool:
        """Whether new queries are taken."""
        return self._queues.is_selling

    async def account(self) -> tuple[PriceAccount, int]:
        """Return the account, and how many queries wait, or are on their way to."""
        since = time.monotonic() - _COMING_SECONDS
        self._coming = {name: told_at for name, told_at in self._coming.items() if told_at > since}
        return self._queues.account(), self._queues.waiting + len(self._coming)

    def _publish(self) -> None:
        if not ray.is_initialized() or not self._due.is_due():
            return
        for tenant, (account, waiting) in self._queues.accounts().items():
            if tenant not in self._metrics:
                run = f"{self._model_name}/{tenant}" if tenant else self._model_name
                self._metrics[tenant] = AccountMetrics("server", run)
            self._metrics[tenant].publish(
                metrics.AccountGauges(
                    reserved_tokens=account.reserved_tokens,
                    spent_tokens=account.spent_tokens,
                    refunded_tokens=account.refunded_tokens,
                    wasted_tokens=account.wasted_tokens,
                    available_tokens=account.available_tokens,
                    price=account.price,
                    queries={("running", "engine"): account.running, ("waiting", "price"): waiting},
                )
            )
