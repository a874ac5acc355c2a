"""The actor that holds the ledger of a running batch: every token is reserved and settled here.

Callers reserve before they dispatch and settle what was really generated; what comes back is reserved by the next in line.
A reservation is on disk before its caller hears of it (group commit: whatever arrives while one write is under way shares
the next one), so a crash never leaves tokens running that the journal does not know.

The line is first come, first served. A request that cannot fit even if everything running came back unused is refused at
once and priced again in the next round. The one at the head waits for refunds; those that are running never wait for it, so
the line always moves. Callers that die are started again by Ray: when the new life of a caller first asks, what the
old one had reserved is charged in full, since its queries may come again long after others that wait for those tokens; and
the old one gets nothing more, in the line or later, should its process live on where Ray cannot see it. When a query comes
again whose work was settled but whose row was lost, that is marked as wasted. Ray repeats what a dead market had not
answered: a request says which call it is of, so that a reservation which was journalled before the market died is answered
again, not charged.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.ledger.entries import Balance, Call, Entry, Settlement, entry_of
from clear_ray.ledger.identity import check_journal, is_own
from clear_ray.ledger.journal import Journal, Record, read_journal
from clear_ray.ledger.ledger import REFUSED, WAIT, Ledger
from clear_ray.storage import open_folder

_RECENT = 8
_UNNAMED = Call()
_NOT_SETTLED = -1


class MarketActor:
    """Ledger and journal of one run; made a Ray actor by `cluster.market`.

    Args:
        run_dir: The run folder; an existing journal is replayed first.
        budget_tokens: What the run may generate, or spend in the unit of its budget.
        queries: Number of queries, N.
        cost_N: What a token of each query takes from the budget, shape (N,); 1 if not given.
        run_id: Identity of the run, whose journal must be there; empty for one that began before runs had identities.

    Raises:
        ResumeError: The journal is damaged, gone or another run's, or another run is writing it.
        BudgetError: The journal does not fit the budget.
    """

    def __init__(
        self, run_dir: str, budget_tokens: int, queries: int, cost_N: ArrayLike = 1.0, run_id: str = ""
    ) -> None:
        folder = open_folder(run_dir)
        check_journal(folder, run_id)  # first: opening it would make a new one in a folder that was deleted
        self._folder, self._run_id = folder, run_id
        self._ledger = Ledger(budget_tokens, queries, cost_N=cost_N)
        self._round_N = np.zeros(queries, np.int32)
        self._settled_tokens_N = np.full(queries, _NOT_SETTLED, np.int32)
        self._asked_N = np.zeros(queries, np.int32)
        self._round = 0
        self._life_of: dict[str, str] = {}
        self._retired: set[str] = set()
        self._call_of: dict[int, str] = {}  # of the open reservations of named callers
        self._void: set[tuple[int, int]] = set()
        self._charges: dict[str, int] = {}
        self._wanted_tokens = budget_tokens
        self._journal = Journal(folder)  # from here on nothing else writes what is read next
        for record in read_journal(folder):
            self._replay(record)
        self._ledger.check()
        self._line = asyncio.Lock()
        self._refund = asyncio.Event()
        self._unwritten: list[Record] = []
        self._write = asyncio.Lock()
        self._ended_N = np.zeros(queries, bool)
        self._score_N = np.full(queries, np.nan, np.float32)
        self._ended, self._scored, self._correct = 0, 0, 0.0
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._started = time.monotonic()

    async def open_round(self, number: int, facts: dict[str, Any]) -> None:
        """Note that a round begins; `facts` (price, tokens available, grants) go into the journal."""
        self._round = number
        await self._commit({"round": number, **facts})

    async def reserve(
        self,
        round_number: int,
        requests: list[tuple[int, int]],
        call: Call = _UNNAMED,
        parts: list[int] | None = None,
    ) -> list[int]:
        """Set tokens aside for (query index, tokens) in order, as many as fit now.

        Args:
            round_number: Round of the grants.
            requests: What is asked for.
            call: Call that asks.
            parts: What each request may take from the budget in all, see `Ledger.admit`.

        Returns:
            For each request its attempt number, `REFUSED` if it can never fit, or `WAIT` if it has to be asked again.
            At least one of them is decided.
        """
        if not requests:
            return []
        if call.life in self._retired:
            return [REFUSED] * len(requests)
        indices = [index for index, _ in requests]
        self._meet(call)
        self._recover_lost(round_number, indices, call)
        self._asked_N[indices] += 1
        asked = self._asked_N[indices].tolist()
        async with self._line:
            while not (answers := self._reserve_what_fits(round_number, requests, asked, call, parts)):
                self._refund.clear()
                await self._refund.wait()
        await self._commit()
        return answers + [WAIT] * (len(requests) - len(answers))

    async def settle(self, settlements: list[Settlement]) -> None:
        """Charge what was generated and return the rest; telling it twice changes nothing."""
        for s in settlements:
            entry = self._ledger.settle(s.index, s.attempt, s.spent_tokens, s.spent_parts)
            if entry is None:
                continue
            self._note(entry)
            self._settled_tokens_N[s.index] = s.spent_tokens
            self._count(s)
            self._recent.append(s.label)
        self._move_budget()
        self._refund.set()
        await self._commit()  # shares a write with whatever else is settled or reserved meanwhile

    async def change_budget(self, budget_tokens: int) -> None:
        """Have another budget from now on; one below what is spent and reserved as soon as enough of that has come back."""
        self._wanted_tokens = budget_tokens
        self._move_budget()
        self._refund.set()
        await self._commit()

    async def forfeit(self, reservations: list[tuple[int, int]]) -> None:
        """Charge (query index, attempt) in full: its engine died, and what it generated is not known."""
        for index, attempt in reservations:
            entry = self._ledger.forfeit(index, attempt)
            if entry is not None:
                self._note(entry)
        self._refund.set()
        await self._commit()

    async def give_up(self, indices: list[int], life: str) -> None:
        """Charge what a life of a caller has reserved for these queries, and refuse what it asks for them in the line.

        A block of its rows has failed; it may come again, or the run ends.
        """
        self._asked_N[indices] += 1
        for index in indices:
            if self._call_of.get(index, "").partition(".")[0] == life:
                self._charge(index)
        self._refund.set()
        await self._commit()

    async def charge(self, name: str, parts: int) -> None:
        """Charge what is of no query, once: telling it again, or after a restart, changes nothing.

        Raises:
            BudgetError: The budget does not pay for it.
        """
        if name not in self._charges:
            entry = self._ledger.charge(parts)
            self._charges[name] = parts
            record = {"op": entry.operation, "i": entry.index, "a": entry.attempt, "t": entry.tokens, "p": entry.parts}
            self._unwritten.append({**record, "n": name})
        await self._commit()

    async def charged(self, name: str) -> int:
        """Return what was charged under a name, and under those that begin with it and a space, thousandths of the unit."""
        return sum(parts for own, parts in self._charges.items() if own == name or own.startswith(f"{name} "))

    async def close_open_reservations(self) -> int:
        """Charge everything still reserved in full, as a restart of the driver must; return how many tokens that was."""
        before = self._ledger.wasted_tokens
        await self.forfeit([(entry.index, entry.attempt) for entry in self._ledger.open_entries()])
        return self._ledger.wasted_tokens - before

    async def mark_wasted(self, wasted_of_index: dict[int, int]) -> None:
        """Raise what is wasted of queries (index -> tokens in all) whose answers were lost before they were written.

        Totals, not differences: Ray calls again when the market died before it could answer.
        """
        wasted_N = self._ledger.wasted_tokens_N
        for index, tokens in wasted_of_index.items():
            if tokens > wasted_N[index]:
                self._note(self._ledger.waste(index, tokens - int(wasted_N[index])))
            self._settled_tokens_N[index] = _NOT_SETTLED  # its next reservation must not mark the same loss again
        await self._commit()

    async def balance(self) -> Balance:
        """Return the account as it stands."""
        ledger = self._ledger
        return Balance(
            budget_tokens=ledger.budget_tokens,
            spent_tokens=ledger.spent_tokens,
            reserved_tokens=ledger.reserved_tokens,
            wasted_tokens=ledger.wasted_tokens,
            refunded_tokens=ledger.refunded_tokens,
            running=ledger.running,
            ended=self._ended,
            scored=self._scored,
            correct=self._correct,
            recent=tuple(self._recent),
            seconds=time.monotonic() - self._started,
        )

    async def charges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens charged and tokens wasted by query, each int64 of shape (N,), after a full check of the ledger."""
        self._ledger.check()
        return self._ledger.spent_tokens_N, self._ledger.wasted_tokens_N

    async def charged_parts(self) -> np.ndarray:
        """Return what was charged for each query, thousandths of the budget's unit, int64 of shape (N,)."""
        return self._ledger.spent_parts_N

    async def is_in_place(self) -> bool:
        """Return whether the run folder still holds this run: deleted, or begun anew, it is another's."""
        return await asyncio.to_thread(is_own, self._folder, self._run_id)

    async def void_attempts(self) -> list[tuple[int, int]]:
        """Return (query index, attempt) of what was charged and came to nothing; a row of it that turns up is no answer."""
        return sorted(self._void)

    def _reserve_what_fits(
        self,
        round_number: int,
        requests: list[tuple[int, int]],
        asked: list[int],
        call: Call,
        parts: list[int] | None,
    ) -> list[int]:
        answers: list[int] = []
        is_dead = call.life in self._retired
        parts_of: Sequence[int | None] = parts if parts is not None else [None] * len(requests)
        for (index, tokens), times, taken in zip(requests, asked, parts_of, strict=True):
            is_replaced = times < self._asked_N[index]  # its caller died in the line, and another asked for the query
            if is_dead or is_replaced:
                answers.append(REFUSED)
            elif call.name and self._call_of.get(index) == call.name:
                answers.append(self._ledger.open_attempt(index))
            elif (admitted := self._ledger.admit(index, tokens, taken)) == WAIT:
                break
            elif isinstance(admitted, Entry):
                self._round_N[index] = round_number
                self._note(admitted, call.name)
                answers.append(admitted.attempt)
            else:
                answers.append(REFUSED)
        return answers

    def _meet(self, call: Call) -> None:
        """Charge what the life before this one of its caller has left open."""
        if not call.caller or self._life_of.get(call.caller) == call.life:
            return
        before = self._life_of.get(call.caller)
        self._begin_life(call.caller, call.life)
        self._unwritten.append({"caller": call.caller, "life": call.life})
        for index in [i for i, name in self._call_of.items() if name.partition(".")[0] == before]:
            self._charge(index)

    def _begin_life(self, caller: str, life: str) -> None:
        if caller in self._life_of:
            self._retired.add(self._life_of[caller])
        self._life_of[caller] = life

    def _charge(self, index: int) -> None:
        entry = self._ledger.forfeit(index, self._ledger.open_attempt(index))
        if entry is not None:
            self._note(entry)
            self._refund.set()

    def _recover_lost(self, round_number: int, indices: list[int], call: Call) -> None:
        for index in indices:
            if self._ledger.open_attempt(index):
                if call.name and self._call_of.get(index) == call.name:
                    continue  # a market that died before it could answer had reserved this
                self._charge(index)
            elif self._round_N[index] == round_number and self._settled_tokens_N[index] != _NOT_SETTLED:
                self._note(self._ledger.waste(index, int(self._settled_tokens_N[index])))
            self._settled_tokens_N[index] = _NOT_SETTLED

    def _count(self, s: Settlement) -> None:
        """Count an answer that has ended, and its score in place of the one that its query had: the display asks often."""
        self._ended += int(s.has_ended) - int(self._ended_N[s.index])
        self._ended_N[s.index] = s.has_ended
        if s.correct is None:
            return
        before = float(self._score_N[s.index])
        self._score_N[s.index] = s.correct
        self._scored += math.isnan(before)
        self._correct += float(self._score_N[s.index]) - (0.0 if math.isnan(before) else before)

    def _move_budget(self) -> None:
        """Bring the budget as near to what is wanted as what is reserved allows."""
        before = self._ledger.budget_tokens
        if before != self._wanted_tokens and self._ledger.change_budget(self._wanted_tokens) != before:
            self._unwritten.append({"budget": self._ledger.budget_tokens, "wanted": self._wanted_tokens})

    def _note(self, entry: Entry, call_name: str = "") -> None:
        record: Record = {"op": entry.operation, "i": entry.index, "a": entry.attempt, "t": entry.tokens}
        record["r"] = int(self._round_N[entry.index])
        if entry.parts is not None:
            record["p"] = entry.parts
        if call_name:
            record["c"] = call_name
        self._unwritten.append(record)
        self._remember(entry, call_name)

    def _remember(self, entry: Entry, call_name: str) -> None:
        """Keep which call an open reservation is of, and which attempts come to nothing."""
        if entry.operation != "reserve":
            self._call_of.pop(entry.index, None)
        elif call_name:
            self._call_of[entry.index] = call_name
        if entry.operation in ("forfeit", "waste"):
            self._void.add((entry.index, entry.attempt))

    async def _commit(self, *records: Record) -> None:
        """Return once everything noted so far is on disk; a call that comes while a write is under way shares the next."""
        self._unwritten.extend(records)
        async with self._write:
            batch, self._unwritten = self._unwritten, []
            if batch:
                try:
                    await asyncio.to_thread(self._journal.append, batch)
                except Exception:  # a full disk: without these records those that follow would not fit the ledger
                    self._unwritten[:0] = batch
                    raise

    def _replay(self, record: Record) -> None:
        if "life" in record:
            self._begin_life(record["caller"], record["life"])
            return
        if "budget" in record:
            self._ledger.change_budget(record["budget"])
            self._wanted_tokens = record["wanted"]
            return
        if "op" not in record:
            self._round = record.get("round", self._round)
            return
        entry = entry_of(record)
        self._ledger.apply(entry)
        if entry.operation == "charge":
            self._charges[record["n"]] = record["p"]
            return
        self._remember(entry, record.get("c", ""))
        self._round_N[entry.index] = record["r"]
        self._settled_tokens_N[entry.index] = entry.tokens if entry.operation == "settle" else _NOT_SETTLED
