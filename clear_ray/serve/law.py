"""What the online price is made of: its settings, what queries ask, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.errors import ConfigError

_TOO_DEAR = 1e150  # nothing is bought at this price, and times any spend it is still finite


@dataclass(frozen=True, slots=True)
class PriceLaw:
    """Settings of the update law. Their ranges are those of the fields of `settings.PriceSettings`.

    Attributes:
        budget_tokens_per_second: r, whole tokens that become available each second.
        carry_over_tokens: C, the most that is kept; also the largest hold.
        window_seconds: W, how far back demand is remembered; the stock's time constant is half of it.
        clearing_seconds: h, time between two clearings.
        step_octaves: s, the most doublings or halvings of the price in one clearing.
        price_octaves: How many halvings below the dearest remembered query's reservation price the scale of prices ends:
            there a price that rises from 0 begins, and one that falls to 0 is 0.
        most_remembered: Queries whose demand is kept; bounds memory and the time of a clearing.
        most_open: Holds open at the same time.
        lease_seconds: A hold that was not settled for so long is charged in full.

    Raises:
        ConfigError: Two of them contradict each other.
    """

    budget_tokens_per_second: int
    carry_over_tokens: int
    window_seconds: float = 20.0
    clearing_seconds: float = 2.0
    step_octaves: float = 2.0
    price_octaves: float = 10.0
    most_remembered: int = 2_048
    most_open: int = 4_096
    lease_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.clearing_seconds > self.window_seconds:
            raise ConfigError(
                "demand is remembered for at least the time between two clearings",
                "window_seconds",
                str(self.window_seconds),
                f"Give at least clearing_seconds, {self.clearing_seconds}.",
            )


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

    def demanded_tokens(self, price: float, *, weight: float, max_tokens: int) -> float:
        """Return what `Tabulated.demanded_off_grid` does of this curve alone, in a fiftieth of its time.

        Args:
            price: Halfway between two prices of the grid, or 0.
            weight: Value of a correct answer.
            max_tokens: Ceiling.
        """
        spend_K = self.tokens_K.astype(np.float64)
        success_K = np.clip(np.maximum.accumulate(self.success_K.astype(np.float64)), 0.0, 1.0)
        if max_tokens < spend_K[-1]:
            right = int(np.searchsorted(spend_K, max_tokens))
            tokens, success = (spend_K[right - 1], success_K[right - 1]) if right else (0.0, 0.0)
            run = spend_K[right] - tokens
            share = min((max_tokens - tokens) / run, 1.0)
            spend_K = np.minimum(spend_K, tokens + share * run)
            success_K = np.minimum(success_K, success + share * (success_K[right] - success))
        success_price = min(price / weight, _TOO_DEAR) if weight > 0.0 else _TOO_DEAR
        value_K = success_K - spend_K * success_price
        surplus = max(float(value_K.max()), 0.0)
        return float(spend_K[value_K == surplus].min()) if surplus > 0.0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """One query that wants tokens.

    Attributes:
        curve: Its estimate.
        max_tokens: Its own upper limit.
        tie_break: A number that belongs to the query, such as a hash of its id.
        choices: How many independent answers it wants; each is granted the same ceiling.
        weight: Value of a correct answer.
        ticket: By which a query that was sent away and comes again is known; empty if it is not to be.
    """

    curve: Curve
    max_tokens: int
    tie_break: int = 0
    choices: int = 1
    weight: float = 1.0
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Tokens set aside for one query until it is settled.

    Attributes:
        bucket: Which bucket they are of; slots and attempts are numbered anew in each.
        slot: Its place in that bucket.
        attempt: Which of the holds in that place, from 1.
        tokens: How many.
        expires_seconds: When its lease ends, on the scale of its sale queue.
    """

    bucket: str
    slot: int
    attempt: int
    tokens: int
    expires_seconds: float


@dataclass(frozen=True, slots=True)
class PriceAccount:
    """What the machine holds and has done, for metrics and tests. Token counts since the start.

    Attributes:
        price: Shadow price in force, expected answers per token.
        cleared_price: What the last clearing found before the step bound.
        available_tokens: Can be held now.
        reserved_tokens: Held and not settled.
        spent_tokens: Settled or forfeited.
        refunded_tokens: Reserved, and given back unused.
        wasted_tokens: Forfeited: nothing is known of what became of them.
        running: Holds that are open.
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
    refunded_tokens: int
    wasted_tokens: int
    running: int
    earned_tokens: int
    lost_tokens: int
    clearings: int
    remembered: int
