"""The ledger against a model of plain Python numbers, through every order of calls that Hypothesis finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from clear_ray.errors import BudgetError
from clear_ray.ledger.entries import Balance, Entry
from clear_ray.ledger.ledger import REFUSED, WAIT, Ledger

QUERIES = 4
COSTS = st.sampled_from([Fraction(1), Fraction(1, 1000), Fraction(3, 8), Fraction(5, 2), Fraction(7_333, 1_000)])
INDICES = st.integers(0, QUERIES - 1)


@dataclass(frozen=True)
class Account:
    """Everything that can be seen of a ledger."""

    available: int
    reserved: int
    spent: int
    wasted: int
    spent_of: tuple[int, ...]
    wasted_of: tuple[int, ...]
    open_attempts: tuple[int, ...]
    open_entries: tuple[Entry, ...]


def account(ledger: Ledger) -> Account:
    return Account(
        available=ledger.available_tokens,
        reserved=ledger.reserved_tokens,
        spent=ledger.spent_tokens,
        wasted=ledger.wasted_tokens,
        spent_of=tuple(ledger.spent_tokens_N.tolist()),
        wasted_of=tuple(ledger.wasted_tokens_N.tolist()),
        open_attempts=tuple(ledger.open_attempt(index) for index in range(QUERIES)),
        open_entries=tuple(ledger.open_entries()),
    )


class LedgerMachine(RuleBasedStateMachine):
    """Callers that reserve, settle, die and lose work; the model keeps one number for each attempt and exact costs."""

    closed: Bundle[tuple[int, int, int]] = Bundle("closed")

    @initialize(budget=st.integers(0, 200), costs=st.just([1] * QUERIES) | st.lists(COSTS, min_size=4, max_size=4))
    def open(self, budget: int, costs: list[Fraction]) -> None:
        self.budget, self.costs = budget, [Fraction(cost) for cost in costs]
        self.began_with, self.entries = budget, list[Entry]()
        self.ledger = self.new_ledger()
        self.budgets: list[tuple[int, int]] = []  # entries before it, budget
        self.held: dict[int, tuple[int, int]] = {}  # query -> attempt, tokens
        self.attempts = [0] * QUERIES
        self.spent = [0] * QUERIES
        self.wasted = [0] * QUERIES

    def new_ledger(self) -> Ledger:
        return Ledger(self.began_with, QUERIES, cost_N=[float(cost) for cost in self.costs])

    def taken(self, tokens_of: list[int]) -> Fraction:
        return sum((cost * tokens for cost, tokens in zip(self.costs, tokens_of, strict=True)), Fraction(0))

    @property
    def reserved(self) -> Fraction:
        return self.taken([self.held[index][1] if index in self.held else 0 for index in range(QUERIES)])

    @property
    def available(self) -> Fraction:
        return self.budget - self.taken(self.spent) - self.reserved

    def refused(self, call: Callable[[], object]) -> None:
        before = account(self.ledger)
        with pytest.raises(BudgetError):
            call()
        assert account(self.ledger) == before

    @rule(index=INDICES, tokens=st.integers(-2, 120))
    def reserve(self, index: int, tokens: int) -> None:
        if index in self.held or tokens < 1 or self.costs[index] * tokens > self.available:
            self.refused(lambda: self.ledger.reserve(index, tokens))
            return
        self.attempts[index] += 1
        entry = self.ledger.reserve(index, tokens)
        assert entry == Entry("reserve", index, self.attempts[index], tokens)
        self.entries.append(entry)
        self.held[index] = self.attempts[index], tokens

    @rule(index=INDICES, tokens=st.integers(-2, 250))
    def admit(self, index: int, tokens: int) -> None:
        wanted, before = self.costs[index] * tokens, account(self.ledger)
        if wanted > self.available:  # nothing moves, whatever the query holds
            admitted = WAIT if wanted <= self.available + self.reserved else REFUSED
            assert self.ledger.admit(index, tokens) == admitted
            assert account(self.ledger) == before
        elif index in self.held or tokens < 1:
            self.refused(lambda: self.ledger.admit(index, tokens))
        else:
            self.attempts[index] += 1
            entry = self.ledger.admit(index, tokens)
            assert entry == Entry("reserve", index, self.attempts[index], tokens)
            self.entries.append(entry)
            self.held[index] = self.attempts[index], tokens

    @rule(target=closed, index=INDICES, share=st.floats(0, 1))
    def settle(self, index: int, share: float) -> object:
        if index not in self.held:
            return multiple()
        attempt, tokens = self.held.pop(index)
        spent = round(share * tokens)
        entry = self.ledger.settle(index, attempt, spent)
        assert entry == Entry("settle", index, attempt, spent)
        self.entries.append(entry)
        self.spent[index] += spent
        return index, attempt, spent

    @rule(target=closed, index=INDICES)
    def forfeit(self, index: int) -> object:
        if index not in self.held:
            return multiple()
        attempt, tokens = self.held.pop(index)
        entry = self.ledger.forfeit(index, attempt)
        assert entry == Entry("forfeit", index, attempt, tokens)
        self.entries.append(entry)
        self.spent[index] += tokens
        self.wasted[index] += tokens
        return index, attempt, tokens

    @rule(told=closed, other=st.integers(0, 300))
    def tell_again(self, told: tuple[int, int, int], other: int) -> None:
        index, attempt, spent = told
        before = account(self.ledger)
        assert self.ledger.settle(index, attempt, spent) is None
        assert self.ledger.settle(index, attempt, other) is None  # whatever it says now
        assert self.ledger.forfeit(index, attempt) is None
        assert account(self.ledger) == before

    @rule(told=consumes(closed), tokens=st.integers(-1, 60))
    def waste(self, told: tuple[int, int, int], tokens: int) -> None:
        index = told[0]
        if not 0 <= tokens <= self.spent[index] - self.wasted[index]:
            self.refused(lambda: self.ledger.waste(index, tokens))
            return
        self.entries.append(self.ledger.waste(index, tokens))
        self.wasted[index] += tokens

    @rule(index=INDICES, over=st.integers(1, 50))
    def overspend(self, index: int, over: int) -> None:
        if index in self.held:
            attempt, tokens = self.held[index]
            self.refused(lambda: self.ledger.settle(index, attempt, tokens + over))
            self.refused(lambda: self.ledger.settle(index, attempt, -over))

    @rule(index=INDICES, ahead=st.integers(1, 3))
    def settle_what_was_never_reserved(self, index: int, ahead: int) -> None:
        self.refused(lambda: self.ledger.settle(index, self.attempts[index] + ahead, 0))
        self.refused(lambda: self.ledger.settle(index, 0, 0))

    @rule()
    def read_the_journal_again(self) -> None:
        replayed = self.new_ledger()
        for number, entry in enumerate([*self.entries, None]):
            for _, budget in (change for change in self.budgets if change[0] == number):
                replayed.change_budget(budget)
            if entry is not None:
                replayed.apply(entry)
        assert account(replayed) == account(self.ledger)
        self.ledger = replayed  # a restart: everything after goes on from the copy

    @rule()
    def restart_of_the_driver(self) -> None:
        for entry in self.ledger.open_entries():
            self.ledger.apply(entry)
            self.entries.append(entry)
            self.spent[entry.index] += entry.tokens
            self.wasted[entry.index] += entry.tokens
        self.held.clear()
        assert self.ledger.open_entries() == []

    @rule(budget=st.integers(-50, 300))
    def change_budget(self, budget: int) -> None:
        self.budget = max(budget, ceil(self.reserved + self.taken(self.spent)))
        assert self.ledger.change_budget(budget) == self.ledger.budget_tokens == self.budget
        self.budgets.append((len(self.entries), self.budget))

    @rule(at=st.integers(0, 10_000))
    def entries_out_of_order_are_refused(self, at: int) -> None:
        if self.entries:  # the same entry a second time never applies, unless it wastes
            entry = self.entries[at % len(self.entries)]
            if entry.operation != "waste":
                self.refused(lambda: self.ledger.apply(entry))

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        seen = account(self.ledger)
        assert (seen.reserved, seen.spent) == (ceil(self.reserved), ceil(self.taken(self.spent)))
        assert seen.wasted == ceil(self.taken(self.wasted))
        assert min(seen.available, seen.reserved, seen.spent, seen.wasted, self.budget - seen.spent) >= 0
        assert seen.wasted <= seen.spent
        assert seen.available == floor(self.available)
        assert self.ledger.running == len(seen.open_entries)
        assert seen.spent_of == tuple(self.spent)
        assert seen.wasted_of == tuple(self.wasted)
        assert {i: a for i, a in enumerate(seen.open_attempts) if a} == {i: a for i, (a, _) in self.held.items()}


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, derandomize=True)


def test_a_settlement_of_an_earlier_attempt_never_closes_a_later_one() -> None:
    ledger = Ledger(100, 1)
    first = ledger.reserve(0, 10)
    ledger.settle(0, first.attempt, 4)
    second = ledger.reserve(0, 20)
    assert ledger.settle(0, first.attempt, 4) is None
    assert ledger.open_attempt(0) == second.attempt == 2
    assert (ledger.spent_tokens, ledger.reserved_tokens) == (4, 20)


def test_a_settlement_of_nothing_closes_its_reservation() -> None:
    ledger = Ledger(10, 1)
    attempt = ledger.reserve(0, 10).attempt
    assert ledger.settle(0, attempt, 0) is not None
    assert ledger.settle(0, attempt, 0) is None
    assert ledger.available_tokens == 10


def test_check_finds_a_total_that_its_queries_do_not_add_up_to() -> None:
    ledger = Ledger(100, 2)
    ledger.reserve(0, 10)
    ledger.check()
    ledger._spent_N[1] += 1
    with pytest.raises(BudgetError, match="conservation law"):
        ledger.check()


def test_a_budget_cannot_be_negative() -> None:
    with pytest.raises(BudgetError, match="negative"):
        Ledger(-1, 3)


@pytest.mark.parametrize("cost", [0.0, -1.0, 0.0001])
def test_a_token_that_costs_nothing_is_refused(cost: float) -> None:
    with pytest.raises(BudgetError, match="positive number of thousandths"):
        Ledger(10, 2, cost_N=[1.0, cost])


def test_copies_handed_out_cannot_change_the_ledger() -> None:
    ledger = Ledger(100, 1)
    ledger.settle(0, ledger.reserve(0, 10).attempt, 7)
    ledger.spent_tokens_N[0] = 99
    ledger.wasted_tokens_N[0] = 99
    ledger.check()
    assert ledger.spent_tokens_N.tolist() == [7]


def test_what_comes_back_unused_is_counted() -> None:
    ledger = Ledger(100, 2)
    ledger.settle(0, ledger.reserve(0, 10).attempt, 7)
    ledger.forfeit(1, ledger.reserve(1, 20).attempt)
    ledger.settle(0, ledger.reserve(0, 5).attempt, 0)
    assert (ledger.refunded_tokens, ledger.wasted_tokens, ledger.running) == (8, 20, 0)


def test_a_balance_adds_up() -> None:
    balance = Balance(100, 30, 20, 5, 0, 2, 1, 1, 1.0, (), 0.0)
    assert balance.available_tokens == 50
