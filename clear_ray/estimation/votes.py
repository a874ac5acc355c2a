"""What the answers to one query say by how often they agree, where nothing else says which is right.

An answer is read as a *result* (`tasks.extract`), and each result gets a *vote* of every answer that gives it; the query's
answer is one of the most frequent result. Of a query it is believed:

- One result is right. An answer gives it with a chance p, of which the curve's own p is the mean: p is drawn from
  Beta(trust * p, trust * (1 - p)).
- Answers that are wrong agree by chance: each is new with theta / (theta + w), else that of one of the w wrong ones before.

So votes c_1 ... c_r, of m answers in all, have the likelihood

    sum over j of Beta(trust p + c_j, trust (1 - p) + m - c_j) / Beta(trust p, trust (1 - p)) * wrong(c without c_j)
        + the same with no vote for the right result,    wrong(c) = theta^r * product of (c_i - 1)! / (theta)_m,

each summand being what speaks for j as the right one. Votes are exchangeable, so the chance that the next vote falls on j is
the likelihood with it by the likelihood without. The worth of n more votes is the chance that the most frequent result is
then right, less the chance that it is now. Of two as frequent results either is chosen as often as the other.

Both numbers are learned from the votes of a run (`learn_habits`), without any gold answer.

Shapes: N queries, G grid points of p, V votes more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit, gammaln, logit, logsumexp

Array = NDArray[np.float64]
Votes = tuple[int, ...]
"""Votes of each result, the most frequent first."""

MOST_VOTES_AHEAD = 8
_FEW_VOTES, _FEW_AHEAD = 12, 3
_CHANCE_G: Array = expit(np.linspace(logit(0.002), logit(0.998), 33))
_TRUST_T = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_THETA_H = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_PRIOR_NATS = 2.0
_MOST_QUERIES = 5_000


@dataclass(frozen=True, slots=True)
class Habits:
    """How answers to one query agree; see the module.

    Attributes:
        trust: Answers that the curve's chance counts for, against those of the query itself.
        theta: How rarely wrong answers agree.
    """

    trust: float = 2.0
    theta: float = 4.0


def votes_of(results: Sequence[int]) -> Votes:
    """Return the votes that some results get, each a number of its own."""
    counted = np.unique(np.asarray(results, np.int64), return_counts=True)[1]
    return tuple(sorted(counted.tolist(), reverse=True))


def _log_for_each(votes: Votes, habits: Habits, chance_G: Array) -> Array:
    """Return the log of what speaks for each result as the right one, and for none of them last, shape (r + 1, G)."""
    a_G, b_G = habits.trust * chance_G, habits.trust * (1.0 - chance_G)
    whole_G = betaln(a_G, b_G)
    count, rows = sum(votes), []
    for right in (*votes, 0):
        others = list(votes)
        if right:
            others.remove(right)
        rows.append(betaln(a_G + right, b_G + count - right) - whole_G + _log_wrong(others, habits.theta))
    return np.array(rows)


def _log_wrong(votes: Sequence[int], theta: float) -> float:
    counts = np.asarray(votes, np.float64)
    count = float(counts.sum())
    found: float = len(counts) * np.log(theta) + gammaln(counts).sum() - gammaln(theta + count) + gammaln(theta)
    return found


@lru_cache(maxsize=len(_TRUST_T) * len(_THETA_H) + 16)
def vote_worth(habits: Habits) -> VoteWorth:
    """Return what votes are worth by some habits; the tables that were made for one clearing serve the next."""
    return VoteWorth(habits)


@dataclass(slots=True, eq=False)
class VoteWorth:
    """What further votes are worth, by the votes so far; tables over a grid of p that are made as they are asked for."""

    habits: Habits
    _likelihood_of: dict[Votes, tuple[Array, Array]] = field(default_factory=dict)
    _table_of: dict[tuple[Votes, int], Array] = field(default_factory=dict)

    def log_likelihood(self, votes: Votes, chance_N: Array) -> Array:
        """Return the log of the chance of votes of some queries that have the same, by the curve's chance of each."""
        found: Array = np.interp(chance_N, _CHANCE_G, self._known(votes)[0])
        return found

    def is_right(self, votes: Votes, chance_N: Array) -> Array:
        """Return the chance that the most frequent result is right."""
        return self.after(votes, 0, chance_N)

    def after(self, votes: Votes, more: int, chance: Array) -> Array:
        """Return the chance that the most frequent result is right after so many further votes, of any shape of `chance`."""
        found: Array = np.interp(chance, _CHANCE_G, self._table(votes, more))
        return found

    def each_is_right(self, votes: Votes, chance: float) -> Array:
        """Return the chance that each of the results is right, shape (r,)."""
        log_R = _log_for_each(votes, self.habits, np.array([chance]))[:, 0]
        found: Array = np.exp(log_R[:-1] - logsumexp(log_R))
        return found

    def _known(self, votes: Votes) -> tuple[Array, Array]:
        """Return the log-likelihood of votes, and the chance that the most frequent result is right, each of shape (G,)."""
        if votes not in self._likelihood_of:
            log_RG = _log_for_each(votes, self.habits, _CHANCE_G)
            total_G = logsumexp(log_RG, axis=0)
            right_G = np.exp(log_RG[0] - total_G) if votes else np.zeros_like(_CHANCE_G)
            self._likelihood_of[votes] = total_G, right_G
        return self._likelihood_of[votes]

    def _table(self, votes: Votes, more: int) -> Array:
        if not more:
            return self._known(votes)[1]
        if (votes, more) not in self._table_of:
            now_G = self._known(votes)[0]
            worth_G = np.zeros_like(now_G)
            for place, after in _next(votes):
                times = votes.count(votes[place]) if place < len(votes) else 1
                worth_G += times * np.exp(self._known(after)[0] - now_G) * self._table(after, more - 1)
            self._table_of[votes, more] = worth_G
        return self._table_of[votes, more]


