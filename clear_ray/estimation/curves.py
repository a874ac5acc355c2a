"""Predicted curves: what one query is expected to return for each number of tokens it may generate.

A curve is kept on a token grid as competing risks (docs/method.md, section 2.3): the chance that a correct answer has
arrived, the tokens expected to be spent under that ceiling, and the chance that the answer is still running. The same
estimate is also given as three numbers (threshold, solvability, rate), to be read as `ShiftedSurge` or `ShiftedErlang`.

Shapes: N queries, K grid points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.errors import UtilityError

FIRST_GRID_TOKENS = 4
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Curves:
    """Success, spend and survival of N queries on a shared token grid.

    Attributes:
        tokens_K: Grid of ceilings in tokens, int64, strictly rising, at least 1; the point (0 tokens, 0) is implied.
        success_NK: Chance that a correct answer has ended by each grid point, 0 to 1, never falling along K, float32.
        spend_NK: Expected tokens generated under each ceiling, never falling along K, float32.
        survival_NK: Chance that the answer is still running after each grid point, never rising along K, float32.
        threshold_tokens_N: Emergence threshold tau of the shifted Erlang-2 with the curve's moments, tokens, float32.
        solvability_N: Chance of a correct answer within the grid, 0 to 1, float32.
        beta_N: Rate of the shifted Erlang-2 with the curve's moments, per token, above 0, float32.
    """

    tokens_K: NDArray[np.int64]
    success_NK: NDArray[np.float32]
    spend_NK: NDArray[np.float32]
    survival_NK: NDArray[np.float32]
    threshold_tokens_N: NDArray[np.float32]
    solvability_N: NDArray[np.float32]
    beta_N: NDArray[np.float32]

    def __len__(self) -> int:
        """Return N."""
        return len(self.success_NK)

    def take(self, index: ArrayLike) -> Curves:
        """Return the curves of the queries at `index` (integers or a mask), in that order."""
        rows = np.asarray(index)
        per_query = {f.name: getattr(self, f.name)[rows] for f in fields(Curves) if f.name != "tokens_K"}
        return Curves(tokens_K=self.tokens_K, **per_query)

    def placed(self, index: NDArray[np.int64], queries: int) -> Curves:
        """Return the curves of so many queries: these at their places `index`, and zeros of all others."""
        names = [f.name for f in fields(Curves) if f.name != "tokens_K"]
        found = {name: np.zeros((queries, *getattr(self, name).shape[1:]), np.float32) for name in names}
        for name, values in found.items():
            values[index] = getattr(self, name)
        return Curves(tokens_K=self.tokens_K, **found)

    @staticmethod
    def concatenate(parts: Sequence[Curves]) -> Curves:
        """Join the curves of several blocks of queries, in order.

        Args:
            parts: At least one block; all on the same token grid.

        Raises:
            UtilityError: There is no block, or the grids differ.
        """
        if not parts:
            raise UtilityError("no curves to join", remedy="Pass at least one block of curves.")
        tokens_K = parts[0].tokens_K
        for position, part in enumerate(parts):
            if not np.array_equal(part.tokens_K, tokens_K):
                raise UtilityError(
                    "blocks of curves lie on different token grids",
                    f"block {position}",
                    str(part.tokens_K.tolist()),
                    "Estimate all queries of a run with the same head.",
                )
        names = [f.name for f in fields(Curves) if f.name != "tokens_K"]
        return Curves(tokens_K=tokens_K, **{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def token_grid(cap_tokens: int, *, points: int = 40) -> NDArray[np.int64]:
    """Return a roughly geometric grid of ceilings from 4 tokens (or 1, for a tiny cap) to the cap.

    Args:
        cap_tokens: Last grid point: the ceiling under which rollouts were sampled.
        points: Most grid points; fewer come back where rounding to whole tokens merges them.

    Raises:
        UtilityError: The cap is below 1.
    """
    if cap_tokens < 1:
        raise UtilityError("the token grid needs a cap of at least 1", value=str(cap_tokens))
    first = min(FIRST_GRID_TOKENS, cap_tokens)
    return np.unique(np.rint(np.geomspace(first, cap_tokens, points)).astype(np.int64))


def mean_spend(survival_NK: NDArray[np.float64], *, tokens_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean tokens under each ceiling of the grid, lengths between its points taken as evenly spread."""
    before_NK = np.concatenate([np.ones((len(survival_NK), 1)), survival_NK[:, :-1]], axis=1)
    spend_NK: NDArray[np.float64] = np.cumsum(np.diff(tokens_K, prepend=0) * (before_NK + survival_NK) / 2, axis=1)
    return spend_NK


