"""Tabulated: curves given as points on a grid of token counts.

Legend: N queries, K grid points.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.columns import (
    BoolArray,
    FloatArray,
    IntArray,
    PerQuery,
    query_column,
    refuse_first,
    token_limits,
)
from clear_ray.allocation.envelope import Steps, best_points, concave_steps, limited_points
from clear_ray.allocation.grid import cells_of, checked_grid, checked_table, entry_at, tokens_within
from clear_ray.allocation.utility import Demanded
from clear_ray.errors import UtilityError

_TOO_DEAR = 1e150  # no success is bought at this price, and times any spend it is still finite


class Tabulated:
    """Success and expected spend on a grid of token counts, from competing risks.

    Between grid points both columns are read as straight lines, before the first from (0, 0). Demand moves along the
    upper concave envelope of the points (spend, success), from vertex to vertex, so it is always a grid point, the
    floor or the ceiling. Nothing is known past the last grid point, so no query is granted more than that.

    Args:
        tokens_K: Strictly increasing whole numbers of tokens, >= 1, shared by all queries.
        success_NK: Chance that a correct answer has arrived by each grid point; 0 to 1, never falling.
        spend_NK: Expected generated tokens under a cap of each grid point; >= 0, never falling. Not given: the cap
            itself, so the budget is counted as caps.
        weight_N: Value of a correct answer, >= 0; 1 if not given.
        max_tokens_N: Ceiling in whole tokens; the last grid point if not given.
        min_tokens_N: Floor in whole tokens, owed whatever the price; 0 if not given.
        cost_per_token_N: Cost of a token in the unit of the budget, > 0; 1 if not given. Multiplies the spend.
        survival_NK: Chance that the query still runs at each grid point; only `continued` reads it. Not given: the
            slope of the spend, which is then taken to be in tokens.

    Raises:
        UtilityError: shapes that do not fit, or a value that is not finite, out of range, falling along the grid, or
            success before any spend; the first such query is named.

    Source: docs/method.md, section 2.3.
    """

    is_smooth: bool = False

    tokens_NK: IntArray
    success_NK: FloatArray
    spend_NK: FloatArray
    survival_NK: FloatArray | None
    weight_N: FloatArray
    max_tokens_N: FloatArray
    min_tokens_N: FloatArray
    cost_per_token_N: FloatArray
    is_spend_the_cap: bool

    def __init__(
        self,
        tokens_K: ArrayLike,
        success_NK: ArrayLike,
        spend_NK: ArrayLike | None = None,
        *,
        weight_N: ArrayLike | None = None,
        max_tokens_N: ArrayLike | None = None,
        min_tokens_N: ArrayLike | None = None,
        cost_per_token_N: ArrayLike | None = None,
        survival_NK: ArrayLike | None = None,
    ) -> None:
        grid = checked_grid(tokens_K)
        success = checked_table(success_NK, name="success_NK", grid_points=grid.shape[0], high=1.0)
        queries = success.shape[0]
        ceiling, floor = token_limits(max_tokens_N, min_tokens_N, queries=queries)
        ceiling = np.minimum(ceiling, grid[-1])
        refuse_first(floor > ceiling, floor, name="min_tokens_N", rule="at most the last grid point")
        weight = 1.0 if weight_N is None else weight_N
        cost = 1.0 if cost_per_token_N is None else cost_per_token_N
        self.__dict__.update(
            tokens_NK=np.broadcast_to(grid, success.shape),
            success_NK=success,
            spend_NK=_checked_spend(spend_NK, grid, success),
            survival_NK=_checked_survival(survival_NK, success),
            weight_N=query_column(weight, name="weight_N", queries=queries),
            max_tokens_N=ceiling,
            min_tokens_N=floor,
            cost_per_token_N=query_column(cost, name="cost_per_token_N", queries=queries, is_low_allowed=False),
            is_spend_the_cap=spend_NK is None,
        )

    @classmethod
    def of_points(
        cls,
        tokens_NK: IntArray,
        success_NK: FloatArray,
        *,
        weight_N: FloatArray,
        min_tokens_N: FloatArray | IntArray,
    ) -> Self:
        """Return curves over a grid of each query's own, such as what calls cost; budgets are counted as caps.

        Args:
            tokens_NK: Points of each query, whole, >= 0, never falling along K; the last is its ceiling.
            success_NK: Chance of a correct answer at each; 0 to 1, never falling, and 0 at 0.
            weight_N: Value of a correct answer, >= 0.
            min_tokens_N: Floor, at most the last point.
        """
        made, queries = object.__new__(cls), len(success_NK)
        made.__dict__.update(
            tokens_NK=tokens_NK,
            success_NK=success_NK,
            spend_NK=tokens_NK.astype(np.float64),
            survival_NK=None,
            weight_N=weight_N,
            max_tokens_N=tokens_NK[:, -1].astype(np.float64),
            min_tokens_N=min_tokens_N.astype(np.float64),
            cost_per_token_N=np.ones(queries),
            is_spend_the_cap=True,
        )
        return made

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Tabulated is immutable: {name} cannot be set")

    def __len__(self) -> int:
        return int(self.success_NK.shape[0])

    def __repr__(self) -> str:
        return f"Tabulated({len(self)} queries, {self.success_NK.shape[1]} grid points)"

    def utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the expected value at a cap of `tokens_N`, shape (N,)."""
        return self.weight_N * cells_of(self.tokens_NK, tokens_N).read(self.success_NK)

    def marginal_utility(self, tokens_N: PerQuery) -> FloatArray:
        """Return the value of one further token at `tokens_N`: the slope of the line to the next grid point."""
        return self.weight_N * cells_of(self.tokens_NK, tokens_N, is_from_right=True).slope(self.success_NK)

    def spend(self, tokens_N: PerQuery) -> FloatArray:
        """Return the expected spend under a cap of `tokens_N`, shape (N,)."""
        if self.is_spend_the_cap:
            return self.cost_per_token_N * np.minimum(tokens_N, self.tokens_NK[:, -1])
        return self.cost_per_token_N * cells_of(self.tokens_NK, tokens_N).read(self.spend_NK)

    def demand(self, price: PerQuery) -> FloatArray:
        """Return the cap that each query buys at `price` (a scalar, or one price a query), tokens, shape (N,)."""
        bought = self.steps.is_bought_KN(price).sum(axis=0)
        vertex = entry_at(self.tokens_NK, bought - 1)
        return np.minimum(np.maximum(vertex, self.min_tokens_N), self.max_tokens_N)

    def demanded_spend(self, price: PerQuery) -> FloatArray:
        """Return `spend(demand(price))`."""
        return self.steps.spend_at(self.steps.is_bought_KN(price))

    def demanded(self, price: PerQuery) -> Demanded:
        """Return spend and utility at `demand(price)`."""
        return Demanded(spend_N=self.demanded_spend(price), utility_N=self.utility(self.demand(price)))

    def demanded_off_grid(self, price: float) -> Demanded:
        """Return `demanded(price)` without the envelopes: the best point of each row, found by looking at all.

        On a breakpoint rounding would decide between two points; halfway between grid prices it cannot.
        """
        spend, success = self._points
        is_valued = self.weight_N > 0.0
        with np.errstate(over="ignore"):
            dear = price * self.cost_per_token_N / np.where(is_valued, self.weight_N, 1.0)
        success_price = np.where(is_valued, np.minimum(dear, _TOO_DEAR), _TOO_DEAR)
        chosen, surplus = best_points(spend, success, success_price)
        return Demanded(
            spend_N=chosen * self.cost_per_token_N, utility_N=(surplus + success_price * chosen) * self.weight_N
        )

    def surplus(self, price: PerQuery) -> FloatArray:
        """Return utility minus price x spend at demand; never below that of the floor alone, so 0 without floors."""
        tokens = self.demand(price)
        bought = self.utility(tokens) - price * self.spend(tokens)
        return np.maximum(bought, self.utility(self.min_tokens_N) - price * self.spend(self.min_tokens_N))

    @property
    def reservation_price(self) -> FloatArray:
        """The price above which a query buys nothing beyond its floor, on the price grid, shape (N,)."""
        return np.asarray(self.steps.price_KN[0], dtype=np.float64)

    @property
    def threshold_tokens_N(self) -> FloatArray:
        """The cap at which a query first buys: the first vertex of its envelope; the ceiling if it never buys."""
        return np.where(self.reservation_price > 0.0, self.demand(self.reservation_price), self.max_tokens_N)

    @property
    def breakpoints(self) -> FloatArray:
        """Every slope of every envelope, flat."""
        return self.steps.price_KN.ravel()

    def rows_indifferent_at(self, price: float) -> IntArray:
        """See `Utility`."""
        return np.flatnonzero((self.steps.price_KN == price).any(axis=0))

    def next_step_price(self, tokens_N: PerQuery) -> FloatArray:
        """Return the price of the step that begins at or around `tokens_N`; 0 beyond the last, shape (N,)."""
        tokens = np.broadcast_to(np.asarray(tokens_N, dtype=np.float64), (len(self),))
        passed = (self.tokens_NK <= tokens[:, None]).sum(axis=1)
        price = entry_at(self.steps.price_KN.T, np.minimum(passed, self.tokens_NK.shape[1] - 1))
        return np.where(tokens < self.max_tokens_N, price, 0.0)

    def affordable_tokens(self, spend_N: PerQuery) -> IntArray:
        """Return the largest whole cap within the ceiling whose expected spend is at most `spend_N`."""
        target = np.broadcast_to(np.asarray(spend_N, dtype=np.float64) / self.cost_per_token_N, (len(self),))
        tokens = np.floor(tokens_within(self.tokens_NK, self.spend_NK, target))
        tokens = np.minimum(tokens, self.max_tokens_N)
        tokens -= (self.spend(tokens) > spend_N) & (tokens > 0.0)  # the division may have rounded up
        return tokens.astype(np.int64)

    def tie_columns(self, rows: IntArray) -> Iterator[FloatArray]:
        """Yield the parameters of some rows, tables first."""
        for table in (self.success_NK, self.spend_NK, self.tokens_NK):
            for k in range(table.shape[1]):
                yield np.asarray(table[rows, k], dtype=np.float64)
        for column in (self.weight_N, self.max_tokens_N, self.min_tokens_N, self.cost_per_token_N):
            yield column[rows]

    def take(self, indices: IntArray | BoolArray | slice) -> Self:
        """Return the curves of some queries; a slice shares memory and what was already computed."""
        taken = object.__new__(type(self))
        for name, value in self.__dict__.items():
            taken.__dict__[name] = value[indices] if isinstance(value, np.ndarray) else value
        taken.__dict__.pop("_points", None)
        if "steps" in self.__dict__:
            taken.__dict__["steps"] = self.steps.take(indices)
        return taken

    def continued(self, start_tokens_N: PerQuery) -> Self:
        """Return the curves on further tokens, given that each query has run `start_tokens_N` and is unfinished.

        With d the start and S the survival, `P'(t) = (P(t + d) - P(d)) / S(d)` and `C'(t) = (C(t + d) - C(d)) / S(d)`.
        Grid, ceilings and floors move by d with them, so nothing is resampled; a query past the end of its grid has
        nothing left to buy. Rows with d = 0 are unchanged. Without a spend column the spend stays the cap, and S(d) is
        taken as 1 - P(d), the largest it can be.

        Args:
            start_tokens_N: Tokens already generated, >= 0, whole; a scalar or N.

        Raises:
            UtilityError: a start is negative or not finite.
        """
        start = query_column(start_tokens_N, name="start_tokens_N", queries=len(self))
        if not start.any():  # at the first clearing of a batch, when there is most to hold
            return self
        cells = cells_of(self.tokens_NK, start)
        survival = self._survival(start)
        is_running = (start < self.tokens_NK[:, -1]) & (survival > 0.0)
        scale = np.where(is_running, 1.0 / np.where(survival > 0.0, survival, 1.0), 0.0)[:, None]
        tokens = np.maximum(self.tokens_NK - start[:, None].astype(np.int64), 0)
        success = np.maximum(self.success_NK - cells.read(self.success_NK)[:, None], 0.0) * scale
        spend = np.maximum(self.spend_NK - cells.read(self.spend_NK)[:, None], 0.0) * scale
        ceiling = np.where(is_running, np.maximum(self.max_tokens_N - start, 0.0), 0.0)
        later = object.__new__(type(self))
        later.__dict__.update(
            {name: value for name, value in self.__dict__.items() if name not in ("steps", "_points")},
            tokens_NK=tokens,
            success_NK=np.minimum(success, 1.0),
            spend_NK=tokens.astype(np.float64) if self.is_spend_the_cap else spend,
            survival_NK=None if self.survival_NK is None else np.minimum(self.survival_NK * scale, 1.0),
            max_tokens_N=ceiling,
            min_tokens_N=np.minimum(np.maximum(self.min_tokens_N - start, 0.0), ceiling),
        )
        return later

    def _survival(self, start: FloatArray) -> FloatArray:
        """Return the chance that a query still runs after `start` tokens, shape (N,)."""
        if self.survival_NK is not None:
            return 1.0 - cells_of(self.tokens_NK, start).read(1.0 - self.survival_NK)
        if self.is_spend_the_cap:
            return 1.0 - cells_of(self.tokens_NK, start).read(self.success_NK)
        slope = cells_of(self.tokens_NK, start, is_from_right=True).slope(self.spend_NK)
        return np.where(start > 0.0, np.minimum(slope, 1.0), 1.0)

    @cached_property
    def _points(self) -> tuple[FloatArray, FloatArray]:
        """Spend and success of the points between floor and ceiling, shape (K + 1, N) each."""
        limits = self.min_tokens_N, self.max_tokens_N
        return limited_points(self.tokens_NK, self.spend_NK, *limits), limited_points(
            self.tokens_NK, self.success_NK, *limits
        )

    @cached_property
    def steps(self) -> Steps:
        """Their upper concave envelopes between floor and ceiling, computed once."""
        return concave_steps(
            self.tokens_NK,
            self.success_NK,
            self.spend_NK,
            weight_N=self.weight_N,
            cost_per_token_N=self.cost_per_token_N,
            min_tokens_N=self.min_tokens_N,
            max_tokens_N=self.max_tokens_N,
        )


def _checked_spend(spend_NK: ArrayLike | None, grid: IntArray, success: FloatArray) -> FloatArray:
    """Return the spend of each grid point, the cap itself where there is no column, or raise."""
    if spend_NK is None:
        return np.broadcast_to(grid.astype(np.float64), success.shape)
    spend = checked_table(spend_NK, name="spend_NK", grid_points=grid.shape[0])
    if spend.shape != success.shape:
        raise UtilityError("spend_NK must have the shape of success_NK", "spend_NK", str(spend.shape))
    refuse_first((spend <= 0.0) & (success > 0.0), spend, name="spend_NK", rule="positive where success is")
    return spend


def _checked_survival(survival_NK: ArrayLike | None, success: FloatArray) -> FloatArray | None:
    """Return the survival at each grid point, or raise; None where there is no column."""
    if survival_NK is None:
        return None
    ended = 1.0 - np.asarray(survival_NK, dtype=np.float64)
    ended = checked_table(ended, name="1 - survival_NK", grid_points=success.shape[1], high=1.0)
    if ended.shape != success.shape:
        raise UtilityError("survival_NK must have the shape of success_NK", "survival_NK", str(ended.shape))
    return np.asarray(1.0 - ended)
