"""The law of a run: when it clears, what it may grant, what it owes, and when it is over."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.config.allocation import MOST_ROUNDS, AllocationConfig
from clear_ray.errors import BudgetError
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.beside import RunningGrants
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.running import Round
from clear_ray.rounds.states import QueryStates
from clear_ray.sweep.replayed import Answers
from tests.unit.rounds.test_clearing import batch_of

PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)


def grants(tokens_of: dict[int, int], queries: int, *, price: float = 0.01, is_service: bool = False) -> Clearing:
    index, tokens = (np.array(list(column), np.int64) for column in (tokens_of.keys(), tokens_of.values()))
    utility = np.full(len(index), 0.5)
    bound = float(utility.sum())
    return Clearing(index, tokens, tokens / 2, utility, np.zeros(queries), price, bound, 0.0, is_service=is_service)


@dataclass(eq=False)
class Listed:
    """Offers that grant what a list says, clearing by clearing, then nothing; the service is granted as it is owed."""

    list_of: Sequence[dict[int, int]]
    cost_N: np.ndarray = field(default_factory=lambda: np.ones(4))
    asked: list[tuple[int, list[bool], list[int]]] = field(default_factory=list)
    served: list[tuple[int, float]] = field(default_factory=list)
    beside: list[dict[int, int]] = field(default_factory=list)

    @property
    def max_tokens_N(self) -> np.ndarray:
        return np.array([100, 100, 100, 3])

    def clear(
        self, states: QueryStates, *, is_free_N: np.ndarray, available_tokens: int, owed_tokens_N: np.ndarray
    ) -> Clearing:
        self.asked.append((available_tokens, is_free_N.tolist(), owed_tokens_N.tolist()))
        number = len(self.asked)
        return grants(self.list_of[number - 1], 4) if number <= len(self.list_of) else nothing_to_grant(4)

    def clear_beside(
        self, states: QueryStates, *, is_free_N: np.ndarray, running: RunningGrants, available_tokens: int
    ) -> Clearing:
        assert not is_free_N[running.index_M].any()
        self.beside.append(dict(zip(running.index_M.tolist(), running.progress_M.tolist(), strict=True)))
        owed = np.zeros(4, np.int64)
        return self.clear(states, is_free_N=is_free_N, available_tokens=available_tokens, owed_tokens_N=owed)

    def serve(self, owed_tokens_N: np.ndarray, *, available_tokens: int, shadow_price: float) -> Clearing:
        self.served.append((available_tokens, shadow_price))
        return grants({int(i): int(owed_tokens_N[i]) for i in np.flatnonzero(owed_tokens_N)}, 4, is_service=True)


def outcome(tokens_of: dict[int, int], *, spent: int | None = None, end: str = "length", answer: int = 0) -> Attempts:
    """Return attempts that each spend so much, all of their grant if not given."""
    index, tokens = (np.array(list(column), np.int64) for column in (tokens_of.keys(), tokens_of.values()))
    spent_M = tokens if spent is None else np.full_like(tokens, spent)
    yes, no = np.ones(len(index), bool), np.zeros(len(index), bool)
    flags = [yes if end == name else no for name in ("stop", "error")]
    at_end_M = yes & (end == "length") & (spent_M < tokens)
    return Attempts(index, tokens, spent_M, answer + spent_M, *flags, at_end_M, np.full(len(index), np.nan))


def law(offers: Listed, **how: int) -> Rounds:
    return Rounds(offers, AllocationConfig(**how))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_the_first_clearing_needs_one_token_whatever_the_smallest_grant(tokens: int) -> None:
    offers = Listed([{0: 1}])
    assert law(offers).next(0) is None
    assert not offers.asked
    rounds = law(offers, smallest_grant_tokens=4)
    assert rounds.may_clear(tokens)
    granted = rounds.next(tokens)
    assert granted is not None
    assert (granted.number, granted.available_tokens) == (1, tokens)
    assert offers.asked == [(tokens, [True] * 4, [0] * 4)]


def test_a_further_clearing_needs_the_smallest_grant_beside_what_is_owed() -> None:
    costs = np.array([1.0, 0.5, 1.0, 1.5])
    # Query 0 was run; 1, 2 and 3 are owed 5, 5 and 3 tokens: 2.5 + 5 + 4.5 of the budget.
    for unspent, is_cleared in ((14, False), (15, False), (16, True)):
        offers = Listed([{0: 10}, {0: 2}], costs)
        rounds = law(offers, minimum_service_tokens=5, smallest_grant_tokens=4)
        assert rounds.next(100) is not None
        assert offers.asked[0][2] == [5, 5, 5, 3], "no more than its ceiling is owed to a query"
        rounds.take(1, [outcome({0: 10})])
        assert rounds.may_clear(unspent) == is_cleared
        granted = rounds.next(unspent)
        assert granted is not None
        assert granted.clearing.is_service != is_cleared
        assert offers.asked[1:] == ([(unspent, [True] * 4, [0, 5, 5, 3])] if is_cleared else [])


def test_there_are_as_many_clearings_as_are_allowed_and_the_service_is_none_of_them() -> None:
    offers = Listed([{0: 5}] * 9)
    rounds = law(offers, max_rounds=3, minimum_service_tokens=2)
    numbers = []
    while (granted := rounds.next(1_000)) is not None:
        numbers.append((granted.number, granted.clearing.is_service, sorted(granted.clearing.index_M.tolist())))
        rounds.take(granted.number, [outcome(tokens_of(granted), answer=int(rounds.states.answer_tokens_N[0]))])
    assert numbers == [(1, False, [0]), (2, False, [0]), (3, False, [0]), (4, True, [1, 2, 3])]
    assert offers.served == [(1_000, 0.01)], "at the price that they were not worth"
    assert rounds.next(1_000) is None
    assert rounds.states.is_served_N.tolist() == [False, True, True, True]


def tokens_of(granted: Round) -> dict[int, int]:
    clearing = granted.clearing
    return dict(zip(clearing.index_M.tolist(), clearing.tokens_M.tolist(), strict=True))


@pytest.mark.parametrize("service", [None, 2])
def test_after_a_round_that_came_to_nothing_nothing_is_priced(service: int | None) -> None:
    offers = Listed([{0: 5}, {1: 5}])
    rounds = Rounds(offers, AllocationConfig(minimum_service_tokens=service))
    assert rounds.next(100) is not None
    report = rounds.take(1)
    assert (report.fresh, report.continued, report.spent_tokens, report.expected_utility) == (0, 0, 0, 0.0)
    last = rounds.next(100)
    assert len(offers.asked) == 1
    if service is None:
        assert last is None
    else:
        assert last is not None
        assert tokens_of(last) == {0: 2, 1: 2, 2: 2, 3: 2}, "what was refused is owed as before"


def test_without_a_service_the_end_comes_when_nothing_is_granted() -> None:
    offers = Listed([{0: 5}])
    rounds = law(offers)
    assert rounds.next(100) is not None
    rounds.take(1, [outcome({0: 5})])
    assert rounds.next(95) is None
    assert not offers.served
    assert rounds.running == ()


@pytest.mark.parametrize(
    ("attempt", "is_open"),
    [
        (outcome({0: 5}), True),
        (outcome({0: 5}, end="stop"), False),
        (outcome({0: 5}, spent=2, end="stop"), False),
        (outcome({0: 5}, spent=0, end="error"), False),
        (outcome({0: 5}, spent=2), False),  # cut off short of its grant: there is nothing to go on with
        (outcome({0: 5}, spent=2, end="cancelled"), True),
    ],
)
def test_what_closes_a_query(attempt: Attempts, is_open: bool) -> None:
    rounds = law(Listed([{0: 5}]))
    rounds.next(100)
    rounds.take(1, [attempt])
    assert bool(rounds.states.is_open_N[0]) == is_open
    assert rounds.states.is_open_N[1:].all()


def test_queries_that_failed_before_the_first_round_are_neither_offered_nor_owed_anything() -> None:
    offers = Listed([{0: 5}])
    rounds = Rounds(offers, AllocationConfig(minimum_service_tokens=2), failed=[1, 3])
    rounds.next(100)
    assert offers.asked == [(100, [True, False, True, False], [2, 0, 2, 0])]


def test_while_grants_run_the_rest_can_be_granted_and_the_service_waits() -> None:
    offers = Listed([{0: 30, 1: 10}, {2: 20}, {1: 5}], np.array([1.0, 2.0, 1.0, 1.0]))
    rounds = law(offers, minimum_service_tokens=3)
    first, second = rounds.next(100), rounds.next(100, np.array([7, 11, 5, 5]))
    assert first is not None
    assert second is not None
    assert offers.asked[1] == (44, [False, False, True, True], [0] * 4), "what is promised or owed is not for sale"
    assert offers.beside == [{0: 7, 1: 10}], "what runs has generated no more than it was granted"
    assert (first.is_beside, second.is_beside) == (False, True)
    assert (rounds.running, rounds.promised_tokens) == ((1, 2), 70)
    rounds.note(1, outcome({1: 10}))
    assert rounds.promised_tokens == 50
    third = rounds.next(80)  # 20 of the budget were spent
    assert third is not None
    assert offers.asked[2] == (27, [False, True, False, True], [0] * 4)
    assert rounds.next(80) is None, "the service waits until nothing runs"
    assert not offers.served
    assert rounds.take(2, [outcome({2: 20}, end="stop")]).finished == 1
    assert rounds.take(1, [outcome({0: 30})]).continued == 0
    assert rounds.take(3, [outcome({1: 5}, answer=10)]).continued == 1
    last = rounds.next(20)
    assert last is not None
    assert tokens_of(last) == {3: 3}
    assert rounds.next(20) is None
    assert rounds.states.answer_tokens_N.tolist() == [30, 15, 20, 0]
    assert rounds.states.rounds_N.tolist() == [1, 2, 1, 0]


def test_defects_are_told() -> None:
    for wrong in ({0: 0}, {0: -1}):
        with pytest.raises(BudgetError, match="round 1: a query is granted twice, or is not free"):
            law(Listed([wrong])).next(100)
    rounds = law(Listed([{0: 5}, {0: 5}]))
    rounds.next(100)
    with pytest.raises(BudgetError, match="round 2: a query is granted twice, or is not free"):
        rounds.next(100)
    for attempts in (outcome({1: 5}), outcome({0: 6})):
        with pytest.raises(BudgetError, match="round 1: an attempt of no running grant"):
            rounds.note(1, attempts)
    rounds.note(1, outcome({0: 5}))
    with pytest.raises(BudgetError, match="round 1: an attempt of no running grant"):
        rounds.note(1, outcome({0: 5}))
    with pytest.raises(BudgetError, match=r"no such round is running \(got 7\)"):
        rounds.take(7)
    with pytest.raises(BudgetError, match=r"round 2 is the next one \(got 4\)"):
        rounds.replay(Round(4, 10, grants({1: 5}, 4)))


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 8),
    budget=st.integers(1, 400),
    service=st.none() | st.integers(1, 6),
    schedule=st.integers(0, 10_000),
    drops=st.booleans(),
)
def test_whatever_the_order_of_asking_and_taking_no_query_runs_twice_and_the_budget_holds(
    seed: int, queries: int, budget: int, service: int | None, schedule: int, drops: bool
) -> None:
    batch, rng = batch_of(seed, queries), np.random.default_rng([seed, 1])
    answers = drawn_answers(rng, queries)
    rounds = Rounds(BatchOffers(batch), AllocationConfig(max_rounds=100, minimum_service_tokens=service))
    running: dict[int, dict[int, int]] = {}
    parts_N, spent_parts, has_dropped = np.rint(1_000 * batch.cost_N).astype(int), 0, False
    choose = random.Random(schedule).choice
    while True:
        unspent = budget - -(-spent_parts // 1_000)
        if choose(("next", "note", "take")) == "next" or not running:
            granted = rounds.next(unspent)
            if granted is None:
                if running:
                    continue
                break
            new = tokens_of(granted)
            assert not {index for round_ in running.values() for index in round_} & new.keys()
            running[granted.number] = new
            promised = sum(parts_N[i] * t for round_ in running.values() for i, t in round_.items())
            assert spent_parts + promised <= 1_000 * budget
            assert rounds.promised_tokens == -(-promised // 1_000)
            continue
        number = choose(sorted(running))
        left = running[number]
        ended = {index: left.pop(index) for index in list(left) if choose((True, False))}
        attempts = attempts_of(answers, ended, rounds.states)
        spent_parts += int(attempts.attempt_tokens_M @ parts_N[attempts.index_M])
        if choose((True, False)):
            rounds.note(number, attempts)
            continue
        rest = {} if drops and choose((True, False)) else left
        has_dropped |= rest is not left and bool(left)
        later = attempts_of(answers, rest, rounds.states)
        spent_parts += int(later.attempt_tokens_M @ parts_N[later.index_M])
        rounds.take(number, [attempts, later])
        del running[number]
    assert rounds.running == ()
    assert rounds.promised_tokens == 0
    assert rounds.next(budget - -(-spent_parts // 1_000)) is None, "what is over stays over"
    states = rounds.states
    assert int(states.written_tokens_N @ parts_N) == spent_parts <= 1_000 * budget
    np.testing.assert_array_equal(states.answer_tokens_N, states.written_tokens_N)
    if not has_dropped:
        check_nothing_could_be_bought(batch, states, budget - -(-spent_parts // 1_000), has_served=service is not None)


def check_nothing_could_be_bought(batch: Batch, states: QueryStates, unspent: int, *, has_served: bool) -> None:
    has_room_N = states.is_open_N & (states.answer_tokens_N < batch.max_tokens_N)
    dearest = float(batch.cost_N[has_room_N].max(initial=0.0))
    is_spent = unspent < max(4.0, dearest)  # a token of cost 7 is not bought with 5
    assert not has_room_N.any() or is_spent or (has_served and states.is_served_N.any())


def drawn_answers(rng: np.random.Generator, queries: int) -> Answers:
    length_N = rng.integers(1, 40, queries)
    return Answers(length_N, rng.random(queries) < 0.8, rng.random(queries) < 0.5)


def attempts_of(answers: Answers, granted: dict[int, int], states: QueryStates) -> Attempts:
    index, tokens = (np.array(list(column), np.int64) for column in (granted.keys(), granted.values()))
    return answers.attempts(index, tokens, states.answer_tokens_N[index])


@PROPERTY
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 8),
    budget=st.integers(1, 400),
    service=st.none() | st.integers(1, 6),
)
def test_a_run_that_is_replayed_is_where_it_was_after_every_round(
    seed: int, queries: int, budget: int, service: int | None
) -> None:
    batch, answers = batch_of(seed, queries), drawn_answers(np.random.default_rng([seed, 2]), queries)
    allocation = AllocationConfig(minimum_service_tokens=service)

    def fresh() -> Rounds:
        return Rounds(BatchOffers(batch), allocation, failed=[0] if seed % 3 == 0 else [])

    rounds, kept, unspent = fresh(), [], budget
    while True:
        again = fresh()
        for granted, attempts, report in kept:
            again.replay(granted)
            tables = [attempts_at(attempts, places) for places in np.array_split(np.arange(len(attempts)), 2)]
            assert again.take(granted.number, tables) == report
        assert state_of(again) == state_of(rounds)
        new, other = rounds.next(unspent), again.next(unspent)
        assert (new is None) == (other is None)
        if new is None or other is None:
            break
        assert list(tokens_of(new).items()) == list(tokens_of(other).items())
        assert (new.number, new.clearing.shadow_price) == (other.number, other.clearing.shadow_price)
        attempts = attempts_of(answers, tokens_of(new), rounds.states)
        kept.append((new, attempts, rounds.take(new.number, [attempts])))
        unspent = budget - -(-int(rounds.states.written_tokens_N @ np.rint(1_000 * batch.cost_N).astype(int)) // 1_000)


def attempts_at(attempts: Attempts, places: np.ndarray) -> Attempts:
    columns = (getattr(attempts, name) for name in Attempts.__slots__)
    return Attempts(*(None if column is None else column[places] for column in columns))


def state_of(rounds: Rounds) -> dict[str, object]:
    states = {name: value for name, value in vars(rounds.states).items() if isinstance(value, np.ndarray)}
    scores = {"correct_N", "chosen_score_N"}
    columns = {name: value.tolist() for name, value in states.items() if name not in scores}
    correct = [np.nan_to_num(states[name], nan=-1.0).tolist() for name in sorted(scores)]
    return columns | {"correct": correct, "number": rounds.number, "promised": rounds.promised_tokens}


def test_clearings_beside_running_grants_count_only_where_their_number_is_given() -> None:
    def clearings(**how: int) -> int:
        rounds = law(Listed([{0: 5}, *({1: 1}, {2: 1}) * 20]), **how)
        rounds.next(100)
        while (granted := rounds.next(100)) is not None:
            rounds.take(granted.number, [outcome({int(granted.clearing.index_M[0]): 1})])
        return rounds.number

    assert clearings(max_rounds=7) == 7
    assert clearings() == 41 > MOST_ROUNDS


def test_a_resume_replays_clearings_that_overlapped() -> None:
    """The second grant of a query says that its first attempt was taken; if that is gone, it was lost."""
    rounds = law(Listed([]))
    kept = [
        Round(n + 1, 100, grants(tokens, 4), is_beside=n > 0) for n, tokens in enumerate([{0: 5, 1: 5}, {0: 7, 2: 3}])
    ]
    rounds.replay(kept[0])
    rounds.replay(kept[1])
    assert rounds.promised_tokens == 5 + 7 + 3
    report = rounds.take(1, [outcome({1: 5})])
    assert (report.fresh, report.granted_tokens) == (1, 5)
    assert rounds.promised_tokens == 7 + 3, "what is granted anew goes on running"
    assert rounds.take(2, [outcome({0: 7, 2: 3})]).fresh == 2
    assert rounds.promised_tokens == 0
