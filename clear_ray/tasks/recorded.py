"""Scoring of replayed answers: what was right when it was recorded is right when it is played."""

from __future__ import annotations

import hashlib
import json


def text_digest(text: str) -> str:
    """Return the short digest under which an answer's text is listed in `metadata`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_recorded(text: str, gold: str | None, metadata: str | None) -> float | None:
    """Return 1 if `text` is one of the answers that were judged right when they were recorded, else 0.

    Args:
        text: The whole answer.
        gold: Reference answer; None means nothing to compare with.
        metadata: JSON object whose `right` lists the `text_digest` of every right answer to the query.
    """
    if gold is None or metadata is None:
        return None
    return float(text_digest(text) in json.loads(metadata)["right"])
