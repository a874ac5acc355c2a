"""100,000 small instances against exhaustive search: no allocation beats the dual bound, none breaks a promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, Utility, allocate, solve_shadow_price

QUERIES, HIGHEST = 3, 9
CAPS = np.array(list(itertools.product(range(HIGHEST + 1), repeat=QUERIES)))
TOTALS = CAPS.sum(axis=1)


def random_curves(rng: np.random.Generator, family: str) -> Utility:
    """Curves on up to nine tokens, half of the parameters from a few values so that ties are common."""
    limits = {
        "weight_N": rng.choice([1.0, 1.0, 1.0, 0.5, 2.0, 0.0], QUERIES),
        "max_tokens_N": rng.choice([HIGHEST, HIGHEST, 4], QUERIES),
        "min_tokens_N": rng.choice([0, 0, 0, 2], QUERIES),
    }
    threshold = np.where(rng.random(QUERIES) < 0.5, rng.integers(0, 6, QUERIES), rng.uniform(0, 6, QUERIES))
    beta = np.where(rng.random(QUERIES) < 0.5, 0.5, rng.uniform(0.1, 3.0, QUERIES))
    if family == "surge":
        return ShiftedSurge(threshold, rng.choice([0.5, 1.0], QUERIES), beta, **limits)
    if family == "erlang":
        return ShiftedErlang(threshold, rng.choice([0.0, 0.3, 1.0], QUERIES), beta, **limits)
    success = np.sort(rng.choice([0.0, 0.1, 0.4, 0.9, 1.0], (QUERIES, 3)), axis=1)
    return Tabulated([2, 5, HIGHEST], success, **limits)


def check(utility: Utility, budget: int) -> None:
    by_cap = np.array([utility.utility(float(cap)) for cap in range(HIGHEST + 1)])
    is_allowed = (budget >= TOTALS) & np.all((utility.min_tokens_N <= CAPS) & (utility.max_tokens_N >= CAPS), axis=1)
    best = float(by_cap[CAPS[is_allowed], np.arange(QUERIES)].sum(axis=1).max())
    allocation = allocate(utility, budget_tokens=budget)
    assert allocation.tokens_N.sum() <= budget
    assert np.all((allocation.tokens_N >= utility.min_tokens_N) & (allocation.tokens_N <= utility.max_tokens_N))
    assert allocation.utility == pytest.approx(by_cap[allocation.tokens_N, np.arange(QUERIES)].sum(), abs=1e-12)
    assert allocation.utility <= best + 1e-12
    assert best <= allocation.dual_bound + 1e-9
    assert best - allocation.utility <= allocation.gap + 1e-9
    if not utility.is_smooth:  # whole tokens cost smooth curves a little more than this
        slack = solve_shadow_price(utility, budget_tokens=budget).slack
        assert allocation.gap <= allocation.shadow_price * slack + 1e-9


@pytest.mark.parametrize("family", ["surge", "erlang", "table"])
def test_a_few_hundred_instances(family: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(150):
        utility = random_curves(rng, family)
        check(utility, int(rng.integers(int(utility.min_tokens_N.sum()), 30)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", ["surge", "erlang", "table"])
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_thousand_instances(family: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 77])
    for _ in range(3400):
        utility = random_curves(rng, family)
        check(utility, int(rng.integers(int(utility.min_tokens_N.sum()), 30)))
