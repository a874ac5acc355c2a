"""A few answers for a plan: what random queries really take, for at most a small part of the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from clear_ray.batch.intake import load_scorer_of
from clear_ray.cluster.engines import EngineActors
from clear_ray.config.prices import Prices
from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Generation, Grant
from clear_ray.estimation.gain import SampledAnswer
from clear_ray.records import COST_PARTS
from clear_ray.report.interval import Interval, menu_interval, spending_interval
from clear_ray.report.plan import PlanReport
from clear_ray.rounds.batch import cost_parts
from clear_ray.rounds.calls import CallCosts
from clear_ray.run_folder.estimates import Estimates
from clear_ray.stages.charging import charged_parts
from clear_ray.stages.generate import seed_of
from clear_ray.stages.probe import prompts_of
from clear_ray.storage import Folder
from clear_ray.tasks import judged_by

MOST_SHARE, MOST_ANSWERS = 0.01, 64
_SAMPLED_CEILING, _LEAST_CEILING = 2.0, 0.5
"""Ceiling of answers that are cut, in average budgets of a query, and the least that is worth it."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Answers to a few random queries.

    Attributes:
        whole: What each of those took that were given their whole ceiling, in the unit of the budget.
        answers: All of them, also those that were asked for less, where what is left pays for no whole answer.
        taken: What all of them took.
    """

    whole: tuple[float, ...] = ()
    answers: tuple[SampledAnswer, ...] = ()
    taken: float = 0.0


def sampled_answers(
    folder: Folder, config: RunConfig, estimates: Estimates, engines: EngineActors, *, share: float
) -> tuple[Sampled, ...]:
    """Return what came of some random queries by each engine; nothing if not even a short answer is paid for.

    Args:
        folder: The run folder, with its queries.
        config: As for `plan`.
        estimates: What the probe found.
        engines: The engines.
        share: Part of the budget that may be spent, of which each engine has the same: no ceilings are asked for that it
            would not pay for.
    """
    named = config.named_engines
    allowed_parts = int(share * config.budget_tokens * COST_PARTS) // len(named)
    return tuple(
        _sampled_of(folder, config, one, each.workers.handles[0], of.prices, allowed_parts)
        for one, each, of in zip(estimates.each, engines.each, named, strict=True)
    )


def _sampled_of(
    folder: Folder, config: RunConfig, estimates: Estimates, worker: Any, prices: Prices | None, allowed_parts: int
) -> Sampled:
    """Return what came of some random queries by one engine."""
    parts_of = _parts_of(estimates)
    drawn = np.random.default_rng([config.seed, 1]).permutation(estimates.queries)
    order = [int(i) for i in drawn if int(i) not in estimates.error_of_index and estimates.max_tokens_N[i] > 0]
    make = load_scorer_of(config, folder)
    scorer = make() if make is not None else None
    asked: list[int] = []
    answers: list[SampledAnswer] = []

    def ask_for(ceiling_N: NDArray[np.int64], allowed_parts: int) -> list[int]:
        def ask(indices: list[int]) -> list[int]:
            asked.extend(indices)
            taken = []
            for row, generation in _answers(folder, config, ceiling_N, indices, worker):
                taken.append(_taken_parts(prices, ceiling_N, parts_of, row["index"], generation))
                is_ended = generation.finish_reason == "stop"
                right = _verdict(scorer, row, generation) if is_ended else None
                if not generation.error:
                    answers.append(SampledAnswer(taken[-1] / COST_PARTS, is_ended, right))
            return taken

        rest = order[len(asked) :]
        worst = [parts_of(index, int(ceiling_N[index])) for index in rest]
        return ask_within(rest, worst, ask, allowed_parts=allowed_parts, most=MOST_ANSWERS - len(asked))

    whole = ask_for(estimates.max_tokens_N, allowed_parts)
    # Twice what a query has in the mean: whether answers end below that is what a gain hangs on.
    left_parts, cost, cut = allowed_parts - sum(whole), _mean_cost(estimates), list[int]()
    average = config.budget_tokens / max(estimates.queries, 1) / cost
    # In a small batch one answer takes all that may be spent. Of the rest of a batch with whole answers nothing is learned.
    tokens = int(min(_SAMPLED_CEILING * average, left_parts / COST_PARTS / cost))
    if tokens >= max(_LEAST_CEILING * average, 1):
        cut = ask_for(np.minimum(estimates.max_tokens_N, tokens), left_parts)
    taken = (sum(whole) + sum(cut)) / COST_PARTS
    return Sampled(tuple(parts / COST_PARTS for parts in whole), tuple(answers), taken)


def _verdict(scorer: Any, row: dict[str, Any], generation: Generation) -> float | None:
    """Return how right an answer is that ended; 1 where nothing scores, and None where the scorer says nothing."""
    if scorer is None:
        return 1.0
    asked = {"prompt": row["prompt"], "is_conversation": row["is_conversation"]}
    try:
        return judged_by(scorer, generation.text, row["gold"], row["metadata"], **asked).score
    except Exception:  # a function of the user's may raise anything; in a run it is that query's error
        return None


def _mean_cost(estimates: Estimates) -> float:
    """Return what a token takes in the mean, in the unit of the budget."""
    calls = estimates.calls
    return float(_costs(estimates).mean() if calls is None else calls.token_parts_N.mean() / COST_PARTS)


def ask_within(
    order: Sequence[int],
    worst: Sequence[int],
    ask: Callable[[list[int]], list[int]],
    *,
    allowed_parts: int,
    most: int = MOST_ANSWERS,
) -> list[int]:
    """Ask queries in order, as many at once as are surely paid for, until no further one is; return what they took.

    Args:
        order: The queries.
        worst: What each may take.
        ask: Returns what the answers to some queries took.
        allowed_parts: What all of them together may take.
        most: Most queries that are asked.
    """
    taken: list[int] = []
    at = 0
    while at < len(order) and len(taken) < most:
        ahead = worst[at : at + most - len(taken)]
        count = int(np.searchsorted(np.cumsum(ahead), allowed_parts - sum(taken), side="right"))
        if not count:
            break
        taken += ask(list(order[at : at + count]))
        at += count
    return taken


def with_interval(
    report: PlanReport, estimates: Estimates, sampled: Sequence[Sampled], *, is_followed: bool = False
) -> PlanReport:
    """Return a plan whose guesses rest on what some sampled answers took; as it is if there are none.

    Args:
        report: The plan.
        estimates: What the probe found.
        sampled: The answers of each engine.
        is_followed: Whether a wrong answer of one engine is followed by one of the next.
    """
    report = report.model_copy(update={"sample_tokens": math.ceil(sum(each.taken for each in sampled))})
    if not any(each.whole for each in sampled):
        return report
    budget = max(report.budget_tokens - report.probe_tokens, 0)
    worst = [_worst(one) for one in estimates.each]
    found = [
        _interval(one, each.whole, budget, most) if each.whole else None
        for one, each, most in zip(estimates.each, sampled, worst, strict=True)
    ]
    if len(found) > 1 or found[0] is None:
        spent = menu_interval(found, [_wrong(each) for each in sampled], budget=budget, is_followed=is_followed)
    else:
        spent = found[0]
    probe_tokens = report.probe_tokens
    return report.model_copy(
        update={
            "low_tokens": spent.low + probe_tokens,
            "expected_tokens": spent.expected + probe_tokens,
            "worst_tokens": min(math.ceil(sum(worst)), budget) + probe_tokens,
            "high_tokens": spent.high + probe_tokens,
            "sampled_answers": sum(len(each.whole) for each in sampled),
        }
    )


def _interval(estimates: Estimates, whole: Sequence[float], budget: float, worst: float) -> Interval:
    """Return what a run spends that asks one engine alone."""
    again = 0.0 if estimates.calls is None else read_again(estimates.calls, float(np.mean(whole)))
    return spending_interval(whole, queries=estimates.queries, budget=budget, worst=worst, again=again)


def _worst(estimates: Estimates) -> float:
    """Return what the batch takes if every answer of one engine runs into its ceiling."""
    if estimates.calls is None:
        return float(estimates.max_tokens_N.sum())
    index, none_N = np.arange(estimates.queries), np.zeros(estimates.queries, np.int64)
    return float(estimates.calls.taken_parts(index, estimates.max_tokens_N, none_N).sum()) / COST_PARTS


def _wrong(sampled: Sampled) -> float:
    """Return the share of an engine's answers that are wrong, with one more answer that is half wrong."""
    right = [answer.right or 0.0 for answer in sampled.answers]
    return (len(right) - sum(right) + 0.5) / (len(right) + 1)


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
    prices: Prices | None,
    ceiling_N: NDArray[np.int64],
    parts_of: Callable[[int, int], int],
    index: int,
    generation: Generation,
) -> int:
    tokens = len(generation.token_ids)
    if prices is None or generation.usage is None:
        return parts_of(index, tokens)
    reserved = parts_of(index, int(ceiling_N[index]))
    return charged_parts(prices, generation.usage, generated_tokens=tokens, reserved_parts=reserved)


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
    folder: Folder, config: RunConfig, ceiling_N: NDArray[np.int64], wanted: list[int], worker: Any
) -> Iterator[tuple[dict[str, Any], Generation]]:
    """Ask one engine for answers to some queries, up to these ceilings; return each beside its query."""
    grants, row_of = [], {}
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem)
        index = table["index"].to_numpy()
        rows = table.take(np.flatnonzero(np.isin(index, wanted)))
        for row, prompt in zip(rows.to_pylist(), prompts_of(rows), strict=True):
            sampling = Sampling.load(row["sampling"])
            seed = seed_of(sampling, config.seed + row["index"])
            most = int(ceiling_N[row["index"]])
            sample = config.sample + (row.get("choice") or 0)
            grants.append(Grant(row["query_id"], prompt, most, seed, sample=sample, sampling=sampling))
            row_of[row["query_id"], sample] = row
    found: list[list[Generation]] = [ray.get(part) for part in worker.generate.remote(grants, False)] if grants else []
    for generation in itertools.chain.from_iterable(found):
        yield row_of[generation.query_id, generation.sample], generation
