"""The price of a batch that no machine holds: demand sketches made where the rows are, over Ray Data.

    rows --each block--> sketch, kilobytes --merged on the way--> driver: price --> each block reads its caps off the price

The driver sees one sketch a pass and never a query. Two passes over the rows find the price; a third reads the grants off it
(`sketched`). Sums are whole numbers, so any number of blocks, in any order, gives the same bytes (docs/method.md,
section 3).

Legend: N queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import Dataset
from ray.data.aggregate import AggregateFnV2
from ray.data.block import BlockAccessor

from clear_ray.allocation import DemandSketch, SketchPrice, Utility
from clear_ray.errors import PriceError

BLOCK_ROWS = 16_384
"""Most rows whose curves a process makes at once: five kilobytes each."""
_SKETCH = "sketch"


@dataclass(frozen=True, eq=False)
class BlockCurves:
    """The curves of one block of rows.

    Attributes:
        index_N: Number of each query in the batch.
        utility: Their curves.
        tie_break_N: A number that belongs to each query and not to its place, such as its index.
    """

    index_N: NDArray[np.int64]
    utility: Utility
    tie_break_N: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.uint64]


CurvesOf = Callable[[pa.Table], BlockCurves]
"""Makes curves of a block of rows; it may leave rows out. Called in every pass, with the same answer each time."""


def price_rows(rows: Dataset, curves_of: CurvesOf, *, budget_tokens: float, spread_unspent: bool = True) -> SketchPrice:
    """Return the price of all rows of a dataset, in two passes over it.

    Args:
        rows: One row a query. Read twice: give it from files, or materialised.
        curves_of: Makes the curves of a block; travels to the workers.
        budget_tokens: Budget, >= 0: tokens, or the unit of the cost per token.
        spread_unspent: As for `allocate`.

    Raises:
        PriceError: the budget is negative or not finite, or smaller than the sum of the floors; or the second pass saw
            other rows than the first.

    Source: docs/method.md, section 3, Scale.
    """
    first = sketch_rows(rows, curves_of, DemandSketch.first_pass(budget_tokens=budget_tokens))
    empty = first.second_pass(budget_tokens=budget_tokens, spread_unspent=spread_unspent)
    second = sketch_rows(rows, curves_of, empty)
    if second.queries != first.queries:
        raise PriceError(
            "the second pass saw other queries than the first",
            "rows",
            f"{first.queries}, then {second.queries}",
            "Give rows that read the same every time, such as files.",
        )
    return second.price(budget_tokens=budget_tokens)


def sketch_rows(rows: Dataset, curves_of: CurvesOf, empty: DemandSketch) -> DemandSketch:
    """Return an empty sketch with all rows of a dataset added: one row of kilobytes a block, merged by an aggregation."""
    sketches = rows.map_batches(partial(_sketched, curves_of, empty), batch_size=BLOCK_ROWS, batch_format="pyarrow")
    merged = sketches.aggregate(MergeSketches(empty))
    return DemandSketch.from_bytes(merged[_SKETCH]) if merged else empty


class MergeSketches(AggregateFnV2[bytes, bytes]):
    """Adds up the sketches in the column `sketch`.

    Args:
        empty: The empty sketch they began as.
    """

    def __init__(self, empty: DemandSketch) -> None:
        super().__init__(_SKETCH, empty.to_bytes, on=_SKETCH, ignore_nulls=False)

    def aggregate_block(self, block: pa.Table) -> bytes:
        """Return the sum of the sketches of a block."""
        merged, *others = BlockAccessor.for_block(block).to_arrow()[_SKETCH].to_pylist()
        for sketch in others:
            merged = self.combine(merged, sketch)
        return bytes(merged)

    def combine(self, current_accumulator: bytes, new: bytes) -> bytes:
        """Return the sum of two sketches."""
        return DemandSketch.from_bytes(current_accumulator).merge(DemandSketch.from_bytes(new)).to_bytes()


def _sketched(curves_of: CurvesOf, empty: DemandSketch, block: pa.Table) -> pa.Table:
    curves = curves_of(block)
    sketch = empty.add(curves.utility, tie_break_N=curves.tie_break_N)
    return pa.table({_SKETCH: pa.array([sketch.to_bytes()], pa.binary())})
