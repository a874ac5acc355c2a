"""The bound of a sketch is one to the last bit: no rounding of its sums takes it below what can be had."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clear_ray.allocation import DemandSketch, SketchPrice, Tabulated, allocate
from tests.unit.allocation.curves import PROPERTY

GRID_K = [1, 2, 5]


def priced(utility: Tabulated, budget: float) -> SketchPrice:
    keys = np.arange(len(utility))
    first = DemandSketch.first_pass(budget_tokens=budget).add(utility, tie_break_N=keys)
    return first.second_pass(budget_tokens=budget).add(utility, tie_break_N=keys).price(budget_tokens=budget)


def choices(utility: Tabulated, row: int) -> list[tuple[Fraction, Fraction]]:
    """Return exact spend and value of every whole cap of one query."""
    weight, cost = Fraction(float(utility.weight_N[row])), Fraction(float(utility.cost_per_token_N[row]))
    points = [(0, Fraction(0), Fraction(0))]
    tables = utility.tokens_NK[row], utility.spend_NK[row], utility.success_NK[row]
    points += [
        (int(t), cost * Fraction(float(c)), weight * Fraction(float(p))) for t, c, p in zip(*tables, strict=True)
    ]
    found = []
    for (low, c0, v0), (high, c1, v1) in itertools.pairwise(points):
        for tokens in range(low, high):
            share = Fraction(tokens - low, high - low)
            found.append((c0 + share * (c1 - c0), v0 + share * (v1 - v0)))
    return [*found, points[-1][1:]]


def best_value(utility: Tabulated, budget: float) -> Fraction:
    """Return the exact most that whole caps within a budget are worth, by trying all."""
    sets = itertools.product(*(choices(utility, row) for row in range(len(utility))))
    return max(sum(v for _, v in chosen) for chosen in sets if sum(c for c, _ in chosen) <= Fraction(budget))


@st.composite
def awkward_tables(draw: st.DrawFn) -> Tabulated:
    """Draw tables whose values and costs are no whole units of anything."""
    queries = draw(st.integers(1, 3))
    share = st.floats(0.0, 1.0) | st.sampled_from([1 / 3, 0.1, 0.5, 0.7 + 2**-40])
    column = st.lists(share, min_size=queries * len(GRID_K), max_size=queries * len(GRID_K))
    running = np.array(draw(column)).reshape(queries, -1) + 1e-3
    return Tabulated(
        GRID_K,
        np.sort(np.array(draw(column)).reshape(queries, -1), axis=1),
        np.cumsum(running, axis=1) if draw(st.booleans()) else None,
        weight_N=[draw(st.sampled_from([1.0, 1 / 3, 0.1, 1e9 / 7])) for _ in range(queries)],
        cost_per_token_N=[draw(st.sampled_from([1.0, 1 / 3, 0.013])) for _ in range(queries)],
    )


@PROPERTY
@given(awkward_tables(), st.floats(0.01, 20.0), st.data())
def test_no_sharing_is_worth_more_than_the_bound(utility: Tabulated, budget: float, data: st.DataObject) -> None:
    if data.draw(st.booleans()):  # exactly what some caps cost, so that nothing is left over to hide a rounding
        chosen = [data.draw(st.sampled_from(choices(utility, row))) for row in range(len(utility))]
        budget = float(sum(spend for spend, _ in chosen))
    assert best_value(utility, budget) <= Fraction(priced(utility, budget).dual_bound)


def test_values_between_two_units_are_counted_up() -> None:
    """A thousand thirds: where each is rounded to a whole unit, the wrong way shows in the sum."""
    utility = Tabulated([1], np.full((1_000, 1), 1 / 3))
    assert Fraction(priced(utility, 1_000.0).dual_bound) >= 1_000 * Fraction(1 / 3)


def test_spends_between_two_units_are_counted_down_in_the_bound() -> None:
    """Spends a little above a whole unit: counted up a thousand times and more they would take what the last query buys.

    All of the first kind are bought, at twice the value a token; what they leave in truth pays for the last query, which
    is worth the price; what they leave in whole units would pay for half of it.
    """
    count = 1 << 16
    spend, last = 1.0 + 2.0**-40, 2.0**-12
    spends = np.append(np.full(count, spend), last)
    utility = Tabulated(
        [1], np.full((count + 1, 1), 0.5), spends[:, None], weight_N=np.append(4.0 * spends[:-1], 2.0 * last)
    )
    budget = count * spend + last
    assert Fraction(budget) == count * Fraction(spend) + Fraction(last)  # nothing of this is rounded
    best = 2 * count * Fraction(spend) + Fraction(last)
    assert best <= Fraction(priced(utility, budget).dual_bound) <= best * (1 + Fraction(1, 10**6))


def test_spends_between_two_units_are_counted_up_against_the_budget() -> None:
    """All would fit if each lost what it has beyond a whole unit; together they are more than the budget."""
    utility = Tabulated([1], np.full((1 << 16, 1), 0.5), np.full((1 << 16, 1), 1.0 + 2.0**-40))
    found = priced(utility, 65_536.0)
    tokens = found.tokens(utility, tie_break_N=np.arange(1 << 16))
    assert 65_000 < tokens.sum() < 1 << 16
    assert int(tokens.sum()) * Fraction(1.0 + 2.0**-40) <= 65_536
    assert allocate(utility, budget_tokens=65_536.0).tokens_N.sum() == 65_535
