"""Hypothesis strategies for curves of every family, with limits, weights, costs and plenty of ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, Utility

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
GRID = [1, 3, 10, 40]


def column(queries: int, values: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.lists(values, min_size=queries, max_size=queries).map(np.array)


@st.composite
def limits(draw: st.DrawFn, queries: int, *, has_floors: bool, has_costs: bool, highest: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if draw(st.booleans()):
        settings["weight_N"] = draw(column(queries, st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    if has_costs and draw(st.booleans()):
        settings["cost_per_token_N"] = draw(column(queries, st.sampled_from([0.5, 1.0, 2.0, 0.013])))
    ceiling = np.full(queries, highest)
    if draw(st.booleans()):
        ceiling = draw(column(queries, st.integers(0, highest)))
        settings["max_tokens_N"] = ceiling
    if has_floors and draw(st.booleans()):
        settings["min_tokens_N"] = np.minimum(draw(column(queries, st.integers(0, highest // 2))), ceiling)
    return settings


@st.composite
def surges(draw: st.DrawFn, *, has_floors: bool = False, has_costs: bool = False) -> ShiftedSurge:
    queries = draw(st.integers(1, 8))
    return ShiftedSurge(
        draw(column(queries, st.sampled_from([0.0, 5.0, 200.0]) | st.floats(0.0, 300.0))),
        draw(column(queries, st.sampled_from([0.0, 1.5]) | st.floats(0.01, 5.0))),
        draw(column(queries, st.sampled_from([0.005, 0.1]) | st.floats(0.001, 1.0))),
        **draw(limits(queries, has_floors=has_floors, has_costs=has_costs, highest=600)),
    )


@st.composite
def erlangs(draw: st.DrawFn, *, has_floors: bool = False, has_costs: bool = False) -> ShiftedErlang:
    queries = draw(st.integers(1, 8))
    return ShiftedErlang(
        draw(column(queries, st.sampled_from([0.0, 5.0, 200.0]) | st.floats(0.0, 300.0))),
        draw(column(queries, st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0))),
        draw(column(queries, st.sampled_from([0.005, 0.1]) | st.floats(0.001, 1.0))),
        **draw(limits(queries, has_floors=has_floors, has_costs=has_costs, highest=600)),
    )


@st.composite
def tables(draw: st.DrawFn, *, has_floors: bool = False, has_costs: bool = False) -> Tabulated:
    queries = draw(st.integers(1, 8))
    # Of those still running at the start of a cell, some answer correctly by its end, some wrongly, some run on.
    shares = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=len(GRID), max_size=len(GRID))
    finished = np.array([draw(shares) for _ in range(queries)])
    correct = np.array([draw(shares) for _ in range(queries)])
    survival = np.concatenate([np.ones((queries, 1)), np.cumprod(1.0 - finished, axis=1)[:, :-1]], axis=1)
    success = np.minimum(np.cumsum(survival * finished * correct, axis=1), 1.0)
    spend = np.cumsum(survival * np.diff(GRID, prepend=0), axis=1) if draw(st.booleans()) else None
    return Tabulated(
        GRID, success, spend, **draw(limits(queries, has_floors=has_floors, has_costs=has_costs, highest=GRID[-1]))
    )


def curves(*, has_floors: bool = False, has_costs: bool = False) -> st.SearchStrategy[Utility]:
    kinds = (surges, erlangs, tables)
    return st.one_of([kind(has_floors=has_floors, has_costs=has_costs) for kind in kinds])


def steepest(utility: Utility) -> float:
    """The most that any token of a smooth curve adds: where a surge begins, or at the inflection of an Erlang curve."""
    beta_N = getattr(utility, "beta_N", np.inf)
    places = (utility.threshold_tokens_N, utility.threshold_tokens_N + 1.0 / beta_N)
    return float(np.max([utility.marginal_utility(place) for place in places], initial=0.0))
