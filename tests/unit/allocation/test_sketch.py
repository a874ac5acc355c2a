from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import (
    DemandSketch,
    ShiftedErlang,
    ShiftedSurge,
    SketchPrice,
    Tabulated,
    Utility,
    solve_shadow_price,
)
from clear_ray.errors import PriceError, UtilityError
from tests.unit.allocation.curves import PROPERTY, curves

BUDGETS = st.integers(0, 3000)


def keys_of(utility: Utility) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**40, len(utility))


def priced(utility: Utility, budget: float, keys: np.ndarray) -> SketchPrice:
    first = DemandSketch.first_pass(budget_tokens=budget).add(utility, tie_break_N=keys)
    return first.second_pass(budget_tokens=budget).add(utility, tie_break_N=keys).price(budget_tokens=budget)


@PROPERTY
@given(curves(has_floors=True), BUDGETS, st.lists(st.integers(0, 8), max_size=4), st.randoms(use_true_random=False))
def test_any_blocks_in_any_order_make_the_same_bytes(
    utility: Utility, budget: int, cuts: list[int], random: object
) -> None:
    budget += int(utility.min_tokens_N.sum())
    keys, rows = keys_of(utility), np.arange(len(utility))
    random.shuffle(rows)  # type: ignore[attr-defined]
    blocks = np.split(rows, sorted(min(cut, len(utility)) for cut in cuts))

    def merged(empty: DemandSketch) -> DemandSketch:
        sketches = [empty.add(utility.take(block), tie_break_N=keys[block]) for block in blocks]
        while len(sketches) > 1:
            sketches.insert(0, sketches.pop().merge(sketches.pop()))
        return sketches[0]

    first = DemandSketch.first_pass(budget_tokens=budget)
    one = first.add(utility, tie_break_N=keys)
    assert merged(first).to_bytes() == one.to_bytes()
    second = one.second_pass(budget_tokens=budget)
    assert merged(second).to_bytes() == second.add(utility, tie_break_N=keys).to_bytes()
    assert DemandSketch.from_bytes(one.to_bytes()).to_bytes() == one.to_bytes()


@PROPERTY
@given(curves(has_floors=True), BUDGETS)
def test_sketch_keeps_the_budget_and_its_word(utility: Utility, budget: int) -> None:
    """The caps that blocks read off the price cost and bring what the sketch says."""
    budget += int(utility.min_tokens_N.sum())
    keys = keys_of(utility)
    cleared = priced(utility, budget, keys)
    tokens = np.concatenate(
        [cleared.tokens(utility.take([n]), tie_break_N=keys[[n]]) for n in range(len(utility))]  # type: ignore[arg-type]
    )
    assert utility.spend(tokens).sum() <= budget
    assert utility.spend(tokens).sum() == pytest.approx(cleared.spend, rel=1e-9)
    assert utility.utility(tokens).sum() == pytest.approx(cleared.utility, abs=len(utility) * 2**-20)
    assert np.count_nonzero(tokens) == cleared.funded
    assert cleared.utility <= cleared.dual_bound + len(utility) * 2**-20
    assert np.all((tokens >= utility.min_tokens_N) & (tokens <= utility.max_tokens_N))


@PROPERTY
@given(curves(), BUDGETS)
def test_sketch_price_is_around_the_exact_one(utility: Utility, budget: int) -> None:
    cleared, exact = priced(utility, budget, keys_of(utility)), solve_shadow_price(utility, budget_tokens=budget)
    # A cap that is rounded up to a whole token keeps its utility and costs less than one more token at the price.
    rounding = len(utility) * cleared.shadow_price * (1.0 if utility.is_smooth else 0.0)
    assert cleared.dual_bound + rounding >= exact.utility * (1 - 1e-9) - 1e-9
    if isinstance(utility, Tabulated):  # whole tokens and real ones are the same there
        assert cleared.shadow_price >= exact.shadow_price * (1 - 1e-9)
        assert cleared.lower_price <= exact.shadow_price * (1 + 1e-9)


@pytest.mark.parametrize("family", ["surge", "erlang", "table"])
def test_a_large_batch_is_priced_to_a_thousandth(family: str) -> None:
    rng = np.random.default_rng(2)
    count = 20_000
    threshold, beta = rng.uniform(0, 400, count), rng.uniform(0.005, 0.05, count)
    grid = np.array([8, 32, 64, 128, 256])
    utility: Utility = {
        "surge": ShiftedSurge(threshold, 1.0, beta),
        "erlang": ShiftedErlang(threshold, rng.uniform(0, 1, count), beta),
        "table": Tabulated(grid, np.sort(rng.uniform(0, 1, (count, 5)), axis=1) * rng.uniform(0, 1, (count, 1))),
    }[family]
    cleared = priced(utility, 40.0 * count, keys_of(utility))
    assert cleared.slack_tokens < 0.002 * 40.0 * count
    assert cleared.gap < 0.004 * cleared.utility
    assert cleared.shadow_price / cleared.lower_price < 1.07


