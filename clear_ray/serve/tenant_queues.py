"""A sale queue for each tenant, with a price and an account of its own, over one income that is divided by weight (`shares`).

A tenant asks while it has queries that wait or are under way, and for a window after its last one came. Whenever another
set of tenants asks, income and carry-over are divided anew, and so is what is in stock; while none asks, nothing changes.
Divided, not made: over any T seconds all tenants together hold no more than `budget_tokens_per_second * T +
carry_over_tokens` of the whole server, and one token a second for each tenant that does not ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce

from clear_ray.serve.law import Ask, Hold, PriceAccount
from clear_ray.serve.sale_queue import Sale, SaleQueue
from clear_ray.serve.settings import PriceSettings, TenantSettings
from clear_ray.serve.shares import shares

_SUMS = (
    *("available_tokens", "reserved_tokens", "spent_tokens", "refunded_tokens", "wasted_tokens", "running"),
    *("earned_tokens", "lost_tokens", "clearings", "remembered"),
)


class TenantQueues:
    """The sale queues of a server.

    Args:
        settings: What is sold.
        tenants: The tenants, by name; those that are of none share one queue, of the empty name and weight 1.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        settings: PriceSettings,
        tenants: Mapping[str, TenantSettings],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._weights = {"": 1.0} | {name: tenant.weight for name, tenant in tenants.items()}
        self._bounds = {name: tenant.budget_tokens_per_second for name, tenant in tenants.items()}
        # From the start all have their shares, so that what comes in before the first query is kept.
        self._asked_at = dict.fromkeys(self._weights, clock())
        self._asking, self._looked_at = frozenset(self._weights), clock()
        rates = self._rates()
        self._queues = {name: SaleQueue(self._share_of(name, rates), clock=clock) for name in self._weights}

    @property
    def is_selling(self) -> bool:
        """Whether new queries are taken."""
        return all(queue.is_selling for queue in self._queues.values())

    @property
    def waiting(self) -> int:
        """Queries in all queues."""
        return sum(queue.waiting for queue in self._queues.values())

    def accounts(self) -> dict[str, tuple[PriceAccount, int]]:
        """Return the account of each tenant, and how many of its queries wait."""
        return {name: (queue.account(), queue.waiting) for name, queue in self._queues.items()}

    def account(self) -> PriceAccount:
        """Return the accounts of all together; the price is the highest."""
        return reduce(_added, [queue.account() for queue in self._queues.values()])

    def change(self, settings: PriceSettings) -> None:
        """Go on under other settings; the queues, the holds and the prices are kept."""
        self._settings = settings
        self._divide(self._asking)

    def buy_now(self, tenant: str, ask: Ask) -> Sale | None:
        """See `SaleQueue.buy_now`."""
        self._asked_at[tenant] = self._clock()
        self._look(is_new=tenant not in self._asking)
        return self._queues[tenant].buy_now(ask)

    async def wait(self, tenant: str, ask: Ask) -> Sale:
        """See `SaleQueue.wait`."""
        return await self._queues[tenant].wait(ask)

    def settle(self, tenant: str, hold: Hold, spent_tokens: int) -> None:
        """Charge what was generated and sell what comes back."""
        self._queues[tenant].settle(hold, spent_tokens)
        self._look(is_new=False)

    def is_open(self, tenant: str, hold: Hold) -> bool:
        """Whether a hold is neither settled nor over."""
        return self._queues[tenant].is_open(hold)

    def stop_selling(self) -> None:
        """Refuse every query from now on; those in the queues keep their places."""
        for queue in self._queues.values():
            queue.stop_selling()

    def _look(self, *, is_new: bool) -> None:
        """Divide anew if others ask than before: at once for one that is new, else at every clearing."""
        if len(self._queues) == 1:
            return
        now = self._clock()
        if not is_new and now - self._looked_at < self._settings.clearing_seconds:
            return
        self._looked_at = now
        since = now - self._settings.window_seconds
        asking = frozenset(
            name
            for name, queue in self._queues.items()
            if self._asked_at[name] > since or queue.waiting or queue.is_busy
        )
        if asking and asking != self._asking:
            self._divide(asking)

    def _divide(self, asking: frozenset[str]) -> None:
        self._asking = asking
        stock = sum(queue.withdraw() for queue in self._queues.values())
        rates = self._rates()
        for name, queue in self._queues.items():
            queue.change(self._share_of(name, rates))
        for name, rate in rates.items():
            self._queues[name].deposit(int(stock * rate / sum(rates.values())))

    def _rates(self) -> dict[str, int]:
        weights = {name: self._weights[name] for name in self._asking}
        return shares(self._settings.budget_tokens_per_second, weights, self._bounds)

    def _share_of(self, name: str, rates: Mapping[str, int]) -> PriceSettings:
        """Return the settings of one queue; one that asks for nothing has next to nothing."""
        rate, settings = rates.get(name, 1), self._settings
        carry_over = settings.carry_over_tokens * rate // settings.budget_tokens_per_second if name in rates else 1
        return settings.model_copy(update={"budget_tokens_per_second": rate, "carry_over_tokens": max(1, carry_over)})


def _added(one: PriceAccount, other: PriceAccount) -> PriceAccount:
    sums = {name: getattr(one, name) + getattr(other, name) for name in _SUMS}
    return replace(
        one, price=max(one.price, other.price), cleared_price=max(one.cleared_price, other.cleared_price), **sums
    )
