"""The upper concave envelopes of many small sets of points at once.

Legend: N queries, K grid points, M rows of a block.

Points outside floor and ceiling are moved onto them, where they fall together and drop out. What is left of a query is
a staircase: K steps of falling price (some of them without width), each with what it spends and what it brings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, PerQuery
from clear_ray.allocation.grid import cells_of
from clear_ray.allocation.price_grid import SMALLEST_PRICE, round_price_down

_ROWS_AT_ONCE = 1 << 12  # K + 1 columns of this many rows stay in the processor's cache
_STEEPEST = 1e150  # slope of success that costs nothing: finite, and still so after weight and cost


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of N envelopes, along K in the order in which they are bought.

    Attributes:
        price_KN: Price of each step, on the price grid, never rising along K; 0 where nothing is gained.
        spend_KN: Expected spend of each step.
        floor_spend_N: Expected spend of the floor.
    """

    price_KN: FloatArray
    spend_KN: FloatArray
    floor_spend_N: FloatArray

    def is_bought_KN(self, price: PerQuery) -> BoolArray:
        """Return which steps are bought at a price; along K, bought ones come first."""
        return self.price_KN >= np.maximum(price, SMALLEST_PRICE)

    def spend_at(self, is_bought_KN: BoolArray) -> FloatArray:
        """Return the spend of the floor and of the steps bought, shape (N,)."""
        bought: FloatArray = (is_bought_KN * self.spend_KN).sum(axis=0)
        return self.floor_spend_N + bought

    def take(self, indices: IntArray | BoolArray | slice) -> Steps:
        """Return the steps of some queries; a slice shares memory."""
        return Steps(
            self.price_KN[:, indices],
            self.spend_KN[:, indices],
            self.floor_spend_N[indices],
        )


def concave_steps(
    tokens_NK: IntArray,
    success_NK: FloatArray,
    spend_NK: FloatArray,
    *,
    weight_N: FloatArray,
    cost_per_token_N: FloatArray,
    min_tokens_N: FloatArray,
    max_tokens_N: FloatArray,
) -> Steps:
    """Return the steps of the upper concave envelopes of the points (spend, success) between floor and ceiling.

    Args:
        tokens_NK: Grid of each query.
        success_NK: P, never falling along K.
        spend_NK: C, never falling along K.
        weight_N: Value of a correct answer.
        cost_per_token_N: Multiplies the spend.
        min_tokens_N: Floor, tokens.
        max_tokens_N: Ceiling, tokens.

    Source: docs/method.md, section 2.3.
    """
    queries, grid_points = success_NK.shape
    price_KN, spend_KN = np.empty((2, grid_points, queries))
    steps = Steps(price_KN, spend_KN, floor_spend_N=np.empty(queries))
    for first in range(0, queries, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        block = steps.take(rows)
        success = limited_points(tokens_NK[rows], success_NK[rows], min_tokens_N[rows], max_tokens_N[rows])
        spend = limited_points(tokens_NK[rows], spend_NK[rows], min_tokens_N[rows], max_tokens_N[rows])
        slope = envelope_slopes(spend, success)
        np.multiply(spend[0], cost_per_token_N[rows], out=block.floor_spend_N)
        np.multiply(spend[1:] - spend[:-1], cost_per_token_N[rows], out=block.spend_KN)
        block.price_KN[:] = round_price_down(slope * (weight_N[rows] / cost_per_token_N[rows]))
    return steps


def envelope_slopes(spend: FloatArray, success: FloatArray) -> FloatArray:
    """Return the slope of the upper concave envelope over each cell between neighbouring points.

    The slope over cell k is `min over j < k of max over l >= k of (P_l - P_j) / (C_l - C_j)`: the min-max formula of
    isotonic regression, which is also the derivative of the least concave majorant. It needs no stack and no branch,
    so all rows move together, and it never rises along k, whatever the rounding. Cost: K(K + 1) / 2 divisions a row.

    Args:
        spend: C of K + 1 points, the first the origin, shape (K + 1, M), never falling.
        success: P of the same points.

    Returns:
        Shape (K, M). A cell without width has the slope of the cell after it; 0 if there is none.

    Source: Robertson, Wright and Dykstra, Order Restricted Statistical Inference (1988), theorem 1.4.4.
    """
    points, rows = spend.shape
    slope = np.full((points - 1, rows), _STEEPEST)
    climb, run, steepest = np.empty((3, rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        for j in range(points - 1):
            steepest[:] = 0.0
            for k in range(points - 1, j, -1):
                np.subtract(success[k], success[j], out=climb)
                np.subtract(spend[k], spend[j], out=run)
                # Two points in one place have no slope: 0 / 0 is NaN, which fmax passes over.
                np.fmax(steepest, np.divide(climb, run, out=climb), out=steepest)
                np.minimum(slope[k - 1], steepest, out=slope[k - 1])
    return slope


def best_points(spend: FloatArray, success: FloatArray, price: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return, for each row, the least spend of the points that are best at a price, and their success less price x spend.

    Args:
        spend: Shape (K + 1, M).
        success: Shape (K + 1, M).
        price: Price of each row, no slope of its envelope.
    """
    value = spend * price
    np.subtract(success, value, out=value)
    surplus: FloatArray = value.max(axis=0)
    # Whatever is not the best becomes too dear to be the least. In place: a table of its own would cost more than this.
    with np.errstate(over="ignore"):
        np.subtract(surplus, value, out=value)
        value *= 1e300
    value += spend
    chosen: FloatArray = value.min(axis=0)
    return chosen, surplus


def limited_points(
    tokens_NK: IntArray, table_NK: FloatArray, min_tokens_N: FloatArray, max_tokens_N: FloatArray
) -> FloatArray:
    """Return a table at the floor and at the grid points moved between floor and ceiling, shape (K + 1, M)."""
    points = np.empty((table_NK.shape[1] + 1, table_NK.shape[0]))
    points[0], points[1:] = 0.0, table_NK.T
    is_limited = (min_tokens_N > 0.0) | (max_tokens_N < tokens_NK[:, -1])
    if is_limited.any():
        rows = np.flatnonzero(is_limited)
        floor = cells_of(tokens_NK[rows], min_tokens_N[rows]).read(table_NK[rows])
        ceiling = cells_of(tokens_NK[rows], max_tokens_N[rows]).read(table_NK[rows])
        # Tables never fall along the grid, so moving the tokens and moving the values comes to the same.
        points[0, rows] = floor
        points[1:, rows] = np.clip(points[1:, rows], floor, ceiling)
    return points
