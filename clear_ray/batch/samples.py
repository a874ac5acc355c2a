"""A few answers for a plan: what random queries really take, for at most a small part of the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

from clear_ray.cluster.engines import EngineActors
from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Generation, Grant
from clear_ray.records import COST_PARTS
from clear_ray.report.interval import spending_interval
from clear_ray.report.plan import PlanReport
from clear_ray.rounds.batch import cost_parts
from clear_ray.rounds.calls import CallCosts
from clear_ray.run_folder.estimates import Estimates
from clear_ray.stages.charging import charged_parts
from clear_ray.stages.generate import seed_of
from clear_ray.stages.probe import prompts_of
from clear_ray.storage import Folder

MOST_SHARE, MOST_ANSWERS = 0.01, 64


def sampled_costs(
    folder: Folder, config: RunConfig, estimates: Estimates, engines: EngineActors, *, share: float
) -> list[float]:
    """Return what the answers to some random queries took, in the unit of the budget; none if not even one fits.

    Args:
        folder: The run folder, with its queries.
        config: As for `plan`.
        estimates: What the probe found.
        engines: The engines.
        share: Part of the budget that may be spent: no ceilings are asked for that it would not pay for.
    """
    allowed_parts = int(share * config.budget_tokens * COST_PARTS)
    parts_of = _parts_of(estimates)
    drawn = np.random.default_rng([config.seed, 1]).permutation(estimates.queries)
    order = [int(i) for i in drawn if int(i) not in estimates.error_of_index and estimates.max_tokens_N[i] > 0]
    worker = engines.workers.handles[0]

    def ask(indices: list[int]) -> list[int]:
        answers = _answers(folder, config, estimates, indices, worker)
        return [_taken_parts(config, estimates, parts_of, index, generation) for index, generation in answers]

    worst = [parts_of(index, int(estimates.max_tokens_N[index])) for index in order]
    return [parts / COST_PARTS for parts in ask_within(order, worst, ask, allowed_parts=allowed_parts)]


def ask_within(
    order: Sequence[int], worst: Sequence[int], ask: Callable[[list[int]], list[int]], *, allowed_parts: int
) -> list[int]:
    """Ask queries in order, as many at once as are surely paid for, until no further one is; return what they took.

    Args:
        order: The queries.
        worst: What each may take.
        ask: Returns what the answers to some queries took.
        allowed_parts: What all of them together may take.
    """
    taken: list[int] = []
    at = 0
    while at < len(order) and len(taken) < MOST_ANSWERS:
        ahead = worst[at : at + MOST_ANSWERS - len(taken)]
        count = int(np.searchsorted(np.cumsum(ahead), allowed_parts - sum(taken), side="right"))
        if not count:
            break
        taken += ask(list(order[at : at + count]))
        at += count
    return taken


def with_interval(report: PlanReport, estimates: Estimates, sampled: list[float]) -> PlanReport:
    """Return a plan whose guesses rest on what some sampled answers took; as it is if there are none.

    Args:
        report: The plan.
        estimates: What the probe found.
        sampled: What the answers took, in the unit of the budget.
    """
    if not sampled:
        return report
    index, none_N = np.arange(estimates.queries), np.zeros(estimates.queries, np.int64)
    worst, again = float(estimates.max_tokens_N.sum()), 0.0
    if (calls := estimates.calls) is not None:
        worst = float(calls.taken_parts(index, estimates.max_tokens_N, none_N).sum()) / COST_PARTS
        again = read_again(calls, float(np.mean(sampled)))
    probe_tokens = report.probe_tokens
    budget = max(report.budget_tokens - probe_tokens, 0)
    found = spending_interval(sampled, queries=estimates.queries, budget=budget, worst=worst, again=again)
    return report.model_copy(
        update={
            "low_tokens": found.low + probe_tokens,
            "expected_tokens": found.expected + probe_tokens,
            "worst_tokens": min(math.ceil(worst), budget) + probe_tokens,
            "high_tokens": found.high + probe_tokens,
            "sampled_answers": len(sampled),
            "sample_tokens": math.ceil(sum(sampled)),
        }
    )


def read_again(calls: CallCosts, mean: float) -> float:
    """Return what it takes to read all prompts, and half of what answers are, once more.

    Args:
        calls: What calls take.
        mean: What a query takes in the mean, in the unit of the budget.
    """
    index = np.arange(len(calls.prompt_tokens_N))
    prompts = float(calls.fixed_parts(index, np.zeros_like(index)).sum()) / COST_PARTS
    answers = max(mean * len(index) - prompts, 0.0)
    return prompts + 0.5 * answers * float((calls.read_parts_N / calls.token_parts_N).mean())


def _taken_parts(
    config: RunConfig,
    estimates: Estimates,
    parts_of: Callable[[int, int], int],
    index: int,
    generation: Generation,
) -> int:
    tokens = len(generation.token_ids)
    if config.model_prices is None or generation.usage is None:
        return parts_of(index, tokens)
    reserved = parts_of(index, int(estimates.max_tokens_N[index]))
    return charged_parts(config.model_prices, generation.usage, generated_tokens=tokens, reserved_parts=reserved)


def _parts_of(estimates: Estimates) -> Callable[[int, int], int]:
    """Return a function that says what an answer of so many tokens takes, thousandths."""
    calls = estimates.calls
    parts_N = None if calls is not None else cost_parts(_costs(estimates))

    def parts(index: int, tokens: int) -> int:
        if calls is None:
            return tokens * int(parts_N[index]) if parts_N is not None else tokens
        one = np.array([index])
        return int(calls.taken_parts(one, np.array([tokens]), np.zeros(1, np.int64))[0])

    return parts


def _costs(estimates: Estimates) -> Any:
    cost_N = np.ones(estimates.queries)
    cost_N[estimates.sample] = estimates.batch.cost_N
    return cost_N


def _answers(
    folder: Folder, config: RunConfig, estimates: Estimates, wanted: list[int], worker: Any
) -> Iterator[tuple[int, Generation]]:
    """Ask one engine for the whole answers of some queries."""
    grants, index_of = [], {}
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem)
        index = table["index"].to_numpy()
        rows = table.take(np.flatnonzero(np.isin(index, wanted)))
        for row, prompt in zip(rows.to_pylist(), prompts_of(rows), strict=True):
            sampling = Sampling.load(row["sampling"])
            seed = seed_of(sampling, config.seed + row["index"])
            most = int(estimates.max_tokens_N[row["index"]])
            sample = config.sample + (row.get("choice") or 0)
            grants.append(Grant(row["query_id"], prompt, most, seed, sample=sample, sampling=sampling))
            index_of[row["query_id"], sample] = row["index"]
    found: list[list[Generation]] = [ray.get(part) for part in worker.generate.remote(grants, False)] if grants else []
    for generation in itertools.chain.from_iterable(found):
        yield index_of[generation.query_id, generation.sample], generation
