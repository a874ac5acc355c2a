"""What a run that learns will gain over equal ceilings, told beforehand, as an interval that nine of ten batches stay within.

Two sources. *Curves* of a head, or of what earlier runs have learned: what the price buys by them less what ceilings buy,
of which a run realises a part. *Sampled answers*, or none: worlds are drawn that agree with them, each with a distribution of
lengths, a solvability, a share of what giving up a random part of the batch would gain, and a share of what a perfectly
informed policy would gain beyond that. A few answers say a lot of the first two and nothing of the shares, which keep the
width that they have over recorded batches.

Where answers are short beside the budget, or all alike, equal ceilings leave nothing to gain, in every such world.

Shapes: D drawn worlds, R of them that agree with what was sampled, V virtual queries of a world.

Source: method.md section 8.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
_DRAWN, _WORLDS, _VIRTUAL = 4_000, 600, 256
_AT_ONCE, _KEPT = 4, 0.98
_SURE = 0.97
"""Wider than what is promised: the laws above are those of some thirty batches."""
_SHORTER = (0.6, 0.45)
"""How much shorter right answers are than wrong ones, in spreads: mean and deviation over recordings."""
# Of lengths, in logarithms: how many answers the prior counts for, its spread, and where it looks for the mean, of the cap.
_PRIOR_ANSWERS, _PRIOR_SPREAD, _PRIOR_SHARE, _PRIOR_DOUBT = 3.0, 0.9, 0.08, 1.3
_LEARNABLE, _LEARNABLE_FROM, _LEARNABLE_TO = (0.9, 0.8), -0.06, 1.1
"""Beta law, and its ends, of the share of a perfectly informed gain that a run realises, over recorded batches."""
_REALISED, _REALISED_DEVIATION = 0.85, 0.25
"""Share of the gain by a head's own curves that a run realises, and how that differs."""
_LEAST_GAIN, _LEAST_SHARE, _LIKELY = 0.005, 0.05, 0.45
"""A gain is worth the name from so many right answers a query on, and from this part of what equal ceilings bring; it is
expected from this chance on."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What is expected over equal ceilings, right answers a query.

    Attributes:
        low: Nine of ten such batches gain more than this and less than `high`, or as much.
        expected: In the mean.
        high: See `low`.
        uniform: What equal ceilings are expected to bring.
        chance: Chance that the gain is worth the name.
    """

    low: float
    expected: float
    high: float
    uniform: float
    chance: float

    @property
    def is_expected(self) -> bool:
        """Whether a gain is expected at all."""
        return self.chance >= _LIKELY


