"""Recorded answers of several models at their prices, and what could be had of them in hindsight; see `menus`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.prices import Prices

Array = NDArray[np.float64]
LADDER_CEILINGS = 40
PRICES = {  # dollars per million tokens, input and output
    "Qwen2.5-3B-Instruct": ("0.015", "0.045"),
    "Qwen2.5-7B-Instruct": ("0.035", "0.105"),
    "Qwen2.5-32B-Instruct": ("0.16", "0.48"),
    "Qwen2.5-72B-Instruct": ("0.36", "1.08"),
    "gemma-2-2b-it": ("0.01", "0.03"),
    "Qwen2-7B-Instruct": ("0.035", "0.105"),
    "gemma-2-9b-it": ("0.045", "0.135"),
    "Qwen2-72B-Instruct": ("0.36", "1.08"),
    "gpt-5-nano-2025-08-07@effort=medium": ("0.05", "0.40"),
    "gpt-5-mini-2025-08-07@effort=medium": ("0.25", "2.00"),
    "gpt-5-2025-08-07@effort=medium": ("1.25", "10.00"),
    "gpt-5.1@effort=low": ("1.25", "10.00"),
    "gpt-5.1@effort=medium": ("1.25", "10.00"),
    "gpt-5.1@effort=high": ("1.25", "10.00"),
    "claude-sonnet-4-5-20250929@think=0": ("3.00", "15.00"),
    "claude-sonnet-4-5-20250929@think=16000": ("3.00", "15.00"),
    "claude-sonnet-4-5-20250929@think=59000": ("3.00", "15.00"),
}


@dataclass(frozen=True, eq=False)
class Recorded:
    """Answers of J models to N queries, S of each.

    Attributes:
        models: Their names, the cheapest first.
        query_ids: Of each query.
        length_JNS: Tokens of each answer.
        is_right_JNS: Whether it is right.
        is_cut_JNS: Whether it was itself cut off.
        prompt_tokens_JN: Tokens of each prompt.
        x_NP: Coordinates of the queries.
    """

    models: tuple[str, ...]
    query_ids: tuple[str, ...]
    length_JNS: NDArray[np.int64]
    is_right_JNS: NDArray[np.bool_]
    is_cut_JNS: NDArray[np.bool_]
    prompt_tokens_JN: NDArray[np.int64]
    x_NP: Array

    def prices(self) -> list[Prices]:
        """Return each model's list."""
        return [Prices.model_validate(dict(zip(("input", "output"), PRICES[m], strict=True))) for m in self.models]

    def cost_parts_JNS(self, ceiling: int | None = None) -> NDArray[np.int64]:
        """Return what each answer takes under a ceiling."""
        length = self.length_JNS if ceiling is None else np.minimum(self.length_JNS, ceiling)
        lists = self.prices()
        read = np.array([prices.read_parts for prices in lists])[:, None, None] * self.prompt_tokens_JN[:, :, None]
        return read + np.array([prices.token_parts for prices in lists])[:, None, None] * length


def yardsticks(recorded: Recorded, budgets: Array) -> dict[str, list[float]]:
    """Return the share of right answers of each yardstick at budgets a query, in parts."""
    usable = recorded.is_right_JNS & ~recorded.is_cut_JNS
    points = [(0.0, 0.0)]
    for ceiling in np.unique(np.geomspace(8, recorded.length_JNS.max(), 160).astype(int)):
        cost = recorded.cost_parts_JNS(int(ceiling)).mean(axis=(1, 2))
        right = (usable & (recorded.length_JNS <= ceiling)).mean(axis=(1, 2))
        points += list(zip(cost.tolist(), right.tolist(), strict=True))
    single = [max((right for cost, right in points if cost <= budget), default=0.0) for budget in budgets]
    hull = _hull(points)
    mixture = np.interp(budgets, [p[0] for p in hull], [p[1] for p in hull])
    ladder = _ladder(recorded, usable, budgets, hull)
    return {
        "single": single,
        "mixture": mixture.tolist(),
        "ladder": ladder,
        "oracle": _oracle(recorded, usable, budgets),
    }


def _ladder(
    recorded: Recorded, usable: NDArray[np.bool_], budgets: Array, single: Sequence[tuple[float, float]]
) -> list[float]:
    """Return what is right under the best mixture of plans for all queries alike, a wrong answer followed by the next model.

    Sample s of one model is followed by sample s of another. `single` are points of plans of one call.
    """
    models = len(recorded.models)
    ceilings = np.unique(np.geomspace(8, recorded.length_JNS.max(), LADDER_CEILINGS).astype(int))
    cost_KJA = np.array([recorded.cost_parts_JNS(int(ceiling)).reshape(models, -1) for ceiling in ceilings], float)
    right_KJA = np.array([(usable & (recorded.length_JNS <= ceiling)).reshape(models, -1) for ceiling in ceilings])
    points = list(single)

    def climb(model: int, open_A: Array, cost: float, right: float) -> None:
        if model == models - 1:
            costs, rights = (table[:, model] @ open_A / len(open_A) for table in (cost_KJA, right_KJA.astype(float)))
            points.extend(zip((cost + costs).tolist(), (right + rights).tolist(), strict=True))
            points.append((cost, right))
            return
        climb(model + 1, open_A, cost, right)
        for ceiling in range(len(ceilings)):
            solved_A = open_A * right_KJA[ceiling, model]
            more = float(cost_KJA[ceiling, model] @ open_A) / len(open_A)
            climb(model + 1, open_A - solved_A, cost + more, right + float(solved_A.mean()))

    climb(0, np.ones(cost_KJA.shape[2]), 0.0, 0.0)
    hull = _hull(points)
    return np.interp(budgets, [p[0] for p in hull], [p[1] for p in hull]).tolist()


def _oracle(recorded: Recorded, usable: NDArray[np.bool_], budgets: Array) -> list[float]:
    """Return what is right if every query gets its own best (model, ceiling), by its own answers."""
    steps: list[tuple[float, float]] = []
    lists = recorded.prices()
    models, queries, _ = recorded.length_JNS.shape
    for query in range(queries):
        points = [(0.0, 0.0)]
        for j in range(models):
            length = recorded.length_JNS[j, query]
            for ceiling in np.unique(length):
                tokens = np.minimum(length, ceiling).mean()
                cost = lists[j].read_parts * recorded.prompt_tokens_JN[j, query] + lists[j].token_parts * tokens
                points.append((float(cost), float((usable[j, query] & (length <= ceiling)).mean())))
        hull = _hull(points)
        steps += [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(hull)]
    steps.sort(key=lambda step: -step[1] / step[0])
    cost, worth = np.cumsum([s[0] for s in steps]) / queries, np.cumsum([s[1] for s in steps]) / queries
    return np.interp(budgets, np.concatenate([[0], cost]), np.concatenate([[0], worth])).tolist()


def _hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of the upper concave envelope, from the origin to the best."""
    hull: list[tuple[float, float]] = []
    for cost, worth in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and worth <= hull[-1][1]:
            continue
        while len(hull) > 1 and (worth - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) >= (hull[-1][1] - hull[-2][1]) * (
            cost - hull[-1][0]
        ):
            hull.pop()
        hull.append((cost, worth))
    return hull
