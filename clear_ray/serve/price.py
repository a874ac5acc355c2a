"""The online price: a token budget per second, sold to arriving queries at a shadow price that is cleared again and again.

A pure state machine without a clock: every call says what time it is, in seconds on any scale that never runs
backwards. Token counts are exact integers; the same calls give the same answers.

**Account.** Tokens become available at `budget_tokens_per_second` (r) and are kept up to `carry_over_tokens` (C); more is
lost. They are held in the batch's own `Ledger`, one slot for each open hold: a grant reserves its whole ceiling, a
settlement gives back what was not generated (up to C), and a hold older than its lease is charged in full. Hence, over
*every* window of T seconds: tokens held minus tokens given back <= r * T + C. The machine starts with nothing, so a
restart mints no tokens.

**Update law.** Every `clearing_seconds` (h), with w the time that the remembered demand spans (at most `window_seconds`, W;
less where more than `most_remembered` queries came), L the tokens available, R the tokens given back and X those sold
outside the price (direct answers) in the last W seconds:

    target tokens = w * (r + (R - X) / W + (L - C/2) / W),  at least 0
    cleared price = the lowest price at which the demand remembered from these w seconds fits the target (the sketch)
    price         = the cleared price, but not more than `step_octaves` (s) doublings or halvings from the last price

The first part of the target is income; the last steers the stock to half the carry-over with time constant W, so an error
of the demand estimate does not accumulate. Unit of the price: expected correct answers per token. Bounds: 0, or
`lowest_price` to `highest_price`; a step from 0 starts at `lowest_price`, and below `lowest_price` it is 0. Where the step
does not bind, equal queries are told apart by their tie class exactly as in a batch (`SketchPrice`), and at price 0 an
unspent budget abandons nobody.

**After a step in load** at time 0 the memory holds old demand only in part, and none of it after W: the cleared price moves
monotonically to the new static price within W, the price follows with at most s octaves every h, and what was sold too
much or too little meanwhile (at most C) decays with time constant W. In figures, for W = 20 s, h = 2 s, s = 2 and
Poisson arrivals of 6 to 12 queries a second: from 2 W = 40 s after the load doubled or halved, the tokens sold are within
10 percent of the budget over a minute and within 30 percent over any W (most of that is the luck of the arrivals), and
the price is within 25 percent of the new static one (tests/unit/serve/test_price.py). Too little is never
sold for lack of a buyer for longer than W; too much is never sold at all: the account is empty first.

Source: method.md sections 3 and 4.4; the law is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.allocation.sketch import DemandSketch
from clear_ray.allocation.sketch_price import SketchPrice, tie_classes_of
from clear_ray.errors import BudgetError, ConfigError
from clear_ray.ledger import Ledger

_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class PriceLaw:
    """Settings of the update law; see the module's docstring.

    Attributes:
        budget_tokens_per_second: r, whole tokens that become available each second.
        carry_over_tokens: C, the most that is kept; also the largest hold.
        window_seconds: W, how far back demand is remembered, and the time constant of the stock.
        clearing_seconds: h, time between two clearings.
        step_octaves: s, the most doublings or halvings of the price in one clearing.
        lowest_price: A price below this is 0, expected answers per token.
        highest_price: The price never rises above this.
        most_remembered: Queries whose demand is kept; bounds memory and the time of a clearing.
        most_open: Holds open at the same time.
        lease_seconds: A hold that was not settled for so long is charged in full.

    Raises:
        ConfigError: A setting is out of range.
    """

    budget_tokens_per_second: int
    carry_over_tokens: int
    window_seconds: float = 20.0
    clearing_seconds: float = 2.0
    step_octaves: float = 2.0
    lowest_price: float = 2.0**-16
    highest_price: float = 1.0
    most_remembered: int = 2_048
    most_open: int = 4_096
    lease_seconds: float = 600.0

    def __post_init__(self) -> None:
        is_fine = {
            "budget_tokens_per_second": self.budget_tokens_per_second >= 1,
            "carry_over_tokens": self.carry_over_tokens >= 1,
            "clearing_seconds": 0 < self.clearing_seconds < math.inf,
            "window_seconds": self.clearing_seconds <= self.window_seconds < math.inf,
            "step_octaves": self.step_octaves > 0,
            "highest_price": 0 < self.lowest_price <= self.highest_price < math.inf,
            "most_remembered": self.most_remembered >= 1,
            "most_open": self.most_open >= 1,
            "lease_seconds": self.lease_seconds > 0,
        }
        for name, fine in is_fine.items():
            if not fine:
                raise ConfigError("the setting is out of range", f"price law: {name}", str(getattr(self, name)))


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What one query is expected to return; K grid points, as a head estimates them.

    Attributes:
        tokens_K: Grid of ceilings in tokens.
        success_K: Chance that a correct answer has ended by each grid point.
        survival_K: Chance that the answer still runs after each grid point.
    """

    tokens_K: NDArray[np.int64]
    success_K: NDArray[np.float32]
    survival_K: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One query that wants tokens.

    Attributes:
        curve: Its estimate.
        max_tokens: Its own upper limit.
        tie_break: A number that belongs to the query, such as a hash of its id.
        choices: How many independent answers it wants; each is granted the same ceiling.
        weight: Value of a correct answer.
    """

    curve: Curve
    max_tokens: int
    tie_break: int = 0
    choices: int = 1
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Tokens set aside for one query until it is settled."""

    slot: int
    attempt: int
    tokens: int
    expires_seconds: float


