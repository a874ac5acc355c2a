"""What the market is asked, what it writes down and what it answers; the account itself is `ledger.ledger`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Operation = Literal["reserve", "settle", "forfeit", "waste", "charge"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of the ledger.

    Attributes:
        operation: What happened.
        index: The query's number; -1 for a `charge`, which is of no query.
        attempt: Which of the query's reservations, from 1.
        tokens: Tokens of the query reserved; spent, for `settle` and `forfeit`; already spent but lost, for `waste`.
        parts: What is taken from the budget in all; if not given, the tokens at the query's cost.
    """

    operation: Operation
    index: int
    attempt: int
    tokens: int
    parts: int | None = None


def entry_of(record: Mapping[str, Any]) -> Entry:
    """Return the entry that a record of the journal holds."""
    return Entry(record["op"], record["i"], record["a"], record["t"], record.get("p"))


@dataclass(frozen=True, slots=True)
class Call:
    """A call that asks the market for tokens.

    Attributes:
        caller: The caller, whichever process it is in; empty if it need not be known.
        life: One start of it. What a life had reserved is charged when the next one first asks.
        number: Which of the requests of this life. One that is told twice gets the same answer.
    """

    caller: str = ""
    life: str = ""
    number: int = 0

    @property
    def name(self) -> str:
        """Name of the request, as the journal has it; empty if the caller is."""
        return f"{self.life}.{self.number}" if self.caller else ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one grant came to.

    Attributes:
        index: The query.
        attempt: Its reservation.
        spent_tokens: Tokens generated.
        has_ended: Whether the answer ended by itself or failed, so that nothing more can be bought for it.
        correct: Score of the answer, None if there is nothing to compare with.
        label: One short line for the live display, without prompt or answer.
        spent_parts: What the call took from the budget in all, where its usage says so; if not given, all that was reserved
            beside tokens, and the tokens at the query's cost.
    """

    index: int
    attempt: int
    spent_tokens: int
    has_ended: bool
    correct: float | None
    label: str
    spent_parts: int | None = None

    def __reduce__(self) -> tuple[type[Settlement], tuple[Any, ...]]:
        """Return what makes it again: a dataclass pickles in Python."""
        first = self.index, self.attempt, self.spent_tokens, self.has_ended, self.correct
        return Settlement, (*first, self.label, self.spent_parts)


@dataclass(frozen=True, slots=True)
class Balance:
    """The account at one moment, in tokens of cost 1, or in the unit of the budget."""

    budget_tokens: int
    spent_tokens: int
    reserved_tokens: int
    wasted_tokens: int
    refunded_tokens: int
    running: int
    ended: int
    scored: int
    correct: float
    recent: tuple[str, ...]
    seconds: float

    @property
    def available_tokens(self) -> int:
        """Tokens that can be reserved."""
        return self.budget_tokens - self.spent_tokens - self.reserved_tokens
