"""A run of what another one left: its queries that failed, or all without an answer, from its own folder as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.config.prices import NANO
from clear_ray.config.run import RunConfig
from clear_ray.config.units import unit_of_budget
from clear_ray.errors import ConfigError, ResumeError, SchemaError
from clear_ray.ingest import InputDigest, read_digest
from clear_ray.ingest.normalise import NormalRow
from clear_ray.ingest.query_files import QueryFiles
from clear_ray.records import QUERY_SCHEMA
from clear_ray.redaction import without_secrets
from clear_ray.run_folder.completions import completion_batches
from clear_ray.run_folder.locations import absolute
from clear_ray.run_folder.manifest import MANIFEST, check_same_run, describe_input, read_manifest
from clear_ray.run_folder.orders import unit_in
from clear_ray.run_folder.status import read_summary
from clear_ray.stages.probe import with_added_columns
from clear_ray.storage import Folder, open_folder

_OWN_DOING = ("invalid_request", "context_length_exceeded")  # it would fail again
_ROWS = 1_024


def retry_config(run_dir: str, into: str, *, budget: str | None, is_unanswered: bool) -> RunConfig:
    """Return the settings of a run of what another one left.

    Args:
        run_dir: Folder of the run that is done.
        into: Folder of the new one.
        budget: Its budget; what the other one did not spend if not given.
        is_unanswered: Whether it also takes the queries that were abandoned.

    Raises:
        ConfigError: There is no run, or nothing is left of its budget and none is given.
        ResumeError: It is not done.
    """
    folder, shown = open_folder(run_dir), without_secrets(run_dir)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError("there is no run in this folder", shown, remedy="Name the run_dir of a run that is done.")
    report = read_summary(folder)
    if report is None:
        raise ResumeError("the run is not done", shown, remedy="Go on with it first: `clear-ray resume`.")
    left = report.budget_tokens - report.spent_tokens
    if budget is None and left < 1:
        raise ConfigError("nothing is left of the run's budget", shown, remedy="Give one: `--budget 200k`.")
    settings: dict[str, Any] = manifest["config"]
    source = {"retry_of": run_dir, "retry": "unanswered" if is_unanswered else "failed"}
    changes: dict[str, Any] = {"run_dir": into, "input": source, "budget_rate": None}
    unit = unit_in(folder)
    if budget is None:
        changes["budget"] = left if unit == "tokens" else f"{left // NANO}.{left % NANO:09d} {unit}"
    else:
        changes["budget"] = budget
        changes["budget_rate"] = None if _unit_given(budget) == "tokens" else settings.get("budget_rate")
    return RunConfig.parse(settings | changes, where=f"{shown}/{MANIFEST}")


def _unit_given(budget: str) -> str:
    try:
        return unit_of_budget(budget)
    except ValueError as error:
        raise ConfigError(str(error), "--budget", budget, "Write an amount such as 200k or $5.") from None


def rows_left(config: RunConfig) -> int:
    """Return how many queries a run of what another one left asks."""
    source = open_folder(absolute(config.input.retry_of or ""))
    before = read_digest(source.child("queries"))
    is_unanswered = config.input.retry == "unanswered"
    return 0 if before is None else int(_left(source, before.rows, is_unanswered=is_unanswered)[0].sum())


def check_something_left(config: RunConfig) -> None:
    """Raise before anything is started if a run of what another one left would ask nothing.

    Raises:
        SchemaError: That run left nothing of the kind.
    """
    source = open_folder(absolute(config.input.retry_of or ""))
    if (before := read_digest(source.child("queries"))) is not None:
        is_wanted_N, own_doing = _left(source, before.rows, is_unanswered=config.input.retry == "unanswered")
        if not is_wanted_N.any():
            raise _nothing_left(config, source, own_doing)


def _nothing_left(config: RunConfig, source: Folder, own_doing: int) -> SchemaError:
    what = "no query of this run can be asked again: "
    is_unanswered = config.input.retry == "unanswered"
    none_left = "none has failed or was abandoned" if is_unanswered else "none has failed"
    what += f"{own_doing:,} failed of what they are" if own_doing else none_left
    remedy = "" if is_unanswered else "With `--unanswered` those that were abandoned are asked, too."
    return SchemaError(what, source.path, remedy=remedy)


def take_in_again(config: RunConfig, folder: Folder, manifest: dict[str, Any] | None) -> InputDigest:
    """Write `queries/` of what another run left; nothing is left behind if it is refused.

    Raises:
        SchemaError: That run left nothing of the kind.
        ResumeError: It is not done, or the run that is here had another input.
    """
    source = open_folder(absolute(config.input.retry_of or ""))
    before = read_digest(source.child("queries"))
    if read_summary(source) is None or before is None:
        raise ResumeError(
            "the run is not done, or its queries are gone", source.path, remedy="Name a run that is done."
        )
    is_wanted_N, own_doing = _left(source, before.rows, is_unanswered=config.input.retry == "unanswered")
    if not is_wanted_N.any():
        raise _nothing_left(config, source, own_doing)
    files = QueryFiles(folder.child("queries"))
    try:
        for path in source.child("queries").files(".parquet"):
            with source.filesystem.open_input_file(path) as opened:
                for batch in pq.ParquetFile(opened).iter_batches(batch_size=_ROWS):
                    _add(files, with_added_columns(pa.Table.from_batches([batch])), is_wanted_N)
        files.flush()
        said = f"{files.rows:,} queries of {before.rows:,} are asked again"
        said += f"; {own_doing:,} that failed of what they are, are not" if own_doing else ""
        digest = replace(before, rows=files.rows, sha256=files.sha256, files=1, notices=(said,))
        if manifest is not None:
            check_same_run(manifest, describe_input(digest), folder)
        files.publish(digest)
    except BaseException:
        files.discard()
        raise
    return digest


def _left(source: Folder, rows: int, *, is_unanswered: bool) -> tuple[NDArray[np.bool_], int]:
    """Return which queries are asked again, shape (N,), and how many are not that failed of what they are."""
    is_wanted_N, own_doing = np.zeros(rows, bool), 0
    for batch in completion_batches(source):
        has_failed = pc.equal(batch["status"], "failed")
        is_own_doing = pc.and_(has_failed, pc.is_in(batch["error_code"], pa.array(_OWN_DOING)))
        own_doing += int(pc.sum(is_own_doing).as_py() or 0)
        wanted = pc.not_equal(batch["status"], "completed") if is_unanswered else has_failed
        wanted = pc.and_(wanted, pc.invert(is_own_doing))
        is_wanted_N[batch["index"].to_numpy()] = wanted.to_numpy(zero_copy_only=False)
    return is_wanted_N, own_doing


def _add(files: QueryFiles, table: pa.Table, is_wanted_N: NDArray[np.bool_]) -> None:
    table = table.filter(pa.array(is_wanted_N[table["index"].to_numpy()]))
    columns = [table[name].to_pylist() for name in QUERY_SCHEMA.names[1:]]
    for row in zip(*columns, strict=True):
        files.add(NormalRow(*row))
