"""Why a query has no answer: what its error begins with, the code that programs read, and the reason that is counted."""

from __future__ import annotations

import re
from typing import Literal

Code = Literal[
    "invalid_request",
    "context_length_exceeded",
    "engine_failed",
    "scorer_failed",
    "batch_expired",
    "abandoned_by_price",
]
"""`invalid_request` and `context_length_exceeded` are the query's own doing, `engine_failed` and `scorer_failed` are not;
`batch_expired` says that nothing was left for it, `abandoned_by_price` that it was not worth the price."""

UNREADABLE = "its prompt cannot be read: "
ENGINE_DIED = "its engine died"
ENGINE_FAILED = "the engine failed of it with no other query on it: "
SCORER = "scorer: "
REFUSED_BY_ENDPOINT = "the endpoint refused it: "
LOST = "its answer was lost and the budget does not pay for another try"
_OVER_CONTEXT = "does not fit the model's context"
_PLACE = re.compile(r"\A[^\n]{0,4096}?(?::\d+| row \d+)(?:, column [^:\s]+)?: ")
_REASON_CHARACTERS = 300


def code_of(error: str) -> Code:
    """Return the code of a query that failed before its answer began.

    Args:
        error: Why it failed.
    """
    if error == LOST:
        return "batch_expired"
    if error.startswith((ENGINE_DIED, ENGINE_FAILED)):
        return "engine_failed"
    return "context_length_exceeded" if _OVER_CONTEXT in error else "invalid_request"


def code_of_answer(error: str) -> Code:
    """Return the code of a query whose answer failed: of itself, of its engine, or of its scorer."""
    if error.startswith(REFUSED_BY_ENDPOINT):
        return "context_length_exceeded" if "context length" in error else "invalid_request"
    return "scorer_failed" if error.startswith(SCORER) else "engine_failed"


def reason_of(error: str) -> str:
    """Return what an error has in common with others of its kind: without the row it is of, the value seen and the remedy."""
    first = error.splitlines()[0] if error else ""
    if error.startswith(SCORER):  # the value is what the scorer itself said
        return first[:_REASON_CHARACTERS]
    return _PLACE.sub("", first).partition(" (got ")[0][:_REASON_CHARACTERS].rstrip(".")
