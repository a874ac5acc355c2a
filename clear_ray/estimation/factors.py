"""Curves as WHEN an answer ends times WHETHER it is right once it has ended, fitted on whatever has been observed.

Every answer teaches when answers end, cut ones too; the judged ones teach whether they are right. Where there is no
scorer, an answer that ended by itself counts as right, and the curves are those of finished answers.

Shapes: N queries, M observed answers, K grid points, P coordinates.

Source: method.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clear_ray.estimation.endings import Endings, fit_endings
from clear_ray.estimation.hazards import Incidence, incidence_from_hazards
from clear_ray.estimation.head import Arrays, arrays_of, join_arrays
from clear_ray.estimation.prior import uninformed
from clear_ray.estimation.verdicts import Rightness, fit_verdicts

Array = NDArray[np.float64]
Label = Literal["verdict", "agreement", "ended"]
"""What says that an answer is right: a scorer, other answers to the same query, or that it ended by itself."""

ENDING_RIDGE, VERDICT_RIDGE = 0.05, 0.1
_LAW_SHARE_OF_CAP = 0.375
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Answers that a run has seen, whole or cut.

    Attributes:
        query_M: Query of each answer: a row of the coordinates.
        tokens_M: Tokens of each, at least 1.
        is_ended_M: It ended by itself; otherwise it was cut, and what it would have become is unknown.
        right_M: How right it is, 0 to 1; NaN where nothing was said, or it did not end.
    """

    query_M: NDArray[np.int64]
    tokens_M: NDArray[np.int64]
    is_ended_M: NDArray[np.bool_]
    right_M: Array

    def __len__(self) -> int:
        """Return M."""
        return len(self.query_M)

    def take(self, index: ArrayLike) -> Observed:
        """Return the answers at `index` (integers or a mask)."""
        rows = np.asarray(index)
        return Observed(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Factors:
    """The two fitted factors.

    Attributes:
        endings: When an answer ends.
        verdicts: Whether it is right then; None: always.
    """

    endings: Endings
    verdicts: Rightness | None

    def incidence(self, x_NP: Array, *, tokens_K: NDArray[np.int64]) -> Incidence:
        """Return the cumulative incidences of queries with these coordinates."""
        ended_NK = self.endings.hazard(x_NP, tokens_K=tokens_K)
        if self.verdicts is None:
            return incidence_from_hazards(ended_NK, np.zeros_like(ended_NK))
        right_NK = ended_NK * self.verdicts.chance(x_NP, tokens_K=tokens_K)
        return incidence_from_hazards(right_NK, ended_NK - right_NK)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        verdicts = {} if self.verdicts is None else self.verdicts.arrays()
        return join_arrays({"endings": self.endings.arrays(), "verdicts": verdicts})

    @classmethod
    def restore(cls, arrays: Arrays) -> Factors:
        """Make the factors again."""
        verdicts = arrays_of("verdicts", arrays)
        return cls(Endings.restore(arrays_of("endings", arrays)), Rightness.restore(verdicts) if verdicts else None)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Answers on the grid.

    Attributes:
        cell_M: Cell in which each stands.
        is_ended_M: It ended by itself, on the grid.
        ended_MK: 1 in the cell in which it ended.
        at_risk_MK: 1 in the cells through which it is seen.
    """

    cell_M: NDArray[np.int64]
    is_ended_M: NDArray[np.bool_]
    ended_MK: Array
    at_risk_MK: Array


def place(observed: Observed, *, tokens_K: NDArray[np.int64]) -> Placed:
    """Put answers on the grid: an ended one is seen through its own cell, a cut one through the last that it filled."""
    cell_M = np.searchsorted(tokens_K, observed.tokens_M)
    is_ended_M = observed.is_ended_M & (cell_M < len(tokens_K))
    ended_MK = np.zeros((len(observed), len(tokens_K)))
    ended_MK[np.flatnonzero(is_ended_M), cell_M[is_ended_M]] = 1.0
    seen_M = np.where(is_ended_M, cell_M + 1, np.searchsorted(tokens_K, observed.tokens_M, side="right"))
    at_risk_MK = (np.arange(len(tokens_K)) < seen_M[:, None]).astype(np.float64)
    return Placed(cell_M, is_ended_M, ended_MK, at_risk_MK)


def fit_factors(
    x_NP: Array,
    observed: Observed,
    *,
    tokens_K: NDArray[np.int64],
    label: Label = "verdict",
    law_survival_K: Array | None = None,
) -> Factors:
    """Fit both factors; with nothing observed they are the uninformed law.

    Args:
        x_NP: Coordinates of the queries; without columns the fit is that of the pooled curve.
        observed: Answers to some of them.
        tokens_K: The grid.
        label: What says that an answer is right.
        law_survival_K: What the pooled curve is drawn to, as survival along the grid; the uninformed law if not given.
    """
    right_K, survival_K = law(tokens_K)
    placed = place(observed, tokens_K=tokens_K)
    turn_PR, x_MP = _row_space(x_NP[observed.query_M])
    endings = fit_endings(
        x_MP, placed.ended_MK, placed.at_risk_MK, tokens_K=tokens_K,
        law_survival_K=survival_K if law_survival_K is None else law_survival_K, ridge=ENDING_RIDGE,
    )  # fmt: skip
    if label == "ended":
        return Factors(endings.turned(turn_PR), None)
    judged = placed.is_ended_M & np.isfinite(observed.right_M)
    verdicts = fit_verdicts(
        x_MP[judged], observed.right_M[judged], placed.cell_M[judged], tokens_K=tokens_K,
        law_solvability=float(right_K[-1] / (1.0 - survival_K[-1])), ridge=VERDICT_RIDGE,
    )  # fmt: skip
    return Factors(endings.turned(turn_PR), verdicts.turned(turn_PR))


def _row_space(x_MP: Array) -> tuple[Array, Array]:
    """Return orthogonal directions that span the rows, and the rows in them: all that a ridge ever gives weight to."""
    if x_MP.shape[0] >= x_MP.shape[1]:
        return np.eye(x_MP.shape[1]), x_MP
    turn_PR, _ = np.linalg.qr(x_MP.T)
    return turn_PR, x_MP @ turn_PR


def law(tokens_K: NDArray[np.int64], *, solvability: float = 0.5) -> tuple[Array, Array]:
    """Return success and survival under the uninformed law, its scale that of the longest answers, each of shape (K,)."""
    return uninformed(tokens_K, solvability=solvability, scale_tokens=law_scale(tokens_K))


def law_scale(tokens_K: NDArray[np.int64]) -> float:
    """Return the length that answers are taken to have before any was seen."""
    return _LAW_SHARE_OF_CAP * float(tokens_K[-1])


def log_likelihood_M(incidence: Incidence, observed: Observed, *, tokens_K: NDArray[np.int64]) -> Array:
    """Return what each answer's length and verdict count for, nats, under the incidences of its own query.

    Args:
        incidence: One row an answer.
        observed: The answers.
        tokens_K: The grid.
    """
    rows, zero = np.arange(len(observed)), np.zeros((len(observed), 1))
    right, wrong = (np.concatenate([zero, table], axis=1) for table in (incidence.right_NK, incidence.wrong_NK))
    survival = np.concatenate([zero + 1.0, incidence.survival_NK], axis=1)
    cell_M = np.minimum(np.searchsorted(tokens_K, observed.tokens_M), len(tokens_K) - 1)
    right_M = right[rows, cell_M + 1] - right[rows, cell_M]
    wrong_M = wrong[rows, cell_M + 1] - wrong[rows, cell_M]
    said_M = np.nan_to_num(observed.right_M, nan=-1.0)
    is_said_M = said_M >= 0.0
    judged_M = said_M * np.log(np.maximum(right_M, _LEAST)) + (1.0 - said_M) * np.log(np.maximum(wrong_M, _LEAST))
    ended_M = np.where(is_said_M, judged_M, np.log(np.maximum(right_M + wrong_M, _LEAST)))
    filled_M = np.searchsorted(tokens_K, observed.tokens_M, side="right")
    cut_M = np.log(np.maximum(survival[rows, filled_M], _LEAST))
    is_ended_M = observed.is_ended_M & (observed.tokens_M <= tokens_K[-1])
    total_M: Array = np.where(is_ended_M, ended_M, cut_M)
    return total_M
