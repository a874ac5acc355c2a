"""Two heads in closed form, to compare the default with: the paper's regressed threshold, and a shifted Erlang-2.

`regressed_threshold` (docs/method.md, section 2.1): the length of a right answer is regressed on the features; how far before
it the emergence threshold lies, and the rate beta, are fitted by maximum likelihood to the lengths of right rollouts. All
queries share alpha and beta, so all are equally solvable: the curves say when, not whether.

`shifted_erlang` (docs/method.md, section 2.2): also the chance of a right answer is regressed, threshold and rate scale with
the predicted length, and wrong answers have lengths of their own, so that spend is known too.

Shapes: N queries, K grid points, R rollouts, P coordinates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.erlang_law import cumulative, fit_scaled, fit_shared
from clear_ray.estimation.head import Arrays, Head, HeadCard, arrays_of, join_arrays
from clear_ray.estimation.landmarks import Landmarks, fit_landmarks
from clear_ray.estimation.observations import Rollouts
from clear_ray.estimation.projection import Projection, fit_projection
from clear_ray.estimation.regression import Regression, fit_regression

Array = NDArray[np.float64]
_LEAST_SOLVABILITY = 1e-3


@dataclass(frozen=True, slots=True)
class ParametricCoordinates:
    """Features to the coordinates that regressions are linear in."""

    projection: Projection
    landmarks: Landmarks

    def __call__(self, features: Features, prompts: Sequence[Prompt]) -> Array:
        """Return the coordinates of the queries, in order."""
        return self.landmarks(self.projection(features, prompts))


class ParametricHead(Head):
    """What both heads share: coordinates, named regressions and a few numbers.

    Args:
        card: Where the head comes from.
        coordinates: Map from features to coordinates.
        lines: Regressions by name.
        numbers: Shared parameters by name.
    """

    def __init__(
        self,
        card: HeadCard,
        *,
        coordinates: ParametricCoordinates,
        lines: dict[str, Regression],
        numbers: dict[str, float],
    ) -> None:
        super().__init__(card)
        self._coordinates, self._lines, self._numbers = coordinates, lines, numbers

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query; see `Head`."""
        return self._curves(self._coordinates(features, prompts), self.tokens_K.astype(np.float64))

    @abstractmethod
    def _curves(self, x_NP: Array, tokens_K: Array) -> Curves:
        """Return the curves of queries with these coordinates."""

    def _length(self, name: str, x_NP: Array) -> Array:
        """Return the predicted length, tokens, within what was seen in training."""
        return np.clip(np.exp(self._lines[name](x_NP)), self._numbers["shortest"], self._numbers["longest"])

    def arrays(self) -> Arrays:
        """Return the numbers to store."""
        coordinates = self._coordinates
        parts = {"projection": coordinates.projection.arrays(), "landmarks": coordinates.landmarks.arrays()}
        return join_arrays(parts | {name: line.arrays() for name, line in self._lines.items()})

    def settings(self) -> dict[str, Any]:
        """Return the shared parameters."""
        return {"numbers": self._numbers, "lines": sorted(self._lines)}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again."""
        projection = Projection.restore(arrays_of("projection", arrays))
        return cls(
            card,
            coordinates=ParametricCoordinates(projection, Landmarks.restore(arrays_of("landmarks", arrays))),
            lines={name: Regression.restore(arrays_of(name, arrays)) for name in settings["lines"]},
            numbers={name: float(value) for name, value in settings["numbers"].items()},
        )


class RegressedThresholdHead(ParametricHead):
    """The paper's curves: `alpha * x * exp(-beta * x)` up to its peak, alpha and beta shared, the threshold predicted."""

    def _curves(self, x_NP: Array, tokens_K: Array) -> Curves:
        beta, solvability = self._numbers["beta"], self._numbers["solvability"]
        threshold_N = np.maximum(self._length("right_length", x_NP) - self._numbers["distance"], 0.0)
        y_NK = np.clip(beta * (tokens_K - threshold_N[:, None]), 0.0, 1.0)
        success_NK = solvability * y_NK * np.exp(1.0 - y_NK)
        # Nothing is said about wrong answers: every answer runs on until it is right.
        curves = curves_from_incidence(success_NK, survival_NK=1.0 - success_NK, tokens_K=tokens_K.astype(np.int64))
        return replace(
            curves,
            threshold_tokens_N=threshold_N.astype(np.float32),
            solvability_N=np.full(len(x_NP), solvability, np.float32),
            beta_N=np.full(len(x_NP), beta, np.float32),
        )


