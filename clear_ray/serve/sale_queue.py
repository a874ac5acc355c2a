"""The queue before the online price, on a real clock: which query is sold tokens, which waits, which is to come back.

Among waiting queries that have surplus the first come is served first: a later one, however small, does not pass it. Those
without surplus stand aside until the price has fallen.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from clear_ray.serve.law import Ask, Hold, PriceAccount
from clear_ray.serve.price import OnlinePrice
from clear_ray.serve.settings import PriceSettings
from clear_ray.serve.tickets import Tickets

_LATEST_RETURN_SECONDS = 60  # OpenAI's clients wait no longer, and guess instead
_JITTER = 0.25
_RESTART_SECONDS = 5  # until another server has taken over, at least

Outcome = Literal["granted", "direct", "refused"]


@dataclass(frozen=True, slots=True)
class Sale:
    """What became of one query in the sale queue.

    Attributes:
        outcome: `granted` at the price, `direct` for a short answer outside it, or `refused`.
        tokens: Ceiling of each choice; 0 if refused.
        price: Shadow price at that moment, expected answers per token.
        hold: What to settle; None if refused.
        reason: Why it was refused: `no_surplus`, `no_tokens`, `queue_full`, `deadline` or `stopping`.
        retry_after_seconds: When another try may fare better, if refused.
        waited_seconds: Time in the queue.
    """

    outcome: Outcome
    tokens: int
    price: float
    hold: Hold | None
    reason: str = ""
    retry_after_seconds: int = 0
    waited_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A query in the queue; `tokens` is what each choice demanded at the last clearing, `arrived` its first coming."""

    ask: Ask
    sold: asyncio.Future[tuple[int, Hold]]
    tokens: int
    arrived: float


