"""The budget's account: a pure state machine.

A query's tokens pass through three states, and only in this direction:

    available --reserve--> reserved --settle--> spent      (what was not used returns to available: the refund)
                                    --forfeit-> spent      (the worker died: charged in full)

Conservation law, checked after every change (method.md section 4):

    available + reserved + spent = budget,  each of them >= 0,  wasted <= spent

Every query has at most one open reservation. Its attempts are numbered from 1, so a settlement that is told twice, or
that comes after the query was reserved again, is recognised and changes nothing. The ledger keeps a few integers for each
query and does no I/O; `clear_ray.journal` writes its entries down before anyone acts on them, and a ledger to which the
same entries are applied in the same order is in the same state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clear_ray.errors import BudgetError

Operation = Literal["reserve", "settle", "forfeit", "waste"]

REFUSED = 0
"""Answer to a reservation that can never fit."""
WAIT = -1
"""Answer to a reservation that may fit once others have settled."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of the ledger.

    Attributes:
        operation: What happened.
        index: The query's number.
        attempt: Which of the query's reservations, from 1.
        tokens: Tokens reserved; spent, for `settle` and `forfeit`; already spent but lost, for `waste`.
    """

    operation: Operation
    index: int
    attempt: int
    tokens: int


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
    """

    index: int
    attempt: int
    spent_tokens: int
    has_ended: bool
    correct: float | None
    label: str


@dataclass(frozen=True, slots=True)
class Balance:
    """The account at one moment, in tokens."""

    budget_tokens: int
    spent_tokens: int
    reserved_tokens: int
    wasted_tokens: int
    ended: int
    scored: int
    correct: float
    recent: tuple[str, ...]
    seconds: float

    @property
    def available_tokens(self) -> int:
        """Tokens that can be reserved."""
        return self.budget_tokens - self.spent_tokens - self.reserved_tokens


