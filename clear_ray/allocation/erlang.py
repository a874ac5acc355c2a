"""ShiftedErlang: solvability times the distribution of the length of a correct answer.

Legend: N queries.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import FloatArray, query_column
from clear_ray.allocation.lambert import minus_lambert_wm1_of_minus
from clear_ray.allocation.threshold_curve import ThresholdCurve

_CELLS_PER_DOUBLING = 96
_DOUBLINGS = 90  # thresholds up to 2**90 / beta


class ShiftedErlang(ThresholdCurve):
    """Utility `s * (1 - (1 + y) * exp(-y))` with y = beta * (tokens - threshold) > 0.

    The chance that a correct answer has arrived by `tokens`. Its derivative `s * beta * y * exp(-y)` is the surge, so
    demand at price p is `threshold - W_{-1}(-p / (s * beta)) / beta`. The reservation price is `s * beta * g(beta *
    threshold)` with one scalar function g, tabulated once; see `_tangent`.

    The curve never quite ends. It is taken to end where one part in a million of the answers is left (y = 16.69...):
    without an end, certain queries would buy tokens for ever while tokens remain and abandoned queries get none.

    Args:
        threshold_tokens_N: Emergence threshold of each query, tokens, >= 0.
        solvability_N: Chance of a correct answer with ample tokens; a scalar or N, 0 to 1.
        beta: Rate per token; a scalar or N, > 0. The mean length beyond the threshold is 2 / beta.
        weight_N: Value of a correct answer, >= 0; 1 if not given.
        max_tokens_N: Ceiling in whole tokens; none if not given.
        min_tokens_N: Floor in whole tokens, owed whatever the price; 0 if not given.
        cost_per_token_N: Cost of a token in the unit of the budget, > 0; 1 if not given.

    Raises:
        UtilityError: a value is not finite or out of range; the first such query is named.

    Source: docs/method.md, section 2.2.
    """

    _TOP: ClassVar[float] = 16.693757105649734  # (1 + y) * exp(-y) = 1e-6
    _COLUMNS: ClassVar[tuple[str, ...]] = (*ThresholdCurve._COLUMNS, "solvability_N")

    solvability_N: FloatArray

    def __init__(
        self,
        threshold_tokens_N: ArrayLike,
        solvability_N: ArrayLike,
        beta: ArrayLike,
        *,
        weight_N: ArrayLike | None = None,
        max_tokens_N: ArrayLike | None = None,
        min_tokens_N: ArrayLike | None = None,
        cost_per_token_N: ArrayLike | None = None,
    ) -> None:
        super().__init__(
            threshold_tokens_N,
            beta,
            weight_N=weight_N,
            max_tokens_N=max_tokens_N,
            min_tokens_N=min_tokens_N,
            cost_per_token_N=cost_per_token_N,
        )
        solvability = query_column(solvability_N, name="solvability_N", queries=len(self), high=1.0)
        self.__dict__.update(solvability_N=solvability)

    @property
    def _height_N(self) -> FloatArray:
        return self.weight_N * self.solvability_N

    @staticmethod
    def _rise(y: FloatArray) -> FloatArray:
        return -np.expm1(-y) - y * np.exp(-y)

    @staticmethod
    def _slope(y: FloatArray) -> FloatArray:
        return y * np.exp(-y)

    @staticmethod
    def _slope_inverse(q: FloatArray) -> FloatArray:
        return minus_lambert_wm1_of_minus(np.minimum(np.maximum(q, 1e-300), np.exp(-1.0)))

    @staticmethod
    def _tangent(start: FloatArray) -> FloatArray:
        """Return the y where the line from y = `start` touches the curve, from a table with cubic interpolation.

        The table is off by at most 1e-9. The reservation price is read off as the slope of the line to that y, and
        that slope is greatest at the true tangent, so its own error is of the order of the square: rounding only.
        """
        table = _tangent_table()
        position = np.log2(np.maximum(2.0 - start, 1.0)) * _CELLS_PER_DOUBLING
        cell = np.minimum(position.astype(np.int64), table.shape[1] - 1)
        t = position - cell
        c0, c1, c2, c3 = (row[cell] for row in table)
        return np.where(start < 1.0, c0 + t * (c1 + t * (c2 + t * c3)), start)


@cache
def _tangent_table() -> FloatArray:
    """Return cubic coefficients of the tangent point over log2(2 - start), shape (4, cells).

    The tangent point y >= 1 of the line from a solves `rise(y) - rise(max(a, 0)) = slope(y) * (y - a)`. With both
    sides multiplied by exp(y) the difference is `excess` below; it changes sign once, so bisection finds y. This runs
    once in a process. Start 0, where the second derivative of y leaps, is a node of the table.
    """
    a = 2.0 - np.exp2(np.arange(_CELLS_PER_DOUBLING * _DOUBLINGS + 1) / _CELLS_PER_DOUBLING)
    flat = np.maximum(a, 0.0)
    low, high = np.ones_like(a), np.full_like(a, 128.0)
    for _ in range(64):
        y = 0.5 * (low + high)
        excess = (1.0 + flat) * np.exp(y - flat) - 1.0 - y - y * (y - a)
        low, high = np.where(excess < 0.0, y, low), np.where(excess < 0.0, high, y)
    y = 0.5 * (low + high)
    climb = np.exp(y - flat)
    with np.errstate(invalid="ignore"):
        derivative = (y - flat * climb) / ((1.0 + flat) * climb - 1.0 - 2.0 * y + a)  # -dy/da
    y[0], derivative[0] = 1.0, 0.5  # start 1 is the inflection itself: touching point and limit of the derivative
    rise = derivative * (2.0 - a) * np.log(2.0) / _CELLS_PER_DOUBLING
    step = np.diff(y)
    return np.stack([y[:-1], rise[:-1], 3.0 * step - 2.0 * rise[:-1] - rise[1:], rise[:-1] + rise[1:] - 2.0 * step])
