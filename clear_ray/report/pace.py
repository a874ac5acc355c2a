"""How fast a run generates, and how long it will go on."""

from __future__ import annotations

from clear_ray.report.summary import ProgressSnapshot

_LEAST_MEASURED_SECONDS = 1.0


class TokenPace:
    """Tokens per second of the generate stage, and what they say about the time that is left."""

    def __init__(self) -> None:
        self._last: ProgressSnapshot | None = None
        self._seconds = 0.0
        self._tokens = 0

    def observe(self, snapshot: ProgressSnapshot) -> None:
        """Take in the next snapshot. Only time that began in the generate stage counts, so probing does not blur it."""
        if self._last is not None and self._last.stage == "generate":
            self._seconds += max(snapshot.seconds - self._last.seconds, 0.0)
            self._tokens += max(snapshot.spent_tokens - self._last.spent_tokens, 0)
        self._last = snapshot

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the generate stage of all rounds so far; None until something was measured."""
        return self._tokens / self._seconds if self._tokens and self._seconds >= _LEAST_MEASURED_SECONDS else None

    @property
    def eta_seconds(self) -> float | None:
        """Time left at this pace; None while unknown.

        Where the budget binds, returned tokens are priced again until it is spent: its rest is what remains to be done.
        Where it does not, what remains is the queries, at the mean spend of those that have ended.
        """
        last, rate = self._last, self.tokens_per_second
        if last is None or rate is None or last.stage == "write":
            return None
        left = float(last.budget_tokens - last.spent_tokens)
        if not last.shadow_price:
            if not last.ended:
                return None
            left = min(left, (last.queries - last.ended) * last.spent_tokens / last.ended)
        return max(left, 0.0) / rate