def _next(votes: Votes) -> list[tuple[int, Votes]]:
    """Return what votes may be after one more: which result got it, one of those as frequent, or a new one, and all votes."""
    found = []
    for place in sorted({votes.index(count) for count in votes}):
        more = list(votes)
        more[place] += 1
        found.append((place, tuple(sorted(more, reverse=True))))
    return [*found, (len(votes), (*votes, 1))]


def votes_ahead(votes: Votes, left: int) -> int:
    """Return how many further votes are looked ahead to: fewer where there are many already, and each changes little."""
    return min(left, _FEW_AHEAD if sum(votes) >= _FEW_VOTES else MOST_VOTES_AHEAD)


def learn_habits(votes_N: Sequence[Votes], chance_N: Array) -> Habits:
    """Return how answers agree, by the queries that have two or more: the most likely pair, beside a prior of a few answers.

    Args:
        votes_N: Votes of each query.
        chance_N: The chance of a right answer by each one's curve.
    """
    several = [query for query, votes in enumerate(votes_N) if sum(votes) > 1][:_MOST_QUERIES]
    rows_of: dict[Votes, list[int]] = {}
    for query in several:
        rows_of.setdefault(votes_N[query], []).append(query)
    if not rows_of:
        return Habits()
    best, most = Habits(), -np.inf
    for trust in _TRUST_T:
        for theta in _THETA_H:
            habits = Habits(trust, theta)
            worth = vote_worth(habits)
            away = np.log2(trust / Habits().trust) ** 2 + np.log2(theta / Habits().theta) ** 2
            nats = -_PRIOR_NATS * away / 8.0
            nats += sum(float(worth.log_likelihood(votes, chance_N[rows]).sum()) for votes, rows in rows_of.items())
            if nats > most:
                best, most = habits, nats
    return best


def pooled_chance(votes_N: Sequence[Votes]) -> tuple[Habits, float]:
    """Return how answers agree, and the chance of a right one, where nothing but the votes of some queries is known."""
    counted = Counter(votes for votes in votes_N if sum(votes) > 1)
    best, at, most = Habits(), 0.5, -np.inf
    for trust in _TRUST_T[:3]:  # few answers: of queries that nothing tells apart some are always right, and some never
        for theta in _THETA_H:
            worth = vote_worth(Habits(trust, theta))
            away = np.log2(theta / Habits().theta) ** 2
            seen = [times * worth.log_likelihood(votes, _CHANCE_G) for votes, times in counted.items()]
            nats_G = np.sum([*seen, np.zeros_like(_CHANCE_G)], axis=0)
            nats_G = nats_G - _PRIOR_NATS * (away / 8.0 + logit(_CHANCE_G) ** 2 / 8.0)
            if float(nats_G.max()) > most:
                best, at, most = Habits(trust, theta), float(_CHANCE_G[int(nats_G.argmax())]), float(nats_G.max())
    return best, at
