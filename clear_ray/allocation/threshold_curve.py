"""What ShiftedSurge and ShiftedErlang share: nothing before a threshold, one surge after it, then saturation.

Legend: N queries.

Everything is computed in the query's own unit of length, y = beta * (b - tau): utility is `height * rise(y)`, its
derivative `height * beta * slope(y)`. A family gives `rise`, `slope`, the inverse of `slope` on its falling part, and
`tangent`: the y at which the straight line from the query's floor touches the curve. The slope of that line is the
reservation price, because above it no point of the curve lies over the line through the floor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, PerQuery, query_column, token_limits
from clear_ray.allocation.price_grid import round_price_down


class ThresholdCurve(ABC):
    """N curves with a threshold, a rate and a height each. Immutable; see the families for the formulas.

    Degenerate parameters: a query with zero height or weight, or with a ceiling at or below its threshold, has
    reservation price 0 and never buys more than its floor. A threshold of 0 is an ordinary value. A floor beyond the
    threshold moves the start of the curve: what is bought at a price is the part beyond the floor.

    Attributes:
        threshold_tokens_N: tau, tokens.
        beta_N: Rate, per token.
        weight_N: Value of a correct answer.
        max_tokens_N: Ceiling, tokens; infinity where there is none.
        min_tokens_N: Floor, tokens.
        cost_per_token_N: Unit of the budget per token; 1 where it is tokens.
    """

    is_smooth: bool = True
    _TOP: ClassVar[float]  # y from which more tokens bring nothing
    _COLUMNS: ClassVar[tuple[str, ...]] = (
        "threshold_tokens_N",
        "beta_N",
        "weight_N",
        "max_tokens_N",
        "min_tokens_N",
        "cost_per_token_N",
    )

    threshold_tokens_N: FloatArray
    beta_N: FloatArray
    weight_N: FloatArray
    max_tokens_N: FloatArray
    min_tokens_N: FloatArray
    cost_per_token_N: FloatArray

    def __init__(
        self,
        threshold_tokens_N: ArrayLike,
        beta: ArrayLike,
        *,
        weight_N: ArrayLike | None,
        max_tokens_N: ArrayLike | None,
        min_tokens_N: ArrayLike | None,
        cost_per_token_N: ArrayLike | None,
    ) -> None:
        queries = np.atleast_1d(np.asarray(threshold_tokens_N)).shape[0]
        threshold = np.atleast_1d(np.asarray(threshold_tokens_N, dtype=np.float64))
        weight = 1.0 if weight_N is None else weight_N
        cost = 1.0 if cost_per_token_N is None else cost_per_token_N
        ceiling, floor = token_limits(max_tokens_N, min_tokens_N, queries=queries)
        self.__dict__.update(
            threshold_tokens_N=query_column(threshold, name="threshold_tokens_N", queries=queries),
            beta_N=query_column(beta, name="beta", queries=queries, is_low_allowed=False),
            weight_N=query_column(weight, name="weight_N", queries=queries),
            max_tokens_N=ceiling,
            min_tokens_N=floor,
            cost_per_token_N=query_column(cost, name="cost_per_token_N", queries=queries, is_low_allowed=False),
        )

    @property
    @abstractmethod
    def _height_N(self) -> FloatArray:
        """Utility per unit of `rise`, weight included."""

    @staticmethod
    @abstractmethod
    def _rise(y: FloatArray) -> FloatArray:
        """Return the shape of the curve at y >= 0; 0 at 0."""

    @staticmethod
    @abstractmethod
    def _slope(y: FloatArray) -> FloatArray:
        """Return the derivative of `_rise`."""

    @staticmethod
    @abstractmethod
    def _slope_inverse(q: FloatArray) -> FloatArray:
        """Return the y on the falling part of `_slope` where it equals q > 0; any value if it never does."""

    @staticmethod
    @abstractmethod
    def _tangent(start: FloatArray) -> FloatArray:
        """Return where the line from the point at y = `start` touches the curve; `start` itself if concave there.

        A negative start lies on the flat part before the threshold.
        """

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be set")

    def __len__(self) -> int:
        return int(self.threshold_tokens_N.shape[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} queries)"

    def utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the expected value at a cap of `tokens_N`; it stays at its top once that is reached."""
        return np.asarray(self._height_N * self._rise(np.clip(self._length(tokens_N), 0.0, self._TOP)))

    def marginal_utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the value of one further token at `tokens_N` (derivative from the right), shape (N,)."""
        y = self._length(tokens_N)
        slope = self._slope(np.clip(y, 0.0, self._TOP))
        return np.where((y >= 0.0) & (y < self._TOP), self._height_N * self.beta_N * slope, 0.0)

    def spend(self, tokens_N: PerQuery) -> FloatArray:
        """Return tokens x cost per token: these families count caps, not expected lengths."""
        return np.asarray(np.asarray(tokens_N, dtype=np.float64) * self.cost_per_token_N)

    def demand(self, price: PerQuery) -> FloatArray:
        """Return the cap that each query buys at `price` (a scalar, or one price a query), tokens, shape (N,).

        A query buys if its reservation price is at least `price`; otherwise it holds its floor.
        """
        price_N = np.asarray(price, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            y = self._slope_inverse(price_N * self._price_scale_N)
        y = np.where(price_N > 0.0, np.clip(y, self._entry_length_N, self._top_length_N), self._top_length_N)
        is_bought = (self.reservation_price >= price_N) & (self.reservation_price > 0.0)
        tokens = self.threshold_tokens_N + y / self.beta_N
        return np.where(is_bought, np.clip(tokens, self.min_tokens_N, self.max_tokens_N), self.min_tokens_N)

    def demanded_spend(self, price: PerQuery) -> FloatArray:
        """Return `spend(demand(price))`."""
        return self.spend(self.demand(price))

    def surplus(self, price: PerQuery) -> FloatArray:
        """Return utility minus price x spend at demand; never below that of the floor alone, so 0 without floors."""
        tokens = self.demand(price)
        bought = self.utility(tokens) - price * self.spend(tokens)
        return np.maximum(bought, self.utility(self.min_tokens_N) - price * self.spend(self.min_tokens_N))

    @cached_property
    def reservation_price(self) -> FloatArray:
        """The price above which a query buys nothing beyond its floor, on the price grid, shape (N,)."""
        start, end = self._start_length_N, self._entry_length_N
        run = end - start
        is_line = run > 0.0
        climb = self._rise(np.maximum(end, 0.0)) - self._rise(np.clip(start, 0.0, self._TOP))
        steepness = np.where(is_line, climb / np.where(is_line, run, 1.0), self._slope(np.clip(start, 0.0, self._TOP)))
        is_useful = (self._top_length_N > np.maximum(start, 0.0)) & (self._height_N > 0.0)
        price = np.where(is_useful, steepness * self._height_N * self.beta_N / self.cost_per_token_N, 0.0)
        return round_price_down(np.maximum(price, 0.0))

    @property
    def breakpoints(self) -> FloatArray:
        """The reservation prices: demand leaps nowhere else."""
        return self.reservation_price

    def next_step(self, tokens_N: PerQuery) -> tuple[FloatArray, FloatArray]:
        """Return reservation price and entry cap of queries at their floor; price 0 for the funded."""
        is_waiting = np.asarray(tokens_N, dtype=np.float64) <= self.min_tokens_N
        entry = self.threshold_tokens_N + self._entry_length_N / self.beta_N
        price = np.where(is_waiting, self.reservation_price, 0.0)
        return price, np.clip(entry, self.min_tokens_N, self.max_tokens_N)

    def affordable_tokens(self, spend_N: PerQuery) -> IntArray:
        """Return the largest whole cap within the ceiling whose spend is at most `spend_N`."""
        tokens = np.floor(np.minimum(np.asarray(spend_N, dtype=np.float64) / self.cost_per_token_N, self.max_tokens_N))
        return np.asarray(np.clip(tokens, 0.0, 2.0**53), dtype=np.int64)

    def tie_columns(self, rows: IntArray) -> list[FloatArray]:
        """Return the parameters of some rows, threshold first."""
        return [getattr(self, name)[rows] for name in self._COLUMNS]

    def take(self, indices: IntArray | BoolArray | slice) -> Self:
        """Return the curves of some queries; a slice shares memory and what was already computed."""
        taken = object.__new__(type(self))
        names = (*self._COLUMNS, "reservation_price", "_entry_length_N", "_top_length_N", "_price_scale_N")
        taken.__dict__.update({name: self.__dict__[name][indices] for name in names if name in self.__dict__})
        return taken

    def _length(self, tokens_N: PerQuery) -> FloatArray:
        return (np.asarray(tokens_N, dtype=np.float64) - self.threshold_tokens_N) * self.beta_N

    @property
    def _start_length_N(self) -> FloatArray:
        return self._length(self.min_tokens_N)

    @cached_property
    def _price_scale_N(self) -> FloatArray:
        with np.errstate(divide="ignore", over="ignore"):  # no height: infinitely dear
            return self.cost_per_token_N / (self._height_N * self.beta_N)

    @cached_property
    def _top_length_N(self) -> FloatArray:
        return np.minimum(self._length(self.max_tokens_N), self._TOP)

    @cached_property
    def _entry_length_N(self) -> FloatArray:
        """The y at which a query enters: where the line touches, or its ceiling if that comes first."""
        start = self._start_length_N
        return np.maximum(np.minimum(self._tangent(start), self._top_length_N), start)