def least_gain(uniform: float | Array) -> float | Array:
    """Return from where on a gain is worth the name, right answers a query, beside what equal ceilings bring."""
    return np.maximum(_LEAST_GAIN, _LEAST_SHARE * np.asarray(uniform))


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One answer to a random query.

    Attributes:
        taken: What it took, tokens or the unit of the budget.
        is_ended: Whether it ended by itself; otherwise it was cut there.
        right: Whether it is right, 0 to 1; None where nothing says so.
    """

    taken: float
    is_ended: bool
    right: float | None


def gain_by_sample(
    sampled: Sequence[SampledAnswer], *, queries: int, average: float, cap: float, is_judged: bool = True, seed: int = 0
) -> Gain:
    """Return what is expected by a few answers, or by none.

    Args:
        sampled: Answers to random queries.
        queries: Number of queries, N.
        average: The budget, for each query, in the unit of what answers take.
        cap: What an answer takes that runs into its ceiling.
        is_judged: Whether there is a scorer; without one each answer that ends counts as right.
        seed: Seed of the worlds.
    """
    rng = np.random.default_rng(seed)
    return _told(*_played(sampled, average, cap, is_judged, rng), queries, rng)


def gain_by_curves(
    by_price: float,
    by_ceilings: float,
    earlier: Sequence[SampledAnswer] = (),
    *,
    queries: int,
    average: float = 0.0,
    cap: float = 0.0,
    is_judged: bool = True,
    seed: int = 0,
) -> Gain:
    """Return what is expected by the curves of a head, and by the answers that it was taught by, where those are there.

    Curves that are trusted little are near the uninformed law, and promise little where a run would still learn: so half of
    the worlds are those of the answers.

    Args:
        by_price: Right answers that the curves expect of the whole budget at one price.
        by_ceilings: The same of equal ceilings.
        earlier: Some answers of earlier runs.
        queries: Number of queries, N.
        average: As for `gain_by_sample`; so are the others.
        cap: Likewise.
        is_judged: Likewise.
        seed: Likewise.
    """
    rng = np.random.default_rng(seed)
    share_R = np.maximum(rng.normal(_REALISED, _REALISED_DEVIATION, _WORLDS), 0.0)
    gain_R, uniform_R = share_R * max(by_price - by_ceilings, 0.0) / queries, np.full(_WORLDS, by_ceilings / queries)
    if earlier:
        other_gain_R, other_uniform_R = _played(earlier, average, cap, is_judged, rng)
        half = _WORLDS // 2
        gain_R = np.concatenate([gain_R[:half], other_gain_R[half:]])
        uniform_R = np.concatenate([uniform_R[:half], other_uniform_R[half:]])
    return _told(gain_R, uniform_R, queries, rng)


def _played(
    sampled: Sequence[SampledAnswer], average: float, cap: float, is_judged: bool, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return what a run gains in each world, and what equal ceilings bring there."""
    mean_R, spread_R, solvable_R, shorter_R = _worlds(sampled, cap, is_judged, rng)
    is_right_RV = rng.random((_WORLDS, _VIRTUAL)) < solvable_R[:, None]
    place_R2 = _places(solvable_R, shorter_R)
    z_RV = rng.standard_normal((_WORLDS, _VIRTUAL)) + np.where(is_right_RV, place_R2[:, :1], place_R2[:, 1:])
    length_RV = np.exp(mean_R[:, None] + spread_R[:, None] * z_RV)
    is_right_RV &= length_RV <= cap
    length_RV = np.minimum(length_RV, cap)
    uniform_R = (is_right_RV & (length_RV <= _equal_ceilings(length_RV, average)[:, None])).mean(axis=1)
    mixed_R = np.maximum(_best_mixture(length_RV, is_right_RV, average), uniform_R)
    cost_RV = np.cumsum(np.sort(np.where(is_right_RV, length_RV, np.inf), axis=1), axis=1)
    informed_R = np.maximum((cost_RV <= average * _VIRTUAL).mean(axis=1), mixed_R)
    share_R = _LEARNABLE_FROM + (_LEARNABLE_TO - _LEARNABLE_FROM) * rng.beta(*_LEARNABLE, _WORLDS)
    given_up_R = rng.random(_WORLDS)
    return given_up_R * (mixed_R - uniform_R) + share_R * (informed_R - mixed_R), uniform_R


def _best_mixture(length_RV: Array, is_right_RV: NDArray[np.bool_], average: float) -> Array:
    """Return what one ceiling brings that is given to as many random queries as it can be paid for, at its best."""
    order = np.argsort(length_RV, axis=1)
    length_RV = np.take_along_axis(length_RV, order, axis=1)
    right_RV = np.cumsum(np.take_along_axis(is_right_RV, order, axis=1), axis=1) / _VIRTUAL
    above_V = _VIRTUAL - 1.0 - np.arange(_VIRTUAL)
    spend_RV = (np.cumsum(length_RV, axis=1) + above_V * length_RV) / _VIRTUAL
    best_R: Array = (right_RV * np.minimum(average / spend_RV, 1.0)).max(axis=1)
    return best_R


