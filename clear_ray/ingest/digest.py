"""What was taken in, and the file beside the queries that says so."""

from __future__ import annotations

import json
from dataclasses import dataclass

from clear_ray.storage import Folder

DIGEST_FILE = "_input.json"
"""Readers of Parquet folders skip names with a leading underscore."""


@dataclass(frozen=True)
class InputDigest:
    """What was taken in.

    Attributes:
        rows: Queries.
        sha256: Hex digest over the normalised rows in order, however they lay in files.
        files: Sources that were read.
        openai_url: Endpoint of an input in the OpenAI batch format; None for any other input.
        longest_prompt_characters: Length of the longest prompt.
        notices: What is said about it, a line each: how it was read, what is ignored, lowered or failed.
    """

    rows: int
    sha256: str
    files: int
    openai_url: str | None
    longest_prompt_characters: int
    notices: tuple[str, ...] = ()

    @property
    def is_openai(self) -> bool:
        """Whether the input was in the OpenAI batch format, so that outputs in it are due."""
        return self.openai_url is not None


def read_digest(queries: Folder) -> InputDigest | None:
    """Return what a whole `queries/` folder holds, or None if there is none or it was not finished."""
    if not queries.exists(DIGEST_FILE):
        return None
    try:
        kept = json.loads(queries.read(DIGEST_FILE))
        return InputDigest(**kept | {"notices": tuple(kept.get("notices", ()))})
    except (ValueError, TypeError, AttributeError):
        return None