class ShiftedErlangHead(ParametricHead):
    """Solvability times a shifted Erlang-2 whose threshold and rate scale with the predicted length."""

    def _curves(self, x_NP: Array, tokens_K: Array) -> Curves:
        solvability_N = np.clip(self._lines["solvability"](x_NP), _LEAST_SOLVABILITY, 1.0 - _LEAST_SOLVABILITY)
        ended = {}
        for name in ("right", "wrong"):
            length_N = self._length(f"{name}_length", x_NP)
            threshold_N, beta_N = self._numbers[f"{name}_share"] * length_N, self._numbers[f"{name}_rate"] / length_N
            ended[name] = (
                threshold_N,
                beta_N,
                cumulative(tokens_K, threshold=threshold_N[:, None], beta=beta_N[:, None]),
            )
        threshold_N, beta_N, right_NK = ended["right"]
        success_NK = solvability_N[:, None] * right_NK
        wrong_NK = (1.0 - solvability_N[:, None]) * ended["wrong"][2]
        curves = curves_from_incidence(
            success_NK, survival_NK=1.0 - success_NK - wrong_NK, tokens_K=tokens_K.astype(np.int64)
        )
        return replace(
            curves,
            threshold_tokens_N=threshold_N.astype(np.float32),
            solvability_N=solvability_N.astype(np.float32),
            beta_N=beta_N.astype(np.float32),
        )


def fit_regressed_threshold(card: HeadCard, rollouts: Rollouts, features: Features, *, seed: int) -> ParametricHead:
    """Fit the paper's curves.

    Args:
        card: Its grid is used; the rest is kept.
        rollouts: Rollouts of the training queries.
        features: Features of the same queries, in the same order.
        seed: Seed of landmarks and folds.
    """
    coordinates, x_NP = _coordinates(rollouts, features, seed=seed)
    line, held_N = _fit_length(x_NP, rollouts, rollouts.is_right_R, seed=seed)
    right = rollouts.is_right_R
    distance, beta = fit_shared(
        rollouts.tokens_R[right].astype(np.float64), rollouts.is_ended_R[right], held_N[rollouts.query_R[right]]
    )
    numbers = {"distance": distance, "beta": beta, "solvability": _pooled(rollouts), **_range_of(rollouts)}
    return RegressedThresholdHead(card, coordinates=coordinates, lines={"right_length": line}, numbers=numbers)


def fit_shifted_erlang(card: HeadCard, rollouts: Rollouts, features: Features, *, seed: int) -> ParametricHead:
    """Fit solvability, and a law of lengths each for right and wrong answers.

    Args:
        card: Its grid is used; the rest is kept.
        rollouts: Rollouts of the training queries.
        features: Features of the same queries, in the same order.
        seed: Seed of landmarks and folds.
    """
    coordinates, x_NP = _coordinates(rollouts, features, seed=seed)
    count_N = np.bincount(rollouts.query_R, minlength=len(rollouts)).astype(np.float64)
    right_N = np.bincount(rollouts.query_R, rollouts.is_right_R, minlength=len(rollouts))
    lines = {"solvability": fit_regression(x_NP, right_N / np.maximum(count_N, 1.0), count_N, seed=seed)[0]}
    numbers = _range_of(rollouts)
    for name, chosen in (("right", rollouts.is_right_R), ("wrong", ~rollouts.is_right_R)):
        lines[f"{name}_length"], held_N = _fit_length(x_NP, rollouts, chosen, seed=seed)
        numbers[f"{name}_share"], numbers[f"{name}_rate"] = fit_scaled(
            rollouts.tokens_R[chosen].astype(np.float64), rollouts.is_ended_R[chosen], held_N[rollouts.query_R[chosen]]
        )
    return ShiftedErlangHead(card, coordinates=coordinates, lines=lines, numbers=numbers)


def _coordinates(rollouts: Rollouts, features: Features, *, seed: int) -> tuple[ParametricCoordinates, Array]:
    projection = fit_projection(features, rollouts.prompts)
    z_NF = projection(features, rollouts.prompts)
    coordinates = ParametricCoordinates(projection, fit_landmarks(z_NF, seed=seed))
    return coordinates, coordinates.landmarks(z_NF)


def _fit_length(x_NP: Array, rollouts: Rollouts, chosen_R: NDArray[np.bool_], *, seed: int) -> tuple[Regression, Array]:
    """Regress the mean logarithm of some rollouts' lengths; return the line and held-out predicted lengths, tokens."""
    queries = len(rollouts)
    count_N = np.bincount(rollouts.query_R[chosen_R], minlength=queries).astype(np.float64)
    log_R = np.log(rollouts.tokens_R[chosen_R])
    mean_N = np.bincount(rollouts.query_R[chosen_R], log_R, minlength=queries) / np.maximum(count_N, 1.0)
    line, held_N = fit_regression(x_NP, mean_N, count_N, seed=seed)
    return line, np.exp(np.clip(held_N, 0.0, float(np.log(rollouts.tokens_R.max()))))


def _pooled(rollouts: Rollouts) -> float:
    return float(np.clip(rollouts.is_right_R.mean(), _LEAST_SOLVABILITY, 1.0 - _LEAST_SOLVABILITY))


def _range_of(rollouts: Rollouts) -> dict[str, float]:
    return {"shortest": float(rollouts.tokens_R.min()), "longest": float(rollouts.tokens_R.max())}
