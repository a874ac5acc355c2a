"""Tokens that become available at a steady rate, are kept up to a bound, and are held until they are settled.

A pure state machine without a clock: every call says what time it is, in seconds on any scale that never runs backwards.
Token counts are exact integers, kept in the batch's own `Ledger`, one slot for each open hold.
"""

from __future__ import annotations

from uuid import uuid4

from clear_ray.errors import BudgetError
from clear_ray.ledger.ledger import Ledger
from clear_ray.serve.law import Hold, PriceLaw

_NANOSECONDS = 1_000_000_000


class TokenBucket:
    """Hold tokens and give back what was not generated.

    Args:
        law: Rate, bound, most holds and their lease.
        now_seconds: The time at which tokens begin to become available.

    Attributes:
        now_ns: The last time that it was told, nanoseconds.
        earned_tokens: Became available since the start, those lost included.
        lost_tokens: Became available when the most that is kept was there.
    """

    def __init__(self, law: PriceLaw, *, now_seconds: float) -> None:
        self._law, self._name = law, uuid4().hex
        self._ledger = Ledger(0, law.most_open)
        self._free_slots = list(range(law.most_open - 1, -1, -1))
        self._holds: dict[int, Hold] = {}
        self._fraction = 0  # of a token, in units of 1 / _NANOSECONDS
        self.now_ns = to_ns(now_seconds)
        self.earned_tokens = self.lost_tokens = 0

    @property
    def available_tokens(self) -> int:
        """Can be held now."""
        return self._ledger.available_tokens

    @property
    def reserved_tokens(self) -> int:
        """Held and not settled."""
        return self._ledger.reserved_tokens

    @property
    def spent_tokens(self) -> int:
        """Settled, or forfeited at the end of a lease."""
        return self._ledger.spent_tokens

    @property
    def refunded_tokens(self) -> int:
        """Held, and given back unused."""
        return self._ledger.refunded_tokens

    @property
    def wasted_tokens(self) -> int:
        """Forfeited at the end of a lease."""
        return self._ledger.wasted_tokens

    @property
    def holds(self) -> int:
        """Holds that are open."""
        return len(self._holds)

    def advance(self, now_seconds: float) -> None:
        """Let time pass: tokens become available, and leases run out.

        Raises:
            BudgetError: Time runs backwards.
        """
        now_ns = to_ns(now_seconds)
        if now_ns < self.now_ns:
            raise BudgetError("time runs backwards", "online price", str(now_seconds))
        whole = (now_ns - self.now_ns) * self._law.budget_tokens_per_second + self._fraction
        earned, self._fraction = divmod(whole, _NANOSECONDS)
        self.now_ns = now_ns
        self.earned_tokens += earned
        self._ledger.budget_tokens += earned
        self._drop_above_carry_over()
        for hold in [hold for hold in self._holds.values() if hold.expires_seconds <= now_seconds]:
            self._ledger.forfeit(hold.slot, hold.attempt)
            self._release(hold)

    def change(self, law: PriceLaw) -> None:
        """Go on at another rate and bound; what is held stays held."""
        self._law = law
        self._drop_above_carry_over()

    def take(self, tokens: int, *, now_seconds: float) -> Hold | None:
        """Set tokens aside, or return None if less is available or too many holds are open."""
        if tokens < 1 or tokens > self.available_tokens or not self._free_slots:
            return None
        slot = self._free_slots.pop()
        entry = self._ledger.reserve(slot, tokens)
        hold = Hold(self._name, slot, entry.attempt, tokens, now_seconds + self._law.lease_seconds)
        self._holds[slot] = hold
        return hold

    def settle(self, hold: Hold, spent_tokens: int) -> int:
        """Charge what was generated and give the rest back, which is returned; telling it again changes nothing.

        Nor does a hold of another bucket: its tokens went with that one, and its slot may be another's here.

        Raises:
            BudgetError: More was generated than held.
        """
        if hold.bucket != self._name:
            return 0
        if self._ledger.settle(hold.slot, hold.attempt, spent_tokens) is None:
            return 0
        self._release(hold)
        self._drop_above_carry_over()
        return hold.tokens - spent_tokens

    def withdraw(self) -> int:
        """Take out what is available, and return how much that was."""
        tokens = self.available_tokens
        self._ledger.budget_tokens -= tokens
        return tokens

    def deposit(self, tokens: int) -> None:
        """Put tokens in that another bucket has earned; what is above the carry-over is lost."""
        self._ledger.budget_tokens += tokens
        self._drop_above_carry_over()

    def is_open(self, hold: Hold) -> bool:
        """Whether a hold is neither settled nor over."""
        return self._holds.get(hold.slot) == hold

    def _drop_above_carry_over(self) -> None:
        above = max(0, self.available_tokens - self._law.carry_over_tokens)
        self._ledger.budget_tokens -= above
        self.lost_tokens += above
        if self.available_tokens == self._law.carry_over_tokens:
            self._fraction = 0  # C is all that is kept: not C and most of a token

    def _release(self, hold: Hold) -> None:
        del self._holds[hold.slot]
        self._free_slots.append(hold.slot)


def to_ns(seconds: float) -> int:
    """Return whole nanoseconds."""
    return round(seconds * _NANOSECONDS)


def to_seconds(nanoseconds: int) -> float:
    """Return seconds."""
    return nanoseconds / _NANOSECONDS
