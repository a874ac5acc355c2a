"""Estimates read again: of many queries their curves stay on disk, and are the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ResumeError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.curves_on_disk import CurvesOnDisk
from clear_ray.records import estimate_schema
from clear_ray.run_folder import estimates as module
from clear_ray.run_folder.estimates import Estimates, read_estimates
from clear_ray.run_folder.growing import GrowingBatch
from clear_ray.storage import open_folder
from tests.unit.rounds.test_beside import GRID, random_batch

QUERIES = 50


def write(folder: Path) -> Path:
    """Write the estimates of some queries into a run folder, in files that are in no order."""
    batch, rng = random_batch(3, QUERIES), np.random.default_rng(0)
    (folder / "estimates").mkdir()
    for number, index in enumerate(np.array_split(rng.permutation(QUERIES), 6)):
        curves = batch.curves.take(index)
        columns = {
            "index": index,
            "query_id": [f"q{k}" for k in index],
            "task": ["a" if k % 3 else None for k in index],
            "weight": 1.0 + index,
            "cost": batch.cost_N[index],
            "max_tokens": 80 + index,
            "prompt_tokens": 5 + index,
            "entropy": np.where(index % 2, 0.5, np.nan).astype(np.float32),
            "threshold_tokens": curves.threshold_tokens_N,
            "solvability": curves.solvability_N,
            "beta": curves.beta_N,
            "error": ["lost" if k == 7 else "" for k in index],
        }
        for name in ("success", "spend", "survival"):
            flat = pa.array(getattr(curves, f"{name}_NK").ravel())
            columns[f"{name}_K"] = pa.FixedSizeListArray.from_arrays(flat, len(GRID))
        schema = estimate_schema(len(GRID))
        table = pa.table({field.name: columns[field.name] for field in schema}, schema=schema)
        pq.write_table(table, folder / "estimates" / f"from-{number}.parquet")
    return folder


def read(folder: Path, most_curves: int | None = None) -> Estimates:
    return read_estimates(open_folder(str(folder)), GRID, 0, most_curves=most_curves)


@pytest.mark.parametrize("most_curves", [None, 20])
def test_what_is_read_does_not_depend_on_where_the_curves_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_curves: int | None
) -> None:
    held = read(write(tmp_path), most_curves)
    monkeypatch.setattr(module, "ROWS_OF_BLOCK", 7)
    kept = read(tmp_path, most_curves)
    assert isinstance(kept.batch.curves, CurvesOnDisk)
    assert not isinstance(held.batch.curves, CurvesOnDisk)
    for field in fields(Curves):
        found, expected = (getattr(one.batch.curves, field.name) for one in (kept, held))
        np.testing.assert_array_equal(found, expected, err_msg=field.name)
    for name in ("weight_N", "max_tokens_N", "tie_break_N", "cost_N"):
        np.testing.assert_array_equal(getattr(kept.batch, name), getattr(held.batch, name), err_msg=name)
    np.testing.assert_array_equal(kept.sample, held.sample)
    assert (kept.error_of_index, kept.task_names) == ({7: "lost"}, held.task_names)


def test_a_damaged_file_of_many_queries_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_OF_BLOCK", 7)
    path = write(tmp_path) / "estimates" / "from-2.parquet"
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))
    with pytest.raises(ResumeError, match="estimates: the file is damaged"):
        read(tmp_path)


def test_a_batch_grows_file_by_file_into_the_whole(tmp_path: Path) -> None:
    whole = read(write(tmp_path))
    folder = open_folder(str(tmp_path))
    growing = GrowingBatch(folder, GRID, whole.batch.cost_N, 0)
    curves, paths = growing.batch.curves, folder.child("estimates").files(".parquet")
    assert growing.so_far().queries == QUERIES
    for number, path in enumerate(paths):
        known = np.flatnonzero(growing.is_known_N)
        assert growing.batch.max_tokens_N[~growing.is_known_N].tolist() == [0] * (QUERIES - len(known))
        np.testing.assert_array_equal(curves.take(known).success_NK, whole.batch.curves.take(known).success_NK)
        failed = growing.read(path)
        assert failed == ([7] if growing.is_known_N[7] and 7 not in known else []), number
    for field in fields(Curves):
        found, expected = (getattr(one, field.name) for one in (curves.take(np.arange(QUERIES)), whole.batch.curves))
        np.testing.assert_array_equal(found, expected, err_msg=field.name)
    estimates = growing.whole()
    assert estimates.batch is growing.batch
    for name in ("weight_N", "max_tokens_N", "tie_break_N", "cost_N"):
        np.testing.assert_array_equal(getattr(growing.batch, name), getattr(whole.batch, name), err_msg=name)
    np.testing.assert_array_equal(growing.prompt_tokens_N, whole.prompt_tokens_N)
    assert (estimates.error_of_index, estimates.task_names) == ({7: "lost"}, whole.task_names)


def test_a_damaged_file_of_a_batch_that_grows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "estimates" / "from-2.parquet"
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))
    with pytest.raises(ResumeError, match=r"estimates/from-2\.parquet"):
        GrowingBatch(open_folder(str(tmp_path)), GRID, np.ones(QUERIES), 0).read(str(path))
