"""Does it pay to price an answer again while it runs, by what its own tokens say?

At checkpoints t the remaining curve of a running answer is what the probe said, given that it has not ended, with its
log-odds moved by features of the first t tokens: mean and recent log-probability and entropy, repetition, and whether
the answer's last line has begun. The move is fitted by maximum likelihood on the queries of other folds. At a price p an
answer goes on while the best further step brings more than p a token; p runs over all values, so each variant gives
accuracy against tokens really generated.

    python benchmarks/inflight.py

Shapes: N queries, R rollouts, K grid points, J checkpoints, F features.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from clear_ray.estimation.curves import Curves
from clear_ray.sweep.estimates import estimate, training_by_folds
from clear_ray.sweep.recording import Recording, read_recording

Array = NDArray[np.float64]
DATA = Path(__file__).parents[1] / "tests" / "data" / "rollouts"
BUDGETS = (16, 24, 32, 48, 64, 96)
MARKER = re.compile(r"(?i)answer\s*:|\\boxed|####|final answer")
VARIANTS = {
    "static": None,
    "log-probability": [0, 2],
    "entropy": [1, 3],
    "repetition": [4, 5],
    "answer begun": [6],
    "all of these": [0, 1, 2, 3, 4, 5, 6],
    "beginning": [7, 8, 9, 10, 11, 12],
    "beginning and text": [7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    "everything": list(range(17)),
}
RIDGE = 1.0


def features_JRF(rows: list[dict[str, object]], checkpoints_J: NDArray[np.int64]) -> Array:
    """Return the features of every rollout that is still running at each checkpoint; NaN elsewhere."""
    found = np.full((len(checkpoints_J), len(rows), 17), np.nan)
    for r, row in enumerate(rows):
        ids, logs, entropies = (np.asarray(row[name]) for name in ("token_ids", "tok_logprob", "tok_entropy"))
        text = str(row["text"])
        marked = [m.start() / max(len(text), 1) * len(ids) for m in MARKER.finditer(text)]
        grams = [tuple(gram) for gram in np.lib.stride_tricks.sliding_window_view(ids, 4)] if len(ids) >= 4 else []
        for j, t in enumerate(checkpoints_J):
            if len(ids) <= t:
                break
            early, late = grams[: max(t - 3, 0)], grams[max(t - 64, 0) : max(t - 3, 0)]
            recent = slice(max(t - 16, 0), t)
            found[j, r] = [
                logs[:t].mean(), entropies[:t].mean(), logs[recent].mean(), entropies[recent].mean(),
                1 - len(set(early)) / max(len(early), 1), 1 - len(set(late)) / max(len(late), 1),
                float(any(place < t - 1 for place in marked)), *text_so_far(text[: len(text) * t // len(ids)]),
            ]  # fmt: skip
    return found


def text_so_far(text: str) -> list[float]:
    """Return how an answer began, and what its text is made of."""
    begun = text.lstrip()
    started = [float(begun.startswith(words)) for words in ("To ", "Let's", "Step", "Answer", "1.")]
    size = max(len(text), 1)
    return [
        *started, float(begun[:1].isdigit() or begun[:1] in ("-", "(")), float("=" in text), text.count("\n") / 3,
        sum(letter.isdigit() for letter in text) / size, sum(letter.isalpha() for letter in text) / size,
    ]  # fmt: skip


def log_odds_2NK(curves: Curves) -> Array:
    """Return the log-odds of ending right and of ending wrong in each cell, against going on."""
    success, survival = curves.success_NK.astype(np.float64), curves.survival_NK.astype(np.float64)
    before = np.concatenate([np.ones((len(success), 1)), survival[:, :-1]], axis=1)
    wrong = 1 - success - survival
    on = np.maximum(survival, 1e-9)
    ended = [np.maximum(np.diff(part, prepend=0.0, axis=1), 1e-9 * before) for part in (success, wrong)]
    return np.log(np.stack(ended) / on)


def chances(odds: Array) -> Array:
    weight = np.exp(np.clip(np.concatenate([odds, np.zeros_like(odds[:1])]), -30, 30))
    return weight / weight.sum(axis=0)


def best_price(odds: Array, width_K: Array) -> Array:
    """Return the most that a further step brings a token."""
    right, wrong, _ = chances(odds)
    survival = np.cumprod(np.clip(1 - right - wrong, 0, 1), axis=1)
    before = np.concatenate([np.ones((len(survival), 1)), survival[:, :-1]], axis=1)
    spend = np.cumsum(width_K * (before + survival) / 2, axis=1)
    return (np.cumsum(before * right, axis=1) / np.maximum(spend, 1e-9)).max(axis=1)


class Study:
    """Rollouts in one row each, with the odds that the probe gave their query."""

    def __init__(self, recording: Recording, curves: Curves, fold_N: NDArray[np.int64]) -> None:
        self.tokens_K = curves.tokens_K
        self.at_J = np.flatnonzero(self.tokens_K >= 4)[::2]
        self.at_J = self.at_J[self.at_J + 1 < len(self.tokens_K)]
        self.query_R = recording.rollouts.query_R
        self.length_R, self.right_R = recording.rollouts.tokens_R, recording.rollouts.is_right_R
        self.ended_R = recording.rollouts.is_ended_R
        self.cell_R = np.searchsorted(self.tokens_K, self.length_R)
        self.odds_2NK, self.fold_R = log_odds_2NK(curves), fold_N[self.query_R]
        order = [("query_id", "ascending"), ("sample", "ascending")]
        columns = ["query_id", "sample", "token_ids", "tok_logprob", "tok_entropy", "text"]
        rows = pq.read_table(DATA / "rollouts.parquet", columns=columns).sort_by(order).to_pylist()
        self.features_JRF = features_JRF(rows, self.tokens_K[self.at_J])

    def running(self, j: int, is_wanted_R: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the wanted rollouts that are still running at a checkpoint."""
        return np.flatnonzero((self.length_R > self.tokens_K[self.at_J[j]]) & is_wanted_R)

    def design(self, j: int, rows: NDArray[np.int64], columns: list[int], scale: tuple[Array, Array]) -> Array:
        """Return what moves the odds: the features, and the features times the logarithm of the tokens."""
        time = np.log(self.tokens_K[self.at_J[j]]) - 4.0
        x = np.clip((self.features_JRF[j, rows][:, columns] - scale[0][columns]) / scale[1][columns], -4, 4)
        one = np.ones((len(rows), 1))
        return np.concatenate([one, x, one * time, x * time], axis=1)

    def prices_JR(self, columns: list[int] | None) -> Array:
        """Return the price at which each running answer would stop, at the start and at every checkpoint."""
        prices = np.full((1 + len(self.at_J), len(self.length_R)), np.nan)
        width_K = np.diff(self.tokens_K, prepend=0).astype(np.float64)
        prices[0] = best_price(self.odds_2NK, width_K)[self.query_R]
        for fold in np.unique(self.fold_R):
            is_train_R = self.fold_R != fold
            known = self.features_JRF[:, is_train_R].reshape(-1, self.features_JRF.shape[2])
            scale = np.nanmean(known, axis=0), np.nanstd(known, axis=0) + 0.05
            move = None if columns is None else self.fit(is_train_R, columns, scale)
            for j, k in enumerate(self.at_J):
                rows = self.running(j, ~is_train_R)
                odds = self.odds_2NK[:, self.query_R[rows], k + 1 :]
                if move is not None and columns is not None:
                    odds = odds + (move @ self.design(j, rows, columns, scale).T)[:, :, None]
                prices[1 + j, rows] = best_price(odds, width_K[k + 1 :])
        return prices

    def fit(self, is_train_R: NDArray[np.bool_], columns: list[int], scale: tuple[Array, Array]) -> Array:
        """Return how far each feature moves the two log-odds."""
        blocks = []
        for j, k in enumerate(self.at_J):
            rows = self.running(j, is_train_R)
            cell = (self.cell_R[rows] - k - 1)[:, None]
            later = np.arange(len(self.tokens_K) - k - 1)
            is_seen = (later < cell) | ((later == cell) & self.ended_R[rows][:, None])
            ends = [(later == cell) & part[rows][:, None] for part in (self.right_R, self.ended_R & ~self.right_R)]
            odds = self.odds_2NK[:, self.query_R[rows], k + 1 :]
            blocks.append((self.design(j, rows, columns, scale), odds, is_seen.astype(float), np.stack(ends)))
        size = blocks[0][0].shape[1]
        rollouts = sum(len(block[0]) for block in blocks)

        def loss(flat: Array) -> tuple[float, Array]:
            move = flat.reshape(2, size)
            value, slope = 0.5 * RIDGE * float((move**2).sum()), RIDGE * move
            for x, odds, seen, ends in blocks:
                p = chances(odds + (move @ x.T)[:, :, None])
                value -= float((ends * np.log(p[:2])).sum() + ((seen - ends.sum(axis=0)) * np.log(p[2])).sum())
                slope = slope + (p[:2] * seen - ends).sum(axis=2) @ x
            return value / rollouts, slope.ravel() / rollouts

        found: Array = minimize(loss, np.zeros(2 * size), jac=True, method="L-BFGS-B").x
        return found.reshape(2, size)

    def accuracy_BN(self, prices_JR: Array) -> Array:
        """Return each query's accuracy at each budget of really generated tokens."""
        known = prices_JR[np.isfinite(prices_JR)]
        levels = np.unique(np.concatenate([[-1.0], np.quantile(known, np.linspace(0, 1, 400))]))
        time_J = np.concatenate([[0], self.tokens_K[self.at_J]])[:, None]
        spent, right = [], []
        for level in levels[::-1]:
            stop_R = np.where(prices_JR <= level, time_J, 10**6).min(axis=0)
            spent.append(np.minimum(self.length_R, stop_R).mean())
            is_right_R = self.right_R & (self.length_R <= stop_R)
            right.append(np.bincount(self.query_R, is_right_R) / np.bincount(self.query_R))
        return np.stack([[np.interp(budget, spent, mine) for mine in np.transpose(right)] for budget in BUDGETS])


