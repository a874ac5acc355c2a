"""Columns inside columns: `reward_model.ground_truth` is a field of the struct `reward_model`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """Return a row's value under a name; dots lead into objects where no column has the whole name; None if there is none."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def outermost(name: str, names: Collection[str]) -> str:
    """Return the column of a table that holds a name: itself, or what stands before its first dot."""
    return name if name in names else name.partition(".")[0]
