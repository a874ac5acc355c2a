"""A plan: what a budget is expected to buy, told before anything is generated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from clear_ray.batch.checking import heads_of, notes_of
from clear_ray.batch.first_stage import begun_run, checked_costs, first_stage, opened_rounds, probed, start_of
from clear_ray.batch.gain import gain_of
from clear_ray.batch.intake import load_scorer_of, take_in
from clear_ray.batch.learning import head_name, with_earlier
from clear_ray.batch.menu import queries_of_engines
from clear_ray.batch.pricing import planned_probe_parts, priced, token_costs
from clear_ray.batch.report import budget_for_share, plan_report
from clear_ray.batch.samples import MOST_SHARE, Sampled, sampled_answers, with_interval
from clear_ray.batch.streamed import streaming_notes
from clear_ray.cluster.several import engines_of_run
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.records import COST_PARTS
from clear_ray.report.live import Display, QuietDisplay
from clear_ray.report.plan import PlanReport
from clear_ray.rounds.clearing import nothing_to_grant
from clear_ray.run_folder.locations import with_absolute_paths
from clear_ray.storage import Folder, open_folder, writing_errors
from clear_ray.tasks.survey import survey_queries

if TYPE_CHECKING:
    from ray.data import Dataset


def plan(
    queries: Dataset | None,
    config: RunConfig,
    *,
    share: float | None = None,
    sample_share: float | None = None,
    display: Display | None = None,
) -> PlanReport:
    """Validate and probe a batch and price it; what it writes it removes again.

    It generates nothing, unless it is allowed to sample a few answers.

    Args:
        queries: As for `run`.
        config: As for `run`.
        share: Also find the budget that is expected to give this share, above 0 and below 1, of what ample tokens give.
        sample_share: Part of the budget, at most a hundredth, that answers to random queries may take, for an interval that
            rests on what they took. It is beside the budget of the run.
        display: Display that is told of the progress.

    Raises:
        SchemaError: The input is refused.
        ConfigError: A setting is refused.
        EngineError: The model cannot be loaded.
        StorageError: The disk beside the run folder, where it works, is full or broken, or closed to this user.
    """
    if share is not None and not 0 < share < 1:
        raise ConfigError("a share lies between 0 and 1", "share", str(share), "Write 0.5 for half of the answers.")
    if sample_share is not None and not 0 < sample_share <= MOST_SHARE:
        said = "answers are sampled for at most a hundredth of the budget"
        raise ConfigError(said, "sample_share", str(sample_share), "Write 0.01 or less.")
    config = with_absolute_paths(config)
    beside = open_folder(config.run_dir)
    folder = replace(beside, path=f"{beside.path}.plan-{uuid4().hex[:8]}")  # a name of its own: it is deleted
    with writing_errors(folder.path):
        return _plan_in(folder, queries, config, share, display or QuietDisplay(), sample_share)


def _plan_in(
    folder: Folder,
    queries: Dataset | None,
    config: RunConfig,
    share: float | None,
    display: Display,
    sample_share: float | None,
) -> PlanReport:
    load_scorer_of(config)
    heads = heads_of(config)
    try:
        with begun_run(engines_of_run, queries, config, heads, folder, display) as (progress, begun):
            notes = notes_of(config, heads)
            digest = take_in(queries, config, folder)
            input_cost_N = checked_costs(config, folder, digest.rows)
            cost_N = token_costs(config, input_cost_N)
            progress.begin(first_stage(config), queries=digest.rows, waiting_for=start_of(config))
            begun.ray()
            engines = begun.engines()
            # Without the model's own numbers, which nothing here reads and an endpoint is paid for.
            found, lesson = probed(folder, config, engines, heads, digest.rows, progress)
            estimates = priced(config, found, input_cost_N)
            sampled = (Sampled(),) * len(config.named_engines)
            if sample_share:
                sampled = sampled_answers(folder, config, estimates, engines, share=sample_share)
            progress.begin("price")
            # Of a run that learns nothing is known before its first answers but what earlier ones have left.
            estimates, earlier = with_earlier(folder, config, estimates, lesson)
            rounds = opened_rounds(folder, config, estimates, cost_N, None, given=earlier.rows)
            probe_tokens = -(-planned_probe_parts(config, estimates, input_cost_N) // COST_PARTS)
            first = rounds.next(max(config.budget_tokens - probe_tokens, 0))
            clearing = first.clearing if first else nothing_to_grant(digest.rows)
            money: dict[str, Any] = {"unit": config.unit, "probe_tokens": probe_tokens}
            report = plan_report(estimates, rounds.states, clearing, config.budget_tokens, engines.head, **money)
            report = with_interval(report, estimates, sampled, is_followed=config.allocation.objective == "solved")
            asked = None if share is None else budget_for_share(estimates, share)
            learned = {
                "learning": None if lesson is None else earlier.told(lesson.report()),
                "head": head_name(lesson, engines.head.kind),
                "engines": queries_of_engines(config, clearing),
                "gain": gain_of(report, config, estimates, lesson, sampled[0].answers, earlier, engines.head.kind),
            }
            survey = survey_queries(folder.child("queries"), config.scoring.scorer).masked()
            facts = {"for_share": asked, "notices": (*digest.notices, *notes, *streaming_notes(config, digest.rows))}
            scores = {"scorer": survey.choice() or survey.scorer, "warnings": survey.warnings()}
            return report.model_copy(update=facts | scores | learned)
    finally:
        if folder.exists():
            folder.filesystem.delete_dir(folder.path)
