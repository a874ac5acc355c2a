"""Verdicts without gold: how far several answers to the same query agree.

Wrong answers seldom agree with each other, so an answer that others give too is probably right. What is compared is the
result that was extracted from each answer, as scorers extract it; an answer without one agrees with none.

Shapes: N queries.

Source: method.md section 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """What several answers to one query say together.

    Attributes:
        chosen: Place of the answer to keep: the first that gives the most frequent result; 0 where there is no result.
        right: For each answer the share of the *other* answers that give its result, 0 to 1; None for one without a result,
            or that has no other to be compared with.
    """

    chosen: int
    right: tuple[float | None, ...]


def agree(results: Sequence[str | None]) -> Agreement:
    """Return how far the extracted results of the answers to one query agree.

    Args:
        results: Results of each answer; None where nothing could be extracted, or where it was cut.
    """
    count = Counter(result for result in results if result is not None)
    if not count:
        return Agreement(0, tuple(None for _ in results))
    most = max(count.values())
    chosen = next(place for place, result in enumerate(results) if result is not None and count[result] == most)
    others = len(results) - 1
    right = tuple(None if result is None or not others else (count[result] - 1) / others for result in results)
    return Agreement(chosen, right)