def test_tied_queries_are_funded_by_class() -> None:
    """Ten thousand equal queries and tokens for seven thousand."""
    utility = ShiftedSurge(np.full(10_000, 200.0))
    entry = int(utility.demand(utility.reservation_price)[0]) + 1
    cleared = priced(utility, 7000.0 * entry, keys_of(utility))
    assert 6800 <= cleared.funded <= 7000


def test_budget_that_does_not_bind_has_price_zero() -> None:
    cleared = priced(ShiftedSurge([100.0, 200.0]), 5000.0, np.zeros(2))
    assert cleared.shadow_price == 0.0
    assert cleared.funded == 2
    assert 4000.0 < cleared.spend <= 5000.0  # unspent tokens raise both caps to one level
    first = DemandSketch.first_pass(budget_tokens=5000.0).add(ShiftedSurge([100.0, 200.0]))
    second = first.second_pass(budget_tokens=5000.0, spread_unspent=False).add(ShiftedSurge([100.0, 200.0]))
    assert second.price(budget_tokens=5000.0).spend == 700.0


def test_unspent_budget_abandons_no_query() -> None:
    """A third of the queries are said to be hopeless; with tokens to spare they get some, too."""
    count = 3000
    utility = ShiftedErlang(np.full(count, 10.0), np.arange(count) % 3 / 2.0, 0.5, max_tokens_N=400)
    cleared = priced(utility, 100.0 * count, keys_of(utility))
    tokens = cleared.tokens(utility, tie_break_N=keys_of(utility))
    assert cleared.funded == count
    assert 0.95 * 100 * count <= tokens.sum() <= 100 * count
    assert np.ptp(tokens) <= 0.5 * tokens.max()
    everyone = priced(utility, 500.0 * count, keys_of(utility))
    assert everyone.tokens(utility, tie_break_N=keys_of(utility)).tolist() == [400] * count


def test_money_is_counted_finely_enough() -> None:
    utility = ShiftedErlang(np.full(1000, 50.0), 0.5, 0.05, cost_per_token_N=2e-6)
    assert 0.09 < priced(utility, 0.1, np.arange(1000)).spend <= 0.1


def test_sums_stop_before_they_overflow() -> None:
    """Without ceilings, the levels to which an unspent budget may raise a large batch are beyond 64 bits."""
    utility = ShiftedSurge(np.zeros(40_000), 1.0, 1.0)
    cleared = priced(utility, 200_000.0, keys_of(utility))
    assert cleared.funded == 40_000
    assert 0.9 * 200_000 < cleared.spend <= 200_000
    assert cleared.level_tokens >= 4


def test_a_budget_far_beyond_the_one_of_the_sketch_is_refused() -> None:
    first = DemandSketch.first_pass(budget_tokens=1.0).add(ShiftedSurge([10.0]))
    assert first.price(budget_tokens=100.0).funded == 1
    with pytest.raises(PriceError, match="far smaller"):
        first.price(budget_tokens=1e6)


def test_size_is_a_few_kilobytes_whatever_the_batch() -> None:
    first = DemandSketch.first_pass(budget_tokens=1000.0).add(ShiftedSurge(np.linspace(1.0, 500.0, 5000)))
    assert len(first.to_bytes()) < 5_000
    assert len(first.second_pass(budget_tokens=1000.0).to_bytes()) < 60_000


def test_sketches_of_different_passes_do_not_merge() -> None:
    first = DemandSketch.first_pass(budget_tokens=5.0).add(ShiftedSurge([10.0]))
    with pytest.raises(UtilityError, match="one pass"):
        first.merge(first.second_pass(budget_tokens=5.0))


@pytest.mark.parametrize("data", [b"", b"cds1", b"not a sketch at all, but long enough for a header"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UtilityError, match="sketch"):
        DemandSketch.from_bytes(data)


def test_cut_off_bytes_are_refused() -> None:
    with pytest.raises(UtilityError, match="cut off"):
        DemandSketch.from_bytes(DemandSketch.first_pass(budget_tokens=1.0).to_bytes()[:-1])


def test_floors_above_the_budget_have_no_price() -> None:
    sketch = DemandSketch.first_pass(budget_tokens=19).add(ShiftedSurge([10.0], min_tokens_N=20))
    with pytest.raises(PriceError, match="floors"):
        sketch.price(budget_tokens=19)
    with pytest.raises(PriceError, match="finite"):
        sketch.price(budget_tokens=np.inf)
