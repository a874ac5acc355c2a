"""The online price: a token budget per second, sold to arriving queries at a shadow price that is cleared again and again.

A pure state machine without a clock: every call says what time it is, in seconds on any scale that never runs
backwards. Token counts are exact integers; the same calls give the same answers.

**Account** (`TokenBucket`). Tokens become available at `budget_tokens_per_second` (r) and are kept up to `carry_over_tokens`
(C); more is lost. A grant reserves its whole ceiling, a settlement gives back what was not generated (up to C), and a hold
older than its lease is charged in full. Hence, over *every* window of T seconds: tokens held minus tokens given back
<= r * T + C. The machine starts with nothing, so a restart mints no tokens; it starts to earn before the engines have
loaded, so the first user need not wait for its tokens.

**Update law.** Every `clearing_seconds` (h), with w the time that the remembered demand spans (at most `window_seconds`, W;
less where more than `most_remembered` queries came), L the tokens available, Q those that waiting queries demand at the price
in force, R the tokens given back and X those sold outside the price (direct answers) in the last W seconds:

    sellable rate S = r + (R - X) / W + max((L - Q - M) / (W/2), -T),  at least 0, tokens per second
    wanted stock  M = min(C/2, r * W/2)
    refilling     T = min(r/2, U),  with U what all remembered ceilings together exceed r + (R - X) / W by, at least 0
    cleared price   = the lowest price at which the demand remembered from these w seconds fits w * S (the sketch), and at
                      which the demand of all that wait fits h * S, or one query where that is less
    price           = the cleared price, but not more than `step_octaves` (s) doublings or halvings from the last price

The first part of S is income; the last steers the stock, what is promised to the queue taken off, to M with time constant
W/2. For that it never takes more than half the income, so that a start with nothing sells at once, and nothing from demand
that the income pays for: what such demand leaves fills the stock by itself. So a tenant that begins to ask finds price 0 if
its share pays for what it asks, however empty the stock that a flood has left. The bound for those that wait is there because
a query that waits buys at the lowest price that it meets: without it a small fall of the price promises tokens to all that
were just below it, and every query after them waits for tokens instead of for a price. The stock rests below M for the same
reason. Unit of the price: expected correct answers per token. Octaves do not lead to 0 or away from it, so they need a start:
`price_octaves` halvings below the highest reservation price that is remembered. From 0 the price steps up from there, and on
its way to a cleared price of 0 it is 0 below. That is a share of what is for sale and no price of its own, so answers k times
as long are sold k times the tokens at a k-th of the price. Where the step does not bind, equal queries are told apart by
their tie class exactly as in a batch (`SketchPrice`), and at price 0 an unspent budget abandons no query.

**After a step in load** at time 0 the memory holds old demand only in part, and none of it after W: the cleared price moves
to the new static price within W, the price follows with at most s octaves every h, and what was sold too much or too little
meanwhile (at most C) decays with time constant W/2. In figures, for W = 20 s, h = 2 s, s = 2 and Poisson arrivals of 6 to
12 queries a second: from 2 W = 40 s after the load doubled or halved, the tokens sold are within 10 percent of the budget
over a minute and within 30 percent over any W (most of that is the luck of the arrivals), and the price is within 25 percent
of the new static one (tests/unit/serve/test_price.py). Too little is never sold for lack of a buyer for longer than W; too
much is never sold at all: the account is empty first.

Source: docs/method.md, sections 3 and 4.4; the law is ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clear_ray.allocation import Tabulated
from clear_ray.allocation.sketch import DemandSketch
from clear_ray.allocation.sketch_price import SketchPrice, tie_classes_of
from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.errors import ConfigError
from clear_ray.serve.law import Ask, Hold, PriceAccount, PriceLaw
from clear_ray.serve.token_bucket import TokenBucket, to_ns, to_seconds

_MOST_REFILLING = 0.5  # of the income, for a stock that is too small


class OnlinePrice:
    """Sell a token budget per second at a price; see the module's docstring for the law.

    Args:
        law: Settings.
        now_seconds: The time at which tokens begin to become available.

    Attributes:
        waiting: Queries in the queue, with surplus or not; the keeper of the queue puts them in and takes them out.
    """

    def __init__(self, law: PriceLaw, *, now_seconds: float) -> None:
        self._law = law
        self._bucket = TokenBucket(law, now_seconds=now_seconds)
        self._start_ns = self._forgotten_ns = self._bucket.now_ns
        self._clearings = 0
        self._demand: deque[tuple[int, Ask]] = deque()
        self._flows: deque[tuple[int, int]] = deque()  # (time, R - X)
        self._clearing = _unpriced()
        self._cleared_price = 0.0
        self._dearest = 0.0  # the highest reservation price seen at the last clearing that saw one
        self.waiting: dict[Ask, None] = {}

    @property
    def price(self) -> float:
        """The shadow price in force, expected correct answers per token."""
        return self._clearing.shadow_price

    @property
    def law(self) -> PriceLaw:
        """The settings in force."""
        return self._law

    @property
    def clearings(self) -> int:
        """How often the price was cleared; what was offered holds until this changes, or the law does."""
        return self._clearings

    @property
    def account(self) -> PriceAccount:
        """What is held and has been done. Changes nothing."""
        return PriceAccount(
            price=self.price,
            cleared_price=self._cleared_price,
            available_tokens=self._bucket.available_tokens,
            reserved_tokens=self._bucket.reserved_tokens,
            spent_tokens=self._bucket.spent_tokens,
            refunded_tokens=self._bucket.refunded_tokens,
            wasted_tokens=self._bucket.wasted_tokens,
            running=self._bucket.holds,
            earned_tokens=self._bucket.earned_tokens,
            lost_tokens=self._bucket.lost_tokens,
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
            raise ConfigError(
                "this setting is fixed while the server runs",
                "most_open",
                str(law.most_open),
                remedy="Start the server again to change it.",
            )
        self._law = law
        self._bucket.change(law)

    def ask(self, ask: Ask, *, now_seconds: float) -> int:
        """Remember the demand of a query that has just arrived, and return what it may buy, as `offers` does."""
        self.advance(now_seconds)
        for _ in range(ask.choices):
            self._demand.append((self._bucket.now_ns, ask))
        while len(self._demand) > self._law.most_remembered:
            self._forgotten_ns, _ = self._demand.popleft()
        return self.offers([ask])[0]

    def offers(self, asks: Sequence[Ask]) -> list[int]:
        """Return the tokens that each choice of each query demands at the price in force; 0 without surplus.

        Changes nothing, so it may be repeated for queries that wait.
        """
        found, offered = self._clearing, [0] * len(asks)
        if len(asks) == 1 and not found.lower_classes:  # as it is for one that has just arrived
            return [self._offer(asks[0], found)]
        for rows in _rows_by_grid(asks).values():
            utility = self._utility([asks[row] for row in rows])
            keys = np.array([asks[row].tie_break for row in rows], np.uint64)
            is_lower_N = tie_classes_of(utility, keys, found.tie_classes) < found.lower_classes
            # Cleared prices lie halfway between grid prices, where the best point needs no envelope: ten times faster.
            upper_N = utility.demanded_off_grid(found.shadow_price).spend_N
            lower_N = utility.demanded_off_grid(found.lower_price).spend_N if is_lower_N.any() else upper_N
            level_N = np.where(is_lower_N, found.lower_level_tokens, found.level_tokens)
            level_N = np.minimum(level_N, utility.max_tokens_N)
            for row, tokens in zip(rows, np.maximum(np.where(is_lower_N, lower_N, upper_N), level_N), strict=True):
                offered[row] = int(tokens)
        return offered

    def _offer(self, ask: Ask, found: SketchPrice) -> int:
        most = self._limit_tokens(ask)
        demanded = ask.curve.demanded_tokens(found.shadow_price, weight=ask.weight, max_tokens=most)
        return int(max(demanded, min(found.level_tokens, most, int(ask.curve.tokens_K[-1]))))

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
        hold = self._bucket.take(tokens, now_seconds=now_seconds)
        if hold is not None and not is_priced:
            self._flows.append((self._bucket.now_ns, -tokens))
        return hold

    def settle(self, hold: Hold, spent_tokens: int, *, now_seconds: float) -> int:
        """Charge what was generated and give the rest back; telling it again changes nothing.

        Returns:
            Tokens given back.

        Raises:
            BudgetError: More was generated than held.
        """
        self.advance(now_seconds)
        refund = self._bucket.settle(hold, spent_tokens)
        if refund:
            self._flows.append((self._bucket.now_ns, refund))
        return refund

    def withdraw(self, *, now_seconds: float) -> int:
        """Take out what is available, and return how much that was."""
        self.advance(now_seconds)
        return self._bucket.withdraw()

    def deposit(self, tokens: int, *, now_seconds: float) -> None:
        """Put tokens in that another bucket has earned; what is above the carry-over is lost."""
        self.advance(now_seconds)
        self._bucket.deposit(tokens)

    def is_open(self, hold: Hold) -> bool:
        """Whether a hold is neither settled nor over."""
        return self._bucket.is_open(hold)

    def seconds_until(self, tokens: int) -> float:
        """Return how long until so many tokens are available if no other query buys and nothing is given back, seconds."""
        return max(0, tokens - self._bucket.available_tokens) / self._law.budget_tokens_per_second

    def next_clearing_seconds(self) -> float:
        """Return the time of the next clearing, on the caller's scale."""
        period = to_ns(self._law.clearing_seconds)
        return to_seconds(self._start_ns + ((self._bucket.now_ns - self._start_ns) // period + 1) * period)

    def advance(self, now_seconds: float) -> bool:
        """Let time pass: tokens become available, leases run out, and the price is cleared where that is due.

        Clearings that were missed while no call came are made up for by one.

        Returns:
            Whether the price was cleared.

        Raises:
            BudgetError: Time runs backwards.
        """
        before, period = self._bucket.now_ns - self._start_ns, to_ns(self._law.clearing_seconds)
        self._bucket.advance(now_seconds)
        is_due = (self._bucket.now_ns - self._start_ns) // period > before // period
        if is_due:
            self._clear()
        return is_due

    def _clear(self) -> None:
        """Find the price of the remembered demand and move towards it."""
        spanned_seconds, waiting, before = self._forget(), list(self.waiting), self.price
        sellable_per_second = self._sellable_per_second(self._promised_tokens(waiting), spanned_seconds)
        self._clearings += 1
        found = self._clearing = self._price_of([ask for _, ask in self._demand], spanned_seconds * sellable_per_second)
        largest = max((ask.choices * self._limit_tokens(ask) for ask in waiting), default=0)
        most_tokens = max(self._law.clearing_seconds * sellable_per_second, largest)
        if self._promised_tokens(waiting) > most_tokens:
            of_queue = self._price_of([ask for ask in waiting for _ in range(ask.choices)], most_tokens)
            found = max(found, of_queue, key=lambda priced: priced.shadow_price)
        self._cleared_price = found.shadow_price
        self._dearest = self._highest_reservation([*(ask for _, ask in self._demand), *waiting]) or self._dearest
        price = self._bounded(found.shadow_price, before)
        if price != found.shadow_price:
            found = replace(
                found, shadow_price=price, lower_price=price, lower_classes=0, level_tokens=0, lower_level_tokens=0
            )
        self._clearing = found

    def _forget(self) -> float:
        """Drop demand and flows that are older than the window; return the seconds that the kept demand spans."""
        now_ns = self._bucket.now_ns
        since = now_ns - to_ns(self._law.window_seconds)
        while self._demand and self._demand[0][0] <= since:
            self._demand.popleft()
        while self._flows and self._flows[0][0] <= since:
            self._flows.popleft()
        return to_seconds(now_ns - max(since, self._start_ns, self._forgotten_ns))

    def _sellable_per_second(self, promised_tokens: int, spanned_seconds: float) -> float:
        law = self._law
        income = law.budget_tokens_per_second + sum(tokens for _, tokens in self._flows) / law.window_seconds
        wanted = sum(self._limit_tokens(ask) for _, ask in self._demand) / spanned_seconds if spanned_seconds else 0.0
        refilling = min(_MOST_REFILLING * law.budget_tokens_per_second, max(0.0, wanted - income))
        stock = self._bucket.available_tokens - promised_tokens - self._wanted_stock
        return max(0.0, income + max(2 * stock / law.window_seconds, -refilling))

    @property
    def _wanted_stock(self) -> float:
        """Tokens: half of what is kept, or what refilling brings within a window where that is less."""
        law = self._law
        refilled = _MOST_REFILLING * law.budget_tokens_per_second * law.window_seconds
        return min(law.carry_over_tokens / 2, refilled)

    def _price_of(self, asks: list[Ask], budget_tokens: float) -> SketchPrice:
        """Price queries, one entry for each choice, by the two passes of the sketch."""
        if not asks:
            return replace(_unpriced(), slack_tokens=budget_tokens)
        by_grid = [[asks[row] for row in rows] for rows in _rows_by_grid(asks).values()]
        blocks = [(np.array([ask.tie_break for ask in block], np.uint64), self._utility(block)) for block in by_grid]
        sketch = DemandSketch.first_pass(budget_tokens=budget_tokens)
        for keys, utility in blocks:
            sketch = sketch.add(utility, tie_break_N=keys)
        sketch = sketch.second_pass(budget_tokens=budget_tokens)
        for keys, utility in blocks:
            sketch = sketch.add(utility, tie_break_N=keys)
        return sketch.price(budget_tokens=budget_tokens)

    def _limit_tokens(self, ask: Ask) -> int:
        """Return the most that each choice of a query can be granted: more could never be held."""
        return min(ask.max_tokens, self._law.carry_over_tokens // ask.choices)

    def _utility(self, asks: list[Ask]) -> Tabulated:
        return Tabulated(
            asks[0].curve.tokens_K,
            np.stack([ask.curve.success_K for ask in asks]),
            survival_NK=np.stack([ask.curve.survival_K for ask in asks]),
            weight_N=np.array([ask.weight for ask in asks]),
            max_tokens_N=np.array([self._limit_tokens(ask) for ask in asks], np.int64),
        )

    def _promised_tokens(self, waiting: Sequence[Ask]) -> int:
        """Return what queries demand at the price in force, all choices together."""
        return sum(ask.choices * tokens for ask, tokens in zip(waiting, self.offers(waiting), strict=True))

    def _highest_reservation(self, asks: Sequence[Ask]) -> float:
        """Return the price above which none of some queries buys anything; 0 if none ever does."""
        blocks = ([asks[row] for row in rows] for rows in _rows_by_grid(asks).values())
        return max((float(self._utility(block).reservation_price.max()) for block in blocks), default=0.0)

    def _bounded(self, price: float, price_before: float) -> float:
        """Return `price` within one step of the price before; see the module's docstring for steps from and to 0."""
        factor: float = 2.0**self._law.step_octaves
        start: float = self._dearest * 2.0**-self._law.price_octaves
        if price == 0.0:
            lower = price_before / factor
            return lower if lower >= start else 0.0
        if price_before == 0.0:
            return min(price, start * factor)
        return min(max(price, price_before / factor), price_before * factor)


def _rows_by_grid(asks: Sequence[Ask]) -> dict[bytes, list[int]]:
    rows: dict[bytes, list[int]] = {}
    for row, ask in enumerate(asks):
        rows.setdefault(ask.curve.tokens_K.tobytes(), []).append(row)
    return rows


def _unpriced() -> SketchPrice:
    """Return the price of no demand: 0, with the highest level for the next query."""
    level = MOST_TOKENS
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
