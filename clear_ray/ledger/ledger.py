"""The budget's account: a pure state machine.

A query's tokens pass through three states, and only in this direction:

    available --reserve--> reserved --settle--> spent      (what was not used returns to available: the refund)
                                    --forfeit-> spent      (the worker died: charged in full)

Conservation law, checked after every change (docs/method.md, section 4):

    available + reserved + spent = budget,  each of them >= 0,  wasted <= spent

The budget may be tokens, money or GPU time: it is counted in whole parts, `COST_PARTS` of which are one unit. A token of
query i takes `cost_N[i]` units. Where more is paid for than generated tokens (a prompt, an answer that is read again), an
entry says what it takes in all, and the law holds for what is taken. The totals that can be asked for are in whole units,
what is taken rounded up and what is available rounded down: of a budget in tokens, with every cost 1, they are the tokens.

Every query has at most one open reservation. Its attempts are numbered from 1, so a settlement that is told twice, or
that comes after the query was reserved again, is recognised and changes nothing. The ledger keeps a few integers for each
query and does no I/O; `ledger.journal` writes its entries down before they are acted on, and a ledger to which the
same entries are applied in the same order is in the same state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.errors import BudgetError
from clear_ray.ledger.entries import Entry, Operation
from clear_ray.records import COST_PARTS

REFUSED: Final = 0
"""Answer to a reservation that can never fit."""
WAIT: Final = -1
"""Answer to a reservation that may fit once others have settled."""


class Ledger:
    """Account of one budget over N queries.

    Args:
        budget_tokens: What the run may generate in all, in tokens of cost 1.
        queries: Number of queries, N.
        cost_N: What a token of each query takes from the budget, shape (N,), in whole thousandths; 1 if not given.

    Raises:
        BudgetError: The budget is negative, or a cost is not positive.
    """

    def __init__(self, budget_tokens: int, queries: int, *, cost_N: ArrayLike = 1.0) -> None:
        if budget_tokens < 0:
            raise BudgetError("a budget cannot be negative", "ledger", str(budget_tokens))
        self.budget_tokens = int(budget_tokens)
        parts = np.rint(np.asarray(cost_N, np.float64) * COST_PARTS).astype(np.int64)
        self._parts_N = np.broadcast_to(parts, (queries,))
        if (self._parts_N < 1).any():
            raise BudgetError("a cost is a positive number of thousandths", "ledger", str(np.min(cost_N)))
        self._reserved_parts = 0
        self._spent_parts = 0
        self._wasted_parts = 0
        self._refunded_parts = 0
        self._attempt_N = np.zeros(queries, np.int32)
        self._held: dict[int, tuple[int, int]] = {}  # tokens and parts of the open reservations, which are few
        self._spent_N = np.zeros(queries, np.int64)
        self._wasted_N = np.zeros(queries, np.int64)
        self._charged_parts = 0
        # What is spent and wasted of each query in parts, once that is not its tokens at its cost.
        self._closed_parts_2N: NDArray[np.int64] | None = None

    @property
    def running(self) -> int:
        """Queries that hold a reservation."""
        return len(self._held)

    @property
    def reserved_tokens(self) -> int:
        """What is held for queries that are running."""
        return _rounded_up(self._reserved_parts)

    @property
    def spent_tokens(self) -> int:
        """What was charged, wasted tokens included."""
        return _rounded_up(self._spent_parts)

    @property
    def wasted_tokens(self) -> int:
        """What was charged for work that was lost."""
        return _rounded_up(self._wasted_parts)

    @property
    def refunded_tokens(self) -> int:
        """What was reserved and came back unused, since the start."""
        return self._refunded_parts // COST_PARTS

    @property
    def available_tokens(self) -> int:
        """What can be reserved now."""
        return self._available_parts // COST_PARTS

    @property
    def _available_parts(self) -> int:
        return self.budget_tokens * COST_PARTS - self._reserved_parts - self._spent_parts

    @property
    def spent_tokens_N(self) -> NDArray[np.int64]:
        """Tokens of each query that were charged, shape (N,), wasted ones included; a copy."""
        return self._spent_N.copy()

    @property
    def wasted_tokens_N(self) -> NDArray[np.int64]:
        """Tokens of each query that were charged for work that was lost, shape (N,); a copy."""
        return self._wasted_N.copy()

    @property
    def spent_parts_N(self) -> NDArray[np.int64]:
        """What was charged for each query, thousandths of the budget's unit, shape (N,), wasted ones included; a copy."""
        spent_parts_N: NDArray[np.int64] = self._parts_2N()[0].copy()
        return spent_parts_N

    def change_budget(self, budget_tokens: int) -> int:
        """Set the budget, no lower than what is spent and reserved; return what it is now."""
        self.budget_tokens = max(int(budget_tokens), _rounded_up(self._reserved_parts + self._spent_parts))
        return self.budget_tokens

    def open_attempt(self, index: int) -> int:
        """Return the number of the query's open reservation, 0 if it has none. Changes nothing."""
        return int(self._attempt_N[index]) if index in self._held else 0

    def open_entries(self) -> list[Entry]:
        """Return a `forfeit` for every open reservation: what a restart has to charge. Changes nothing."""
        return [
            Entry("forfeit", i, int(self._attempt_N[i]), self._held[i][0], self._held_parts(i))
            for i in sorted(self._held)
        ]

    def admit(self, index: int, tokens: int, parts: int | None = None) -> Entry | Literal[0, -1]:
        """Decide on the first in line: set `tokens` aside for its query, if they fit.

        Args:
            index: The query.
            tokens: What it may generate.
            parts: What that may take from the budget in all; if not given, the tokens at the query's cost.

        Returns:
            The entry of the reservation; `WAIT` if the tokens would fit once enough of what is reserved has come back;
            `REFUSED` if they would not even if all of it came back unused. Only an entry has changed something.

        Raises:
            BudgetError: The query already holds a reservation, or `tokens` is not positive.
        """
        wanted = tokens * int(self._parts_N[index]) if parts is None else parts
        if wanted > self._available_parts + self._reserved_parts:
            return REFUSED
        return self.reserve(index, tokens, parts) if wanted <= self._available_parts else WAIT

    def reserve(self, index: int, tokens: int, parts: int | None = None) -> Entry:
        """Set `tokens` aside for a query, and what else of the budget they may take; see `admit`.

        Raises:
            BudgetError: Not that much is available, the query already holds a reservation, or `tokens` is not positive.
        """
        entry = Entry("reserve", index, int(self._attempt_N[index]) + 1, int(tokens), parts)
        self.apply(entry)
        return entry

    def settle(self, index: int, attempt: int, spent_tokens: int, spent_parts: int | None = None) -> Entry | None:
        """Charge what a query really generated and return the rest to the budget.

        Args:
            index: The query.
            attempt: Its reservation.
            spent_tokens: Tokens generated.
            spent_parts: See `Settlement`.

        Returns:
            The entry, or None if this attempt was closed before: telling it again changes nothing.

        Raises:
            BudgetError: More was spent than reserved, or the attempt was never reserved.
        """
        return self._close("settle", index, attempt, spent_tokens, spent_parts)

    def forfeit(self, index: int, attempt: int) -> Entry | None:
        """Charge a reservation in full because it is not known what its worker generated.

        Returns:
            The entry, or None if this attempt was closed before.
        """
        return self._close("forfeit", index, attempt, self._held.get(index, (0, 0))[0])

    def waste(self, index: int, tokens: int) -> Entry:
        """Mark `tokens` of a query's spending as wasted: it was settled, but its answer was lost before it was written.

        Raises:
            BudgetError: More is wasted than was spent.
        """
        entry = Entry("waste", index, int(self._attempt_N[index]), int(tokens))
        if self._closed_parts_2N is not None:
            entry = replace(entry, parts=self._parts_of(entry))
        self.apply(entry)
        return entry

    def charge(self, parts: int) -> Entry:
        """Charge what is of no query, such as a probe of the whole batch, thousandths of the budget's unit.

        Raises:
            BudgetError: Not that much is available.
        """
        entry = Entry("charge", -1, 0, 0, int(parts))
        self.apply(entry)
        return entry

    def _close(
        self, operation: Operation, index: int, attempt: int, spent_tokens: int, spent_parts: int | None = None
    ) -> Entry | None:
        if not 1 <= attempt <= self._attempt_N[index]:
            raise BudgetError("no such reservation", f"query {index} attempt {attempt}")
        if attempt < self._attempt_N[index] or index not in self._held:
            return None
        held, parts = self._held_parts(index), spent_parts
        if parts is None and held is not None:  # all that was reserved beside tokens, and the tokens that were used
            parts = held - (self._held[index][0] - int(spent_tokens)) * int(self._parts_N[index])
        entry = Entry(operation, index, attempt, int(spent_tokens), parts)
        self.apply(entry)
        return entry

    def apply(self, entry: Entry) -> None:
        """Make the change that `entry` records; the only place where balances move.

        Raises:
            BudgetError: The change would break an invariant; nothing has moved then.
        """
        if entry.operation == "charge":
            self._apply_charge(entry)
            return
        i, tokens = entry.index, entry.tokens
        (held, held_parts), parts = self._held.get(i, (0, 0)), self._parts_of(entry)
        if entry.operation == "reserve":
            if entry.attempt != self._attempt_N[i] + 1 or held:
                raise _refused(entry, "the query already holds tokens")
            if tokens <= 0 or not 0 < parts <= self._available_parts:
                raise _refused(entry, f"{self.available_tokens} tokens are available")
            self._count_parts(entry)
            self._attempt_N[i] = entry.attempt
            self._held[i] = tokens, parts
            self._reserved_parts += parts
            return
        if entry.attempt != self._attempt_N[i]:
            raise _refused(entry, "it names another attempt")
        if entry.operation == "waste":
            if not 0 <= tokens <= self._spent_N[i] - self._wasted_N[i]:
                raise _refused(entry, "more is wasted than was spent")
        else:
            if not held or not 0 <= tokens <= held:
                raise _refused(entry, f"{held} tokens are reserved")
            if not 0 <= parts <= held_parts:
                raise _refused(entry, f"{held_parts} parts are reserved, and they take {parts}")
            self._count_parts(entry)
            del self._held[i]
            self._spent_N[i] += tokens
            self._reserved_parts -= held_parts
            self._spent_parts += parts
            self._refunded_parts += held_parts - parts
            if self._closed_parts_2N is not None:
                self._closed_parts_2N[0, i] += parts
        if entry.operation != "settle":
            self._count_parts(entry)
            self._wasted_N[i] += tokens
            self._wasted_parts += parts
            if self._closed_parts_2N is not None:
                self._closed_parts_2N[1, i] += parts

    def _count_parts(self, entry: Entry) -> None:
        """Count what is taken of each query by itself from the first entry on that says it."""
        if entry.parts is not None and self._closed_parts_2N is None:
            self._closed_parts_2N = self._parts_2N()

    def _parts_2N(self) -> NDArray[np.int64]:
        """Return what is spent and wasted of each query, in parts."""
        if self._closed_parts_2N is not None:
            return self._closed_parts_2N
        return np.stack([self._spent_N, self._wasted_N]) * self._parts_N

    def _apply_charge(self, entry: Entry) -> None:
        parts = entry.parts or 0
        if not 0 <= parts <= self._available_parts:
            needed = f"{_rounded_up(parts):,} are needed and {self.available_tokens:,} available"
            raise BudgetError("the budget does not pay for the probe", "ledger", needed, "Raise the budget.")
        self._charged_parts += parts
        self._spent_parts += parts

    def _parts_of(self, entry: Entry) -> int:
        if entry.parts is not None:
            return entry.parts
        parts = entry.tokens * int(self._parts_N[entry.index])
        if entry.operation == "waste" and self._closed_parts_2N is not None:
            spent, wasted = self._closed_parts_2N[:, entry.index]
            return min(parts, int(spent - wasted))  # a token may have been charged less than it can cost
        return parts

    def _held_parts(self, index: int) -> int | None:
        """Return what a query's open reservation holds, None where that is its tokens at the query's cost."""
        tokens, parts = self._held.get(index, (0, 0))
        return None if parts == tokens * int(self._parts_N[index]) else parts

    def check(self) -> None:
        """Compare the totals with the sums over all queries, and check the conservation law.

        Raises:
            BudgetError: They differ; a defect of clear_ray.
        """
        totals = (self._reserved_parts, self._spent_parts, self._wasted_parts)
        spent_N, wasted_N = self._parts_2N()
        reserved = sum(parts for _, parts in self._held.values())
        sums = (reserved, int(spent_N.sum()) + self._charged_parts, int(wasted_N.sum()))
        if totals != sums or min(self._available_parts, *totals) < 0 or self._wasted_parts > self._spent_parts:
            raise BudgetError(
                "the conservation law is broken",
                "ledger",
                f"budget {self.budget_tokens}; reserved, spent, wasted {totals} against {sums} thousandths",
                "This is a defect of clear_ray: keep the run folder and report it.",
            )


def _refused(entry: Entry, because: str) -> BudgetError:
    what = f"cannot {entry.operation} {entry.tokens} tokens: {because}"
    return BudgetError(what, f"query {entry.index} attempt {entry.attempt}")


def _rounded_up(parts: int) -> int:
    return -(-parts // COST_PARTS)
