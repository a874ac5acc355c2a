"""What callers make of an engine that failed with an error: one query's doing, or the engine's with whatever it is given.

A query that an engine fails of with nothing else on it fails alone. If the next one does too, of the same error at the same
place, and none was answered between them, it is not the queries: every further one would cost an engine's start to no end.
"""

from __future__ import annotations

from clear_ray.errors import EngineError, EngineFailedError, own_error


def engine_failure(error: BaseException) -> EngineFailedError | None:
    """Return the failure that an engine named before it went; None if it died without a word, or it is another error."""
    own = own_error(error)
    return own if isinstance(own, EngineFailedError) else None


class LoneFailures:
    """The failures of engines that had one query to themselves, since the last answer; of one caller."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None  # what failed and the query it failed of

    def forget(self) -> None:
        """Note that a query was answered."""
        self._last = None

    def note(self, failure: EngineFailedError, query_id: str) -> None:
        """Note that an engine failed of a query that it had to itself.

        Raises:
            EngineError: It has failed so of another one before, and answered none between.
        """
        before, self._last = self._last, (failure.kind, query_id)
        if before is not None and before[0] == failure.kind and before[1] != query_id:
            raise EngineError(
                f"the engine fails of whatever it is given: {failure.value}",
                f"queries {before[1]} and {query_id}, each with no other one beside it",
                remedy="Mend what the error names, or use another model or engine; then run the same command again.",
            ) from failure
