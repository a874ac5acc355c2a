"""How good held-out curves are, beside the pooled curve and the mean curve of each task.

Shapes: N queries, K grid points, Q bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from clear_ray.estimation.curves import Curves
from clear_ray.estimation.hazards import Incidence, incidence_from_hazards, log_likelihood
from clear_ray.estimation.observations import Counts, Rollouts, count

Array = NDArray[np.float64]
_PSEUDO_ROLLOUTS = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Held-out figures of one predictor.

    Attributes:
        log_likelihood: Nats per rollout, higher is better.
        brier: Mean over rollouts and grid points of (predicted chance of right by then - was right)^2.
        solvability_rank: Spearman correlation of predicted and observed chance of right at the last grid point.
        length_rank: Spearman correlation of predicted and observed mean length.
        predicted_Q: Mean predicted chance in each reliability bin, over all queries and grid points.
        observed_Q: Observed share of right rollouts in each bin.
        weight_Q: Share of query-grid pairs in each bin.
    """

    log_likelihood: float
    brier: float
    solvability_rank: float
    length_rank: float
    predicted_Q: Array
    observed_Q: Array
    weight_Q: Array


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Figures of the head beside what knows less.

    Attributes:
        head: The head.
        pooled: One curve for all, from the queries of the other folds.
        task_prior: One curve a task, from the queries of the other folds; None without task labels.
    """

    head: Figures
    pooled: Figures
    task_prior: Figures | None

    def figures(self) -> dict[str, float]:
        """Return the scalar figures by name, as they go into a head's card."""
        named = (("", self.head), ("_pooled", self.pooled), ("_task_prior", self.task_prior))
        return {
            f"{name}{suffix}": round(float(getattr(figures, name)), 6)
            for suffix, figures in named
            if figures is not None
            for name in ("log_likelihood", "brier", "solvability_rank", "length_rank")
        }


def diagnose(
    curves: Curves, rollouts: Rollouts, *, fold_N: NDArray[np.int64], tasks: Sequence[str] | None = None, bins: int = 10
) -> Diagnosis:
    """Compare held-out curves with what was observed.

    Args:
        curves: Curves of the queries of `rollouts`, in order, each from a head that has not seen the query.
        rollouts: What was observed.
        fold_N: Fold of each query; pooled and task curves of a query come from the other folds.
        tasks: Task label of each query, for the task prior only.
        bins: Reliability bins, evenly spaced in predicted chance.
    """
    tokens_K = curves.tokens_K
    counts = count(rollouts, tokens_K=tokens_K)
    success = curves.success_NK.astype(np.float64)
    survival = curves.survival_NK.astype(np.float64)
    own = Incidence(success, 1 - success - survival, survival)
    return Diagnosis(
        head=_figures(own, rollouts, counts, tokens_K, bins),
        pooled=_prior_figures(rollouts, counts, tokens_K, fold_N, [""] * len(rollouts), bins),
        task_prior=None if tasks is None else _prior_figures(rollouts, counts, tokens_K, fold_N, tasks, bins),
    )


def prior_incidence(counts: Counts, *, fold_N: NDArray[np.int64], labels: Sequence[str]) -> Incidence:
    """Return each query's mean curve of its label, from the queries of other folds.

    One pseudo-rollout with the pooled hazards keeps a rare label from certainty.
    """
    label_N = np.asarray(labels)
    hazard_right, hazard_wrong = np.zeros(counts.right_NK.shape), np.zeros(counts.right_NK.shape)
    for fold in np.unique(fold_N):
        seen = fold_N != fold
        pooled_risk = np.maximum(counts.at_risk_NK[seen].sum(axis=0), 1e-9)
        pooled = [c[seen].sum(axis=0) / pooled_risk for c in (counts.right_NK, counts.wrong_NK)]
        for label in np.unique(label_N[fold_N == fold]):
            mine, held = seen & (label_N == label), (fold_N == fold) & (label_N == label)
            risk = counts.at_risk_NK[mine].sum(axis=0) + _PSEUDO_ROLLOUTS
            hazard_right[held] = (counts.right_NK[mine].sum(axis=0) + _PSEUDO_ROLLOUTS * pooled[0]) / risk
            hazard_wrong[held] = (counts.wrong_NK[mine].sum(axis=0) + _PSEUDO_ROLLOUTS * pooled[1]) / risk
    return incidence_from_hazards(hazard_right, hazard_wrong)


