"""From the features of a probe to a short vector per query: principal components of hidden states, and cheap text.

Each block (last hidden state, mean hidden state, text) is scaled so that training queries have mean square equal to
the block's weight; inside a block of hidden states the components are half whitened, because those that tell hard
from easy are rarely the largest. Everything is fitted on training queries only.

Shapes: N queries, D hidden width, P principal components, T scalar features, F entries of the short vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Arrays
from clear_ray.estimation.text_features import text_features

Array = NDArray[np.float64]

# The last token's state carries much about the chat template and the next token; the mean carries the question.
_WEIGHT_LAST, _WEIGHT_MEAN, _WEIGHT_TEXT = 0.3, 1.0, 1.0
_WHITENING = 0.5
_FEW = 1e-6
_FURTHEST = 4.0


@dataclass(frozen=True, slots=True)
class Projection:
    """A fitted map from features to short vectors.

    Attributes:
        last_mean_D: Mean of the last-token hidden state over training queries.
        last_DP: Its scaled principal directions.
        mean_mean_D: The same for the mean hidden state.
        mean_DP: The same for the mean hidden state.
        text_center_T: Mean of each scalar feature; stands in for a missing one.
        text_scale_T: What each is divided by; infinite for one that is constant in training.
    """

    last_mean_D: Array
    last_DP: Array
    mean_mean_D: Array
    mean_DP: Array
    text_center_T: Array
    text_scale_T: Array

    def __call__(self, features: Features, prompts: Sequence[Prompt]) -> Array:
        """Return one short vector per query.

        Raises:
            ConfigError: The hidden states are not as wide as those it was fitted on.
        """
        return self.of(features, text_features(features, prompts))

    def of(self, features: Features, text_NT: Array) -> Array:
        """Do the same where the scalar features of the queries' texts are known."""
        blocks = []
        for name, hidden_ND, center_D, directions_DP in (
            ("hidden_last", features.hidden_last_ND, self.last_mean_D, self.last_DP),
            ("hidden_mean", features.hidden_mean_ND, self.mean_mean_D, self.mean_DP),
        ):
            if hidden_ND.shape[1] != len(center_D):
                raise ConfigError(
                    f"{name} has width {hidden_ND.shape[1]}, the head was fitted on {len(center_D)}",
                    "head",
                    remedy="Calibrate a head for this model with `clear-ray calibrate`.",
                )
            blocks.append((hidden_ND.astype(np.float64) - center_D) @ directions_DP)
        scaled_NT = (text_NT - self.text_center_T) / self.text_scale_T
        # Beyond four deviations an unseen prompt is merely unlike the training ones; do not extrapolate further.
        shown_T = max(int(np.isfinite(self.text_scale_T).sum()), 1)
        blocks.append(np.clip(np.nan_to_num(scaled_NT), -_FURTHEST, _FURTHEST) * np.sqrt(_WEIGHT_TEXT / shown_T))
        return np.concatenate(blocks, axis=1)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name).astype(np.float32) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Projection:
        """Make the projection again."""
        return cls(**{name: arrays[name].astype(np.float64) for name in cls.__slots__})


def fit_projection(features: Features, prompts: Sequence[Prompt], *, components: int = 80) -> Projection:
    """Fit principal components and scales on training queries.

    Args:
        features: Features of the training queries.
        prompts: Prompts of the training queries.
        components: Most principal components kept of each kind of hidden state.
    """
    return fit_projection_to(features, text_features(features, prompts), components=components)


def fit_projection_to(features: Features, text_NT: Array, *, components: int = 80) -> Projection:
    """Do the same where the scalar features of the queries' texts are known."""
    last_mean_D, last_DP = _principal(features.hidden_last_ND, components, _WEIGHT_LAST)
    mean_mean_D, mean_DP = _principal(features.hidden_mean_ND, components, _WEIGHT_MEAN)
    known_NT = np.isfinite(text_NT)
    number_T = np.maximum(known_NT.sum(axis=0), 1)
    center_T = np.where(known_NT, text_NT, 0.0).sum(axis=0) / number_T
    scale_T = np.sqrt((np.where(known_NT, text_NT - center_T, 0.0) ** 2).sum(axis=0) / number_T)
    scale_T[scale_T < _FEW] = np.inf
    fitted = Projection(last_mean_D, last_DP, mean_mean_D, mean_DP, center_T, scale_T)
    # Stored in single precision: whatever is fitted behind this projection must see what a reader of the file sees.
    return Projection.restore(fitted.arrays())


def _principal(hidden_ND: NDArray[np.float32], components: int, weight: float) -> tuple[Array, Array]:
    hidden = hidden_ND.astype(np.float64)
    queries, width = hidden.shape
    center_D = hidden.mean(axis=0) if queries else np.zeros(width)
    # A few units of a transformer are a hundred times larger than the rest and say little: scale each by its spread.
    spread_D = hidden.std(axis=0) + _FEW if queries else np.ones(width)
    _, singular, directions = np.linalg.svd((hidden - center_D) / spread_D, full_matrices=False)
    kept = min(components, int((singular > 1e-3 * singular.max(initial=_FEW)).sum()))
    deviation_P = singular[:kept] / np.sqrt(max(queries, 1))
    scale_P = deviation_P**-_WHITENING
    total = np.sqrt(((deviation_P * scale_P) ** 2).sum())
    return center_D, directions[:kept].T / spread_D[:, None] * scale_P * (np.sqrt(weight) / max(total, _FEW))