@dataclass(frozen=True, slots=True)
class Account:
    """What the machine holds and has done, for metrics and tests. Token counts since the start.

    Attributes:
        price: Shadow price in force, expected answers per token.
        cleared_price: What the last clearing found before the step bound.
        available_tokens: Can be held now.
        reserved_tokens: Held and not settled.
        spent_tokens: Settled or forfeited.
        earned_tokens: Became available, those lost above the carry-over included.
        lost_tokens: Became available when the carry-over was full.
        clearings: How often the price was cleared.
        remembered: Queries in the memory of demand.
    """

    price: float
    cleared_price: float
    available_tokens: int
    reserved_tokens: int
    spent_tokens: int
    earned_tokens: int
    lost_tokens: int
    clearings: int
    remembered: int


class OnlinePrice:
    """Sell a token budget per second at a price; see the module's docstring for the law.

    Args:
        law: Settings.
        now_seconds: The time at which tokens begin to become available.
    """

    def __init__(self, law: PriceLaw, *, now_seconds: float) -> None:
        self._law = law
        self._ledger = Ledger(0, law.most_open)
        self._free_slots = list(range(law.most_open - 1, -1, -1))
        self._holds: dict[int, Hold] = {}
        self._now_ns = self._start_ns = _ns(now_seconds)
        self._fraction = 0  # of a token, in units of 1 / _NANOSECONDS
        self._earned_tokens = self._lost_tokens = self._clearings = 0
        self._demand: deque[tuple[int, Ask]] = deque()
        self._forgotten_ns = self._start_ns
        self._flows: deque[tuple[int, int]] = deque()  # (time, R - X)
        self._clearing = _unpriced()
        self._cleared_price = 0.0

    @property
    def price(self) -> float:
        """The shadow price in force, expected correct answers per token."""
        return self._clearing.shadow_price

    @property
    def law(self) -> PriceLaw:
        """The settings in force."""
        return self._law

    @property
    def account(self) -> Account:
        """What is held and has been done. Changes nothing."""
        return Account(
            price=self.price,
            cleared_price=self._cleared_price,
            available_tokens=self._ledger.available_tokens,
            reserved_tokens=self._ledger.reserved_tokens,
            spent_tokens=self._ledger.spent_tokens,
            earned_tokens=self._earned_tokens,
            lost_tokens=self._lost_tokens,
            clearings=self._clearings,
            remembered=len(self._demand),
        )

    def change(self, law: PriceLaw, *, now_seconds: float) -> None:
        """Go on under other settings; holds, stock and price are kept. `most_open` cannot change.

        Raises:
            ConfigError: `most_open` differs.
        """
        self.advance(now_seconds)
        if law.most_open != self._law.most_open:
            raise ConfigError("this setting is fixed while the server runs", "most_open", str(law.most_open))
        self._law = law
        self._drop_above_carry_over()

    def ask(self, ask: Ask, *, now_seconds: float) -> int:
        """Remember the demand of a query that has just arrived, and return what it may buy, as `offer` does."""
        self.advance(now_seconds)
        for _ in range(ask.choices):
            self._demand.append((self._now_ns, ask))
        while len(self._demand) > self._law.most_remembered:
            self._forgotten_ns, _ = self._demand.popleft()
        return self.offer(ask)

    def offer(self, ask: Ask) -> int:
        """Return the tokens that each choice of a query demands at the price in force; 0 without surplus.

        Changes nothing, so it may be repeated for a query that waits.
        """
        found, utility = self._clearing, self._utility([ask])
        (tie_class,) = tie_classes_of(utility, np.array([ask.tie_break], np.uint64), found.tie_classes)
        is_lower = tie_class < found.lower_classes
        # Cleared prices lie halfway between grid prices, where the best point needs no envelope: ten times faster.
        demanded = utility.demanded_off_grid(found.lower_price if is_lower else found.shadow_price)
        level = found.lower_level_tokens if is_lower else found.level_tokens
        return int(max(demanded.spend_N[0], min(level, utility.max_tokens_N[0])))

    def take(self, tokens: int, *, now_seconds: float, is_priced: bool = True) -> Hold | None:
        """Set tokens aside.

        Args:
            tokens: All ceilings of a query together.
            now_seconds: The time.
            is_priced: False for tokens that were not bought at the price, such as a direct answer's: later buyers
                find so much less.

        Returns:
            The hold, or None if less is available now or too many holds are open.
        """
        self.advance(now_seconds)
        if tokens < 1 or tokens > self._ledger.available_tokens or not self._free_slots:
            return None
        slot = self._free_slots.pop()
        entry = self._ledger.reserve(slot, tokens)
        hold = Hold(slot, entry.attempt, tokens, now_seconds + self._law.lease_seconds)
        self._holds[slot] = hold
        if not is_priced:
            self._flows.append((self._now_ns, -tokens))
        return hold

    def settle(self, hold: Hold, spent_tokens: int, *, now_seconds: float) -> int:
        """Charge what was generated and give the rest back; telling it again changes nothing.

        Returns:
            Tokens given back.

        Raises:
            BudgetError: More was generated than held.
        """
        self.advance(now_seconds)
        if self._ledger.settle(hold.slot, hold.attempt, spent_tokens) is None:
            return 0
        self._release(hold)
        refund = hold.tokens - spent_tokens
        if refund:
            self._flows.append((self._now_ns, refund))
        self._drop_above_carry_over()
        return refund

    def seconds_until(self, tokens: int) -> float:
        """Return how long until so many tokens are available if nobody else buys and nothing is given back, seconds."""
        missing = max(0, tokens - self._ledger.available_tokens)
        return missing / self._law.budget_tokens_per_second

    def next_clearing_seconds(self) -> float:
        """Return the time of the next clearing, on the caller's scale."""
        period = _ns(self._law.clearing_seconds)
        return (self._start_ns + ((self._now_ns - self._start_ns) // period + 1) * period) / _NANOSECONDS

    def advance(self, now_seconds: float) -> bool:
        """Let time pass: tokens become available, leases run out, and the price is cleared where that is due.

        Clearings that were missed while nobody called are made up for by one.

        Returns:
            Whether the price was cleared.

        Raises:
            BudgetError: Time runs backwards.
        """
        now_ns = _ns(now_seconds)
        if now_ns < self._now_ns:
            raise BudgetError("time runs backwards", "online price", str(now_seconds))
        period = _ns(self._law.clearing_seconds)
        is_due = (now_ns - self._start_ns) // period > (self._now_ns - self._start_ns) // period
        self._earn(now_ns)
        for hold in [hold for hold in self._holds.values() if hold.expires_seconds <= now_seconds]:
            self._ledger.forfeit(hold.slot, hold.attempt)
            self._release(hold)
        if is_due:
            self._clear()
        return is_due

    def _earn(self, now_ns: int) -> None:
        whole = (now_ns - self._now_ns) * self._law.budget_tokens_per_second + self._fraction
        earned, self._fraction = divmod(whole, _NANOSECONDS)
        self._now_ns = now_ns
        self._earned_tokens += earned
        self._ledger.budget_tokens += earned
        self._drop_above_carry_over()

    def _drop_above_carry_over(self) -> None:
        above = max(0, self._ledger.available_tokens - self._law.carry_over_tokens)
        self._ledger.budget_tokens -= above
        self._lost_tokens += above
        if self._ledger.available_tokens == self._law.carry_over_tokens:
            self._fraction = 0  # C is all that is kept: not C and most of a token

    def _release(self, hold: Hold) -> None:
        del self._holds[hold.slot]
        self._free_slots.append(hold.slot)

    def _clear(self) -> None:
        """Find the price of the remembered demand and move towards it."""
        spanned_seconds = self._forget()
        target = self._target_tokens(spanned_seconds)
        self._clearings += 1
        found = self._price_of(target)
        self._cleared_price = found.shadow_price
        price = self._bounded(found.shadow_price)
        if price != found.shadow_price:
            found = replace(
                found, shadow_price=price, lower_price=price, lower_classes=0, level_tokens=0, lower_level_tokens=0
            )
        self._clearing = found

    def _forget(self) -> float:
        """Drop demand and flows that are older than the window; return the seconds that the kept demand spans."""
        since = self._now_ns - _ns(self._law.window_seconds)
        while self._demand and self._demand[0][0] <= since:
            self._demand.popleft()
        while self._flows and self._flows[0][0] <= since:
            self._flows.popleft()
        return (self._now_ns - max(since, self._start_ns, self._forgotten_ns)) / _NANOSECONDS

    def _target_tokens(self, spanned_seconds: float) -> float:
        law = self._law
        flow = sum(tokens for _, tokens in self._flows)
        stock = self._ledger.available_tokens - law.carry_over_tokens / 2
        return max(0.0, spanned_seconds * (law.budget_tokens_per_second + (flow + stock) / law.window_seconds))

    def _price_of(self, target_tokens: float) -> SketchPrice:
        """Price the remembered demand, by the two passes of the sketch."""
        if not self._demand:
            return replace(_unpriced(), slack_tokens=target_tokens)
        keys_and_utilities = list(self._blocks())
        sketch = DemandSketch.first_pass(budget_tokens=target_tokens)
        for keys, utility in keys_and_utilities:
            sketch = sketch.add(utility, tie_break_N=keys)
        sketch = sketch.second_pass(budget_tokens=target_tokens)
        for keys, utility in keys_and_utilities:
            sketch = sketch.add(utility, tie_break_N=keys)
        return sketch.price(budget_tokens=target_tokens)

    def _blocks(self) -> Iterator[tuple[NDArray[np.uint64], Tabulated]]:
        """Yield the remembered queries, those on one token grid together."""
        by_grid: dict[bytes, list[Ask]] = {}
        for _, ask in self._demand:
            by_grid.setdefault(ask.curve.tokens_K.tobytes(), []).append(ask)
        for asks in by_grid.values():
            yield np.array([ask.tie_break for ask in asks], np.uint64), self._utility(asks)

    def _utility(self, asks: list[Ask]) -> Tabulated:
        # A ceiling that could never be held would be waited for without end.
        limits = [min(ask.max_tokens, self._law.carry_over_tokens // ask.choices) for ask in asks]
        return Tabulated(
            asks[0].curve.tokens_K,
            np.stack([ask.curve.success_K for ask in asks]),
            survival_NK=np.stack([ask.curve.survival_K for ask in asks]),
            weight_N=np.array([ask.weight for ask in asks]),
            max_tokens_N=np.array(limits, np.int64),
        )

    def _bounded(self, price: float) -> float:
        """Return `price` within the bounds and within one step of the price in force."""
        law, factor = self._law, 2.0**self._law.step_octaves
        before = max(self.price, law.lowest_price)
        price = min(price, law.highest_price, before * factor)
        price = max(price, before / factor)
        return price if price >= law.lowest_price else 0.0


def _ns(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)


def _unpriced() -> SketchPrice:
    """Return the price of no demand: 0, with the highest level for whoever comes."""
    level = 1 << 24
    return SketchPrice(
        shadow_price=0.0,
        lower_price=0.0,
        lower_classes=0,
        level_tokens=level,
        lower_level_tokens=level,
        tie_classes=1,
        spend=0.0,
        slack_tokens=0.0,
        utility=0.0,
        dual_bound=0.0,
        gap=0.0,
        funded=0,
        queries=0,
    )
