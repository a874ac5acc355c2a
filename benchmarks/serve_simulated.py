"""The comparison of `serve.py` in virtual time: the same queries, price and queue, on any machine and under any load.

Only the sale queue runs, on a clock that this file turns; answers take `--rate` tokens a second each, from recorded lengths,
and HTTP and engines cost nothing. Prints one JSON line for each budget and policy.

    python benchmarks/serve_simulated.py [--budgets 75 150 300 600] [--seconds 120]
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from serve import CAP_TOKENS, ROLLOUTS, Arrivals, arrivals, cross_fitted_head, equal_ceiling, price_settings

from clear_ray.estimation.head import load_head
from clear_ray.serve.law import Ask, Curve, Hold
from clear_ray.serve.sale_queue import Sale, SaleQueue
from clear_ray.serve.settings import PriceSettings
from clear_ray.sweep.recording import read_recording

_STEP_SECONDS = 0.05
_LOADING_SECONDS = 5.0  # the price replica is up before the engines are


@dataclass
class Play:
    """One server in virtual time."""

    queue: SaleQueue
    deadline_seconds: float
    rate: float
    waiting: list[tuple[float, dict[str, Any], asyncio.Task[Sale]]] = field(default_factory=list)
    running: list[tuple[float, int, Hold, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    tokens: int = 0
    correct: int = 0
    refused: int = 0
    number: Any = field(default_factory=itertools.count)

    def take_in(self, now: float) -> None:
        """Move queries that were answered at the till to where they belong."""
        still = []
        for at, row, buyer in self.waiting:
            if not buyer.done() and now - at <= self.deadline_seconds:
                still.append((at, row, buyer))
                continue
            sale = buyer.result() if buyer.done() else None
            buyer.cancel()
            if sale is None or sale.hold is None:
                self.refused += 1
                continue
            spent = min(row["output_tokens"], sale.tokens)
            self.tokens += spent
            self.correct += bool(row["correct"]) and row["output_tokens"] <= sale.tokens
            self.waits.append(now - at)
            heapq.heappush(self.running, (now + spent / self.rate, next(self.number), sale.hold, spent))
        self.waiting = still

    def settle(self, now: float) -> None:
        """Settle the answers that have ended."""
        while self.running and self.running[0][0] <= now:
            _, _, hold, spent = heapq.heappop(self.running)
            self.queue.settle(hold, spent)


async def play(queries: Arrivals, curves: dict[str, Curve], settings: dict[str, Any], rate: float) -> Play:
    clock = [0.0]
    never = {"deadline_seconds": 1e6, "max_waiting": 10_000}  # the deadline is kept here, on the virtual clock
    queue = SaleQueue(PriceSettings.model_validate(settings | never), clock=lambda: clock[0])
    played, ahead, now = Play(queue, settings["deadline_seconds"], rate), list(queries), 0.0
    while ahead or played.waiting or played.running:
        now += _STEP_SECONDS
        clock[0] = _LOADING_SECONDS + now
        while ahead and ahead[0][0] <= now:
            _, row = ahead.pop(0)
            tie_break = (next(played.number) * 0x9E3779B97F4A7C15) % (1 << 62)
            buyer = asyncio.create_task(queue.buy(Ask(curves[row["query_id"]], CAP_TOKENS, tie_break)))
            played.waiting.append((now, row, buyer))
            await asyncio.sleep(0)
        queue.serve_queue()
        for _ in range(3):
            await asyncio.sleep(0)
        played.take_in(now)
        played.settle(now)
    return played


def recorded_curves(head_dir: str) -> dict[str, Curve]:
    recording = read_recording(str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet"))
    names = recording.rollouts.query_ids
    curves = load_head(head_dir).curves(recording.features, recording.rollouts.prompts, names)
    tokens_K = np.asarray(curves.tokens_K, np.int64)
    return {
        name: Curve(tokens_K, success_K, survival_K)
        for name, success_K, survival_K in zip(names, curves.success_NK, curves.survival_NK, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budgets", type=int, nargs="+", default=[75, 150, 300, 600], help="tokens per second")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=100.0, help="tokens per second of one answer")
    arguments = parser.parse_args()
    rows = [row for row in pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist() if row["sample"] == 0]
    queries = arrivals(rows, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        curves = recorded_curves(cross_fitted_head(f"{folder}/head"))
    for budget, policy in itertools.product(arguments.budgets, ("queue", "reject")):
        settings = price_settings(budget) | {"without_surplus": policy}
        played = asyncio.run(play(queries, curves, settings, arguments.rate))
        ceiling = equal_ceiling(queries, played.tokens)
        result = {
            "budget_tokens_per_second": budget,
            "without_surplus": policy,
            "queries": len(queries),
            "answered": len(played.waits),
            "correct": played.correct,
            "tokens": played.tokens,
            "waited_seconds": {f"p{q}": round(float(np.percentile(played.waits, q)), 2) for q in (50, 95)},
            "uniform_max_tokens": ceiling,
            "uniform_correct": sum(bool(row["correct"]) and row["output_tokens"] <= ceiling for _, row in queries),
            "uniform_tokens": sum(min(row["output_tokens"], ceiling) for _, row in queries),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
