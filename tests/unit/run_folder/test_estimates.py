"""Estimates read again: of many queries their curves stay on disk, and are the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.errors import ResumeError, UtilityError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.curves_on_disk import CurvesOnDisk
from clear_ray.records import estimate_schema
from clear_ray.run_folder import estimates as module
from clear_ray.run_folder.estimates import Estimates, estimated_already, read_estimates
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


@pytest.mark.parametrize("most_held", [2, 12, 30, 49])
def test_of_a_large_batch_that_grows_the_newest_curves_are_held_and_a_sample_of_others(
    tmp_path: Path, most_held: int
) -> None:
    whole = read(write(tmp_path))
    folder = open_folder(str(tmp_path))
    growing = GrowingBatch(folder, GRID, whole.batch.cost_N, 0, most_held=most_held)
    window, order = growing.window, list[int]()
    assert window is not None
    for path in reversed(folder.child("estimates").files(".parquet")):
        growing.read(path)
        order += pq.read_table(path)["index"].to_pylist()
        held = np.flatnonzero(window.row_N >= 0)
        assert len(held) <= most_held
        assert set(held) == set(np.flatnonzero(window.is_newest_N | window.is_sample_N))
        assert set(np.flatnonzero(window.is_newest_N)) == set(order[-int(window.is_newest_N.sum()) :])
        found, expected = growing.batch.curves.take(held), whole.batch.curves.take(held)
        for field in fields(Curves):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
        if left := sorted(set(order) - set(held.tolist())):
            with pytest.raises(UtilityError, match="not held"):
                growing.batch.curves.take(left[:1])
    for name in ("weight_N", "max_tokens_N", "tie_break_N", "cost_N"):
        np.testing.assert_array_equal(getattr(growing.batch, name), getattr(whole.batch, name), err_msg=name)
    sampled, at_once = growing.whole(20), read(tmp_path, 20)
    np.testing.assert_array_equal(sampled.sample, at_once.sample)
    np.testing.assert_array_equal(sampled.batch.curves.success_NK, at_once.batch.curves.success_NK)
    np.testing.assert_array_equal(growing.whole().batch.curves.success_NK, whole.batch.curves.success_NK)


@pytest.mark.parametrize("most_held", [None, 12])
@pytest.mark.parametrize("most_curves", [None, 20])
def test_what_is_known_of_a_batch_that_is_read_no_further(
    tmp_path: Path, most_held: int | None, most_curves: int | None
) -> None:
    whole = read(write(tmp_path))
    folder = open_folder(str(tmp_path))
    queries = tmp_path / "queries"
    queries.mkdir()
    tasks = pa.table({"index": np.arange(QUERIES), "task": ["a" if k % 3 else None for k in range(QUERIES)]})
    pq.write_table(tasks, queries / "from-0.parquet")
    growing = GrowingBatch(folder, GRID, whole.batch.cost_N, 0, most_held=most_held)
    for path in folder.child("estimates").files(".parquet")[:3]:
        growing.read(path)
    known = growing.whole(most_curves)
    sample = np.arange(QUERIES) if most_curves is None else read(tmp_path, most_curves).sample
    np.testing.assert_array_equal(known.sample, sample)
    is_known_S = growing.is_known_N[sample]
    assert 0 < is_known_S.sum() < len(sample)
    np.testing.assert_array_equal(known.batch.max_tokens_N > 0, is_known_S)
    curves, expected = (
        one.take(np.arange(len(sample))) for one in (known.batch.curves, whole.batch.curves.take(sample))
    )
    np.testing.assert_array_equal(curves.success_NK[is_known_S], expected.success_NK[is_known_S])
    assert not curves.success_NK[~is_known_S].any()
    np.testing.assert_array_equal(known.batch.weight_N[is_known_S], whole.batch.weight_N[sample][is_known_S])


def test_files_come_in_the_order_in_which_they_were_read(tmp_path: Path) -> None:
    folder = open_folder(str(write(tmp_path)))
    by_name = estimated_already(folder, QUERIES)[1]
    place_N = np.random.default_rng(1).permutation(QUERIES)
    first = [int(place_N[pq.read_table(path)["index"].to_numpy()].min()) for path in by_name]
    is_estimated_N, files = estimated_already(folder, QUERIES, place_N=place_N)
    assert files == [by_name[k] for k in np.argsort(first)]
    assert files != by_name
    assert is_estimated_N.all()


def test_a_damaged_file_of_a_batch_that_grows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "estimates" / "from-2.parquet"
    path.write_bytes(path.read_bytes()[:-200] + bytes(200))
    with pytest.raises(ResumeError, match=r"estimates/from-2\.parquet"):
        GrowingBatch(open_folder(str(tmp_path)), GRID, np.ones(QUERIES), 0).read(str(path))
