"""How alike the answers to one query are, beyond what its curve says: what earlier attempts tell of the next one.

A curve is a belief about many queries that look the same. Of one of them the curve may be wrong in two ways, and its own
attempts show it. *Lengths*: a query of long answers is long again. The chance that an answer has ended by t is turned into a
normal score g(t); of a query of kind z the scores lie around sqrt(rho) * z with variance 1 - rho, and z is normal among
queries. So the curve holds on average, and rho is the correlation of the scores of two answers to the same query.
*Solvability*: the curve counts for `trust` attempts; after e wrong
ones the chance is trust / (trust + e) of it, and after r right ones too (trust * chance + r) / (trust + e + r).

What an answer of a length is worth does not depend on the kind: a query of long answers is hard if long answers are wrong.

Both numbers differ from model to model and from head to head, so a run learns them from its own queries that were asked more
than once: the most likely pair, beside a prior that counts for a few answers (`learn_likeness`).

Shapes: N queries, K grid points, Z kinds, P attempts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr, ndtri

from clear_ray.estimation.curves import Curves, curves_from_incidence

Array = NDArray[np.float64]
_KINDS = 7
_TINY = 1e-6
_RHO_R = (0.1, 0.3, 0.5, 0.7, 0.85)
_TRUST_T = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_PRIOR_NATS = 2.0
_MOST_QUERIES = 5_000


@dataclass(frozen=True, slots=True)
class Likeness:
    """See the module.

    Attributes:
        rho: Correlation of lengths within a query, beyond its curve; 0 to below 1.
        trust: Attempts that a curve counts for, against wrong answers to its query; may be infinite.
    """

    rho: float = 0.5
    trust: float = 1.0
    """Before a run has asked anything twice. Where curves know the task alone, 0.5 in the median of 34 tasks of published
    reasoning models (quartiles 0.4 and 0.7); where a head knows more of a small model's queries, 8."""

    @property
    def kinds(self) -> int:
        """How many kinds of queries are told apart."""
        return 1 if self.rho <= 0.0 else _KINDS


def kind_scores(kinds: int) -> tuple[Array, Array]:
    """Return the score and the share of each kind, so that averages over a normal z come out right."""
    if kinds == 1:
        return np.zeros(1), np.ones(1)
    score_Z, weight_Z = np.polynomial.hermite_e.hermegauss(kinds)
    return score_Z, weight_Z / weight_Z.sum()


def curves_of_kinds(curves: Curves, rho: float, kinds: int) -> Curves:
    """Return the curves of N queries under each kind, kind by kind, Z * N rows."""
    if kinds == 1:
        return curves
    ended_NK = 1.0 - curves.survival_NK.astype(np.float64)
    right_NK = np.diff(curves.success_NK.astype(np.float64), axis=1, prepend=0.0)
    width_NK = np.diff(ended_NK, axis=1, prepend=0.0)
    worth_NK = np.clip(np.divide(right_NK, width_NK, out=np.zeros_like(width_NK), where=width_NK > _TINY), 0.0, 1.0)
    score_NK = normal_scores(ended_NK)
    parts = []
    for z in kind_scores(kinds)[0]:
        ended_z_NK = np.where(ended_NK > _TINY, ndtr((score_NK - np.sqrt(rho) * z) / np.sqrt(1.0 - rho)), 0.0)
        success_NK = np.cumsum(worth_NK * np.diff(ended_z_NK, axis=1, prepend=0.0), axis=1)
        parts.append(
            curves_from_incidence(
                np.minimum(success_NK, ended_z_NK), survival_NK=1.0 - ended_z_NK, tokens_K=curves.tokens_K
            )
        )
    return Curves.concatenate(parts)


def normal_scores(ended: Array) -> Array:
    """Return the normal scores of chances."""
    found: Array = ndtri(np.clip(ended, _TINY, 1.0 - _TINY))
    return found


