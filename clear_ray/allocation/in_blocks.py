"""Tabulated curves of very many queries, made a block at a time wherever they are looked at.

What is kept of a query is its envelope: the vertices that it may buy, ten to twenty bytes each, for a few kilobytes of
tables. A block's tables come from a function, last as long as the block is looked at, and answer what the envelope does not.
Every number is the one that `Tabulated` of all queries at once would have.

Legend: N queries, K grid points, V vertices of all envelopes together, M rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation.columns import BoolArray, FloatArray, IntArray, PerQuery
from clear_ray.allocation.price_grid import SMALLEST_PRICE, next_price
from clear_ray.allocation.tabulated import Tabulated
from clear_ray.allocation.utility import Demanded

ROWS_OF_BLOCK = 1 << 12
"""Rows whose tables are held at once; as many are no block but `Tabulated` themselves."""
_COLUMNS_AT_ONCE = 8

MakesCurves = Callable[[IntArray], Tabulated]
"""Makes the curves of some queries, by their places; the same each time."""


def curves_of(make: MakesCurves, queries: int) -> Tabulated | TabulatedInBlocks:
    """Return the curves of N queries: at once if they are few, else a block at a time."""
    places = np.arange(queries)
    return make(places) if queries <= ROWS_OF_BLOCK else TabulatedInBlocks.made_by(make, places)


def blocks_of(places: IntArray) -> Iterator[IntArray]:
    """Yield some places a block at a time."""
    for some in block_slices(len(places)):
        yield places[some]


@dataclass(frozen=True, eq=False)
class _Vertices:
    """The vertices of all envelopes, query after query.

    Attributes:
        price_V: Price of the step that ends there, on the price grid, above 0, falling within a query.
        spend_V: Expected spend from the floor up to there; None where the budget is counted as caps, which say it.
        tokens_V: Tokens there; the floor and the ceiling of the query still apply.
    """

    price_V: FloatArray
    spend_V: FloatArray | None
    tokens_V: IntArray


@dataclass(frozen=True, eq=False)
class _Rows:
    """What is kept of each of M queries.

    Attributes:
        place_M: Its place, for the function that makes its curve.
        first_M: Its first vertex.
        vertices_M: How many it has.
        floor_spend_M: Expected spend of its floor.
        floor_M: Its floor, tokens.
        ceiling_M: Its ceiling, tokens.
        end_M: The last point of its grid, tokens.
        cost_M: Cost of a token.
    """

    place_M: IntArray
    first_M: IntArray
    vertices_M: IntArray
    floor_spend_M: FloatArray
    floor_M: FloatArray
    ceiling_M: FloatArray
    end_M: FloatArray
    cost_M: FloatArray

    def take(self, indices: IntArray | BoolArray | slice) -> _Rows:
        return _Rows(*(column[indices] for column in vars(self).values()))


class TabulatedInBlocks:
    """See `Tabulated`: the same answers, of queries of which there are too many to hold their tables; see `curves_of`.

    Args:
        make: Makes curves of some of them; all count their budget as caps, or none.
        rows: Which queries these are.
        vertices: Of these and perhaps of others.
        is_spend_the_cap: Whether the budget is counted as caps.
    """

    is_smooth: bool = False

    _make: MakesCurves
    _rows: _Rows
    _vertices: _Vertices
    is_spend_the_cap: bool

    def __init__(self, make: MakesCurves, rows: _Rows, vertices: _Vertices, *, is_spend_the_cap: bool) -> None:
        self.__dict__.update(_make=make, _rows=rows, _vertices=vertices, is_spend_the_cap=is_spend_the_cap)

    @classmethod
    def made_by(cls, make: MakesCurves, places: IntArray) -> TabulatedInBlocks:
        """Return the curves of the queries at some places, at least one, after looking at each once."""
        rows: list[_Rows] = []
        vertices, is_cap = _Growing.of(0, has_spend=False), False
        for some in block_slices(len(places)):
            curves = make(places[some])
            is_cap = curves.is_spend_the_cap
            if not rows:
                vertices = _Growing.of(len(places) * curves.success_NK.shape[1], has_spend=not is_cap)
            rows.append(_take_envelopes(curves, places[some], vertices))
        joined = {name: np.concatenate([getattr(part, name) for part in rows]) for name in vars(rows[0])}
        return cls(make, _Rows(**joined), vertices.whole(), is_spend_the_cap=is_cap)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"TabulatedInBlocks is immutable: {name} cannot be set")

    def __len__(self) -> int:
        return len(self._rows.place_M)

    def __repr__(self) -> str:
        return f"TabulatedInBlocks({len(self)} queries)"

    @property
    def max_tokens_N(self) -> FloatArray:
        """See `Utility`."""
        return self._rows.ceiling_M

    @property
    def min_tokens_N(self) -> FloatArray:
        """See `Utility`."""
        return self._rows.floor_M

    @property
    def weight_N(self) -> FloatArray:
        """See `Utility`."""
        return self._each(lambda curves, _: curves.weight_N)

    @property
    def cost_per_token_N(self) -> FloatArray:
        """See `Utility`."""
        return self._rows.cost_M

    def utility(self, tokens_N: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        return self._each(lambda curves, tokens: curves.utility(tokens), tokens_N)

    def marginal_utility(self, tokens_N: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        return self._each(lambda curves, tokens: curves.marginal_utility(tokens), tokens_N)

    def spend(self, tokens_N: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        if self.is_spend_the_cap:
            return self._rows.cost_M * np.minimum(tokens_N, self._rows.end_M)
        return self._each(lambda curves, tokens: curves.spend(tokens), tokens_N)

    def demand(self, price: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        vertex = self._at_last_bought(self._vertices.tokens_V, price)
        return np.minimum(np.maximum(vertex, self.min_tokens_N), self.max_tokens_N)

    def demanded_spend(self, price: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        if self._vertices.spend_V is None:
            return self.spend(self.demand(price))
        return self._rows.floor_spend_M + self._at_last_bought(self._vertices.spend_V, price)

    def demanded(self, price: PerQuery) -> Demanded:
        """See `Tabulated`."""
        return Demanded(spend_N=self.demanded_spend(price), utility_N=self.utility(self.demand(price)))

    def demanded_off_grid(self, price: float) -> Demanded:
        """See `Tabulated`."""
        parts = [self._make(self._rows.place_M[some]).demanded_off_grid(price) for some in block_slices(len(self))]
        return Demanded(
            spend_N=np.concatenate([np.zeros(0), *(part.spend_N for part in parts)]),
            utility_N=np.concatenate([np.zeros(0), *(part.utility_N for part in parts)]),
        )

    def surplus(self, price: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        return self._each(lambda curves, at: curves.surplus(at), price)

    @property
    def reservation_price(self) -> FloatArray:
        """See `Tabulated`."""
        return self._entry_at(self._vertices.price_V, np.zeros(len(self), np.int64))

    @property
    def threshold_tokens_N(self) -> FloatArray:
        """See `Tabulated`."""
        price = self.reservation_price
        return np.where(price > 0.0, self.demand(price), self.max_tokens_N)

    @property
    def breakpoints(self) -> FloatArray:
        """Every slope of every envelope, each once."""
        found = [np.zeros(0)]
        for some in block_slices(len(self)):
            first, vertices = self._rows.first_M[some], self._rows.vertices_M[some]
            into_row = np.arange(vertices.sum()) - np.repeat(np.cumsum(vertices) - vertices, vertices)
            found.append(np.unique(self._vertices.price_V[np.repeat(first, vertices) + into_row]))
        return np.unique(np.concatenate(found))

    def rows_indifferent_at(self, price: float) -> IntArray:
        """See `Utility`."""
        return np.flatnonzero(self._bought(price) > self._bought(next_price(price)))

    def next_step_price(self, tokens_N: PerQuery) -> FloatArray:
        """See `Tabulated`."""
        tokens = np.broadcast_to(np.asarray(tokens_N, dtype=np.float64), (len(self),))
        passed = self._leading(lambda vertex, rows: self._vertices.tokens_V[vertex] <= tokens[rows])
        return np.where(tokens < self.max_tokens_N, self._entry_at(self._vertices.price_V, passed), 0.0)

    def affordable_tokens(self, spend_N: PerQuery) -> IntArray:
        """See `Tabulated`."""
        return self._each(lambda curves, spend: curves.affordable_tokens(spend), spend_N).astype(np.int64)

    def tie_columns(self, rows: IntArray) -> Iterator[FloatArray]:
        """Yield those parameters of some rows that are not the same in all of them, tables first."""
        places = self._rows.place_M[rows]
        if not len(places):
            return
        like = np.array([column[0] for column in self._columns_of(places[:1])])
        differs = np.zeros(len(like), np.bool_)
        for some in block_slices(len(places)):
            columns = self._columns_of(places[some])
            differs |= [bool((column != one).any()) for column, one in zip(columns, like, strict=True)]
        wanted = np.flatnonzero(differs)
        for first in range(0, len(wanted), _COLUMNS_AT_ONCE):
            chosen = wanted[first : first + _COLUMNS_AT_ONCE]
            found = np.empty((len(chosen), len(places)))
            for some in block_slices(len(places)):
                columns = self._columns_of(places[some])
                found[:, some] = [columns[number] for number in chosen]
            yield from found

    def take(self, indices: IntArray | BoolArray | slice) -> Tabulated | TabulatedInBlocks:
        """Return the curves of some queries: as tables if they are few."""
        rows = self._rows.take(indices)
        if len(rows.place_M) <= ROWS_OF_BLOCK and not isinstance(indices, slice):
            return self._make(rows.place_M)
        return TabulatedInBlocks(self._make, rows, self._vertices, is_spend_the_cap=self.is_spend_the_cap)

    def _columns_of(self, places: IntArray) -> list[FloatArray]:
        return list(self._make(places).tie_columns(np.arange(len(places))))

    def _each(self, asked: Callable[[Tabulated, PerQuery], FloatArray | IntArray], of_N: PerQuery = 0.0) -> FloatArray:
        """Return what the tables of each block answer to one number for all queries, or to N."""
        given, found = np.asarray(of_N), np.empty(len(self))
        for some in block_slices(len(self)):
            curves = self._make(self._rows.place_M[some])
            found[some] = asked(curves, given[some] if given.ndim else float(given))
        return found

    def _bought(self, price: PerQuery) -> IntArray:
        """Return how many vertices each query buys up to at a price, shape (N,)."""
        least = np.broadcast_to(np.maximum(price, SMALLEST_PRICE), (len(self),))
        return self._leading(lambda vertex, rows: self._vertices.price_V[vertex] >= least[rows])

    def _leading(self, holds: Callable[[IntArray, IntArray], BoolArray]) -> IntArray:
        """Return how many of its first vertices something holds for, of each query; it holds for none after one it fails.

        Args:
            holds: Tells it of one vertex each of some rows.
        """
        low, high = np.zeros(len(self), np.int64), self._rows.vertices_M.astype(np.int64)
        rows = np.flatnonzero(low < high)
        while len(rows):
            middle = (low[rows] + high[rows]) // 2
            is_past = holds(self._rows.first_M[rows] + middle, rows)
            low[rows[is_past]] = middle[is_past] + 1
            high[rows[~is_past]] = middle[~is_past]
            rows = rows[low[rows] < high[rows]]
        return low

    def _at_last_bought(self, column_V: FloatArray | IntArray, price: PerQuery) -> FloatArray:
        return self._entry_at(column_V, self._bought(price) - 1)

    def _entry_at(self, column_V: FloatArray | IntArray, number_N: IntArray) -> FloatArray:
        """Return a column at one vertex of each query; 0 where it has no such vertex, shape (N,)."""
        found = np.zeros(len(self))
        rows = np.flatnonzero((number_N >= 0) & (number_N < self._rows.vertices_M))
        found[rows] = column_V[self._rows.first_M[rows] + number_N[rows]]
        return found


@dataclass(slots=True, eq=False)
class _Growing:
    """Vertices as block after block adds its own, in place: memory that was not written to yet is none."""

    price_V: FloatArray
    spend_V: FloatArray | None
    tokens_V: IntArray
    count: int = 0

    @staticmethod
    def of(most: int, *, has_spend: bool) -> _Growing:
        """Return room for so many."""
        return _Growing(np.empty(most), np.empty(most) if has_spend else None, np.empty(most, np.int16))

    def add(self, price_V: FloatArray, spend_V: FloatArray, tokens_V: IntArray) -> None:
        """Add some."""
        here = slice(self.count, self.count + len(price_V))
        while len(tokens_V) and tokens_V.max() > np.iinfo(self.tokens_V.dtype).max:
            wider: NDArray[Any] = np.empty(len(self.tokens_V), np.int32 if self.tokens_V.itemsize == 2 else np.int64)
            wider[: self.count] = self.tokens_V[: self.count]
            self.tokens_V = wider
        self.price_V[here], self.tokens_V[here] = price_V, tokens_V
        if self.spend_V is not None:
            self.spend_V[here] = spend_V
        self.count = here.stop

    def whole(self) -> _Vertices:
        """Return all of them."""
        spend_V = None if self.spend_V is None else self.spend_V[: self.count]
        return _Vertices(self.price_V[: self.count], spend_V, self.tokens_V[: self.count])


def _take_envelopes(curves: Tabulated, places: IntArray, into: _Growing) -> _Rows:
    """Add the vertices of a block's curves to those before, and return what else is kept of them."""
    price_MK, steps = curves.steps.price_KN.T, curves.steps
    is_last_MK = np.concatenate([price_MK[:, 1:] < price_MK[:, :-1], np.ones((len(places), 1), np.bool_)], axis=1)
    is_vertex_MK = (price_MK > 0.0) & is_last_MK
    vertices_M = is_vertex_MK.sum(axis=1)
    rows = _Rows(
        place_M=places,
        first_M=into.count + np.cumsum(vertices_M) - vertices_M,
        vertices_M=vertices_M.astype(np.int16),
        floor_spend_M=steps.floor_spend_N,
        floor_M=np.array(curves.min_tokens_N),
        ceiling_M=np.array(curves.max_tokens_N),
        end_M=curves.tokens_NK[:, -1].astype(np.float64),
        cost_M=np.array(curves.cost_per_token_N),
    )
    spend_MK = np.cumsum(steps.spend_KN, axis=0).T
    into.add(price_MK[is_vertex_MK], spend_MK[is_vertex_MK], curves.tokens_NK[is_vertex_MK])
    return rows


def block_slices(queries: int) -> Iterator[slice]:
    """Yield the blocks of so many queries."""
    for first in range(0, queries, ROWS_OF_BLOCK):
        yield slice(first, min(first + ROWS_OF_BLOCK, queries))
