"""What is said about an input that was accepted: how it was read, what has no effect, what was lowered, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_MOST_READINGS = 5


class Notices:
    """Counts over the rows of an input; those of its parts can be merged in any order."""

    def __init__(self) -> None:
        self._ignored: Counter[str] = Counter()
        self._readings: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._lowered = 0
        self._asked: tuple[int, int] | None = None

    def ignore(self, fields: Iterable[str]) -> None:
        """Count one row whose fields have no effect."""
        self._ignored.update(fields)

    def lower(self, asked_tokens: int) -> None:
        """Count one row whose own ceiling is above the run's."""
        self._lowered += 1
        least, most = self._asked or (asked_tokens, asked_tokens)
        self._asked = min(least, asked_tokens), max(most, asked_tokens)

    def read(self, how: str) -> None:
        """Note how the columns of one source were read; nothing if as they are named."""
        if how:
            self._readings[how] += 1

    def fail(self, reason: str) -> None:
        """Count one row that fails before the run."""
        self._failed[reason] += 1

    @property
    def failed(self) -> int:
        """Rows that fail before the run."""
        return self._failed.total()

    def merge(self, other: Notices) -> None:
        """Add what was counted elsewhere."""
        self._ignored.update(other._ignored)
        self._readings.update(other._readings)
        self._failed.update(other._failed)
        self._lowered += other._lowered
        if other._asked is not None:
            least, most = self._asked or other._asked
            self._asked = min(least, other._asked[0]), max(most, other._asked[1])

    def lines(self, max_tokens: int) -> tuple[str, ...]:
        """Return what there is to say, a line each: readings, what is ignored and lowered, and what failed.

        Args:
            max_tokens: The run's ceiling of one query.
        """
        said = [f"reading {how}" for how in sorted(self._readings)[:_MOST_READINGS]]
        if (more := len(self._readings) - _MOST_READINGS) > 0:
            said.append(f"and {more:,} more ways of reading files")
        effects = []
        if self._ignored:
            parts = [f"{name} in {_rows(rows)}" for name, rows in sorted(self._ignored.items())]
            effects.append(f"ignored: {', '.join(parts)}")
        if self._asked is not None:
            least, most = self._asked
            asked = f"{most:,}" if least == most else f"up to {most:,}"
            effects.append(f"lowered: max_tokens of {_rows(self._lowered)} from {asked} to {max_tokens:,}")
        if effects:
            said.append("; ".join(effects))
        if self._failed:
            commonest = ", ".join(f"{rows:,} because {reason}" for reason, rows in self._failed.most_common(3))
            said.append(f"failed: {_rows(self.failed)} of the input, {commonest}")
        return tuple(said)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
