"""From a batch's numbers to its report: what the budget bought, and what another would have bought."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Utility, budget_for, demand_curve
from clear_ray.batch.asked_again import attempts_report
from clear_ray.config.units import MOST_BUDGET_TOKENS
from clear_ray.estimation.head import HeadCard
from clear_ray.ledger.entries import Balance
from clear_ray.records import COST_PARTS
from clear_ray.redaction import without_secrets
from clear_ray.report.plan import PlanReport, ShareBudget
from clear_ray.report.summary import (
    BudgetPoint,
    EngineReport,
    FailureReport,
    LearningReport,
    RoundReport,
    RunReport,
    TaskReport,
    is_streamed,
    main_round,
)
from clear_ray.report.wording import amount
from clear_ray.rounds.batch import Batch, uniform_ceiling
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.menu import Option, axis_of
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder.estimates import Estimates
from clear_ray.run_folder.orders import read_orders

if TYPE_CHECKING:
    from clear_ray.batch.context import RunContext

_CURVE_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SAMPLE_QUERIES = 20_000
"""Most queries whose curves a report is drawn from."""


def make_report(
    run: RunContext,
    rounds: tuple[RoundReport, ...],
    *,
    spent_tokens_N: NDArray[np.int64],
    has_gold_N: NDArray[np.bool_],
    head: str,
    learning: LearningReport | None = None,
    notices: tuple[str, ...] = (),
    failures: tuple[FailureReport, ...] = (),
    engines: tuple[EngineReport, ...] = (),
    probe_tokens: int = 0,
) -> RunReport:
    """Put the report of a finished run together.

    Args:
        run: The run, after its last round.
        rounds: What each clearing bought.
        spent_tokens_N: Tokens of each query that were charged, shape (N,).
        has_gold_N: Whether it can be scored, shape (N,).
        head: Name of the estimate.
        learning: What it learned; the estimates in `run` are then what it knew in the end.
        notices: What is said about its input and its model.
        failures: Why queries failed.
        engines: What each of several engines came to.
        probe_tokens: What was charged for the probe.
    """
    config, estimates, states, scaler = run.config, run.estimates, run.states, run.scaler
    balance, objective = run.market.balance(), config.allocation.objective
    is_scored = config.scoring.scorer is not None and bool(has_gold_N.any())
    correct_N = np.nan_to_num(states.chosen_score_N) if is_scored else None
    return RunReport(
        run_dir=without_secrets(config.run_dir),
        model=scaler.engines.model.name,
        head=head,
        policy=config.allocation.policy,
        unit=config.unit,
        probe_tokens=probe_tokens,
        **_spending(run, balance, spent_tokens_N),
        **_hopes(estimates, rounds, balance.budget_tokens, has_learned=learning is not None and not learning.left_out),
        **_endings(states, spent_tokens_N),
        scored=int(has_gold_N.sum()) if is_scored else 0,
        correct=None if correct_N is None else float(correct_N.sum()),
        rounds=rounds,
        tasks=_by_task(estimates, states, spent_tokens_N, correct_N),
        learning=learning,
        attempts=None
        if config.engines and objective == "correct"
        else attempts_report(estimates.batches, states, objective=objective),
        engines=engines,
        workers=scaler.most_up,
        worker_tokens_per_second=scaler.tokens_per_second,
        seconds=run.progress.seconds,
        stopped_early=_stopped_early(run, balance),
        notices=notices,
        failures=failures,
    )


def _spending(run: RunContext, balance: Balance, spent_tokens_N: NDArray[np.int64]) -> dict[str, int]:
    return {
        "budget_tokens": balance.budget_tokens,
        "spent_tokens": balance.spent_tokens,
        "generated_tokens": int(spent_tokens_N.sum()),
        "wasted_tokens": balance.wasted_tokens,
        "prefill_tokens": run.estimates.prefill_tokens,
        "asked_prompt_tokens": run.answers.asked_tokens,
        "spared_prompt_tokens": run.answers.cached_tokens,
    }


def _hopes(
    estimates: Estimates, rounds: tuple[RoundReport, ...], ordered_tokens: int, *, has_learned: bool
) -> dict[str, Any]:
    """Return what the budget, as it was ordered in the end, is expected to buy, by the names that a report has for it."""
    batches, budget_tokens = estimates.batches, max(ordered_tokens, 1)
    scale = estimates.queries / len(estimates.batch.weight_N)
    ceiling, uniform_utility = _best_uniform(batches, budget_tokens / scale)
    main = main_round(rounds, has_learned=has_learned)
    curve = budget_curve(*batches, budget_tokens=budget_tokens, queries=estimates.queries)
    own = next(point for point in curve if point.budget_tokens == budget_tokens)
    price, expected = (main.shadow_price, main.expected_utility) if main else (0.0, 0.0)
    if has_learned or is_streamed(rounds):
        # Stages grant parts of what they priced, under beliefs that changed: their expectations do not add up to anything.
        # Nor do those of prices of ever more queries.
        expected = own.utility
    if is_streamed(rounds):  # and none of these prices is that of the whole budget
        price = own.shadow_price
    return {
        "shadow_price": price,
        "expected_utility": expected,
        "uniform_max_tokens": ceiling,
        "uniform_expected_utility": uniform_utility * scale,
        "budget_curve": curve,
    }


def _endings(states: QueryStates, spent_tokens_N: NDArray[np.int64]) -> dict[str, int]:
    """Return how many queries ended in which way, by the names that a report has for them."""
    was_run_N = states.rounds_N > 0
    has_failed_N = states.has_failed_N | (~was_run_N & (spent_tokens_N > 0))
    stopped = int((states.chosen_has_stopped_N & ~has_failed_N).sum())
    completed = int((was_run_N & ~has_failed_N).sum())
    return {
        "queries": len(was_run_N),
        "completed": completed,
        "stopped": stopped,
        "truncated": completed - stopped,
        "abandoned": int((~was_run_N & ~has_failed_N).sum()),
        "failed": int(has_failed_N.sum()),
        "unasked": int((has_failed_N & ~was_run_N & (spent_tokens_N == 0)).sum()),
    }


def plan_report(
    estimates: Estimates,
    states: QueryStates,
    clearing: Clearing,
    budget_tokens: int,
    head: HeadCard,
    *,
    unit: str = "tokens",
    probe_tokens: int = 0,
) -> PlanReport:
    """Say what a batch would come to, from its first clearing; in tokens of cost 1, or in the unit of the budget."""
    queries = estimates.queries
    scale = queries / len(estimates.batch.weight_N)
    _, uniform_utility = _best_uniform(estimates.batches, budget_tokens / scale)
    taken_M = clearing.parts_M(states.cost_N) / COST_PARTS  # with the prompts, where they are paid for
    expected_tokens = float(clearing.expected_taken_M(states.cost_N).sum()) + clearing.kept_tokens + probe_tokens
    return PlanReport(
        head=head.kind,
        queries=queries,
        unit=unit,
        budget_tokens=budget_tokens,
        low_tokens=max(expected_tokens - 2 * _spend_deviation(estimates, clearing), 0.0),
        expected_tokens=expected_tokens,
        worst_tokens=min(math.ceil(taken_M.sum()) + clearing.kept_tokens + probe_tokens, budget_tokens),
        funded=len(clearing.index_M),
        abandoned=queries - len(clearing.index_M),
        kept_tokens=clearing.kept_tokens,
        shadow_price=clearing.shadow_price,
        expected_utility=float(clearing.expected_utility_M.sum()),
        uniform_expected_utility=uniform_utility * scale,
        budget_curve=budget_curve(*estimates.batches, budget_tokens=budget_tokens, queries=queries),
        prefill_tokens=estimates.prefill_tokens,
        probe_tokens=probe_tokens,
        is_probed=estimates.prefill_tokens > 0,
    )


def budget_curve(*batches: Batch, budget_tokens: int, queries: int) -> tuple[BudgetPoint, ...]:
    """Return what budgets around this one are expected to buy; over a sample where there are very many queries.

    Args:
        batches: The batch by what is believed of each engine.
        budget_tokens: This budget.
        queries: Number of queries, N.
    """
    parts = [_sample_of(batch) for batch in batches]
    part = parts[0]
    utility, scale = _utility_of(parts), queries / len(part.weight_N)
    budgets = [max(int(share * budget_tokens), 1) for share in _CURVE_SHARES]
    curve = demand_curve(utility, budgets=[max(int(tokens / scale), 1) for tokens in budgets])
    # At price 0 tokens are left over, and those abandoned so far get a share of them.
    funded_M = np.where(curve.shadow_price_M > 0, curve.funded_M, len(part.weight_N))
    return tuple(
        BudgetPoint(
            budget_tokens=tokens,
            shadow_price=float(price),
            utility=float(worth) * scale,
            uniform_utility=_best_uniform(parts, tokens / scale)[1] * scale,
            funded=round(int(funded) * scale),
        )
        for tokens, price, worth, funded in zip(budgets, curve.shadow_price_M, curve.utility_M, funded_M, strict=True)
    )


def budget_for_share(estimates: Estimates, share: float) -> ShareBudget | None:
    """Return the fewest tokens that are expected to give a share of what ample ones give; None if those give nothing."""
    parts = [_sample_of(batch) for batch in estimates.batches]
    utility, scale = _utility_of(parts), estimates.queries / len(parts[0].weight_N)
    most = float(utility.utility(utility.demand(0.0)).sum())
    if most <= 0:
        return None
    found = budget_for(utility, target_utility=share * most)
    return ShareBudget(
        share=share,
        budget_tokens=math.ceil(found.budget_tokens * scale),
        expected_utility=found.utility * scale,
        most_utility=most * scale,
    )


def _best_uniform(batches: Sequence[Batch], spend_tokens: float) -> tuple[int, float]:
    """Return the equal ceiling, of the engine with which it is worth most, and the utility expected from it."""
    return max((uniform_ceiling(batch, spend_tokens) for batch in batches), key=lambda found: found[1])


def _sample_of(batch: Batch) -> Batch:
    known = len(batch.weight_N)
    return batch.take(np.unique(np.linspace(0, known - 1, min(known, SAMPLE_QUERIES)).astype(np.int64)))


def _utility_of(batches: Sequence[Batch]) -> Utility:
    """Return the curves over what answers are expected to spend, by the best of the engines at each amount."""
    offered = batches if batches[0].calls is not None else batches[:1]
    nothing_M = np.zeros(len(batches[0].weight_N), np.int64)
    options = [Option(batch, nothing_M) for batch in offered]
    axis = axis_of(options, np.arange(len(nothing_M)), available_tokens=MOST_BUDGET_TOKENS, basis="expected_spend")
    return axis.utility(nothing_M)


def _spend_deviation(estimates: Estimates, clearing: Clearing) -> float:
    """Return the standard deviation of what independent answers under these ceilings spend in all."""
    option_M = np.zeros(len(clearing.index_M)) if clearing.option_M is None else clearing.option_M
    of_each = (
        _deviation(each, clearing.some(np.flatnonzero(option_M == place))) for place, each in enumerate(estimates.each)
    )
    return math.hypot(*of_each)


def _deviation(estimates: Estimates, clearing: Clearing) -> float:
    _, known, granted = np.intersect1d(estimates.sample, clearing.index_M, return_indices=True)
    if not len(known):
        return 0.0
    batch, clearing_tokens = estimates.batch.take(known), clearing.tokens_M[granted]
    curves = batch.curves
    tokens_K = np.concatenate([[0], curves.tokens_K]).astype(np.float64)
    survival_MK = np.concatenate([np.ones((len(curves), 1)), curves.survival_NK.astype(np.float64)], axis=1)
    # E[min(L, b)^2] = integral of 2 t S(t) up to b, by the trapezoid rule on the grid
    integrand_MK = 2 * tokens_K * survival_MK
    steps_MK = np.diff(tokens_K) * (integrand_MK[:, 1:] + integrand_MK[:, :-1]) / 2
    is_within_MK = tokens_K[None, 1:] <= clearing_tokens[:, None]
    second_moment_M = (steps_MK * is_within_MK).sum(axis=1)
    variance_M = np.maximum(second_moment_M - clearing.expected_tokens_M[granted] ** 2, 0)
    return float(np.sqrt(batch.cost_N**2 @ variance_M * len(clearing.index_M) / len(known)))


def _by_task(
    estimates: Estimates,
    states: QueryStates,
    spent_tokens_N: NDArray[np.int64],
    correct_N: NDArray[np.float64] | None,
) -> tuple[TaskReport, ...]:
    def total_of(values_N: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_] | None = None) -> list[float]:
        found: list[float] = np.bincount(estimates.task_N, values_N, len(estimates.task_names)).tolist()
        return found

    columns = zip(
        estimates.task_names,
        total_of(),
        total_of((states.rounds_N > 0) & ~states.is_served_N),
        total_of(spent_tokens_N),
        total_of(states.expected_utility_N),
        total_of(correct_N),
        strict=True,
    )
    reports = [
        TaskReport(
            task=task,
            queries=int(queries),
            funded=int(funded),
            spent_tokens=int(spent),
            expected_utility=expected,
            correct=None if correct_N is None else correct,
        )
        for task, queries, funded, spent, expected, correct in columns
    ]
    return tuple(sorted(reports, key=lambda report: (-report.queries, report.task)))


def _stopped_early(run: RunContext, balance: Balance) -> str:
    config, states = run.config, run.states
    orders = read_orders(run.folder, config.budget_tokens)
    if stop := orders.stop:
        ended = "it was cancelled" if stop == "batch_cancelled" else "its time was over"
        left = orders.ordered_tokens - balance.budget_tokens  # the budget of a report is what could not be taken back
        unspent = f", with {amount(left, config.unit)} of its budget not spent" if left > 0 else ""
        known_N = run.estimates.is_known_N
        if known_N is None:
            return f"{ended}{unspent}"
        read, queries = int(known_N.sum()), len(known_N)
        return f"{ended} when {read:,} of {queries:,} queries had been read{unspent}; what is expected is of these"
    unserved = int((states.was_granted_N & (states.rounds_N == 0)).sum())
    if unserved and balance.available_tokens < config.allocation.smallest_grant_tokens:
        return f"the budget was spent before {unserved} funded queries could be run"
    return ""
