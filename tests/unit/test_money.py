"""A thousand runs that pay for prompts and tokens, over the real ledger and law: time-outs, honest usage and lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from clear_ray.config.allocation import AllocationConfig
from clear_ray.config.money import COST_PARTS
from clear_ray.config.prices import Prices, scaled_parts
from clear_ray.engine.base import Usage
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.ledger import REFUSED, Ledger
from clear_ray.records import COST_PARTS as COST_PARTS_OF_RECORDS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.stages.charging import charged_parts

RUNS, _PER_TEST = 1_000, 100
TOKENS_K = np.array([2, 4, 8, 16, 32])
LISTS = (
    {"input": "0.15", "cached_input": "0.075", "output": "0.60"},
    {"input": "0.0375", "output": "0.0001", "reasoning": "1.25"},
    {"input": "3", "cached_input": "3.75", "output": "15"},
    {"input": "0", "output": "2.5"},
)


@dataclass
class Endpoint:
    """Serves calls, and knows what they really took.

    Attributes:
        prices: Its list.
        cost_N: Costs of the queries, by the input.
        prompt_tokens_N: What it reads.
        length_N: Tokens of each query's answer.
        is_honest: Whether its usage is true.
        times_out: Whether some calls are never heard of again.
        bill_parts: What it has charged.
    """

    prices: Prices
    cost_N: np.ndarray
    prompt_tokens_N: np.ndarray
    length_N: np.ndarray
    is_honest: bool
    times_out: bool
    rng: np.random.Generator
    bill_parts: int = 0
    lost: int = field(default=0)

    def call(self, index: int, before: int, tokens: int) -> tuple[int, Usage] | None:
        """Return tokens generated and usage; None for a call that timed out, which may have generated anything."""
        generated = min(int(self.length_N[index]) - before, tokens)
        read = int(self.prompt_tokens_N[index]) + before
        true = Usage(read, int(self.rng.integers(0, read + 1)), generated, int(self.rng.integers(0, generated + 1)))
        self.bill_parts += self._parts(true, index)
        if self.times_out and self.rng.random() < 0.25:
            self.lost += 1
            return None
        return generated, true if self.is_honest else self._lie(true)

    def _parts(self, usage: Usage, index: int) -> int:
        parts = self.prices.taken_parts(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )
        return scaled_parts(parts, float(self.cost_N[index]))

    def _lie(self, true: Usage) -> Usage:
        lies = (
            Usage(10**6 * true.prompt_tokens, true.cached_tokens, true.output_tokens, 0),
            Usage(true.prompt_tokens, true.prompt_tokens + 7, true.output_tokens, 0),
            Usage(true.prompt_tokens, 0, true.output_tokens, true.output_tokens + 1),
            Usage(true.prompt_tokens, 0, true.output_tokens + 10**9, 0),
            Usage(0, 0, 0, 0),
            Usage(-5, -9, true.output_tokens, -1),
            true,
        )
        return lies[int(self.rng.integers(len(lies)))]


@dataclass
class Run:
    """One batch under a budget of money, to its end."""

    seed: int
    is_honest: bool = True
    times_out: bool = False

    def __post_init__(self) -> None:
        rng = self.rng = np.random.default_rng(self.seed)
        queries = int(rng.integers(2, 7))
        self.prices = Prices.model_validate(LISTS[self.seed % len(LISTS)])
        cost_N = rng.choice([1.0, 1.0, 0.125, 2.5, 7.333], queries)
        success = np.sort(rng.random((queries, 5)), axis=1) * rng.random((queries, 1))
        survival = (1 - success) * np.sort(rng.random((queries, 5)), axis=1)[:, ::-1]
        token_parts, read_parts = (
            np.array([scaled_parts(parts, cost) for cost in cost_N])
            for parts in (self.prices.token_parts, self.prices.read_parts)
        )
        self.calls = CallCosts(token_parts, read_parts, rng.integers(1, 60, queries))
        batch = Batch(
            curves_from_incidence(success, survival_NK=survival, tokens_K=TOKENS_K),
            weight_N=np.ones(queries),
            max_tokens_N=np.full(queries, 32),
            tie_break_N=rng.permutation(queries).astype(np.uint64),
            cost_N=token_parts / COST_PARTS,
            calls=self.calls,
        )
        everything = int(self.calls.taken_parts(np.arange(queries), np.full(queries, 32), np.zeros(queries, int)).sum())
        self.budget = max(int(everything / COST_PARTS * rng.choice([0.1, 0.3, 0.7, 1.5])), 1)
        self.ledger = Ledger(self.budget, queries, cost_N=batch.cost_N)
        service = int(rng.choice([0, 0, 2])) or None
        settings = AllocationConfig(smallest_grant_tokens=2, minimum_service_tokens=service)
        self.rounds = Rounds(BatchOffers(batch), settings, calls=self.calls)
        self.endpoint = Endpoint(
            self.prices,
            cost_N,
            self.calls.prompt_tokens_N,
            np.minimum(rng.geometric(1 / 12, queries), 40),
            self.is_honest,
            self.times_out,
            rng,
        )

    def play(self) -> None:
        while (granted := self.rounds.next(self.ledger.available_tokens)) is not None:
            clearing = granted.clearing
            assert clearing.reserved_parts_M is not None
            assert clearing.reserved_parts_M.sum() <= self.ledger.available_tokens * COST_PARTS, "more was promised"
            assert 0 <= clearing.gap <= clearing.dual_bound + 1e-9
            before_N = self.rounds.states.answer_tokens_N.copy()
            rows = [
                row
                for index, tokens, parts in zip(
                    clearing.index_M.tolist(),
                    clearing.tokens_M.tolist(),
                    clearing.reserved_parts_M.tolist(),
                    strict=True,
                )
                if (row := self.serve(index, tokens, parts, int(before_N[index]))) is not None
            ]
            self.rounds.take(granted.number, [attempts_of(rows)] if rows else [])
            self.ledger.check()

    def serve(self, index: int, tokens: int, parts: int, before: int) -> dict[str, Any] | None:
        """Reserve, call and settle; a call that timed out is charged in full and made again while the budget allows."""
        while True:
            entry = self.ledger.admit(index, tokens, parts)
            if not isinstance(entry, Entry):
                assert entry == REFUSED, "nothing runs that could give back"
                return None
            called = self.endpoint.call(index, before, tokens)
            if called is None:
                self.ledger.forfeit(index, entry.attempt)
                continue
            generated, usage = called
            charged = charged_parts(
                self.prices,
                usage,
                generated_tokens=generated,
                reserved_parts=parts,
                cost=float(self.endpoint.cost_N[index]),
            )
            self.ledger.settle(index, entry.attempt, generated, charged)
            has_stopped = before + generated >= self.endpoint.length_N[index]
            return {"index": index, "granted": tokens, "new": generated, "all": before + generated, "stop": has_stopped}


def attempts_of(rows: list[dict[str, Any]]) -> Attempts:
    index, granted, new, answer = (
        np.array([row[name] for row in rows], np.int64) for name in ("index", "granted", "new", "all")
    )
    stop, no = np.array([row["stop"] for row in rows], bool), np.zeros(len(rows), bool)
    return Attempts(index, granted, new, answer, stop, no, no, np.full(len(rows), np.nan))


@pytest.mark.parametrize("first", range(0, RUNS, _PER_TEST))
def test_no_budget_is_overspent_and_honest_usage_is_charged_to_the_token(first: int) -> None:
    for seed in range(first, first + _PER_TEST):
        run = Run(seed, is_honest=seed % 3 != 0, times_out=seed % 2 == 0)
        run.play()
        spent_parts = int(run.ledger.spent_parts_N.sum())
        assert spent_parts <= run.budget * COST_PARTS, f"seed {seed} overspent"
        assert run.ledger.reserved_tokens == 0, f"seed {seed}"
        if run.is_honest:
            assert run.endpoint.bill_parts <= spent_parts, f"seed {seed}: the bill is above what was charged"
        if run.is_honest and not run.endpoint.lost:
            assert spent_parts == run.endpoint.bill_parts, f"seed {seed}"


def test_the_runs_are_worth_playing() -> None:
    """Rounds follow rounds, answers are gone on with, calls time out, and budgets are nearly used up."""
    runs = [Run(seed, is_honest=True, times_out=seed % 2 == 0) for seed in range(60)]
    for run in runs:
        run.play()
    assert max(run.rounds.number for run in runs) >= 3
    assert any((run.rounds.states.rounds_N > 1).any() for run in runs)
    assert sum(run.endpoint.lost for run in runs) > 20
    assert sum(run.endpoint.bill_parts > 0.8 * run.budget * COST_PARTS for run in runs) > 5


def test_a_part_is_the_same_for_prices_and_for_the_ledger() -> None:
    assert COST_PARTS == COST_PARTS_OF_RECORDS
