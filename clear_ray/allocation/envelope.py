"""The upper concave envelope of many small sets of points at once.

Legend: N queries, K grid points.
"""

from __future__ import annotations

import numpy as np

from clear_ray.allocation.columns import FloatArray

_ROWS_AT_ONCE = 4096  # K + 1 columns of this many rows stay in the cache


def concave_slopes(
    spend_NK: FloatArray, success_NK: FloatArray, origin_spend_N: FloatArray, origin_success_N: FloatArray
) -> FloatArray:
    """Return the slope of the upper concave envelope over each cell of the grid.

    The slope over cell k is `min over j < k of max over l >= k of (P_l - P_j) / (C_l - C_j)`: the min-max formula of
    isotonic regression, which is also the derivative of the least concave majorant. It needs no stack and no branch,
    so all rows move together, and it never rises along k, whatever the rounding. Cost: K(K + 1)/2 divisions a query.

    Args:
        spend_NK: C, never falling along K.
        success_NK: P, never falling along K.
        origin_spend_N: C of the point that every envelope starts from.
        origin_success_N: P of that point.

    Returns:
        Shape (K, N). Cells of no width take the slope that comes after them; 0 where nothing comes.

    Source: Robertson, Wright and Dykstra, Order Restricted Statistical Inference (1988), theorem 1.4.4.
    """
    queries, grid_points = success_NK.shape
    slope_KN = np.empty((grid_points, queries))
    for first in range(0, queries, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        spend = np.concatenate([origin_spend_N[None, rows], spend_NK[rows].T])
        success = np.concatenate([origin_success_N[None, rows], success_NK[rows].T])
        slope_KN[:, rows] = _min_max_slopes(spend, success)
    return slope_KN


def _min_max_slopes(spend: FloatArray, success: FloatArray) -> FloatArray:
    """Return the slopes for one block of rows, points first, origin at 0; shape (K, rows)."""
    points = spend.shape[0]
    slope = np.full((points - 1, spend.shape[1]), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        for j in range(points - 1):
            steepest = np.full(spend.shape[1], -np.inf)
            for k in range(points - 1, j, -1):
                # Two points in one place have no slope (0 / 0 is NaN, which fmax passes over).
                steepest = np.fmax(steepest, (success[k] - success[j]) / (spend[k] - spend[j]))
                np.minimum(slope[k - 1], steepest, out=slope[k - 1])
    return np.maximum(slope, 0.0)
