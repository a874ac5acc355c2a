"""A run with several engines: what its queries are offered, what it learned of each engine, and what each came to.

A head that an engine has is believed as it is; engines without one are learned together, from the run's own answers. With
`estimate.frozen: false` so are those with one, and what their heads say is what a run begins with. Which is asked, and
how much of the law waits for more answers, is the law's part (`rounds.menu_offers`).

Shapes: N queries of the batch, J engines, K grid points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.batch.coordinates import coordinates_of
from clear_ray.batch.learning import ENCODER, Lesson, earlier_for, incidence_of, rounds_of, stages_for
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import ModelCard
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.hazards import Incidence
from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import COST_PARTS
from clear_ray.report.summary import EngineReport, LearningReport
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.menu_courses import seen_answers
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.menu_votes import VotingMenuOffers
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.uniform_menu import UniformMenuOffers
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder


def menu_offers(folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson | None) -> MenuOffers:
    """Return what the queries of a run with several engines are offered.

    Args:
        folder: The run folder; if the run learns, the queries' coordinates are in it afterwards.
        config: As for `run`.
        estimates: What the engines' heads say of the batch, and what calls take.
        lesson: What the run is to learn from; None for heads alone.
    """
    batch, learns = estimates.batch, lesson is not None and not lesson.left_out
    tokens_K = batch.curves.tokens_K
    x_NP = np.zeros((estimates.queries, 0))
    earlier: tuple[Incidence | None, ...] = ()
    curves = [_on_grid(each.batch.curves, tokens_K) for each in estimates.each]
    if lesson is not None and learns:
        kept = (each.given for each in earlier_for(folder, config, estimates, lesson))
        earlier = tuple(
            found if named.is_unknown else own if named.learns else None
            for named, found, own in zip(config.named_engines, kept, curves, strict=True)
        )
        x_NP = coordinates_of(
            folder,
            estimates.prompt_tokens_N,
            features=[name for name in lesson.features if name != ENCODER],
            seed=config.seed,
            encoder=config.estimate.encoder,
        )
    kind = VotingMenuOffers if config.allocation.objective == "vote" else MenuOffers
    kind = UniformMenuOffers if config.allocation.policy == "uniform" else kind
    return kind(
        x_NP=x_NP,
        tokens_K=tokens_K,
        weight_N=batch.weight_N,
        max_tokens_JN=np.stack([each.max_tokens_N for each in estimates.each]),
        tie_break_N=batch.tie_break_N,
        calls=tuple(each.batch.costs for each in estimates.each),
        budget_tokens=config.budget_tokens,
        objective=config.allocation.objective,
        given=tuple(
            None if named.learns and learns else own for named, own in zip(config.named_engines, curves, strict=True)
        ),
        earlier=earlier,
        times=config.times_asked,
        learns=learns,
        stages=stages_for(rounds_of(config)),
        seed=config.seed,
        label="verdict" if lesson is None else lesson.label,
    )


def cheapest_calls(offers: MenuOffers) -> CallCosts:
    """Return what a call takes at least, whichever engine is asked."""
    of_each = ("token_parts_N", "read_parts_N", "prompt_tokens_N")
    return CallCosts(*(np.min([getattr(calls, name) for calls in offers.calls], axis=0) for name in of_each))


def queries_of_engines(config: RunConfig, clearing: Clearing) -> dict[str, int]:
    """Return how many queries a clearing grants each of several engines; nothing of a run with one engine."""
    if config.engines is None:
        return {}
    options = np.zeros(0, np.int64) if clearing.option_M is None else clearing.option_M
    return {name: int((options == place).sum()) for place, name in enumerate(config.engines)}


def _on_grid(curves: Curves, tokens_K: NDArray[np.int64]) -> Incidence:
    """Return the incidence of curves, on another grid: between its points they are straight."""
    found = incidence_of(curves)
    if np.array_equal(curves.tokens_K, tokens_K):
        return found
    grid = np.concatenate([[0], curves.tokens_K])

    def moved(values_NK: NDArray[np.float64], first: float) -> NDArray[np.float64]:
        return np.array([np.interp(tokens_K, grid, np.concatenate([[first], row])) for row in values_NK])

    right, survival = moved(found.right_NK, 0.0), moved(found.survival_NK, 1.0)
    return Incidence(right, np.maximum(1.0 - right - survival, 0.0), survival)


def learned_menu(
    offers: MenuOffers, states: QueryStates, lesson: Lesson | None, estimates: Estimates
) -> tuple[Estimates, LearningReport | None]:
    """Return what a run knows at its end: the estimates by its last beliefs, and what they rest on."""
    batches, evidence = offers.learned(states)
    each = [replace(known, batch=batch) for known, batch in zip(estimates.each, batches, strict=True)]
    known = replace(each[0], others=tuple(each[1:]))
    if lesson is None or evidence is None:
        return known, None if lesson is None else lesson.report()
    facts = {
        "answers": len(seen_answers(states).answers),
        "evidence_nats": evidence.learned_nats,
        "learned_share": evidence.shares()[0],
    }
    return known, lesson.report().model_copy(update=facts)


def engine_reports(
    folder: Folder,
    config: RunConfig,
    models: tuple[ModelCard, ...],
    void: VoidAttempts,
    rate_of: Callable[[int], float | None],
) -> tuple[EngineReport, ...]:
    """Return what each of several engines came to, read from the rows of the run; none of a run with one engine.

    Args:
        folder: The run folder.
        config: As for `run`.
        models: Their cards.
        void: Attempts that do not count.
        rate_of: Returns what a worker of an engine, by its place, was measured to generate a second.
    """
    if config.engines is None:
        return ()
    sums = {name: np.zeros(3, np.int64) for name in config.engines}
    for path in folder.child("rounds").files(".parquet"):
        columns = ["index", "attempt", "engine", "attempt_tokens", "taken_parts"]
        rows = void.dropped_from(pq.read_table(path, filesystem=folder.filesystem, columns=columns)).to_pylist()
        for row in rows:
            sums[row["engine"]] += (1, row["attempt_tokens"], row["taken_parts"] or 0)
    chosen: dict[str, list[float | None]] = {name: [] for name in config.engines}
    for path in folder.child("completions").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["engine", "correct"])
        for row in table.to_pylist():
            if row["engine"] is not None:
                chosen[row["engine"]].append(row["correct"])
    return tuple(
        EngineReport(
            name=named.name,
            model=model.name,
            head=named.head or "learn",
            calls=int(sums[named.name][0]),
            generated_tokens=int(sums[named.name][1]),
            spent_tokens=-(-int(sums[named.name][2]) // COST_PARTS),
            answers=len(chosen[named.name]),
            correct=_sum(chosen[named.name]),
            worker_tokens_per_second=rate_of(place),
        )
        for place, (named, model) in enumerate(zip(config.named_engines, models, strict=True))
    )


def _sum(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) if known else None
