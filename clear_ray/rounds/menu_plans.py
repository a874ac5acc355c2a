"""One price over this answer and those that may follow it, where a scorer says at once whether an answer is right.

Models stand in an order, the cheapest first. A query that was answered wrong, or cut off, may be asked again, of a model
further on. What it is worth to ask model j at a ceiling is then `w p - price x c + (1 - p) W(j)`: the chance of a right
answer by that ceiling, less the price of what the call is expected to take, and what is left when it fails, `W(j)`, the best
that may follow. `W` is computed from the last model to the first, and from the last time that one may be asked to the
first. The price is the lowest at which all queries together, with all that may follow, are expected to take no more than
what is available.

A *rung* is a model and how often it has been asked by then: all times of the first model, then all of the second, and so on.

Shapes: M queries, J models, K grid points.

Source: docs/method.md, section 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
_HALVINGS = 48


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One model, asked by some queries, from the beginning or from where its answer was cut off.

    Attributes:
        model: Place of the model in the order.
        worth_MK: Value of a right answer times the chance of one, by each ceiling.
        chance_MK: The chance alone.
        cost_MK: What the call is expected to take, prompt included; where it may not be made, the worth is -infinity.
        rung: Rung of the call, of all queries or of each; the model's first if not given.
    """

    model: int
    worth_MK: Array
    chance_MK: Array
    cost_MK: Array
    rung: int | Integers | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plans:
    """What queries buy at a price.

    Attributes:
        price: The price.
        course_M: Which course is taken first; -1 for none.
        point_M: At which grid point.
        surplus_M: What the plan is worth beyond its price.
        worth_M: What all of it is worth.
        first_worth_M: What its first call is worth.
        cost_M: What all of it is expected to take.
        below: What they buy at a price just below, at which it would be too much; None where this price is 0.
        tokens_M: Further tokens that the first call is granted; this and the next two are not known to the price.
        parts_M: What it may take at most, thousandths.
        spend_M: Tokens that it is expected to generate.
    """

    price: float
    course_M: Integers
    point_M: Integers
    surplus_M: Array
    worth_M: Array
    first_worth_M: Array
    cost_M: Array
    below: Plans | None = None
    tokens_M: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    parts_M: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    spend_M: Array = field(default_factory=lambda: np.zeros(0))


def plans_at(
    price: float, first: Sequence[Course], later: Sequence[Course], *, give: float = 0.0, times: int = 1
) -> Plans:
    """Return what queries buy at a price.

    Args:
        price: Worth of a unit of cost.
        first: What may be called now.
        later: What may be called after a failure, in order of the models.
        give: Part of what a first call adds that a lower ceiling may give up: ceilings are reserved, and far above what
            answers take the last few of a hundred right ones hold back many others.
        times: How often each model may be asked.
    """
    queries = len(later[0].worth_MK)
    none = np.zeros(queries)
    after = np.zeros((3, len(later) * times, queries))
    for rung in range(len(later) * times - 1, -1, -1):  # what may follow when this one fails
        follows = [
            replace(course, rung=max(course.model * times, rung + 1))
            for course in later
            if (course.model + 1) * times > rung + 1
        ]
        after[:, rung] = _best(price, follows, after, none)[:3]
    calls = [course if course.rung is not None else replace(course, rung=course.model * times) for course in first]
    surplus, worth, cost, course, point, alone = _best(price, calls, after, none, give)
    return Plans(price, course, point, surplus, worth, alone, cost)


def _best(
    price: float,
    courses: Sequence[Course],
    after: Array,
    none: Array,
    give: float = 0.0,
) -> tuple[Array, Array, Array, Integers, Integers, Array]:
    """Return surplus, worth and cost of the best course with all that follows, which it is, and its own worth."""
    rows = np.arange(len(none))
    surplus, worth, cost, alone = none.copy(), none.copy(), none.copy(), none.copy()
    chosen, point = np.full(len(none), -1), np.zeros(len(none), np.int64)
    for place, course in enumerate(courses):
        then_surplus, then_worth, then_cost = after[:, course.rung, rows]
        value_MK = course.worth_MK - price * course.cost_MK + (1.0 - course.chance_MK) * then_surplus[:, None]
        best_M = value_MK.argmax(axis=1)
        value_M = value_MK[rows, best_M]
        if give:
            enough_M = value_M - give * np.maximum(value_M - then_surplus, 0.0)
            best_M = (value_MK >= enough_M[:, None]).argmax(axis=1)
        fails_M = 1.0 - course.chance_MK[rows, best_M]
        own_M = course.worth_MK[rows, best_M]
        total_M = course.cost_MK[rows, best_M] + fails_M * then_cost
        # Of what is worth the same the cheaper one: at price 0 a call that cannot succeed is worth what follows it.
        is_better = (value_M > surplus) | ((value_M == surplus) & (chosen >= 0) & (total_M < cost))
        surplus = np.where(is_better, value_M, surplus)
        worth = np.where(is_better, own_M + fails_M * then_worth, worth)
        cost = np.where(is_better, total_M, cost)
        alone = np.where(is_better, own_M, alone)
        chosen, point = np.where(is_better, place, chosen), np.where(is_better, best_M, point)
    return surplus, worth, cost, chosen, point, alone


def price_plans(
    first: Sequence[Course], later: Sequence[Course], *, available: float, give: float = 0.0, times: int = 1
) -> Plans:
    """Return the plans at the lowest price at which they are expected to take no more than is available; see `plans_at`."""
    free = plans_at(0.0, first, later, give=give, times=times)
    if free.cost_M.sum() <= available:
        return free
    finite = [course.cost_MK[course.cost_MK > 0] for course in first]
    least = min((float(cost.min()) for cost in finite if cost.size), default=1.0)
    most = max((float(course.worth_MK.max(initial=0.0)) for course in (*first, *later)), default=0.0)
    low, high = 0.0, 2.0 * max(most, 1e-12) * len(later) * times / least
    found, below = plans_at(high, first, later, give=give, times=times), free
    # Halved on a scale of ratios once a price above 0 is known to be too low.
    low_ratio = high * 1e-12
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(max(low, low_ratio) * high))
        tried = plans_at(middle, first, later, give=give, times=times)
        if tried.cost_M.sum() <= available:
            high, found = middle, tried
        else:
            low, below = middle, tried
        if high <= low * (1 + 1e-9):
            break
    return replace(found, below=below)


def filled(plans: Plans, *, available: float, tie_break_M: NDArray[np.uint64]) -> Plans:
    """Return plans with some of those that would be bought at any lower price: as many as fit, and one that does not whole.

    Queries that look alike would all buy at that price, and none at this one.

    Args:
        plans: At the lowest price at which they fit.
        available: What there is.
        tie_break_M: Numbers of the queries by which they take turns.
    """
    below = plans.below
    if below is None:
        return plans
    order = np.argsort(tie_break_M, kind="stable")
    order = order[(plans.course_M[order] < 0) & (below.course_M[order] >= 0)]
    before = np.cumsum(below.cost_M[order]) - below.cost_M[order]
    added = np.zeros(len(tie_break_M), bool)
    added[order[before < available - plans.cost_M.sum()]] = True

    names = ("course_M", "point_M", "worth_M", "first_worth_M", "cost_M", "tokens_M", "parts_M", "spend_M")
    mixed: dict[str, Any] = {
        name: np.where(added, getattr(below, name), getattr(plans, name))
        for name in names
        if len(getattr(plans, name)) == len(added)
    }
    return replace(plans, **mixed)