def observed_success(rollouts: Rollouts, *, tokens_K: NDArray[np.int64]) -> Array:
    """Return the share of each query's rollouts that were right by each grid point."""
    right = rollouts.is_right_R[:, None] & (rollouts.tokens_R[:, None] <= tokens_K)
    return _mean_by_query(right.astype(np.float64), rollouts)


def observed_spend(rollouts: Rollouts, *, tokens_K: NDArray[np.int64]) -> Array:
    """Return the mean tokens of each query's rollouts under each ceiling."""
    return _mean_by_query(np.minimum(rollouts.tokens_R[:, None], tokens_K).astype(np.float64), rollouts)


def _mean_by_query(value_RK: Array, rollouts: Rollouts) -> Array:
    total = np.zeros((len(rollouts), value_RK.shape[1]))
    np.add.at(total, rollouts.query_R, value_RK)
    return total / np.maximum(np.bincount(rollouts.query_R, minlength=len(rollouts)), 1)[:, None]


def _prior_figures(
    rollouts: Rollouts, counts: Counts, tokens_K: NDArray[np.int64], fold_N: NDArray[np.int64], labels: Sequence[str],
    bins: int,
) -> Figures:  # fmt: skip
    return _figures(prior_incidence(counts, fold_N=fold_N, labels=labels), rollouts, counts, tokens_K, bins)


def _figures(
    incidence: Incidence, rollouts: Rollouts, counts: Counts, tokens_K: NDArray[np.int64], bins: int
) -> Figures:
    predicted, right = incidence.right_NK, observed_success(rollouts, tokens_K=tokens_K)
    rollouts_N = np.bincount(rollouts.query_R, minlength=len(rollouts)).astype(np.float64)
    weight_N = rollouts_N / rollouts_N.sum()
    # A rollout is 0 or 1 at each grid point, so its squared error needs only the query's mean.
    brier = float((weight_N @ (predicted**2 - 2 * predicted * right + right)).mean())
    before = np.concatenate([np.ones((len(rollouts), 1)), incidence.survival_NK[:, :-1]], axis=1)
    length_N = (before + incidence.survival_NK) / 2 @ np.diff(tokens_K, prepend=0)
    bin_NK = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    cell_weight = np.repeat(weight_N[:, None] / len(tokens_K), len(tokens_K), axis=1)
    weight_Q, predicted_Q, observed_Q = (
        _total_by_bin(bin_NK, cell_weight * value, bins) for value in (np.ones_like(right), predicted, right)
    )
    filled_Q = np.maximum(weight_Q, 1e-12)
    return Figures(
        log_likelihood=log_likelihood(incidence, counts) / float(rollouts_N.sum()),
        brier=brier,
        solvability_rank=_rank_correlation(predicted[:, -1], right[:, -1]),
        length_rank=_rank_correlation(length_N, observed_spend(rollouts, tokens_K=tokens_K)[:, -1]),
        predicted_Q=predicted_Q / filled_Q,
        observed_Q=observed_Q / filled_Q,
        weight_Q=weight_Q,
    )


def _total_by_bin(bin_NK: NDArray[np.int64], value_NK: Array, bins: int) -> Array:
    total_Q: Array = np.bincount(bin_NK.ravel(), value_NK.ravel(), minlength=bins).astype(np.float64)
    return total_Q


def _rank_correlation(predicted_N: Array, observed_N: Array) -> float:
    # A constant ranks nothing: its correlation is 0 by agreement, not undefined.
    if np.ptp(predicted_N) == 0 or np.ptp(observed_N) == 0:
        return 0.0
    return float(spearmanr(predicted_N, observed_N).statistic)
