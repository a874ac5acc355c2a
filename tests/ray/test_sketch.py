"""Sketches made by Ray Data are, byte for byte, the one that a single process makes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data import Dataset

from clear_ray.allocation import DemandSketch, Tabulated, allocate
from clear_ray.batch.dataset_price import BlockCurves, price_rows, sketch_rows
from clear_ray.batch.size_limits import SKETCH_ABOVE_QUERIES, is_sketched
from clear_ray.errors import PriceError

QUERIES, GRID = 5_000, [8, 32, 64, 128]
BUDGET = 40 * QUERIES


def table_of(index_N: np.ndarray) -> pa.Table:
    """Rows whose curves depend on their number alone."""
    uniform = np.random.default_rng(0).random((QUERIES, 5))[index_N]
    success = np.sort(uniform[:, :4], axis=1) * uniform[:, 4:]
    return pa.table({"index": index_N, "success": pa.FixedSizeListArray.from_arrays(success.ravel(), 4)})


def curves_of(block: pa.Table) -> BlockCurves:
    index_N = block["index"].to_numpy()
    success = block["success"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return BlockCurves(index_N, Tabulated(GRID, success), tie_break_N=index_N)


def dataset(blocks: int) -> Dataset:
    """All rows in another order, in unequal blocks, one of them empty."""
    rng = np.random.default_rng(blocks)
    cuts = np.sort(rng.integers(0, QUERIES, blocks - 1))
    parts = [*np.split(rng.permutation(QUERIES), cuts), np.zeros(0, np.int64)]
    return ray.data.from_arrow([table_of(part) for part in parts])


WHOLE = curves_of(table_of(np.arange(QUERIES)))


@pytest.mark.parametrize("blocks", [1, 7])
def test_any_blocks_make_the_same_bytes(blocks: int) -> None:
    rows = dataset(blocks)
    first = DemandSketch.first_pass(budget_tokens=BUDGET)
    added = first.add(WHOLE.utility, tie_break_N=WHOLE.tie_break_N)
    assert sketch_rows(rows, curves_of, first).to_bytes() == added.to_bytes()
    second = added.second_pass(budget_tokens=BUDGET)
    expected = second.add(WHOLE.utility, tie_break_N=WHOLE.tie_break_N)
    assert sketch_rows(rows, curves_of, second).to_bytes() == expected.to_bytes()


def test_blocks_read_their_caps_off_the_price() -> None:
    rows = dataset(5)
    price = price_rows(rows, curves_of, budget_tokens=BUDGET)
    first = DemandSketch.first_pass(budget_tokens=BUDGET).add(WHOLE.utility, tie_break_N=WHOLE.tie_break_N)
    second = first.second_pass(budget_tokens=BUDGET).add(WHOLE.utility, tie_break_N=WHOLE.tie_break_N)
    expected = second.price(budget_tokens=BUDGET)
    assert (price.lower_price, price.shadow_price) == (expected.lower_price, expected.shadow_price)

    def caps(block: pa.Table) -> pa.Table:
        curves = curves_of(block)
        tokens_N = price.tokens(curves.utility, tie_break_N=curves.tie_break_N)
        return pa.table({"index": curves.index_N, "tokens": tokens_N})

    blocks = ray.get(rows.map_batches(caps, batch_size=None, batch_format="pyarrow").to_arrow_refs())
    granted = pa.concat_tables([block for block in blocks if len(block)]).sort_by("index")  # an empty one has no schema
    tokens_N = granted["tokens"].to_numpy()
    np.testing.assert_array_equal(tokens_N, expected.tokens(WHOLE.utility, tie_break_N=WHOLE.tie_break_N))
    assert 0.99 * BUDGET < tokens_N.sum() <= BUDGET
    assert tokens_N.sum() == price.spend
    best = allocate(WHOLE.utility, budget_tokens=BUDGET)
    assert price.lower_price <= best.shadow_price <= price.shadow_price
    assert 0.999 * best.utility <= WHOLE.utility.utility(tokens_N).sum() <= best.dual_bound


def test_no_rows_have_price_zero() -> None:
    empty = ray.data.from_arrow([table_of(np.zeros(0, np.int64))])
    price = price_rows(empty, curves_of, budget_tokens=10)
    assert (price.queries, price.shadow_price, price.slack_tokens) == (0, 0.0, 10.0)


def test_rows_that_change_between_passes_are_refused(tmp_path: object) -> None:
    folder = f"{tmp_path}/rows"
    dataset(1).write_parquet(folder)

    def shrinking(block: pa.Table) -> BlockCurves:
        import pathlib

        passed = pathlib.Path(folder, "passed")
        curves = curves_of(block.slice(0, 10) if passed.exists() else block)
        passed.touch()
        return curves

    with pytest.raises(PriceError, match="other queries"):
        price_rows(ray.data.read_parquet(folder, file_extensions=["parquet"]), shrinking, budget_tokens=BUDGET)


def test_size_or_setting_decides() -> None:
    assert [is_sketched(SKETCH_ABOVE_QUERIES), is_sketched(SKETCH_ABOVE_QUERIES + 1)] == [False, True]
    assert [is_sketched(1, True), is_sketched(10**9, False)] == [True, False]
