"""How far a run is, from its folder alone."""

from __future__ import annotations

from typing import Any

from clear_ray.errors import ConfigError
from clear_ray.ingest import read_digest
from clear_ray.ledger.entries import entry_of
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import Ledger
from clear_ray.report.summary import RunReport
from clear_ray.run_folder.estimates import ESTIMATES_WHOLE, read_costs
from clear_ray.run_folder.manifest import MANIFEST, SUMMARY, read_manifest
from clear_ray.run_folder.parquet import damaged
from clear_ray.storage import Folder, reading_errors


def read_summary(folder: Folder) -> RunReport | None:
    """Return the report of a run that is done, or None.

    Raises:
        ResumeError: The summary is damaged.
        StorageError: The folder cannot be read.
    """
    with reading_errors(folder):
        content = folder.read(SUMMARY) if folder.exists(SUMMARY) else None
    if content is None:
        return None
    try:
        return RunReport.model_validate_json(content)
    except ValueError as error:
        raise damaged(folder, SUMMARY, error) from error


def read_progress(folder: Folder) -> dict[str, Any]:
    """Return how far an unfinished run is, from its folder alone.

    Raises:
        ConfigError: There is no run in the folder.
        ResumeError: The manifest is damaged.
        StorageError: The folder cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError("there is no run in this folder", folder.path, remedy="Name the run_dir of a run.")
    with reading_errors(folder):
        return _progress(folder, manifest)


def _progress(folder: Folder, manifest: dict[str, Any]) -> dict[str, Any]:
    rows = manifest["input"]["rows"]
    digest = read_digest(folder.child("queries"))
    if digest is not None and digest.rows != rows:
        raise damaged(folder, MANIFEST, ValueError(f"input.rows is {rows}, and queries/ holds {digest.rows}"))
    ledger = Ledger(manifest["budget_tokens"], rows, cost_N=read_costs(folder, rows))
    rounds, price = 0, None
    for record in read_journal(folder):
        if "op" in record:
            ledger.apply(entry_of(record))
        elif "budget" in record:
            ledger.change_budget(record["budget"])
        else:
            rounds, price = record.get("round", rounds), record.get("price", price)
    return {
        "state": "unfinished",
        "queries": rows,
        "estimated": folder.exists(ESTIMATES_WHOLE),
        "rounds": rounds,
        "budget_tokens": ledger.budget_tokens,
        "spent_tokens": ledger.spent_tokens,
        "reserved_tokens": ledger.reserved_tokens,
        "wasted_tokens": ledger.wasted_tokens,
        "shadow_price": price,
    }
