"""Whether a part of a batch is given up where nothing tells queries apart."""

from __future__ import annotations

import numpy as np
import pytest

from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factors import Label, Observed
from clear_ray.estimation.learning import Belief, learn

CAP = 400
GRID = token_grid(CAP)


def answers(lengths_M: np.ndarray, *, ceiling: int, chance: float, seed: int) -> Observed:
    """Answers of these lengths, cut at a ceiling, right by chance once they have ended."""
    rng, many = np.random.default_rng(seed), len(lengths_M)
    is_ended_M = lengths_M <= ceiling
    right_M = np.where(is_ended_M, (rng.random(many) < chance).astype(float), np.nan)
    return Observed(np.arange(many), np.minimum(lengths_M, ceiling), is_ended_M, right_M)


def belief(observed: Observed, average: float, *, label: Label = "verdict") -> Belief:
    return learn(np.zeros((len(observed), 0)), observed, tokens_K=GRID, label=label, average_tokens=average)


def long_answers(many: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(200, 30, many).astype(np.int64).clip(60, CAP)


def short_answers(many: int, seed: int) -> np.ndarray:
    """Many short ones and a few very long: the first tokens of each query are worth the most."""
    rng = np.random.default_rng(seed)
    return rng.exponential(np.where(rng.random(many) < 0.7, 8, 300)).astype(np.int64).clip(1, CAP)


@pytest.mark.parametrize("label", ["verdict", "ended"])
def test_answers_that_are_all_longer_than_the_budget_are_worth_giving_some_up(label: Label) -> None:
    observed = answers(long_answers(80, 0), ceiling=300, chance=0.6, seed=0)
    found = belief(observed, 40.0, label=label)
    assert found.pooled_share > 0.9
    right_K = found.incidence(np.zeros((3, 0)), tokens_K=GRID).right_NK[0]
    at = {tokens: float(np.interp(tokens, GRID, right_K)) for tokens in (40, 260)}
    assert at[260] / 260 > 4 * at[40] / 40, "so a price buys whole answers and gives queries up"


def test_short_answers_keep_equal_ceilings() -> None:
    shares = [
        belief(answers(short_answers(80, seed), ceiling=300, chance=0.6, seed=seed), 15.0).pooled_share
        for seed in range(8)
    ]
    assert np.mean(shares) < 0.3
    assert np.median(shares) < 0.25


def test_answers_that_say_nothing_of_either_leave_the_law() -> None:
    none_right = answers(long_answers(40, 1), ceiling=100, chance=0.0, seed=1)
    assert belief(none_right, 40.0).pooled_share == pytest.approx(1 / (1 + np.exp(2)), abs=0.01)
    few = answers(long_answers(3, 2), ceiling=300, chance=1.0, seed=2)
    assert 0.0 <= belief(few, 40.0).pooled_share <= 1.0
    assert learn(np.zeros((3, 0)), few, tokens_K=GRID).pooled_share == 0.0


def test_the_same_answers_give_the_same_share() -> None:
    observed = answers(long_answers(60, 3), ceiling=250, chance=0.4, seed=3)
    assert belief(observed, 50.0).pooled_share == belief(observed, 50.0).pooled_share
