"""`rounds.clearing.clear` where the curves stay in their files: the driver sees sketches, then whole numbers of tokens.

Blocks of `estimates/` are priced where they are read, through demand sketches (docs/method.md, section 3, Scale). What comes
to the driver is a few numbers for each query that is granted tokens; what goes out is where every query stands.

Shapes: N queries of the batch, M of them granted, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset

from clear_ray.allocation import SketchPrice
from clear_ray.batch.dataset_price import BLOCK_ROWS, BlockCurves, price_rows
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.hazards import Incidence
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, dispatch_order, nothing_to_grant
from clear_ray.rounds.menu import Axis, Option, axis_of, reservation_prices
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder.estimates import read_batch

_GRANTS = pa.schema(
    [("index", pa.int64()), ("tokens", pa.int64())] + [(name, pa.float64()) for name in ("expected_tokens", "utility")]
)


class ReadsBeliefs(Protocol):
    """Reads what is believed of the queries of a block where the block is; it travels there, and gives the same each time."""

    def __call__(self, block: pa.Table) -> Batch:
        """Return the queries of the rows, which have a column `index`, in their order."""


def clear_rows(
    rows: Dataset,
    believed: ReadsBeliefs,
    states: QueryStates,
    *,
    is_free_N: NDArray[np.bool_],
    available_tokens: int,
    calls: CallCosts | None = None,
) -> Clearing:
    """Price `available_tokens` over the open queries and grant them, in three passes over the rows.

    Args:
        rows: A row a query, from files.
        believed: What is believed of a block of them.
        states: Where every query stands.
        is_free_N: Queries that may be granted tokens, shape (N,).
        available_tokens: What may be granted.
        calls: What calls take in all, where prompts are paid for.

    Returns:
        The clearing, as from `rounds.clearing.clear` with ceilings as the cost; the price is the sketch's.
    """
    queries = len(is_free_N)
    if available_tokens < 1 or not is_free_N.any():
        return nothing_to_grant(queries)
    curves_of = _OpenCurves(believed, ray.put((states.answer_tokens_N, is_free_N)), available_tokens)
    price = price_rows(rows, curves_of, budget_tokens=available_tokens)
    blocks: list[pa.Table] = ray.get(
        rows.map_batches(_Grant(curves_of, price), batch_size=BLOCK_ROWS, batch_format="pyarrow").to_arrow_refs()
    )
    granted = pa.concat_tables([_GRANTS.empty_table(), *(block for block in blocks if len(block))]).sort_by("index")
    index_M, tokens_M, expected_M, utility_M = (granted[name].to_numpy() for name in _GRANTS.names)
    parts_M = None if calls is None else calls.taken_parts(index_M, tokens_M, states.answer_tokens_N[index_M])
    taken_M = tokens_M * states.cost_N[index_M] if parts_M is None else parts_M / COST_PARTS
    order = dispatch_order(tokens_M, taken_M, utility_M, available_tokens=available_tokens)
    worth = float(utility_M.sum())
    return Clearing(
        index_M=index_M[order],
        tokens_M=tokens_M[order],
        expected_tokens_M=expected_M[order],
        expected_utility_M=utility_M[order],
        surplus_N=np.zeros(0),
        shadow_price=float(price.shadow_price),
        dual_bound=float(price.dual_bound),
        gap=max(float(price.dual_bound) - worth, 0.0),
        reserved_parts_M=None if parts_M is None else parts_M[order],
    )


def reservation_prices_of_rows(rows: Dataset, believed: ReadsBeliefs, queries: int) -> NDArray[np.float64]:
    """Return `rounds.batch.reservation_prices` of rows that stay in their files, shape (N,)."""

    def prices(block: pa.Table) -> pa.Table:
        return pa.table({"index": block["index"], "price": reservation_prices(believed(block))})

    found_N = np.zeros(queries)
    for block in ray.get(rows.map_batches(prices, batch_size=BLOCK_ROWS, batch_format="pyarrow").to_arrow_refs()):
        if len(block):
            found_N[block["index"].to_numpy()] = block["price"].to_numpy()
    return found_N


@dataclass(frozen=True, slots=True, eq=False)
class SketchedOffers:
    """To go on, by curves that stay in their files; see `rounds.offers.Offers`.

    Attributes:
        rows: Makes the rows of `records.estimate_schema`, for each clearing anew.
        tokens_K: Token grid of their curves.
        tie_break_N: A number of each query.
        cost_N: What a token of each query takes from the budget.
        max_tokens_N: Ceiling of each query over all its grants.
        calls: What calls take in all, where prompts are paid for.
        given: Where other beliefs lie that take the place of these curves; None if they stand.
    """

    rows: Callable[[], Dataset]
    tokens_K: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    cost_N: NDArray[np.float64]
    max_tokens_N: NDArray[np.int64]
    calls: CallCosts | None = None
    given: GivenRows | None = None

    def believed(self) -> ReadsBeliefs:
        """Return what reads the curves."""
        return _Stored(self.tokens_K, ray.put((self.tie_break_N, self.calls)), self.given)

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`; no floors are heeded."""
        _refuse_floors(owed_tokens_N)
        return clear_rows(
            self.rows(),
            self.believed(),
            states,
            is_free_N=is_free_N,
            available_tokens=available_tokens,
            calls=self.calls,
        )

    def reservation_prices(self) -> NDArray[np.float64]:
        """Return the price above which each query is not worth a first token, shape (N,)."""
        return reservation_prices_of_rows(self.rows(), self.believed(), len(self.tie_break_N))

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`; there is no such service."""
        _refuse_floors(owed_tokens_N)
        return nothing_to_grant(len(owed_tokens_N))


def _refuse_floors(owed_tokens_N: NDArray[np.int64]) -> None:
    if owed_tokens_N.any():
        said = "a batch that is priced from sketches has no minimum service"
        raise ConfigError(said, "allocation.minimum_service_tokens", remedy="Leave one of them out.")


@dataclass(frozen=True)
class _Stored:
    """Reads rows of `records.estimate_schema`."""

    tokens_K: NDArray[np.int64]
    facts: Any
    given: GivenRows | None = None

    def __call__(self, block: pa.Table) -> Batch:
        tie_break_N, calls = ray.get(self.facts)
        index_B = block["index"].to_numpy()
        batch = read_batch(block, self.tokens_K, tie_break_N[index_B])
        if self.given is not None:
            batch = replace(batch, curves=_curves(self.given.of(index_B), self.tokens_K))
        return with_calls(batch, calls, index_B)


def _curves(found: Incidence, tokens_K: NDArray[np.int64]) -> Curves:
    return curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=tokens_K)


@dataclass(frozen=True)
class _OpenCurves:
    """Makes a block's curves of further tokens; the queries that are done are left out."""

    believed: ReadsBeliefs
    stands: Any
    available_tokens: int

    def __call__(self, block: pa.Table) -> BlockCurves:
        return self.read(block)[0]

    def read(self, block: pa.Table) -> tuple[BlockCurves, Axis]:
        """Return the block's curves over amounts, and what amounts turn into."""
        answer_tokens_N, is_open_N = ray.get(self.stands)
        index_B, batch = block["index"].to_numpy(), self.believed(block)
        option = Option(batch, answer_tokens_N[index_B])
        rows = np.flatnonzero(is_open_N[index_B] & (option.room_N > 0))
        axis = axis_of((option,), rows, available_tokens=self.available_tokens, basis="ceilings", is_one_block=True)
        utility = axis.utility(np.zeros_like(rows))
        return BlockCurves(index_B[rows], utility, batch.tie_break_N[rows]), axis


def with_calls(batch: Batch, calls: CallCosts | None, index_B: NDArray[np.int64]) -> Batch:
    """Return rows of a batch with what their calls take, where prompts are paid for."""
    if calls is None:
        return batch
    own = calls.take(index_B)
    return replace(batch, cost_N=own.token_parts_N / COST_PARTS, calls=own)


@dataclass(frozen=True)
class _Grant:
    """Reads a block's grants off the price; a row for each query that is granted tokens."""

    curves_of: _OpenCurves
    price: SketchPrice

    def __call__(self, block: pa.Table) -> pa.Table:
        curves, axis = self.curves_of.read(block)
        amounts = self.price.tokens(curves.utility, tie_break_N=curves.tie_break_N)
        option, tokens = axis.read(amounts)
        expected = axis.expected_tokens(option, tokens)
        columns = (curves.index_N, tokens, expected, curves.utility.utility(amounts))
        is_funded = tokens > 0
        return pa.table([pa.array(column[is_funded]) for column in columns], schema=_GRANTS)
