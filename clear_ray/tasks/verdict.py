"""What a scorer says of one answer."""

from __future__ import annotations

from dataclasses import dataclass

RIGHT, WRONG, PARTLY = "right", "wrong", "partly right"
NO_ANSWER = "no answer found"
TIMED_OUT = "time-out"
CUT_OFF = "cut off"
NO_GOLD = "no gold answer"
BAD_GOLD = "the gold answer cannot be read"
MOST_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score with its reason.

    Attributes:
        score: Score from 0 to 1; None if there is nothing to compare with.
        reason: One of a few phrases, so that reasons can be counted; empty for a score of a function of the user's.
        answer: What was read as the final answer; None if nothing was.
    """

    score: float | None
    reason: str = ""
    answer: str | None = None

    def kept_answer(self) -> str | None:
        """Return the answer as a row keeps it: not too long, and without halves of surrogate pairs, which JSON can spell."""
        return None if self.answer is None else self.answer[:MOST_KEPT].encode("utf-8", "replace").decode()

    def cut_off(self) -> Verdict:
        """Return the verdict on the same text if it is unfinished: wrong, where there is anything to compare it with."""
        return self if self.score is None else Verdict(0.0, CUT_OFF, self.answer)

    @classmethod
    def of(cls, is_right: bool, answer: str | None) -> Verdict:
        """Return the verdict on an answer that was found and compared."""
        return cls(1.0, RIGHT, answer) if is_right else cls(0.0, WRONG if answer is not None else NO_ANSWER, answer)
