"""Bounds and checks that several settings share."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import to_json

MOST_TOKENS = MOST_ROWS = 2**31 - 1
"""Tokens of one query; queries of a run, a call or a file. Below, such counts are kept in 32 or 64 bits, and added up."""


def checked_json(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Return settings that a library takes as they are, or raise ValueError if JSON cannot hold them."""
    try:
        json.dumps(value, allow_nan=False)
        to_json(value)  # which writes the manifest, and nests less deep
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what} are written as JSON, which cannot hold these: {error}") from error
    return value
