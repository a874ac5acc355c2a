"""What is said about an input that was accepted: how it was read, what has no effect, what was lowered, what failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

_MOST_READINGS = 5
_MOST_COLUMNS = 12
_MOST_MODELS = 1_000
_ANSWERS = {
    "gold": "the last answer of {rows} is no part of the prompt, and is the reference answer",
    "left out": "the last answer of {rows} is no part of the prompt",
    "kept": "the conversation of {rows} ends with the assistant's words, after which the model begins another turn "
    "(continue_final_message goes on with them)",
}
Ending = Literal["gold", "left out", "kept"]
"""What becomes of the assistant's words at the end of a conversation."""


class Notices:
    """Counts over the rows of an input; those of its parts can be merged in any order."""

    def __init__(self) -> None:
        self._ignored: Counter[str] = Counter()
        self._readings: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()
        self._unread: set[str] = set()
        self._lowered: dict[str, tuple[int, int]] = {}  # rows, and the most that one of them asks for
        self._are_different: set[str] = set()
        self._crowded = self._split = self._answers = self._listed = self._prompts = 0
        self._said: set[str] = set()
        self._models: set[str] = set()

    def ignore(self, fields: Iterable[str]) -> None:
        """Count one row whose fields have no effect."""
        self._ignored.update(fields)

    def lower(self, field: str, asked_tokens: int) -> None:
        """Count one row that asks for more than the run's ceiling."""
        rows, most = self._lowered.get(field, (0, asked_tokens))
        if most != asked_tokens:
            self._are_different.add(field)
        self._lowered[field] = rows + 1, max(most, asked_tokens)

    def crowd(self) -> None:
        """Count one row whose prompt and ceiling are together longer than the model's context."""
        self._crowded += 1

    def split(self, n: int, *, prompts: int = 1) -> None:
        """Count one row that asks for several answers, to one prompt or to several, each of which becomes a query."""
        if n > 1:
            self._split, self._answers = self._split + 1, self._answers + n * prompts
        if prompts > 1:
            self._listed, self._prompts = self._listed + 1, self._prompts + prompts

    def end(self, ending: Ending) -> None:
        """Count one row whose conversation ends with the assistant's words."""
        self._endings[ending] += 1

    def read(self, how: str) -> None:
        """Note how the columns of one source were read; nothing if as they are named."""
        if how:
            self._readings[how] += 1

    def say(self, line: str) -> None:
        """Note a line that is said once; nothing if it is empty."""
        self._said |= {line} - {""}

    def name_model(self, model: object) -> None:
        """Note which model a row names."""
        if isinstance(model, str) and len(self._models) < _MOST_MODELS:
            self._models.add(model)

    def pass_over(self, columns: Iterable[str]) -> None:
        """Note columns that are not read."""
        self._unread.update(columns)

    def fail(self, reason: str, field: str = "") -> None:
        """Count one row that fails before the run.

        Args:
            reason: What is wrong.
            field: Where in the row, if it is known; places in lists are told as one.
        """
        place = re.sub(r"\[\d+\]", "[]", field)
        self._failed[f"{reason} ({place})" if place else reason] += 1

    @property
    def failed(self) -> int:
        """Rows that fail before the run."""
        return self._failed.total()

    def merge(self, other: Notices) -> None:
        """Add what was counted elsewhere."""
        self._ignored.update(other._ignored)
        self._readings.update(other._readings)
        self._failed.update(other._failed)
        self._endings.update(other._endings)
        self._unread |= other._unread
        self._said |= other._said
        self._models |= other._models
        self._crowded += other._crowded
        self._split, self._answers = self._split + other._split, self._answers + other._answers
        self._listed, self._prompts = self._listed + other._listed, self._prompts + other._prompts
        self._are_different |= other._are_different
        for field, (rows, most) in other._lowered.items():
            ours, highest = self._lowered.get(field, (0, most))
            if highest != most:
                self._are_different.add(field)
            self._lowered[field] = ours + rows, max(highest, most)

    def lines(self, max_tokens: int) -> tuple[str, ...]:
        """Return what there is to say, a line each: readings, what is not read, ignored and lowered, and what failed.

        Args:
            max_tokens: The run's ceiling of one query.
        """
        said = [f"reading {how}" for how in sorted(self._readings)[:_MOST_READINGS]]
        if (more := len(self._readings) - _MOST_READINGS) > 0:
            said.append(f"and {more:,} more ways of reading files")
        if self._unread:
            names = [f"`{name}`" for name in sorted(self._unread)]
            more = len(names) - _MOST_COLUMNS
            said.append(f"not read: {', '.join(names[:_MOST_COLUMNS])}{f' and {more:,} more' if more > 0 else ''}")
        said += sorted(self._said)
        if len(self._models) > 1:
            named = [f"`{name}`" for name in sorted(self._models)]
            others = f" and {len(named) - _MOST_READINGS:,} more" if len(named) > _MOST_READINGS else ""
            listed = ", ".join(named[:_MOST_READINGS])
            said.append(f"rows name {len(named):,} models ({listed}{others}); all are answered by the run's")
        if effects := [*self._effects(max_tokens)]:
            said.append("; ".join(effects))
        if self._split:
            ask = "asks" if self._split == 1 else "ask"
            said.append(
                f"{_rows(self._split)} {ask} for {self._answers:,} answers (n), each of which counts as a query"
            )
        if self._listed:
            has = "has" if self._listed == 1 else "have"
            said.append(f"{_rows(self._listed)} {has} {self._prompts:,} prompts, each of which counts as a query")
        said += [_ANSWERS[ending].format(rows=_rows(rows)) for ending, rows in sorted(self._endings.items())]
        if self._failed:
            commonest = ", ".join(f"{rows:,} because {reason}" for reason, rows in self._failed.most_common(3))
            said.append(f"failed: {_rows(self.failed)} of the input, {commonest}")
        return tuple(said)

    def _effects(self, max_tokens: int) -> Iterator[str]:
        if self._ignored:
            parts = [f"{name} in {_rows(rows)}" for name, rows in sorted(self._ignored.items())]
            yield f"ignored: {', '.join(parts)}"
        for field, (rows, most) in sorted(self._lowered.items()):
            asked = f"{'up to ' if field in self._are_different else ''}{most:,}"
            yield f"lowered: {field} of {_rows(rows)} from {asked} to {max_tokens:,}"
        if self._crowded:
            yield f"lowered: max_tokens of {_rows(self._crowded)} to what the model's context leaves beside the prompt"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
