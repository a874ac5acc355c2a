"""What a plan says of the gain over equal ceilings, by the best that is known before the first grant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clear_ray.batch.earlier_runs import Earlier
from clear_ray.batch.learning import Lesson
from clear_ray.config.run import RunConfig
from clear_ray.estimation.gain import SampledAnswer, gain_by_curves, gain_by_sample
from clear_ray.records import COST_PARTS
from clear_ray.report.plan import GainReport, PlanReport
from clear_ray.run_folder.estimates import Estimates

_UNINFORMED = "prior"


def gain_of(
    report: PlanReport,
    config: RunConfig,
    estimates: Estimates,
    lesson: Lesson | None,
    sampled: Sequence[SampledAnswer],
    earlier: Earlier,
    head: str,
) -> GainReport | None:
    """Return what a run is expected to gain, or None where it neither learns nor has a head, or asks queries again.

    Args:
        report: The plan so far, with what budgets buy by the curves.
        config: As for `plan`.
        estimates: What is known of the queries.
        lesson: What the run learns from.
        sampled: Answers that the plan has asked for.
        earlier: What earlier runs have left.
        head: Kind of the head of the engines.
    """
    queries = report.queries
    learns = lesson is not None and not lesson.left_out
    if not queries or config.allocation.policy != "clear_ray" or config.most_attempts > 1:
        return None
    batch: dict[str, Any] = {
        "queries": queries,
        "average": max(report.budget_tokens - report.probe_tokens, 1) / queries,
        "cap": _whole_cost(estimates) / queries,
        "is_judged": lesson is not None and lesson.label == "verdict",
        "seed": config.seed,
    }
    if earlier.given is not None or head != _UNINFORMED:
        point = min(report.budget_curve, key=lambda point: abs(point.budget_tokens - report.budget_tokens))
        # Earlier answers are counted in tokens, and say nothing of a budget of money.
        some = earlier.some if estimates.calls is None else ()
        found = gain_by_curves(point.utility, point.uniform_utility, some, **batch)
        source, answers = ("store", earlier.answers) if earlier.given is not None else ("head", 0)
    elif learns:
        found = gain_by_sample(sampled, **batch)
        source, answers = ("sample", len(sampled)) if sampled else ("nothing", 0)
    else:
        return None
    return GainReport(
        low=found.low * queries,
        expected=found.expected * queries,
        high=found.high * queries,
        uniform=found.uniform * queries,
        chance=found.chance,
        is_expected=found.is_expected,
        source=source,
        answers=answers,
    )


def _whole_cost(estimates: Estimates) -> float:
    """Return what the batch takes if every answer runs into its ceiling, in the unit of the budget."""
    if estimates.calls is None:
        return float(estimates.max_tokens_N.sum())
    index = estimates.sample
    parts = estimates.calls.taken_parts(index, estimates.max_tokens_N[index], 0 * index)
    return float(parts.sum()) / COST_PARTS * estimates.queries / max(len(index), 1)
