"""What ShiftedSurge and ShiftedErlang share: nothing before a threshold, one surge after it, then saturation.

Legend: N queries.

Everything is computed in the query's own unit of length, y = beta * (b - tau): utility is `height * rise(y)`, its
derivative `height * beta * slope(y)`. A family gives `rise`, `slope`, the inverse of `slope` on its falling part, and
`tangent`: the y at which the straight line from the query's floor touches the curve. The slope of that line is the
reservation price, because above it no point of the curve lies over the line through the floor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import (
    ROWS_AT_ONCE,
    BoolArray,
    FloatArray,
    IntArray,
    PerQuery,
    query_column,
    token_limits,
)
from clear_ray.allocation.price_grid import round_price_down
from clear_ray.allocation.utility import Demanded


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
        return np.asarray(self._height_N * self._rise(np.minimum(np.maximum(self._length(tokens_N), 0.0), self._TOP)))

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
        entry = self._entry
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            y = self._slope_inverse(price * entry.price_scale_N)
        y = np.minimum(np.maximum(y, entry.length_N), entry.top_length_N)
        tokens = self.threshold_tokens_N + np.where(np.greater(price, 0.0), y, entry.top_length_N) / self.beta_N
        tokens = np.minimum(np.maximum(tokens, self.min_tokens_N), self.max_tokens_N)
        is_bought = (entry.price_N >= price) & (entry.price_N > 0.0)
        return np.where(is_bought, tokens, self.min_tokens_N)

    def demanded_spend(self, price: PerQuery) -> FloatArray:
        """Return `spend(demand(price))`."""
        return self.spend(self.demand(price))

    def demanded(self, price: PerQuery) -> Demanded:
        """Return spend and utility at `demand(price)`."""
        tokens = self.demand(price)
        return Demanded(spend_N=self.spend(tokens), utility_N=self.utility(tokens))

    def demanded_off_grid(self, price: float) -> Demanded:
        """Return `demanded(price)`."""
        return self.demanded(price)

    def surplus(self, price: PerQuery) -> FloatArray:
        """Return utility minus price x spend at demand; never below that of the floor alone, so 0 without floors."""
        tokens = self.demand(price)
        bought = self.utility(tokens) - price * self.spend(tokens)
        return np.maximum(bought, self.utility(self.min_tokens_N) - price * self.spend(self.min_tokens_N))

    @property
    def reservation_price(self) -> FloatArray:
        """The price above which a query buys nothing beyond its floor, on the price grid, shape (N,)."""
        return self._entry.price_N

    @property
    def breakpoints(self) -> FloatArray:
        """The reservation prices: demand leaps nowhere else."""
        return self.reservation_price

    def rows_indifferent_at(self, price: float) -> IntArray:
        """See `Utility`."""
        return np.flatnonzero(self.reservation_price == price)

    def next_step_price(self, tokens_N: PerQuery) -> FloatArray:
        """Return the reservation price of queries that hold no more than their floor; 0 for the others."""
        return np.where(np.asarray(tokens_N) <= self.min_tokens_N, self.reservation_price, 0.0)

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
        taken.__dict__.update({name: getattr(self, name)[indices] for name in self._COLUMNS})
        if "_entry" in self.__dict__:
            taken.__dict__["_entry"] = self._entry.take(indices)
        return taken

    def _length(self, tokens_N: PerQuery) -> FloatArray:
        return np.asarray((np.asarray(tokens_N, dtype=np.float64) - self.threshold_tokens_N) * self.beta_N)

    @cached_property
    def _entry(self) -> _Entry:
        """How each query enters; computed once, block by block so that intermediate results stay in the cache."""
        entry = _Entry(*(np.empty(len(self)) for _ in range(4)))
        for first in range(0, len(self), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            self.take(rows)._compute_entry(entry.take(rows))
        return entry

    def _compute_entry(self, entry: _Entry) -> None:
        """Fill `entry` for these queries. A query enters where the line touches, or at its ceiling if that is nearer."""
        steepness = self._height_N * self.beta_N
        start = self._length(self.min_tokens_N)
        top = np.minimum(self._length(self.max_tokens_N), self._TOP)
        end = np.maximum(np.minimum(self._tangent(start), top), start)
        on_curve = np.minimum(np.maximum(start, 0.0), self._TOP)
        run = end - start
        is_line = run > 0.0
        line = (self._rise(np.maximum(end, 0.0)) - self._rise(on_curve)) / np.where(is_line, run, 1.0)
        slope = np.where(is_line, line, self._slope(on_curve))
        is_useful = (top > on_curve) & (steepness > 0.0)
        with np.errstate(divide="ignore", over="ignore"):  # a flat curve: infinitely dear
            np.divide(self.cost_per_token_N, steepness, out=entry.price_scale_N)
        price = np.where(is_useful, slope * steepness / self.cost_per_token_N, 0.0)
        entry.price_N[:] = round_price_down(np.maximum(price, 0.0))
        entry.length_N[:], entry.top_length_N[:] = end, top


@dataclass(frozen=True, eq=False)
class _Entry:
    """Where and at what price queries enter.

    Attributes:
        length_N: y of the cap at which a query is first funded.
        top_length_N: y of the largest cap it ever wants.
        price_N: Reservation price, on the price grid.
        price_scale_N: What turns a price into a value of `slope`.
    """

    length_N: FloatArray
    top_length_N: FloatArray
    price_N: FloatArray
    price_scale_N: FloatArray

    def take(self, indices: IntArray | BoolArray | slice) -> _Entry:
        return _Entry(
            self.length_N[indices], self.top_length_N[indices], self.price_N[indices], self.price_scale_N[indices]
        )
