"""Whether giving a part of a batch up pays, where nothing tells queries apart.

If most answers are longer than the average budget, equal ceilings cut them all, and answering some random queries in full is
worth more. If answers are short it is worth less. The pooled curve says which, and it is as S-shaped as chance has drawn it:
so ceilings are chosen on the pooled curve of some answers and judged by the others, drawn again and again.

Shapes: M observed answers, K grid points, B draws.

Source: docs/method.md, section 8.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.curves import mean_spend
from clear_ray.estimation.factors import Label, Observed, place
from clear_ray.estimation.hazards import Incidence

Array = NDArray[np.float64]
_DRAWS = 200
_BAR_NATS = 2.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A pooled curve, and answers that it was not fitted on.

    Attributes:
        pooled: The curve, one row.
        held: The answers.
    """

    pooled: Incidence
    held: Observed


def share_of_pooled(
    parts: Sequence[Judged], *, average_tokens: float, tokens_K: NDArray[np.int64], label: Label, seed: int
) -> float:
    """Return how far the pooled curve is followed and not the uninformed law, 0 to 1.

    Args:
        parts: Parts of the answers, each with the curve of the others.
        average_tokens: Budget of a query.
        tokens_K: The grid.
        label: What says that an answer is right.
        seed: Of the draws.
    """
    rng, gain_B = np.random.default_rng(seed), np.zeros(_DRAWS)
    for part in parts:
        if not len(part.held):
            continue
        low, high = _ceilings(part.pooled, average_tokens, tokens_K)
        right_BK, spend_BK = _drawn(part.held, tokens_K, label, rng)
        gain_B += _mixed(right_BK, spend_BK, low, high, average_tokens) - _even(right_BK, spend_BK, average_tokens)
    better = float((gain_B > 1e-9).sum() + 0.5 * (abs(gain_B) <= 1e-9).sum())
    chance = (better + 0.5) / (_DRAWS + 1.0)
    return float(1.0 / (1.0 + np.exp(_BAR_NATS) * (1.0 - chance) / chance))


def _ceilings(pooled: Incidence, average_tokens: float, tokens_K: NDArray[np.int64]) -> tuple[int, int]:
    """Return the two ceilings whose mixture brings the most at the budget, 0 for none, else a place on the grid from 1."""
    right = np.concatenate([[0.0], pooled.right_NK[0]])
    spend = np.concatenate([[0.0], mean_spend(pooled.survival_NK, tokens_K=tokens_K)[0]])
    below, above = np.flatnonzero(spend <= average_tokens), np.flatnonzero(spend > average_tokens)
    if not len(above):
        return int(below[-1]), int(below[-1])
    rate = (right[above] - right[below][:, None]) / (spend[above] - spend[below][:, None])
    value = right[below][:, None] + rate * (average_tokens - spend[below][:, None])
    low, high = np.unravel_index(int(value.argmax()), value.shape)
    return int(below[low]), int(above[high])


def _drawn(held: Observed, tokens_K: NDArray[np.int64], label: Label, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return right answers and mean tokens under each ceiling, by answers drawn with replacement, shape (B, K + 1) each."""
    many = len(held)
    weight_BM = rng.multinomial(many, np.full(many, 1.0 / many), size=_DRAWS).astype(np.float64)
    placed = place(held, tokens_K=tokens_K)
    right_M = np.ones(many) if label == "ended" else np.nan_to_num(held.right_M, nan=_mean_verdict(held))
    right_MK = placed.ended_MK * right_M[:, None]
    at_risk_BK = np.maximum(weight_BM @ placed.at_risk_MK, 1e-9)
    ended_BK, chance_BK = weight_BM @ placed.ended_MK / at_risk_BK, weight_BM @ right_MK / at_risk_BK
    survival_BK = np.cumprod(1.0 - np.clip(ended_BK, 0.0, 1.0), axis=1, dtype=np.float64)
    before_BK = np.concatenate([np.ones((_DRAWS, 1)), survival_BK[:, :-1]], axis=1)
    none = np.zeros((_DRAWS, 1))
    right_BK = np.concatenate([none, np.cumsum(before_BK * chance_BK, axis=1)], axis=1)
    return right_BK, np.concatenate([none, mean_spend(survival_BK, tokens_K=tokens_K)], axis=1)


def _mean_verdict(held: Observed) -> float:
    """Return how right answers are that ended and were judged: what stands for those that were not; 0 where none was."""
    judged_M = held.right_M[np.isfinite(held.right_M)]
    return float(judged_M.mean()) if len(judged_M) else 0.0


def _mixed(right_BK: Array, spend_BK: Array, low: int, high: int, average_tokens: float) -> Array:
    if low == high:
        return right_BK[:, low]
    apart_B = np.maximum(spend_BK[:, high] - spend_BK[:, low], 1e-9)  # 0 where all that was drawn had ended before
    part_B = np.clip((average_tokens - spend_BK[:, low]) / apart_B, 0.0, 1.0)
    mixed_B: Array = right_BK[:, low] + part_B * (right_BK[:, high] - right_BK[:, low])
    return mixed_B


def _even(right_BK: Array, spend_BK: Array, average_tokens: float) -> Array:
    return np.array([np.interp(average_tokens, spend, right) for right, spend in zip(right_BK, spend_BK, strict=True)])
