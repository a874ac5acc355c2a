"""How many rollouts each prompt gets: groups for reinforcement learning under one budget of tokens.

A trainer samples a group of rollouts of each prompt and learns from what differs in it. A prompt that is always answered
right, or never, teaches nothing, however large its group; a long prompt takes tokens from many short ones. So a group is
priced: its worth against its tokens, at one price for the whole batch.

Legend: N prompts, K sizes of a group. A group's size counts a rollout at a time, and a rollout costs `tokens_N`; sizes are
priced as `Tabulated` prices tokens, so price, whole numbers and certificate are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from clear_ray.allocation.allocate import allocate
from clear_ray.allocation.columns import FloatArray, IntArray, query_column
from clear_ray.allocation.tabulated import Tabulated
from clear_ray.errors import UtilityError

Objective = Literal["mixed", "variance", "solved"]
MOST_ROLLOUTS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutAllocation:
    """Rollouts for every prompt, with the certificate that they are close to the best.

    Attributes:
        rollouts_N: Further rollouts of each prompt, int64; 0 where a group is not worth its tokens.
        worth_N: What they are expected to add to the objective.
        spend_tokens: What they cost; never above the budget.
        shadow_price: Expected worth per further token; 0 if the budget does not bind.
        worth: Sum of `worth_N`.
        dual_bound: No sizes of groups within the budget are worth more.
        gap: `dual_bound - worth`.
    """

    rollouts_N: IntArray
    worth_N: FloatArray
    spend_tokens: float
    shadow_price: float
    worth: float
    dual_bound: float
    gap: float


def allocate_rollouts(
    solvability_N: ArrayLike,
    tokens_N: ArrayLike,
    *,
    budget_tokens: float,
    objective: Objective = "mixed",
    rollouts: int | tuple[int, int] = (2, MOST_ROLLOUTS),
    strength: float | ArrayLike = np.inf,
    right_N: ArrayLike | None = None,
    wrong_N: ArrayLike | None = None,
) -> RolloutAllocation:
    """Divide a budget of tokens among groups of rollouts so that their expected worth is greatest.

    Args:
        solvability_N: Chance that a rollout of each prompt is right, from 0 to 1; what is believed before its first one.
        tokens_N: What a rollout of each prompt costs, > 0: its expected tokens, or its ceiling where none may exceed it.
        budget_tokens: What all rollouts together may cost.
        objective: What a group is worth. `mixed`: the chance that it has a right and a wrong rollout; `solved`: that it has a
            right one; `variance`: the expected variance of its rewards.
        rollouts: Size of a group: exactly so many, or from fewest to most, of which those in `right_N` and `wrong_N` are
            a part; a prompt without any may also get none.
        strength: How many rollouts the belief of `solvability_N` is worth, > 0; infinite if it is certain.
        right_N: Rollouts of each prompt that were right already.
        wrong_N: Rollouts that were wrong.

    Raises:
        UtilityError: A column has the wrong length or a value out of range, or no size of a group is left.
        PriceError: The budget is negative or not finite.

    Source: docs/method.md, section 9.1.
    """
    fewest, most = _sizes(rollouts)
    queries = np.size(tokens_N)
    p_N = query_column(solvability_N, name="solvability_N", queries=queries, high=1.0)
    done = {"right_N": 0.0 if right_N is None else right_N, "wrong_N": 0.0 if wrong_N is None else wrong_N}
    right, wrong = (query_column(column, name=name, queries=queries) for name, column in done.items())
    strength_N = query_column(np.minimum(strength, _CERTAIN), name="strength", queries=queries, is_low_allowed=False)
    done_N = right + wrong
    size_K = np.array([fewest]) if fewest == most else np.arange(1, most + 1)
    worth_NK = _worth(objective, p_N, strength_N, right, wrong, size_K)
    if fewest < most:
        worth_NK = np.where(done_N[:, None] + size_K < fewest, 0.0, worth_NK)
    is_left_N = done_N + size_K[0] <= most
    curves = Tabulated(
        size_K,
        np.where(is_left_N[:, None], np.maximum.accumulate(worth_NK, axis=1), 0.0),
        cost_per_token_N=query_column(tokens_N, name="tokens_N", queries=queries, is_low_allowed=False),
        max_tokens_N=np.where(is_left_N, np.clip(most - done_N, 0, size_K[-1]), 0),
    )
    bought = allocate(curves, budget_tokens=budget_tokens, spread_unspent=False)
    rollouts_N = np.where(bought.utility_N > 0, bought.tokens_N, 0)
    return RolloutAllocation(
        rollouts_N=rollouts_N,
        worth_N=bought.utility_N,
        spend_tokens=float((rollouts_N * curves.cost_per_token_N).sum()),
        shadow_price=bought.shadow_price,
        worth=bought.utility,
        dual_bound=bought.dual_bound,
        gap=bought.gap,
    )


_CERTAIN = 1e15


def _sizes(rollouts: int | tuple[int, int]) -> tuple[int, int]:
    fewest, most = (rollouts, rollouts) if isinstance(rollouts, int) else rollouts
    if not 1 <= fewest <= most:
        raise UtilityError(
            "a group has at least one rollout, and the fewest are not above the most",
            "rollouts",
            str(rollouts),
            "Give a number such as 8, or a range such as (2, 64).",
        )
    return fewest, most


def _worth(
    objective: Objective,
    p_N: FloatArray,
    strength_N: FloatArray,
    right_N: FloatArray,
    wrong_N: FloatArray,
    size_K: IntArray,
) -> FloatArray:
    """Return what further rollouts are expected to add, shape (N, K), never falling along sizes where it is a chance."""
    alpha_N = p_N * strength_N + right_N
    beta_N = (1.0 - p_N) * strength_N + wrong_N
    if objective == "variance":
        return _added_variance(alpha_N, beta_N, right_N, wrong_N, size_K)
    all_right_NK = _all_alike(alpha_N, alpha_N + beta_N, size_K)
    all_wrong_NK = _all_alike(beta_N, alpha_N + beta_N, size_K)
    has_right_N, has_wrong_N = (right_N > 0)[:, None], (wrong_N > 0)[:, None]
    if objective == "solved":
        return np.where(has_right_N, 0.0, 1.0 - all_wrong_NK)
    if objective != "mixed":
        raise UtilityError("no such worth of a group", "objective", str(objective), "Use mixed, variance or solved.")
    # A group that has one kind already wants the other; one that has both wants nothing.
    lacking_NK = np.where(has_right_N, 0.0, all_wrong_NK) + np.where(has_wrong_N, 0.0, all_right_NK)
    return np.where(has_right_N & has_wrong_N, 0.0, np.clip(1.0 - lacking_NK, 0.0, 1.0))


def _all_alike(kind_N: FloatArray, strength_N: FloatArray, size_K: IntArray) -> FloatArray:
    """Return the chance that rollouts are all of a kind with belief beta(kind, strength - kind), shape (N, K)."""
    step = np.arange(size_K[-1])
    chance_NS = (kind_N[:, None] + step) / (strength_N[:, None] + step)
    return np.cumprod(chance_NS, axis=1, dtype=np.float64)[:, size_K - 1]


def _added_variance(
    alpha_N: FloatArray, beta_N: FloatArray, right_N: FloatArray, wrong_N: FloatArray, size_K: IntArray
) -> FloatArray:
    """Return the rise of q (1 - q), where q is the share of right rollouts in a group; none is counted as a fall."""
    total_N = alpha_N + beta_N
    mean_N = (alpha_N / total_N)[:, None]
    further_K = size_K.astype(float)
    right, wrong = right_N[:, None], wrong_N[:, None]
    spread_N = mean_N * (1.0 - mean_N)
    variance_NK = further_K * spread_N * (total_N[:, None] + further_K) / (total_N[:, None] + 1.0)
    mean_NK = further_K * mean_N
    product_NK = (right + mean_NK) * (wrong + further_K - mean_NK) - variance_NK
    done_N = right + wrong
    now_N = right * wrong / np.maximum(done_N, 1.0) ** 2
    added_NK: FloatArray = np.clip(product_NK / (done_N + further_K) ** 2 - now_N, 0.0, 1.0)
    return added_NK