def _worlds(
    sampled: Sequence[SampledAnswer], cap: float, is_judged: bool, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Return worlds that agree with a sample: mean and spread of log lengths, solvability, how short right answers are.

    By resampling: after every few answers worlds are drawn anew by how well they tell them, and moved a little.
    """
    judged = [answer.right for answer in sampled if answer.is_ended and answer.right is not None]
    wins = float(sum(judged))
    solvable_D = rng.beta(1.0 + wins, 1.0 + len(judged) - wins, _DRAWN) if is_judged else np.ones(_DRAWN)
    spread_D = _PRIOR_SPREAD * np.sqrt(_PRIOR_ANSWERS / rng.chisquare(_PRIOR_ANSWERS, _DRAWN))
    state_3D = np.stack(
        [
            rng.normal(np.log(_PRIOR_SHARE * cap), _PRIOR_DOUBT, _DRAWN),
            np.log(spread_D),
            rng.normal(*_SHORTER, _DRAWN),
        ]
    )
    # The verdicts are in the solvability already; what is left is what lengths say, given them.
    for first in range(0, len(sampled), _AT_ONCE):
        log_D = np.zeros(_DRAWN)
        for answer in sampled[first : first + _AT_ONCE]:
            log_D += np.log(np.maximum(_likelihood(answer, state_3D, solvable_D), 1e-300))
        weight_D = np.exp(log_D - log_D.max())
        drawn = rng.choice(_DRAWN, _DRAWN, p=weight_D / weight_D.sum())
        state_3D, solvable_D = state_3D[:, drawn], solvable_D[drawn]
        center_31 = state_3D.mean(axis=1, keepdims=True)
        moved_3D = rng.standard_normal(state_3D.shape) * state_3D.std(axis=1, keepdims=True)
        state_3D = _KEPT * state_3D + (1.0 - _KEPT) * center_31 + np.sqrt(1.0 - _KEPT**2) * moved_3D
    chosen = slice(_WORLDS)
    return state_3D[0, chosen], np.exp(state_3D[1, chosen]), solvable_D[chosen], state_3D[2, chosen]


def _likelihood(answer: SampledAnswer, state_3D: Array, solvable_D: Array) -> Array:
    """Return how likely the length of an answer is in each world, given its verdict where there is one."""
    mean_D, log_spread_D, shorter_D = state_3D
    z_D2 = (np.log(max(answer.taken, 1.0)) - mean_D)[:, None] - np.exp(log_spread_D)[:, None] * _places(
        solvable_D, shorter_D
    )
    z_D2 /= np.exp(log_spread_D)[:, None]
    chance_D2 = np.stack([solvable_D, 1.0 - solvable_D], axis=1)
    if answer.is_ended and answer.right is not None:
        chance_D2 = np.broadcast_to([answer.right, 1.0 - answer.right], z_D2.shape)
    seen_D2 = np.exp(-0.5 * z_D2**2 - log_spread_D[:, None]) if answer.is_ended else ndtr(-z_D2)
    total_D: Array = (chance_D2 * seen_D2).sum(axis=1)
    return total_D


def _places(solvable_R: Array, shorter_R: Array) -> Array:
    """Return where right and wrong answers' log lengths lie around the mean of all, in spreads, shape (R, 2)."""
    return np.stack([-shorter_R * (1.0 - solvable_R), shorter_R * solvable_R], axis=1)


def _equal_ceilings(length_RV: Array, average: float) -> Array:
    """Return the ceiling in each world that spends the budget."""
    low_R, high_R = np.zeros(len(length_RV)), length_RV.max(axis=1)
    for _ in range(40):
        middle_R = (low_R + high_R) / 2
        fits_R = np.minimum(length_RV, middle_R[:, None]).mean(axis=1) <= average
        low_R, high_R = np.where(fits_R, middle_R, low_R), np.where(fits_R, high_R, middle_R)
    return np.where(length_RV.mean(axis=1) <= average, np.inf, low_R)


def _told(gain_R: Array, uniform_R: Array, queries: int, rng: np.random.Generator) -> Gain:
    # A batch is a draw: its right answers differ from what was to be expected, by either policy.
    chance_R = np.clip(uniform_R + gain_R, 1.0 / queries, 1.0)
    drawn_R = gain_R + rng.standard_normal(_WORLDS) * np.sqrt(chance_R * (1.0 - 0.5 * chance_R) / queries)
    low, high = np.quantile(drawn_R, [(1 - _SURE) / 2, (1 + _SURE) / 2])
    chance = float((gain_R >= least_gain(uniform_R)).mean())
    return Gain(float(low), float(gain_R.mean()), float(high), float(uniform_R.mean()), chance)