def curves_from_incidence(
    success_NK: NDArray[np.floating], *, survival_NK: NDArray[np.floating], tokens_K: NDArray[np.int64]
) -> Curves:
    """Complete the two incidence functions to curves: expected spend and the three numbers of the parametric forms.

    Between grid points the lengths are taken as evenly spread, so spend is the trapezoid rule on the survival function.

    Args:
        success_NK: Cumulative incidence of "finished, correct" at each grid point, 0 to 1.
        survival_NK: Chance of still running after each grid point, 0 to 1.
        tokens_K: The grid.

    Raises:
        UtilityError: Shapes disagree, a value is not finite, or success and survival add up to more than 1.

    Source: docs/method.md, section 2.3.
    """
    success = np.maximum.accumulate(np.clip(np.asarray(success_NK, np.float64), 0.0, 1.0), axis=1)
    survival = np.minimum.accumulate(np.clip(np.asarray(survival_NK, np.float64), 0.0, 1.0), axis=1)
    if success.shape != survival.shape or success.ndim != 2 or success.shape[1] != len(tokens_K):
        raise UtilityError("success, survival and grid disagree in shape", value=f"{success.shape} {survival.shape}")
    if not (np.isfinite(success).all() and np.isfinite(survival).all()):
        raise UtilityError("a curve holds a value that is not finite")
    if (success + survival).max(initial=0.0) > 1.0 + 1e-4:
        raise UtilityError("success and survival add up to more than 1", value=f"{(success + survival).max():.4f}")
    spend = mean_spend(survival, tokens_K=tokens_K)
    threshold_N, beta_N = erlang_moments(success, tokens_K=tokens_K)
    return Curves(
        tokens_K=np.asarray(tokens_K, np.int64),
        success_NK=success.astype(np.float32),
        spend_NK=spend.astype(np.float32),
        survival_NK=survival.astype(np.float32),
        threshold_tokens_N=threshold_N.astype(np.float32),
        solvability_N=success[:, -1].astype(np.float32),
        beta_N=beta_N.astype(np.float32),
    )


def erlang_moments(
    success_NK: NDArray[np.float64], *, tokens_K: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return threshold and rate of the shifted Erlang-2 with the mean and variance of the lengths of correct answers.

    An Erlang-2 of rate beta has mean 2/beta and variance 2/beta^2; the shift makes up the rest of the mean. The
    threshold is cut at 0, and the rate then follows from the mean alone.

    Source: docs/method.md, section 2.2 (moments of the density there).
    """
    mass_NK = np.diff(success_NK, prepend=0.0, axis=1) + _TINY
    mass_NK /= mass_NK.sum(axis=1, keepdims=True)
    width_K = np.diff(tokens_K, prepend=0).astype(np.float64)
    middle_K = tokens_K - width_K / 2
    mean_N = mass_NK @ middle_K
    # Each cell is an even spread of its own width: its variance width^2/12 is part of the total.
    variance_N = np.maximum(mass_NK @ (middle_K**2 + width_K**2 / 12) - mean_N**2, 1.0)
    threshold_N = np.maximum(mean_N - np.sqrt(2 * variance_N), 0.0)
    return threshold_N, 2.0 / np.maximum(mean_N - threshold_N, 1.0)