class Ledger:
    """Account of one budget over N queries.

    Args:
        budget_tokens: What the run may generate in all.
        queries: N.

    Raises:
        BudgetError: The budget is negative.
    """

    def __init__(self, budget_tokens: int, queries: int) -> None:
        if budget_tokens < 0:
            raise BudgetError("a budget cannot be negative", "ledger", str(budget_tokens))
        self.budget_tokens = int(budget_tokens)
        self.reserved_tokens = 0
        self.spent_tokens = 0
        self.wasted_tokens = 0
        self._attempt_N = np.zeros(queries, np.int32)
        self._reserved_N = np.zeros(queries, np.int64)
        self._spent_N = np.zeros(queries, np.int64)
        self._wasted_N = np.zeros(queries, np.int64)

    @property
    def available_tokens(self) -> int:
        """Tokens that can be reserved now."""
        return self.budget_tokens - self.reserved_tokens - self.spent_tokens

    @property
    def spent_tokens_N(self) -> NDArray[np.int64]:
        """Tokens charged to each query, shape (N,), wasted ones included; a copy."""
        return self._spent_N.copy()

    @property
    def wasted_tokens_N(self) -> NDArray[np.int64]:
        """Tokens charged to each query for work that was lost, shape (N,); a copy."""
        return self._wasted_N.copy()

    def open_attempt(self, index: int) -> int:
        """Return the number of the query's open reservation, 0 if it has none. Changes nothing."""
        return int(self._attempt_N[index]) if self._reserved_N[index] else 0

    def open_entries(self) -> list[Entry]:
        """Return a `forfeit` for every open reservation: what a restart has to charge. Changes nothing."""
        open_indices = np.flatnonzero(self._reserved_N)
        return [Entry("forfeit", int(i), int(self._attempt_N[i]), int(self._reserved_N[i])) for i in open_indices]

    def reserve(self, index: int, tokens: int) -> Entry:
        """Set `tokens` aside for a query.

        Raises:
            BudgetError: Not that much is available, the query already holds a reservation, or `tokens` is not positive.
        """
        entry = Entry("reserve", index, int(self._attempt_N[index]) + 1, int(tokens))
        self.apply(entry)
        return entry

    def settle(self, index: int, attempt: int, spent_tokens: int) -> Entry | None:
        """Charge what a query really generated and return the rest to the budget.

        Returns:
            The entry, or None if this attempt was closed before: telling it again changes nothing.

        Raises:
            BudgetError: More was spent than reserved, or the attempt was never reserved.
        """
        return self._close("settle", index, attempt, spent_tokens)

    def forfeit(self, index: int, attempt: int) -> Entry | None:
        """Charge a reservation in full because nobody can say what its worker generated.

        Returns:
            The entry, or None if this attempt was closed before.
        """
        return self._close("forfeit", index, attempt, int(self._reserved_N[index]))

    def waste(self, index: int, tokens: int) -> Entry:
        """Mark `tokens` of a query's spending as wasted: it was settled, but its answer was lost before it was written.

        Raises:
            BudgetError: More is wasted than was spent.
        """
        entry = Entry("waste", index, int(self._attempt_N[index]), int(tokens))
        self.apply(entry)
        return entry

    def _close(self, operation: Operation, index: int, attempt: int, spent_tokens: int) -> Entry | None:
        if not 1 <= attempt <= self._attempt_N[index]:
            raise BudgetError("no such reservation", f"query {index} attempt {attempt}")
        if attempt < self._attempt_N[index] or not self._reserved_N[index]:
            return None
        entry = Entry(operation, index, attempt, int(spent_tokens))
        self.apply(entry)
        return entry

    def apply(self, entry: Entry) -> None:
        """Make the change that `entry` records; the only place where balances move.

        Raises:
            BudgetError: The change would break an invariant; nothing has moved then.
        """
        i, tokens = entry.index, entry.tokens
        held = int(self._reserved_N[i])
        if entry.operation == "reserve":
            self._require(entry, entry.attempt == self._attempt_N[i] + 1 and not held, "the query already holds tokens")
            self._require(entry, 0 < tokens <= self.available_tokens, f"{self.available_tokens} tokens are available")
            self._attempt_N[i] = entry.attempt
            self._reserved_N[i] = tokens
            self.reserved_tokens += tokens
            return
        self._require(entry, entry.attempt == self._attempt_N[i], "it names another attempt")
        if entry.operation == "waste":
            self._require(entry, 0 <= tokens <= self._spent_N[i] - self._wasted_N[i], "more is wasted than was spent")
        else:
            self._require(entry, bool(held) and 0 <= tokens <= held, f"{held} tokens are reserved")
            self._reserved_N[i] = 0
            self._spent_N[i] += tokens
            self.reserved_tokens -= held
            self.spent_tokens += tokens
        if entry.operation != "settle":
            self._wasted_N[i] += tokens
            self.wasted_tokens += tokens

    @staticmethod
    def _require(entry: Entry, holds: bool, because: str) -> None:
        if not holds:
            raise BudgetError(
                f"cannot {entry.operation} {entry.tokens} tokens: {because}",
                f"query {entry.index} attempt {entry.attempt}",
            )

    def check(self) -> None:
        """Compare the totals with the sums over all queries, and check the conservation law.

        Raises:
            BudgetError: They differ; a defect of clear_ray.
        """
        totals = (self.reserved_tokens, self.spent_tokens, self.wasted_tokens)
        sums = (int(self._reserved_N.sum()), int(self._spent_N.sum()), int(self._wasted_N.sum()))
        if totals != sums or min(self.available_tokens, *totals) < 0 or self.wasted_tokens > self.spent_tokens:
            raise BudgetError(
                "the conservation law is broken",
                "ledger",
                f"budget {self.budget_tokens}; reserved, spent, wasted {totals} against {sums}",
                "This is a defect of clear_ray: keep the run folder and report it.",
            )
