"""What a run folder remembers: the manifest, the rounds, and which of their rows are whole.

manifest.json   configuration, versions, input digest, model and head; written before the first estimate
estimates/      files of estimates, each as some calls have read its prompts; estimates.json says that they are whole
estimates-1/    the same of a second engine, where there are several, and so on
grants/rNN.parquet  the grants of round NN in order of dispatch, with price and expectations; written before its first token
rounds/rNN/     attempts, written as they end
probe.gate      there while engines load their models: the probe, which starts meanwhile, asks them when it says `open`
summary.json    written last: a folder that has it is done
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from typing import Any

from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.input import ColumnsConfig
from clear_ray.config.run import CHANGEABLE, RunConfig
from clear_ray.config.units import MOST_BUDGET_TOKENS
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.ingest import InputDigest
from clear_ray.ledger.identity import RUN_ID, has_only_begun
from clear_ray.ledger.journal import FIRST_SEGMENT, JOURNAL
from clear_ray.run_folder.locations import absolute, is_path_setting
from clear_ray.run_folder.parquet import damaged
from clear_ray.storage import Folder, is_plain_path, reading_errors

MANIFEST = "manifest.json"

SUMMARY = "summary.json"

_BEFORE_MANIFEST = re.compile(
    r"queries(\.partial)?/(part-\d{6,}\.parquet|_input\.json)(\.partial)?|manifest\.json\.partial|probe\.gate(\.partial)?"
)
"""What a run that ended before it had a manifest may have left, each name whole: what is taken in replaces it."""

_OF_CALIBRATION = re.compile(r"sample-\d{2,}/manifest\.json")

_LIBRARIES = ("clear_ray", "ray", "torch", "transformers", "numpy", "scipy", "pyarrow")


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest, or None if the folder is new.

    Raises:
        ConfigError: The folder holds something else.
        ResumeError: The manifest is damaged.
        StorageError: The folder cannot be read.
    """
    with reading_errors(folder):
        content = folder.read(MANIFEST) if folder.exists(MANIFEST) else None
    if content is not None:
        try:
            return _checked(json.loads(content))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged(folder, MANIFEST, error) from error
    with reading_errors(folder):
        names = [path.removeprefix(f"{folder.path}/") for path in folder.files()]
        strangers = [name for name in names if not _may_precede_manifest(folder, name)]
    if strangers:
        what = "the run folder is not empty and holds no run"
        if any(_OF_CALIBRATION.fullmatch(name) for name in strangers):
            what = "the run folder holds the answers of a calibration, and no run"
        raise ConfigError(what, folder.path, strangers[0], "Name a new or empty folder.")
    return None


def _checked(manifest: Any) -> dict[str, Any]:
    """Return a manifest whose parts are what `describe` writes, as far as any code relies on them."""
    if not isinstance(manifest["config"], dict):
        raise TypeError("config is no group of settings")
    numbers = {"input.rows": (manifest["input"]["rows"], MOST_ROWS)}
    numbers["budget_tokens"] = (manifest["budget_tokens"], MOST_BUDGET_TOKENS)
    for name, (number, most) in numbers.items():
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"{name} is {number!r}, not a whole number from 1 to {most:,}")
    if not RUN_ID.fullmatch(manifest.get("run_id") or "0" * 32):
        raise ValueError(f"run_id is {manifest['run_id']!r}, not 32 hexadecimal digits")
    whole: dict[str, Any] = manifest
    return whole


def _may_precede_manifest(folder: Folder, name: str) -> bool:
    """Tell what a run leaves that ended before it had a manifest: its input, and a journal in which it has only begun."""
    is_journal = name == JOURNAL if folder.is_local else name == FIRST_SEGMENT
    return bool(_BEFORE_MANIFEST.fullmatch(name)) or (is_journal and has_only_begun(folder))


def describe_config(config: RunConfig) -> dict[str, Any]:
    """Return the part of the manifest that says what was asked for."""
    return {"config": json.loads(config.model_dump_json())}


def describe_input(digest: InputDigest) -> dict[str, Any]:
    """Return the part of the manifest that says what was taken in."""
    return {"input": {"rows": digest.rows, "sha256": digest.sha256, "openai_url": digest.openai_url}}


def describe(config: RunConfig, digest: InputDigest, **cards: Any) -> dict[str, Any]:
    """Return the manifest of a new run."""
    return {
        "format": 1,
        **describe_config(config),
        "budget_tokens": config.budget_tokens,
        "seed": config.seed,
        **describe_input(digest),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        **cards,
    }


def check_same_run(manifest: dict[str, Any], wanted: dict[str, Any], folder: Folder) -> None:
    """Refuse to go on with a run under another configuration, input, model or head; compares the parts that are given.

    Raises:
        ResumeError: They differ; the first difference is named.
    """
    for part in ("config", "input", "model", "head"):
        if part not in wanted:
            continue
        kept = manifest.get(part, {})
        if part == "config":
            kept, wanted = _with_all_columns(_with_defaults(kept)), wanted | {part: _with_all_columns(wanted[part])}
        old, new = _flat(kept, part), _flat(wanted[part], part)
        for key in sorted(old.keys() | new.keys()):
            is_free = key == "config.run_dir" or key.startswith(f"config.{CHANGEABLE}.")
            is_same = old.get(key) == new.get(key) or (is_path_setting(key) and _is_same_path(key, old, new))
            if not is_same and not is_free:
                raise ResumeError(
                    f"{key} was {old.get(key)!r} when the run began and is {new.get(key)!r} now",
                    folder.path,
                    remedy="Name a new run_dir, or put the setting back to go on with this run.",
                )


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return kept settings with those that have come since at their defaults, under which the run began."""
    try:
        whole: dict[str, Any] = describe_config(RunConfig.model_validate(config))["config"]
    except ValueError:  # settings that are gone: what differs is named one by one
        return config
    return whole


def _with_all_columns(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the names of all columns: of which of them were written the digest of the input says enough."""
    given = config.get("input") or {}
    columns = ColumnsConfig.model_construct(**(given.get("columns") or {})).model_dump()
    return config | {"input": given | {"columns": columns}}


def _is_same_path(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two paths lead to the same place from their run folders: both moved together, or one is written relative."""
    if not isinstance(old.get(key), str) or not isinstance(new.get(key), str):
        return False
    before, after = ([absolute(settings[name]) for name in (key, "config.run_dir")] for settings in (old, new))
    if before[0] == after[0]:
        return True
    is_local = all(map(is_plain_path, (*before, *after)))
    return is_local and os.path.relpath(*before) == os.path.relpath(*after)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _flat(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}").items()}
    return {key: value}
