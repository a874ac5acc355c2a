"""What a batch will spend, from a few sampled answers: an interval that nine of ten such batches stay within.

Every answer takes something else; a few of them say how much in the mean, and how differently. What differs is read with a
prior, since two answers say little of it: answers differ by about as much as they take. With n answers sampled of N queries,
the total of all is then a Student t with n + 3 degrees of freedom around N times their mean. A run spends that total, or its
budget if that is less: then what comes back of answers that end early is granted again, to all but a rest too small for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

_PRIOR_ANSWERS, _PRIOR_SPREAD = 4.0, 0.8
_LEAST_USED = 0.92
"""Share of a budget that binds which runs have at least used, in replays."""
_SURE = 0.90


@dataclass(frozen=True, slots=True)
class Interval:
    """What a run is expected to spend, and between which numbers it does in nine of ten batches."""

    low: float
    expected: float
    high: float


def spending_interval(
    sampled: Sequence[float], *, queries: int, budget: float, worst: float, again: float = 0.0
) -> Interval:
    """Return what a run will spend.

    Args:
        sampled: What each of some random queries' answers took; at least one, all in the unit of the budget.
        queries: N, the sampled ones included.
        budget: The budget.
        worst: What the batch takes if every answer runs into its ceiling.
        again: What it takes to read all prompts and answers once more, where that is paid for: answers that are cut off and
            gone on with are, unless all ceilings fit the budget at once.
    """
    taken_S, answers = np.asarray(sampled, np.float64), len(sampled)
    mean = float(taken_S.mean())
    spread = _PRIOR_ANSWERS * (_PRIOR_SPREAD * mean) ** 2 + float(((taken_S - mean) ** 2).sum())
    freedom = _PRIOR_ANSWERS + answers - 1
    deviation = float(np.sqrt(spread / freedom * (1 / answers + 1 / queries)))
    reach = float(stdtrit(freedom, 0.5 + _SURE / 2)) * deviation
    # In ratio, not in difference: a total is never below 0, and errors of a mean of few are lopsided.
    factor = 1.0 + reach / max(mean, 1e-300)
    total = queries * mean
    again = again if worst > budget else 0.0
    low, high = total / factor, min(total * factor, worst) + again
    low = min(low, _LEAST_USED * budget)
    return Interval(low=low, expected=min(total + again / 2, budget), high=max(min(high, budget), low))


def menu_interval(
    alone: Sequence[Interval | None], wrong: Sequence[float], *, budget: float, is_followed: bool
) -> Interval:
    """Return what a run with several engines will spend: no less than the least of them alone.

    Args:
        alone: What a run of each engine alone spends; None of one of which nothing is known.
        wrong: Share of each engine's answers that are wrong.
        budget: The budget, which is the most.
        is_followed: Whether a wrong answer is followed by one of the next engine. Otherwise a query is answered by one of
            them, and which is for the price to say.
    """
    known = [each for each in alone if each is not None]
    low = min(each.low for each in known)
    if len(known) < len(alone):
        return Interval(low=low, expected=budget, high=budget)
    if is_followed:
        reached = np.cumprod([1.0, *wrong[:-1]])
        expected = float(sum(share * each.expected for share, each in zip(reached, known, strict=True)))
        high = sum(each.high for each in known)
    else:
        expected = 0.5 * (min(each.expected for each in known) + max(each.expected for each in known))
        high = max(each.high for each in known)
    return Interval(low=low, expected=min(max(expected, low), budget), high=min(high, budget))
