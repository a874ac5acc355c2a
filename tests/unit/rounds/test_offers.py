"""What plugs into the law without a change of it: other beliefs at every clearing, other offers, sketches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clear_ray.batch.sketched import SketchedOffers
from clear_ray.config.allocation import AllocationConfig
from clear_ray.errors import ConfigError
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from tests.unit.rounds.test_clearing import batch_of
from tests.unit.rounds.test_rounds import Listed, outcome, tokens_of


class Learning(BatchOffers):
    """Offers that hold every query for worthless which has taken tokens and not ended."""

    def clear(
        self, states: QueryStates, *, is_free_N: np.ndarray, available_tokens: int, owed_tokens_N: np.ndarray
    ) -> Clearing:
        weight_N = np.where(states.answer_tokens_N > 0, 0.0, self.batch.weight_N)
        believed = BatchOffers(replace(self.batch, weight_N=weight_N))
        return believed.clear(
            states, is_free_N=is_free_N, available_tokens=available_tokens, owed_tokens_N=owed_tokens_N
        )


@pytest.mark.parametrize(("offers_of", "goes_on"), [(BatchOffers, True), (Learning, False)])
def test_what_is_believed_may_change_between_clearings(offers_of: type[BatchOffers], goes_on: bool) -> None:
    one = batch_of(3, 1).take(np.zeros(6, np.int64))
    batch = replace(one, tie_break_N=np.arange(6, dtype=np.uint64), cost_N=np.ones(6), max_tokens_N=np.full(6, 32))
    rounds = Rounds(offers_of(batch), AllocationConfig())
    first = rounds.next(8)
    assert first is not None
    begun = tokens_of(first)
    rounds.take(1, [outcome(begun)])
    second = rounds.next(8)
    assert second is not None
    assert bool(begun.keys() & tokens_of(second).keys()) == goes_on


def test_an_offer_may_be_to_begin_again() -> None:
    """An answer that starts anew replaces the one before; what both took is counted."""
    rounds = Rounds(Listed([{0: 8}, {0: 20}]), AllocationConfig())
    rounds.next(100)
    rounds.take(1, [outcome({0: 8})])
    rounds.next(92)
    anew: Attempts = outcome({0: 20}, spent=6, end="stop")
    report = rounds.take(2, [anew])
    assert (report.continued, report.finished) == (1, 1)
    states = rounds.states
    assert (states.answer_tokens_N[0], states.written_tokens_N[0], states.granted_tokens_N[0]) == (6, 14, 28)
    assert not states.is_open_N[0]


def test_offers_by_sketches_refuse_floors_that_no_process_holds() -> None:
    def rows() -> object:
        raise AssertionError("nothing is read")

    two = np.arange(2, dtype=np.int64)
    offers = SketchedOffers(rows, two, two.astype(np.uint64), np.ones(2), two)  # type: ignore[arg-type]
    states, is_free_N = QueryStates(np.ones(2)), np.ones(2, bool)
    with pytest.raises(ConfigError, match="priced from sketches has no minimum service"):
        offers.clear(states, is_free_N=is_free_N, available_tokens=10, owed_tokens_N=two)
    with pytest.raises(ConfigError, match="priced from sketches has no minimum service"):
        offers.serve(two, available_tokens=10, shadow_price=0.0)
    assert not len(offers.serve(0 * two, available_tokens=10, shadow_price=0.0).index_M)
