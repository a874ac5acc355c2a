"""ShiftedSurge: the paper's utility curve.

Legend: N queries.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import FloatArray, query_column
from clear_ray.allocation.lambert import lambert_w0_of_e_times
from clear_ray.allocation.threshold_curve import ThresholdCurve


class ShiftedSurge(ThresholdCurve):
    """Utility `alpha * x * exp(-beta * x)` with x = tokens - threshold > 0, up to its peak at x = 1 / beta.

    Past the peak the formula falls, but a cap is a permission and not an order: utility stays at its peak value and
    nothing more is bought.

    Demand at price p is `threshold + (1 - W0(e * p / alpha)) / beta`. The reservation price is `alpha * w * exp(w - 1)`
    with `w = 2 / (k + sqrt(k**2 - 4))`, `k = 2 + beta * threshold` (for weight, cost and floor of 1, 1 and 0).

    Args:
        threshold_tokens_N: Emergence threshold of each query, tokens, >= 0.
        alpha: Utility per token at the start of the surge; a scalar or N, >= 0.
        beta: Decay per token; a scalar or N, > 0.
        weight_N: Value of a correct answer, >= 0; 1 if not given.
        max_tokens_N: Ceiling in whole tokens; none if not given.
        min_tokens_N: Floor in whole tokens, owed whatever the price; 0 if not given.
        cost_per_token_N: Cost of a token in the unit of the budget, > 0; 1 if not given.

    Raises:
        UtilityError: a value is not finite or out of range; the first such query is named.

    Source: docs/method.md, section 2.1 (arXiv 2606.03092; demand and reservation price derived there).
    """

    _TOP: ClassVar[float] = 1.0
    _COLUMNS: ClassVar[tuple[str, ...]] = (*ThresholdCurve._COLUMNS, "alpha_N")

    alpha_N: FloatArray

    def __init__(
        self,
        threshold_tokens_N: ArrayLike,
        alpha: ArrayLike = 1.5,
        beta: ArrayLike = 0.005,
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
        self.__dict__.update(alpha_N=query_column(alpha, name="alpha", queries=len(self)))

    @property
    def _height_N(self) -> FloatArray:
        return self.weight_N * self.alpha_N / self.beta_N

    @staticmethod
    def _rise(y: FloatArray) -> FloatArray:
        return y * np.exp(-y)

    @staticmethod
    def _slope(y: FloatArray) -> FloatArray:
        return (1.0 - y) * np.exp(-y)

    @staticmethod
    def _slope_inverse(q: FloatArray) -> FloatArray:
        # (1 - y) exp(-y) = q  <=>  w exp(w) = e q with w = 1 - y
        return 1.0 - lambert_w0_of_e_times(np.minimum(np.maximum(q, 1e-300), 1.0))

    @staticmethod
    def _tangent(start: FloatArray) -> FloatArray:
        # The root of y**2 = k (1 - y) for k = -start, written so that it is exact for small and for large k.
        k = np.maximum(-start, 0.0)
        return np.where(start < 0.0, 2.0 * k / (k + np.sqrt(k * (k + 4.0)) + (start >= 0.0)), np.minimum(start, 1.0))
