"""From the features of a probe to a short vector per query: principal components of hidden states, and cheap text.

Everything is fitted on training queries only. No task label is read.

Shapes: N queries, D hidden width, F entries of the short vector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Arrays

TEXT_NAMES = (
    "log_prompt_tokens", "entropy", "log_question_characters", "log_numbers", "mean_digits", "max_digits",
    "sum_operators", "product_operators", "lines",
)  # fmt: skip

# The last user message of the usual chat templates; the template itself says nothing about the query.
_USER_TURN = re.compile(r"<\|im_start\|>user|<\|user\|>|<start_of_turn>user|\[INST\]|<\|start_header_id\|>user")
_TURN_END = re.compile(r"<\|im_end\|>|<\|end\|>|<end_of_turn>|\[/INST\]|<\|eot_id\|>")
_NUMBER = re.compile(r"\d+")
_FEW = 1e-6


def question_text(prompt: str | Sequence[tuple[str, str]]) -> str:
    """Return the last user message of a prompt, rendered or as a conversation; all of it if no turn is marked."""
    if not isinstance(prompt, str):
        turns = [content for role, content in prompt if role == "user"]
        return turns[-1] if turns else ""
    starts = [match.end() for match in _USER_TURN.finditer(prompt)]
    return _TURN_END.split(prompt[starts[-1] :])[0].strip() if starts else prompt


def text_features(features: Features, prompts: Sequence[str]) -> NDArray[np.float64]:
    """Return the scalar features named in `TEXT_NAMES`, one row a query; a missing entropy is NaN."""
    rows = np.zeros((len(prompts), len(TEXT_NAMES)))
    rows[:, 0] = np.log(np.maximum(features.prompt_tokens_N, 1))
    rows[:, 1] = features.entropy_N
    for row, prompt in zip(rows, prompts, strict=True):
        text = question_text(prompt)
        digits = [len(number) for number in _NUMBER.findall(text)]
        row[2] = np.log1p(len(text))
        row[3] = np.log1p(len(digits))
        row[4] = np.mean(digits) if digits else 0.0
        row[5] = max(digits, default=0)
        row[6] = np.log1p(len(re.findall(r"\d\s*[+-]", text)))
        row[7] = np.log1p(len(re.findall(r"\d\s*[*/\u00d7\u00f7]", text)))
        row[8] = np.log1p(text.count("\n"))
    return rows


@dataclass(frozen=True, slots=True)
class Projection:
    """A fitted map from features to short vectors.

    Attributes:
        last_mean_D: Mean of the last-token hidden state over training queries.
        last_DP: Its principal directions, scaled so that the training vectors have mean square 1 in all.
        mean_mean_D: The same for the mean hidden state.
        mean_DP: The same for the mean hidden state.
        text_center_T: Median of each scalar feature; stands in for a missing one.
        text_scale_T: What each is divided by.
    """

    last_mean_D: NDArray[np.float64]
    last_DP: NDArray[np.float64]
    mean_mean_D: NDArray[np.float64]
    mean_DP: NDArray[np.float64]
    text_center_T: NDArray[np.float64]
    text_scale_T: NDArray[np.float64]

    def __call__(self, features: Features, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Return one short vector per query.

        Raises:
            ConfigError: The hidden states are not as wide as those it was fitted on.
        """
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
        text_NT = (text_features(features, prompts) - self.text_center_T) / self.text_scale_T
        # Beyond four scales an unseen prompt is merely unlike the training ones; do not extrapolate further.
        blocks.append(np.clip(np.nan_to_num(text_NT), -4.0, 4.0) / np.sqrt(len(TEXT_NAMES)))
        return np.concatenate(blocks, axis=1)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        return {name: getattr(self, name).astype(np.float32) for name in self.__slots__}

    @classmethod
    def restore(cls, arrays: Arrays) -> Projection:
        """Make the projection again."""
        return cls(**{name: arrays[name].astype(np.float64) for name in cls.__slots__})


def fit_projection(features: Features, prompts: Sequence[str], *, components: int = 40) -> Projection:
    """Fit principal components and scales on training queries.

    Args:
        features: Of the training queries.
        prompts: Of the training queries.
        components: Most principal components kept of each kind of hidden state.
    """
    last_mean_D, last_DP = _principal(features.hidden_last_ND, components)
    mean_mean_D, mean_DP = _principal(features.hidden_mean_ND, components)
    text_NT = text_features(features, prompts)
    has_value_T = np.isfinite(text_NT).any(axis=0)
    center_T = np.where(has_value_T, np.nanmedian(np.where(has_value_T, text_NT, 0.0), axis=0), 0.0)
    scale_T = np.nanstd(np.where(has_value_T, text_NT, 0.0), axis=0)
    return Projection(last_mean_D, last_DP, mean_mean_D, mean_DP, center_T, np.where(scale_T > _FEW, scale_T, 1.0))


def _principal(hidden_ND: NDArray[np.float32], components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    hidden = hidden_ND.astype(np.float64)
    center_D = hidden.mean(axis=0) if len(hidden) else np.zeros(hidden.shape[1])
    _, singular, directions = np.linalg.svd(hidden - center_D, full_matrices=False)
    kept = min(components, int((singular > _FEW * max(singular.max(initial=0.0), 1.0)).sum()))
    scale = np.sqrt((singular**2).sum() / max(len(hidden), 1))
    return center_D, directions[:kept].T / max(scale, _FEW)