def scores_at(curves: Curves, query_P: NDArray[np.int64], tokens_P: NDArray[np.int64]) -> Array:
    """Return the normal score of each answer's length by its query's curve, shape (P,)."""
    tokens_K = np.concatenate([[0.0], curves.tokens_K.astype(np.float64)])
    place_P = np.clip(np.searchsorted(tokens_K, tokens_P, side="right") - 1, 0, len(tokens_K) - 2)
    share_P = np.clip((tokens_P - tokens_K[place_P]) / (tokens_K[place_P + 1] - tokens_K[place_P]), 0.0, 1.0)
    survival_PK = np.concatenate([np.ones((len(query_P), 1)), curves.survival_NK[query_P].astype(np.float64)], axis=1)
    rows = np.arange(len(query_P))
    survival_P = survival_PK[rows, place_P] * (1.0 - share_P) + survival_PK[rows, place_P + 1] * share_P
    return normal_scores(1.0 - survival_P)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """Attempts at N queries, each query's in the order in which they were made.

    Attributes:
        query_P: The query of each.
        tokens_P: Length of its answer, or where it was cut.
        is_ended_P: Whether it ended by itself.
        is_right_P: Whether it was right.
    """

    query_P: NDArray[np.int64]
    tokens_P: NDArray[np.int64]
    is_ended_P: NDArray[np.bool_]
    is_right_P: NDArray[np.bool_]

    @property
    def wrong_before_P(self) -> NDArray[np.int64]:
        """How many answers to the same query had ended wrong before."""
        return self._before_P(self.is_ended_P & ~self.is_right_P)

    @property
    def right_before_P(self) -> NDArray[np.int64]:
        """How many answers to the same query had ended right before."""
        return self._before_P(self.is_ended_P & self.is_right_P)

    def _before_P(self, is_one_P: NDArray[np.bool_]) -> NDArray[np.int64]:
        order = np.argsort(self.query_P, kind="stable")
        is_one = is_one_P[order].astype(np.int64)
        before = np.cumsum(is_one) - is_one
        starts = np.flatnonzero(np.diff(self.query_P[order], prepend=-1))
        lengths = np.diff(np.append(starts, len(order)))
        found = np.empty(len(order), np.int64)
        found[order] = before - np.repeat(before[starts], lengths)
        return found

    def of_queries(self, is_wanted_N: NDArray[np.bool_]) -> Tried:
        """Return the attempts at some queries, which keep their numbers."""
        rows = is_wanted_N[self.query_P]
        return Tried(self.query_P[rows], self.tokens_P[rows], self.is_ended_P[rows], self.is_right_P[rows])


def kind_weights(curves: Curves, rho: float, kinds: int, tried: Tried) -> Array:
    """Return what is believed of each query's kind after some attempts, shape (Z, N)."""
    log_ZN = _log_weights(curves, rho, kinds, tried)
    weight_ZN = np.exp(log_ZN - log_ZN.max(axis=0))
    found: Array = weight_ZN / weight_ZN.sum(axis=0)
    return found


def learn_likeness(curves: Curves, tried: Tried) -> Likeness:
    """Return how alike the answers to one query are, by the queries that were asked more than once.

    Args:
        curves: Of N queries.
        tried: All attempts so far. Of very many only those at the first so many queries are looked at.
    """
    counted_N = np.bincount(tried.query_P, minlength=len(curves))
    several = np.flatnonzero(counted_N > 1)[:_MOST_QUERIES]
    if not len(several):
        return Likeness()
    place_N = np.full(len(curves), -1)
    place_N[several] = np.arange(len(several))
    some = tried.of_queries(place_N >= 0)
    some, part = replace(some, query_P=place_N[some.query_P]), curves.take(several)
    nats_R = [
        float(logsumexp(_log_weights(part, rho, _KINDS, some), axis=0).sum()) - _PRIOR_NATS * ((rho - 0.5) / 0.3) ** 2
        for rho in _RHO_R
    ]
    worth_P = _worth_at(part, some)
    before_P, right_P, ended = some.wrong_before_P, some.right_before_P, some.is_ended_P
    nats_T = []
    for trust in _TRUST_T:
        chance_P = np.clip((worth_P * trust + right_P) / (trust + before_P + right_P), _TINY, 1.0 - _TINY)
        nats_P = np.where(some.is_right_P, np.log(chance_P), np.log1p(-chance_P))
        nats_T.append(float(nats_P[ended].sum()) - _PRIOR_NATS * (np.log2(trust / Likeness().trust) / 2.0) ** 2)
    return Likeness(_RHO_R[int(np.argmax(nats_R))], _TRUST_T[int(np.argmax(nats_T))])


def _log_weights(curves: Curves, rho: float, kinds: int, tried: Tried) -> Array:
    """Return the log of share times likelihood of each kind, shape (Z, N)."""
    score_Z, share_Z = kind_scores(kinds)
    log_ZN = np.repeat(np.log(share_Z)[:, None], len(curves), axis=1)
    if kinds == 1 or not len(tried.query_P):
        return log_ZN
    score_P, spread = scores_at(curves, tried.query_P, tried.tokens_P), np.sqrt(1.0 - rho)
    for z, score in enumerate(score_Z):
        off_P = (score_P - np.sqrt(rho) * score) / spread
        log_P = np.where(tried.is_ended_P, -0.5 * off_P**2 - np.log(spread), np.log(np.maximum(ndtr(-off_P), 1e-30)))
        np.add.at(log_ZN[z], tried.query_P, log_P)
    return log_ZN


def _worth_at(curves: Curves, tried: Tried) -> Array:
    """Return the chance that an answer of its length is right, by each query's curve, shape (P,)."""
    rows, last = np.arange(len(tried.query_P)), len(curves.tokens_K) - 1
    right_PK = np.diff(curves.success_NK[tried.query_P].astype(np.float64), axis=1, prepend=0.0)
    ended_PK = np.diff(1.0 - curves.survival_NK[tried.query_P].astype(np.float64), axis=1, prepend=0.0)
    place_P = np.minimum(np.searchsorted(curves.tokens_K, tried.tokens_P), last)
    right_P, ended_P = right_PK[rows, place_P], ended_PK[rows, place_P]
    worth_P: Array = np.divide(right_P, ended_P, out=np.full(len(rows), 0.5), where=ended_P > _TINY)
    return worth_P
