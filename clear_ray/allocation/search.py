"""The smallest grid position at which a falling sum fits.

Prices, and the factors of the baselines, are whole numbers on a grid (`price_grid`), and so are the sums, so the
answer is one definite number: `excess(index) <= 0` and `excess(index - 1) > 0`. The path to it only costs time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from clear_ray.allocation.columns import IntArray

_LISTED_BREAKPOINTS = 64
_TRIES_BEFORE_HALVING = 2


class Bracket:
    """Two grid positions with a positive excess at `low` and none at `high`; the answer is `high` once they touch.

    Args:
        excess: A function of the position that never rises.
        low: A position with positive excess.
        high: A position without.
    """

    def __init__(self, excess: Callable[[int], int], *, low: int, high: int) -> None:
        self._excess = excess
        self.low, self.high = low, high
        self._low_value: int | None = None
        self._high_value: int | None = None
        self._left_behind: tuple[int, int] | None = None  # the last end that was replaced, and its value
        self._slow_tries = 0
        self.is_top_tried = False  # whether the position just under `high` was the last one tried

    @property
    def width(self) -> int:
        """Distance of the ends."""
        return self.high - self.low

    def try_at(self, index: int) -> None:
        """Move one end to `index`, which lies strictly between the ends. Changes the bracket."""
        width, value = self.width, self._excess(index)
        self.is_top_tried = index == self.high - 1
        if value > 0:
            self._left_behind = None if self._low_value is None else (self.low, self._low_value)
            self.low, self._low_value = index, value
        else:
            self._left_behind = None if self._high_value is None else (self.high, self._high_value)
            self.high, self._high_value = index, value
        self._slow_tries = 0 if 2 * self.width <= width else self._slow_tries + 1

    def close_in_on(self, guess: int, excess_above: Callable[[int], int], *, first_reach: int) -> None:
        """Move both ends to the neighbourhood of a guess, wider and wider until it holds the answer.

        Args:
            guess: A position that is probably near the answer.
            excess_above: Somewhere between `excess(index)` and `excess(index + 1)`, which may be less work.
            first_reach: How far from the guess to look first.
        """
        for side in (-1, 1):
            reach = first_reach
            while self.low < (index := guess + side * reach) < self.high - 1:
                value = excess_above(index)
                if value > 0:
                    self.low, self._low_value = index, value
                else:
                    self.high, self._high_value = index + 1, value
                if (value > 0) == (side < 0):
                    break
                reach *= 8

    def crossing(self, *, leaps: int) -> int:
        """Return a position near which the excess crosses zero, a little toward the far end.

        Without that shift one end would creep and the other never move. Among leaps the crossing is known to about
        the root of their number, which is the shift. Where the excess is smooth, the straight line through the ends is
        bent by the end that was left behind (inverse quadratic interpolation). Falls back to the middle while an end
        has no value yet, and when tries do not halve the bracket.

        Args:
            leaps: How many breakpoints the bracket holds; 0 where the excess is smooth.
        """
        middle = self.low + self.width // 2
        if self._low_value is None or self._high_value is None or self._slow_tries >= _TRIES_BEFORE_HALVING:
            return middle
        line = self.low + self.width * self._low_value // (self._low_value - self._high_value)
        bent = None if leaps else self._bent()
        crossing = line if bent is None or not self.low < bent < self.high else bent
        shift = self.width // (2 * math.isqrt(leaps) + 2) if leaps else max(abs(crossing - line) // 4, self.width >> 20)
        moved = min(crossing + shift + 1, middle) if crossing < middle else max(crossing - shift - 1, middle)
        return min(max(moved, self.low + 1), self.high - 1)

    def _bent(self) -> int | None:
        """Return where the parabola index(excess) through three points crosses zero, if there is one."""
        if self._left_behind is None or self._low_value is None or self._high_value is None:
            return None
        x, f = self._left_behind
        values = {f, self._low_value, self._high_value}
        if len(values) < 3:
            return None
        a, b, c = float(self._low_value), float(self._high_value), float(f)
        from_low = float(self.width) * a * c / ((b - a) * (b - c)) + float(x - self.low) * a * b / ((c - a) * (c - b))
        return self.low + round(from_low)


def first_fitting_index(bracket: Bracket, breakpoints: IntArray, *, stop_width: int = 1) -> int:
    """Return the smallest position with `excess <= 0` inside a bracket.

    Many breakpoints inside the bracket look like a smooth curve, so the bracket is narrowed by interpolation; a few
    are tried one by one, the likeliest first; between two of them the excess is smooth, and interpolation ends within
    a few calls.

    Args:
        bracket: Ends on both sides of the answer. It is closed.
        breakpoints: Positions where the excess leaps, in any order; it is lower just above each.
        stop_width: Distance of the ends that is good enough; 1 for the exact answer.
    """
    inside = breakpoints
    while bracket.width > stop_width:
        inside = inside[(inside >= bracket.low) & (inside < bracket.high - 1)]
        if inside.size > _LISTED_BREAKPOINTS:
            bracket.try_at(bracket.crossing(leaps=inside.size))
        elif inside.size > 0:
            inside = np.unique(inside)
            nearest = int(np.searchsorted(inside, bracket.crossing(leaps=inside.size)))
            bracket.try_at(int(inside[min(nearest, inside.size - 1)]) + 1)
        elif not bracket.is_top_tried:
            bracket.try_at(bracket.high - 1)
        else:
            bracket.try_at(bracket.crossing(leaps=0))
    return bracket.high
