"""From outcomes to rows: accuracy with its interval, beside the equal ceiling that spends the same tokens.

Intervals are bootstrap percentiles over queries: which queries a batch holds is what varies between batches. In each
draw the equal ceiling is matched anew to the tokens that the policy spent on the queries drawn.

Shapes: N queries, B bootstrap draws, T ceilings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.sweep.policies import Outcome
from clear_ray.sweep.recording import Recording

DRAWS = 2_000
_TAIL = 2.5  # percent on either side


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one budget.

    Attributes:
        policy: Its name.
        average_budget: Tokens a query that it might generate.
        accuracy: Right answers a query.
        low: Lower end of the 95 % interval of the accuracy.
        high: Upper end.
        tokens_per_query: Tokens generated.
        uniform_accuracy: Accuracy of the equal ceiling that generates as many.
        difference: Accuracy less that.
        difference_error: Standard error of the difference.
        times_uniform: Accuracy over that of the equal ceiling; None if that is 0.
        times_low: Lower end of the 95 % interval of the ratio.
        times_high: Upper end.
        rounds: Mean number of clearings.
    """

    policy: str
    average_budget: float
    accuracy: float
    low: float
    high: float
    tokens_per_query: float
    uniform_accuracy: float
    difference: float
    difference_error: float
    times_uniform: float | None
    times_low: float | None
    times_high: float | None
    rounds: float


class Judge:
    """Makes rows of outcomes on one recording.

    Args:
        recording: The rollouts.
        draws: Bootstrap draws, B.
        seed: Seed of the draws; the same draws for every row, so that rows can be compared.
    """

    def __init__(self, recording: Recording, *, draws: int = DRAWS, seed: int = 0) -> None:
        queries = len(recording)
        ceilings_T = recording.ceilings_T
        self._spent_NT = recording.spend_NST(ceilings_T).mean(axis=1)
        self._right_NT = recording.right_NST(ceilings_T).mean(axis=1)
        rng = np.random.default_rng(seed)
        self._weight_BN = rng.multinomial(queries, np.full(queries, 1 / queries), size=draws) / queries
        self._spent_BT = self._weight_BN @ self._spent_NT
        self._right_BT = self._weight_BN @ self._right_NT

    def row(self, policy: str, average_tokens: float, outcome: Outcome) -> Row:
        """Return the row of an outcome."""
        accuracy = float(outcome.right_N.mean())
        spent = float(outcome.spent_tokens_N.mean())
        even = self.uniform_accuracy(spent)
        accuracy_B = self._weight_BN @ outcome.right_N
        spent_B = self._weight_BN @ outcome.spent_tokens_N
        even_B = np.array([np.interp(s, x, y) for s, x, y in zip(spent_B, self._spent_BT, self._right_BT, strict=True)])
        low, high = _interval(accuracy_B)
        ratio_B = accuracy_B / np.maximum(even_B, 1e-9)
        times_low, times_high = _interval(ratio_B)
        has_ratio = even > 0
        return Row(
            policy=policy,
            average_budget=average_tokens,
            accuracy=accuracy,
            low=low,
            high=high,
            tokens_per_query=spent,
            uniform_accuracy=even,
            difference=accuracy - even,
            difference_error=float((accuracy_B - even_B).std(ddof=1)),
            times_uniform=accuracy / even if has_ratio else None,
            times_low=times_low if has_ratio else None,
            times_high=times_high if has_ratio else None,
            rounds=outcome.rounds,
        )

    def interval(self, right_N: NDArray[np.float64]) -> tuple[float, float]:
        """Return the 95 % interval of the mean of a value a query."""
        return _interval(self._weight_BN @ right_N)

    def uniform_accuracy(self, tokens_per_query: float) -> float:
        """Return the accuracy of the equal ceiling that generates so many tokens a query."""
        return float(np.interp(tokens_per_query, self._spent_NT.mean(axis=0), self._right_NT.mean(axis=0)))

    def uniform_tokens(self, accuracy: float) -> float:
        """Return the tokens a query that an equal ceiling needs for an accuracy; infinite if it never gets there."""
        right_T, spent_T = self._right_NT.mean(axis=0), self._spent_NT.mean(axis=0)
        if accuracy > right_T[-1]:
            return float("inf")
        rising = np.concatenate([[True], np.diff(right_T) > 0])
        return float(np.interp(accuracy, right_T[rising], spent_T[rising]))


def _interval(draw_B: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draw_B, [_TAIL, 100 - _TAIL])
    return float(low), float(high)


def share_of_way(accuracy: float, *, uniform: float, oracle: float) -> float:
    """Return how far from uniform to the oracle an accuracy is; 1 where there is no way to go."""
    way = oracle - uniform
    return (accuracy - uniform) / way if way > 0 else 1.0


def table(rows: Sequence[Row]) -> str:
    """Return rows as aligned text."""
    lines = [
        f"{'policy':<24}{'budget':>7}{'tokens':>8}{'right':>8}  {'95 % interval':<16}"
        f"{'uniform':>8}{'times uniform':>22}{'rounds':>8}"
    ]
    for row in rows:
        times = (
            "" if row.times_uniform is None else f"{row.times_uniform:.2f} [{row.times_low:.2f}, {row.times_high:.2f}]"
        )
        interval = f"[{row.low:.3f}, {row.high:.3f}]"
        lines.append(
            f"{row.policy:<24}{row.average_budget:>7g}{row.tokens_per_query:>8.1f}{row.accuracy:>8.3f}  {interval:<16}"
            f"{row.uniform_accuracy:>8.3f}{times:>22}{row.rounds:>8.1f}"
        )
    return "\n".join(lines)
