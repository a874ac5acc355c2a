"""What queries of a menu buy at one price, in blocks: memory is that of one block's points, whatever the batch.

Up to so many queries the price is that of all of them together. Of more it is that of a random part of them, for its part of
what is available, and each block is then read at that price: the dual bound holds at any price, and what is granted is what
fits. A random part of thirty thousand has the price of the whole to about one in a hundred.

Shapes: M queries that are priced, K grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.menu_courses import CourseTables
from clear_ray.rounds.menu_plans import Course, Plans, filled, plans_at, price_plans

Integers = NDArray[np.int64]
PRICED_TOGETHER = 1 << 15
_ROWS_AT_ONCE = 1 << 15
_OF_EACH = ("course_M", "point_M", "surplus_M", "worth_M", "first_worth_M", "cost_M")
_OF_CALLS = ("tokens_M", "parts_M", "spend_M")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What some queries may buy.

    Attributes:
        tables: What they may have of each model now.
        first: The same, as the price over plans looks at it.
        later: What they may have of each model after a failure.
    """

    tables: list[CourseTables]
    first: list[Course]
    later: list[Course]

    def with_calls(self, plans: Plans) -> Plans:
        """Return plans with what the next call of each is granted, may take, and is expected to generate."""
        course_M, rows = np.maximum(plans.course_M, 0), np.arange(len(plans.course_M))
        columns: dict[str, Any] = {
            name: np.stack([getattr(table, f"{name}K") for table in self.tables])[course_M, rows, plans.point_M]
            for name in _OF_CALLS
        }
        below = None if plans.below is None else self.with_calls(plans.below)
        return replace(plans, below=below, **columns)


def buy_plans(
    index: Integers,
    block_of: Callable[[Integers], Block],
    *,
    available: float,
    tie_break_M: NDArray[np.uint64],
    give: float,
    times: int,
) -> Plans:
    """Return what the queries at `index` buy, and of what is bought at any lower price as much as fits.

    Args:
        index: Which queries, at least one.
        block_of: Returns what some of them may buy.
        available: What there is.
        tie_break_M: Numbers of the queries by which they take turns.
        give: See `plans_at`.
        times: See `plans_at`.
    """
    if len(index) <= PRICED_TOGETHER:
        block = block_of(index)
        plans = block.with_calls(price_plans(block.first, block.later, available=available, give=give, times=times))
        return filled(plans, available=available, tie_break_M=tie_break_M)
    part = block_of(index[np.sort(np.argsort(tie_break_M, kind="stable")[:_ROWS_AT_ONCE])])
    share = _ROWS_AT_ONCE / len(index)
    priced = price_plans(part.first, part.later, available=share * available, give=give, times=times)
    del part
    found = []
    for start in range(0, len(index), _ROWS_AT_ONCE):
        block = block_of(index[start : start + _ROWS_AT_ONCE])
        here = plans_at(priced.price, block.first, block.later, give=give, times=times)
        if priced.below is not None:
            here = replace(here, below=plans_at(priced.below.price, block.first, block.later, give=give, times=times))
        found.append(block.with_calls(here))
    return filled(_concatenated(found), available=available, tie_break_M=tie_break_M)


def best_that_fit(plans: Plans, most_parts: int, tie_break_M: NDArray[np.uint64]) -> Integers:
    """Return which plans' next calls are granted, longest first: the best as far as ceilings fit.

    What does not fit is priced anew once more is known.
    """
    bought = np.flatnonzero(plans.course_M >= 0)
    order = np.lexsort((tie_break_M[bought], -plans.surplus_M[bought] / np.maximum(plans.cost_M[bought], 1e-300)))
    chosen = bought[order[np.cumsum(plans.parts_M[bought][order]) <= most_parts]]
    return chosen[np.argsort(-plans.tokens_M[chosen], kind="stable")]


def _concatenated(parts: list[Plans]) -> Plans:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_OF_EACH, *_OF_CALLS)
    }
    below = [part.below for part in parts if part.below is not None]
    return Plans(parts[0].price, **columns, below=_concatenated(below) if below else None)