def main(seeds: int) -> None:
    paths = str(DATA / "rollouts.parquet"), str(DATA / "features.parquet")
    recording = read_recording(*paths)
    drawn: dict[str, list[Array]] = {name: [] for name in VARIANTS}
    for seed in range(seeds):
        training = training_by_folds(
            recording, rollouts_path=paths[0], features_path=paths[1], folds_path=str(DATA / "split.json")
        )
        folds = dict(training.folds or {})
        if seed:  # other folds, to see how much of a difference is the draw of the folds
            shuffled = np.random.default_rng(seed).permutation(list(folds.values()))
            folds = dict(zip(folds, shuffled.tolist(), strict=True))
        training = type(training)(training.rollouts, training.features, recording, folds)
        curves = estimate(recording, training, kinds=["competing_risks"], seed=seed)["competing_risks"]
        study = Study(recording, curves, np.array([folds[name] for name in recording.rollouts.query_ids]))
        for name, columns in VARIANTS.items():
            drawn[name].append(study.accuracy_BN(study.prices_JR(columns)))
    rows = []
    for name, found in drawn.items():
        more_N = np.mean([one - static for one, static in zip(found, drawn["static"], strict=True)], axis=(0, 1))
        facts = {"difference": float(more_N.sum()), "error": float(more_N.std(ddof=1) * np.sqrt(len(more_N)))}
        rows.append({"variant": name, "accuracy": np.mean(found, axis=(0, 2)).tolist(), **facts})
    print(json.dumps({"figure": "inflight", "budgets": BUDGETS, "seeds": seeds, "rows": rows}))
    for row in rows:
        accuracy = "".join(f"{value:8.4f}" for value in row["accuracy"])
        print(f"{row['variant']:<20}{accuracy}   {row['difference']:+.2f} answers, standard error {row['error']:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