class SaleQueue:
    """Sell tokens to queries as they come; one for a whole server.

    Args:
        settings: What is sold.
        clock: Seconds that never run backwards.
    """

    def __init__(self, settings: PriceSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._price = OnlinePrice(settings.law(), now_seconds=clock())
        self._waiting: dict[_Waiting, None] = {}
        self._offered_at = 0  # the clearing from which the tokens of those that wait are
        self._ticker: asyncio.Task[None] | None = None
        self._tickets = Tickets()
        self._next_return = 0.0  # when the last query that was sent away is to come back
        self.is_selling = True

    @property
    def waiting(self) -> int:
        """Queries in the queue."""
        return len(self._waiting)

    def account(self) -> PriceAccount:
        """Return what is held and has been done, as of now."""
        self._price.advance(self._clock())
        return self._price.account

    def change(self, settings: PriceSettings) -> None:
        """Go on under other settings; the queue, the holds and the price are kept."""
        self._price.change(settings.law(), now_seconds=self._clock())
        self._settings = settings
        self._offered_at = -1  # the carry-over bounds what is offered
        self.serve_queue()

    async def buy(self, ask: Ask) -> Sale:
        """Sell tokens to a query, at once or when its turn in the queue has come."""
        return self.buy_now(ask) or await self.wait(ask)

    def buy_now(self, ask: Ask) -> Sale | None:
        """Sell tokens to a query that has just arrived, or refuse it; None if it is to wait."""
        if not self.is_selling:
            return Sale("refused", 0, self._price.price, None, "stopping", _RESTART_SECONDS)
        now = self._clock()
        tokens = self._price.ask(ask, now_seconds=now)
        arrived = self._tickets.take(ask.ticket, now)
        if tokens and not self._next_demand(arrived) and (hold := self._take(tokens * ask.choices)):
            return Sale("granted", tokens, self._price.price, hold)
        policy = self._settings.without_surplus
        if not tokens and policy == "answer":
            direct = min(self._settings.direct_answer_tokens, ask.max_tokens)
            hold = self._price.take(direct * ask.choices, now_seconds=now, is_priced=False)
            if hold:
                return Sale("direct", direct, self._price.price, hold)
            return self._refusal("no_tokens", direct, ask, arrived)
        if policy == "reject":
            return self._refusal("no_tokens" if tokens else "no_surplus", tokens, ask, arrived)
        if self._is_full(arrived):
            return self._refusal("queue_full", tokens, ask, arrived)
        self._tickets.keep(ask.ticket, arrived, now)
        return None

    @property
    def is_busy(self) -> bool:
        """Whether a query holds tokens."""
        return self._price.account.running > 0

    def withdraw(self) -> int:
        """Take out what is for sale, and return how much that was."""
        return self._price.withdraw(now_seconds=self._clock())

    def deposit(self, tokens: int) -> None:
        """Put tokens in that came from elsewhere, and sell what they allow."""
        self._price.deposit(tokens, now_seconds=self._clock())
        self.serve_queue()

    def is_open(self, hold: Hold) -> bool:
        """Whether a hold of this queue's account is neither settled nor over."""
        return self._price.is_open(hold)

    def settle(self, hold: Hold, spent_tokens: int) -> None:
        """Charge what was generated and sell what comes back."""
        self._price.settle(hold, spent_tokens, now_seconds=self._clock())
        self.serve_queue()

    async def wait(self, ask: Ask) -> Sale:
        """Have a query that `buy_now` left wait for its turn: in the order in which queries first came."""
        now = self._clock()
        arrived, tokens = self._tickets.take(ask.ticket, now), self._price.offers([ask])[0]
        if self._is_full(arrived):
            return self._refusal("queue_full", tokens, ask, arrived)
        waiting = _Waiting(ask, asyncio.get_running_loop().create_future(), tokens, arrived)
        self._enter(waiting)
        self._price.waiting[ask] = None
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.create_task(self._tick())
        self.serve_queue()
        try:
            tokens, hold = await asyncio.wait_for(waiting.sold, self._settings.deadline_seconds)
        except TimeoutError:
            return self._refusal("deadline", waiting.tokens, ask, arrived)
        except asyncio.CancelledError:
            # The client may have gone in the very moment in which its turn came.
            if waiting.sold.done() and not waiting.sold.cancelled():
                self.settle(waiting.sold.result()[1], 0)
            raise
        finally:
            self._leave(waiting)
        return Sale("granted", tokens, self._price.price, hold, waited_seconds=self._clock() - now)

    async def _tick(self) -> None:
        """Serve the queue at every clearing, and when the first in it can pay, until none waits."""
        while self._waiting:
            now = self._clock()
            until_paid = self._price.seconds_until(self._next_demand())
            seconds = min(self._price.next_clearing_seconds() - now, until_paid or math.inf)
            await asyncio.sleep(max(0.005, seconds))
            self.serve_queue()

    def serve_queue(self) -> None:
        """Sell to those that wait what the price and the account now allow."""
        self._price.advance(self._clock())
        self._offer_again()
        for waiting in list(self._waiting):
            if not waiting.tokens or waiting.sold.done():
                continue
            hold = self._take(waiting.tokens * waiting.ask.choices)
            if hold is None:
                break
            waiting.sold.set_result((waiting.tokens, hold))
            self._leave(waiting)

    def _offer_again(self) -> None:
        """Ask for those that wait what they demand now, if the price was cleared since; all in one go."""
        if self._offered_at == self._price.clearings:
            return
        self._offered_at = self._price.clearings
        offers = self._price.offers([waiting.ask for waiting in self._waiting])
        for waiting, tokens in zip(self._waiting, offers, strict=True):
            waiting.tokens = tokens

    def _leave(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting, None)
        self._price.waiting.pop(waiting.ask, None)

    def _enter(self, waiting: _Waiting) -> None:
        """Put a query into the queue, behind those that came before it."""
        later = [other for other in reversed(self._waiting) if other.arrived > waiting.arrived]
        self._waiting[waiting] = None
        for other in reversed(later):
            del self._waiting[other]
            self._waiting[other] = None

    def _is_full(self, arrived: float) -> bool:
        """Whether the queue has no place; for one that comes again, and is not the last, it has twice as many."""
        last = next(reversed(self._waiting), None)
        comes_again = last is not None and arrived < last.arrived
        return len(self._waiting) >= self._settings.max_waiting * (2 if comes_again else 1)

    def _next_demand(self, before: float = math.inf) -> int:
        """Return the tokens that the first query with surplus waits for; 0 if there is none that came before a moment."""
        self._offer_again()
        demands = (waiting for waiting in self._waiting if waiting.tokens and waiting.arrived <= before)
        return next((waiting.tokens * waiting.ask.choices for waiting in demands), 0)

    def _take(self, tokens: int) -> Hold | None:
        return self._price.take(tokens, now_seconds=self._clock())

    def stop_selling(self) -> None:
        """Refuse every query from now on; those in the queue keep their places."""
        self.is_selling = False

    def _refusal(self, reason: str, tokens: int, ask: Ask, arrived: float) -> Sale:
        """Send a query away, and say when to come back: each after the one before it, as their tokens come in.

        One that does comes in its old place.

        Told the same second, all of a burst would meet again. The jitter is the query's own, from its tie break.
        """
        now, price = self._clock(), self._price
        self._tickets.keep(ask.ticket, arrived, now)
        soonest = max(price.next_clearing_seconds() - now, price.seconds_until(tokens * ask.choices))
        wanted = max(tokens, min(self._settings.direct_answer_tokens, ask.max_tokens)) * ask.choices
        turn = max(self._next_return, now + self._queue_seconds()) + wanted / price.law.budget_tokens_per_second
        self._next_return = min(turn, now + _LATEST_RETURN_SECONDS)
        seconds = max(soonest, self._next_return - now)
        seconds *= 1 + _JITTER * (ask.tie_break % 997) / 997
        whole = min(max(1, math.ceil(seconds)), _LATEST_RETURN_SECONDS)
        return Sale("refused", 0, price.price, None, reason, whole)

    def _queue_seconds(self) -> float:
        """Return how long the tokens that those in the queue demand take to come in."""
        demanded = sum(waiting.tokens * waiting.ask.choices for waiting in self._waiting)
        return self._price.seconds_until(demanded) if demanded else 0.0


def settings_of(user_config: dict[str, Any]) -> PriceSettings:
    """Return the settings that a Serve `user_config` holds."""
    return PriceSettings.model_validate(user_config)
