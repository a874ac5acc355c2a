"""A batch that is priced while it is read: parts that grow, their share of the budget, and what clearings then count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.config.allocation import AllocationConfig
from clear_ray.rounds.batch import taken_tokens
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.widening import Widening, is_large
from clear_ray.sweep.replayed import Answers
from tests.unit.rounds.test_beside import random_batch


@given(
    queries=st.integers(1, 3_000_000),
    slots=st.integers(1, 5_000),
    file=st.integers(1, 4_096),
    held=st.none() | st.integers(100_000, 1_000_000),
)
def test_all_is_read_in_a_few_dozen_parts_each_with_its_share(
    queries: int, slots: int, file: int, held: int | None
) -> None:
    widening, clearings, budget = Widening(queries, slots, held), 0, 7 * queries + 3
    before, seen = 0, 0
    while not widening.is_whole:
        assert not widening.is_due
        assert held is None or widening.wanted - widening.known <= 2 / 5 * held
        while widening.known < widening.wanted:
            widening.known = min(widening.known + file, queries)
        assert widening.is_due
        share = widening.share_of(budget)
        assert before < share <= budget * widening.known / queries
        before, clearings, seen = share, clearings + 1, seen + min(widening.known, held or queries)
        widening.note_clearing()
    assert widening.share_of(budget) == budget
    assert clearings <= (70 if held is None else 110)
    if is_large(queries, slots=slots, most_held=held):
        assert seen <= 12 * queries, "what clearings cost together is some times the last one"


def test_only_a_batch_whose_first_part_is_small_is_large() -> None:
    assert [is_large(queries, slots=64) for queries in (8_191, 8_192, 10**6)] == [False, True, True]
    assert [is_large(queries, slots=8_192) for queries in (8_192, 65_535, 65_536)] == [False, False, True]
    assert [is_large(10**6, slots=20_000, most_held=held) for held in (None, 100_000, 99_999)] == [True, True, False]


def test_clearings_of_a_part_are_not_counted_and_do_not_end_the_run() -> None:
    batch, settings = random_batch(2, 40), AllocationConfig(smallest_grant_tokens=2)
    ceilings, rng = batch.max_tokens_N.copy(), np.random.default_rng(0)
    batch.max_tokens_N[:] = 0
    answers = Answers(rng.integers(3, 60, 40), np.ones(40, bool), np.ones(40, bool))
    rounds = Rounds(BatchOffers(batch), settings)
    rounds.widen(0)
    spent, budget, known = 0, 40 * 12, 0
    assert rounds.next(0) is None
    while known < 40:
        known += 2
        batch.max_tokens_N[:known] = ceilings[:known]
        rounds.widen(known if known < 40 else None, failed=[known - 1] if known == 10 else [])
        share = budget * known // 40
        granted = rounds.next(share - spent)
        if granted is None:
            continue
        assert granted.known_queries == (known if known < 40 else None)
        assert granted.clearing.index_M.max() < known
        assert rounds.promised_tokens <= share - spent
        index_M, tokens_M = granted.clearing.index_M, granted.clearing.tokens_M
        report = rounds.take(
            granted.number, [answers.attempts(index_M, tokens_M, rounds.states.answer_tokens_N[index_M])]
        )
        assert report.known_queries == granted.known_queries
        spent = taken_tokens(rounds.states.written_tokens_N, batch.cost_N)
        assert spent <= share
    assert rounds.number > settings.most_rounds, "these would have been all"
    assert rounds.states.has_failed_N.nonzero()[0].tolist() == [9]
    assert rounds.states.rounds_N[9] == 0
    assert rounds.may_clear(budget - spent)


@pytest.mark.parametrize("failed", [[], [3]])
def test_a_query_that_is_not_known_is_offered_nothing(failed: list[int]) -> None:
    batch = random_batch(4, 12)
    ceilings = batch.max_tokens_N.copy()
    batch.max_tokens_N[5:] = 0
    rounds = Rounds(BatchOffers(batch), AllocationConfig())
    rounds.widen(5, failed=failed)
    first = rounds.next(10_000)
    assert first is not None
    assert set(first.clearing.index_M) == set(range(5)) - set(failed)
    batch.max_tokens_N[:] = ceilings
    rounds.widen(None)
    beside = rounds.next(10_000 + rounds.promised_tokens)
    assert beside is not None
    assert beside.is_beside
    assert set(beside.clearing.index_M) == set(range(5, 12))
