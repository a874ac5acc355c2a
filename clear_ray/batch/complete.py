"""The end of a run: every query's completion, the report and its page; the summary last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clear_ray.batch.context import RunContext
from clear_ray.batch.earlier_runs import keep_lesson
from clear_ray.batch.feature_worth import worth_of_sets
from clear_ray.batch.generate import mark_lost_answers
from clear_ray.batch.learning import Lesson, earlier_for, head_name, learned, learned_of_known, told_of
from clear_ray.batch.memory import give_back_memory
from clear_ray.batch.menu import engine_reports, learned_menu
from clear_ray.batch.pricing import PROBE, all_reservation_prices
from clear_ray.batch.report import make_report
from clear_ray.batch.scores import read_scores
from clear_ray.batch.size_limits import SORTED_BY_RAY_ABOVE_ROWS
from clear_ray.batch.sorted_files import write_sorted
from clear_ray.config.engine import OpenAIConfig
from clear_ray.estimation.factors import Observed
from clear_ray.ingest import InputDigest, write_openai_outputs
from clear_ray.ingest.logprobs import NOT_GIVEN
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import COST_PARTS
from clear_ray.report.page import write_page
from clear_ray.report.rows import READ_OF_ALL
from clear_ray.report.summary import FailureReport, LearningReport, RoundReport, RunReport
from clear_ray.rounds.learning_offers import LearningOffers, observe
from clear_ray.rounds.menu_courses import seen_answers
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.sampled_learning import SampledLearningOffers
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.run_folder.completions import completion_rows, completion_views
from clear_ray.run_folder.manifest import SUMMARY, read_manifest
from clear_ray.run_folder.orders import read_orders
from clear_ray.stages.answer_parts import AnswerParts
from clear_ray.stages.answers import KeepAnswers, LastGrants
from clear_ray.stages.causes import reason_of
from clear_ray.stages.completions import Abandon, Complete, Verdicts
from clear_ray.storage import Folder

_MOST_REASONS, _MOST_FAILURES = 10_000, 20


def close_run(run: RunContext, rounds: list[RoundReport], digest: InputDigest) -> RunReport:
    """Write every query's completion and the report; the summary last."""
    run.progress.begin("write")
    run, learning = _with_what_it_learned(run)
    folder, estimates = run.folder, run.estimates
    mark_lost_answers(run, run.states.written_tokens_N)
    spent_N, _ = run.market.charges()
    verdicts = Verdicts(
        states=run.states,
        spent_tokens_N=spent_N,
        reservation_price_N=all_reservation_prices(estimates, run.rounds),
        prompt_tokens_N=estimates.prompt_tokens_N,
        error_of_index=estimates.error_of_index,
        unit=run.config.unit,
        stopped=(stopped := read_orders(folder, run.config.budget_tokens).stop),
        is_known_N=estimates.is_known_N,
        ceiling_N=estimates.max_tokens_N,
    )
    give_back_memory(len(spent_N))
    _write_completions(folder, verdicts, run.void_attempts())
    give_back_memory(len(spent_N))
    if not run.states.rule.is_single:
        _write_answers(run, rounds)
    scores = read_scores(folder, len(spent_N))
    report = make_report(
        run,
        tuple(rounds),
        spent_tokens_N=spent_N,
        has_gold_N=scores.has_gold_N,
        head=head_name(run.lesson, run.scaler.engines.head.kind),
        learning=learning,
        notices=(*digest.notices, *_without_logprobs(folder), *_oddities(run)),
        failures=_failures(folder),
        engines=engine_reports(
            folder,
            run.config,
            tuple(each.model for each in run.scaler.engines.each),
            run.void_attempts(),
            run.scaler.tokens_per_second_of,
        ),
        probe_tokens=-(-run.market.charged(PROBE) // COST_PARTS),
    )
    report = report.model_copy(update=scores.facts(folder, run.config.scoring.scorer))
    if digest.openai_url is not None:
        model = run.scaler.engines.model.name
        model_of = {engine.name: engine.model for engine in report.engines}
        rows, url = completion_rows(folder), digest.openai_url
        write_openai_outputs(rows, folder, model=model, url=url, unserved=stopped or "batch_expired", model_of=model_of)
    write_page(report, completions=completion_views(folder, READ_OF_ALL), folder=folder)
    folder.write(SUMMARY, report.model_dump_json(indent=2).encode())
    return report


def _with_what_it_learned(run: RunContext) -> tuple[RunContext, LearningReport | None]:
    """Return the run with the curves that it believes in the end, which its report is drawn from, and what they rest on."""
    offers, estimates = run.rounds.offers, run.estimates
    if isinstance(offers, MenuOffers):
        known, learning = learned_menu(offers, run.states, run.lesson, estimates)
        if run.lesson is not None and learning is not None:
            seen = seen_answers(run.states)
            first = [
                seen.answers.take((seen.model_M == model) & ~seen.has_failed_M) for model in range(len(offers.calls))
            ]
            learning = _kept(run, run.lesson, learning, first)
        return replace(run, estimates=known), learning
    if run.lesson is None:
        return run, None
    states, before = run.states, estimates.batch
    if isinstance(offers, SampledLearningOffers):
        states = states.some(offers.sample)
        offers = offers.part
    if isinstance(offers, WideningLearningOffers):
        batch, learning = learned_of_known(offers, states, run.lesson, before)
    elif isinstance(offers, LearningOffers):
        batch, learning = learned(offers, states, run.lesson, before)
    else:
        return run, run.lesson.report()
    worth = worth_of_sets(
        run.folder,
        run.config,
        run.lesson,
        observe(run.states, label=run.lesson.label),
        estimates.prompt_tokens_N,
        tokens_K=before.curves.tokens_K,
    )
    learning = learning.model_copy(update={"nats_of_sets": worth})
    kept = _kept(run, run.lesson, learning, [_to_keep(run)] if run.lesson.stores else [])
    return replace(run, estimates=replace(estimates, batch=batch)), kept


def _to_keep(run: RunContext) -> Observed:
    """Return the answers of a run as a later one may use them; of agreement it learns anew, and a verdict it is not."""
    observed = observe(run.states)
    if run.lesson is None or run.lesson.agreement is None:
        return observed
    return replace(observed, right_M=np.full(len(observed), np.nan))


def _kept(run: RunContext, lesson: Lesson, learning: LearningReport, observed: Sequence[Observed]) -> LearningReport:
    """Keep what the run has learned of each engine where the next one looks, and say what it began with.

    Of several engines it is what each answered first: what is asked of a second one has been found hard by another.
    """
    if not any(lesson.stores):
        return learning
    folder, config, estimates = run.folder, run.config, run.estimates
    earlier = told_of(earlier_for(folder, config, estimates, lesson))
    manifest = read_manifest(folder) or {}
    for engine, (store, answers, one) in enumerate(zip(lesson.stores, observed, estimates.each, strict=True)):
        if store is None:
            continue
        failure = keep_lesson(
            folder,
            store,
            answers,
            one.prompt_tokens_N,
            run_id=f"{manifest.get('run_id', '')}{f'-{engine}' if engine else ''}",
            evidence_nats=learning.evidence_nats or 0.0,
            seed=config.seed,
        )
        if failure:
            earlier = replace(earlier, passed_over=(*earlier.passed_over, failure))
    return earlier.told(learning)


def _write_completions(folder: Folder, verdicts: Verdicts, void: VoidAttempts) -> None:
    sources: list[tuple[list[str], Any]] = [
        (folder.child("queries").files(".parquet"), Abandon(verdicts)),
        (folder.child("rounds").files(".parquet"), Complete(verdicts, void, AnswerParts(folder))),
    ]
    with folder.replacing("completions") as target:
        is_few = len(verdicts.states.last_round_N) <= SORTED_BY_RAY_ABOVE_ROWS
        write_sorted(sources, target, by=["index"], is_few=is_few)


def _write_answers(run: RunContext, rounds: list[RoundReport]) -> None:
    """Write every answer of the queries, those too that are not their completion, in the order of queries and attempts."""
    folder, states = run.folder, run.states
    paths = folder.child("rounds").files(".parquet")
    if not paths:
        return
    price_R = np.array([0.0, *(report.shadow_price for report in rounds)])
    keep = KeepAnswers(
        LastGrants.of(states),
        first_sample=run.config.sample,
        price_R=price_R,
        void=run.void_attempts(),
        parts=AnswerParts(folder),
    )
    with folder.replacing("attempts") as target:
        is_few = int(states.attempt_N.sum()) <= SORTED_BY_RAY_ABOVE_ROWS
        write_sorted([(paths, keep)], target, by=["index", "sample"], is_few=is_few)


def _oddities(run: RunContext) -> tuple[str, ...]:
    """Return what should be known of what endpoints answered in this start of the run, a line each."""
    said = []
    for named, engines in zip(run.config.named_engines, run.scaler.engines.each, strict=True):
        if isinstance(named.config, OpenAIConfig):
            of = f"{named.name}: " if named.name else ""
            said += [f"{of}{count:,} answers: {what}" for what, count in sorted(engines.oddities().items())]
    return tuple(said)


def _without_logprobs(folder: Folder) -> tuple[str, ...]:
    """Return a line on the answers whose log-probabilities were asked for and not given, if there are any."""
    rows = 0
    for path in folder.child("completions").files(".parquet"):
        logprobs = pq.read_table(path, filesystem=folder.filesystem, columns=["logprobs"])["logprobs"]
        rows += pc.sum(pc.equal(logprobs, NOT_GIVEN)).as_py() or 0
    return (f"logprobs: asked for and not given by the endpoint in {rows:,} answers",) if rows else ()


def _failures(folder: Folder) -> tuple[FailureReport, ...]:
    """Return why queries failed, the commonest reason first."""
    counts: Counter[str] = Counter()
    for path in folder.child("completions").files(".parquet"):
        errors = pq.read_table(path, filesystem=folder.filesystem, columns=["error"])["error"]
        counts.update(reason_of(error) for error in errors.drop_null().to_pylist())
        if len(counts) > _MOST_REASONS:  # a scorer that words each of its errors anew
            counts = Counter(dict(counts.most_common(_MOST_REASONS // 2)))
    return tuple(
        FailureReport(reason=reason, queries=queries) for reason, queries in counts.most_common(_MOST_FAILURES)
    )
