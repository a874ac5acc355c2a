"""A limit that an endpoint keeps and does not tell: cut where it shows, and raised again to see whether it still holds."""

from __future__ import annotations

import math

_MOST_ROUNDS = 32
_SAME_SHARE = 0.25


class SoughtLimit:
    """One number.

    Args:
        value: What it is at first.
        most: More than that it never is.
        step: Least by which it is raised.
        step_share: The part of its value by which it is raised, if that is more.
        seconds: From one raise to the next, and the unit of the time before the first.
        same_share: What of the value it is cut to, where it was cut before.

    Attributes:
        value: What it is.
        before: What it was before it was raised for the last time; None if it was not raised since it was cut.
        answers_due: Answers that are still to come before it may be raised.
    """

    def __init__(
        self,
        value: float,
        *,
        most: float,
        step: float,
        step_share: float,
        seconds: float = 1.0,
        same_share: float = 1.0,
    ) -> None:
        self.value, self.most = value, most
        self.before: float | None = None
        self.answers_due = 0
        self._step, self._step_share, self._seconds, self._same_share = step, step_share, seconds, same_share
        self._steps, self._rounds = 1.0, 0
        self._cut_to, self._due_at = math.inf, -math.inf

    @property
    def due_at(self) -> float:
        """When it may be raised next, as far as it is a matter of time."""
        return math.inf if self.value >= self.most or self.answers_due > 0 else self._due_at

    @property
    def is_new(self) -> bool:
        """Whether it was last cut where it had not been cut before."""
        return self._rounds <= 1

    def raise_value(self, now: float) -> None:
        """Raise it, if it is time: each time by twice as much."""
        if now < self.due_at:
            return
        self.before = self.value
        self.value = min(self.most, self.value + self._steps * max(self._step, self._step_share * self.value))
        self._steps, self._due_at = 2.0 * self._steps, now + self._seconds

    def cut(self, value: float, now: float) -> None:
        """Cut it, and leave it for a while: the longer, the more often it was cut at about this value."""
        is_same = abs(value - self._cut_to) <= _SAME_SHARE * self._cut_to < math.inf
        self._rounds = min(4 * self._rounds, _MOST_ROUNDS) if is_same else 1
        self.value, self._cut_to = value * (self._same_share if is_same else 1.0), value
        self.before, self._steps = None, 1.0
        self._due_at, self.answers_due = now + self._rounds * self._seconds, self._rounds

    def give_back(self, value: float, now: float) -> None:
        """Undo a cut that was not due: nothing is known of the limit, and the next cut is its first."""
        self.value, self._cut_to, self._rounds = min(value, self.most), math.inf, 0
        self._due_at, self.answers_due = now, 0
