"""A run that learns from its own answers: whether one does, from what, and what it knows in the end.

Which queries are asked in which stage, and how far the learned is trusted, is the law's part (`rounds.learning_offers`). Here
it gets its coordinates, the label that there is, and the rounds that it may have.

Shapes: N queries of the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.batch.coordinates import COORDINATES_MAP, coordinates_of
from clear_ray.batch.earlier_runs import Earlier, earlier_of, open_store
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.config.engine import EngineConfig, OpenAIConfig
from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.factors import Label
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.head_store import HeadStore
from clear_ray.report.summary import LearningReport
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers, observe
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.widening_learning import WideningLearningOffers
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder

FEWEST_ROUNDS = 3
"""A pilot, one clearing by what it taught, and one of what comes back."""
DEFAULT_FEATURES: tuple[str, ...] = ("text", "ngrams")
ENCODER = "encoder"
"""What a report calls the states of an encoder."""
_READ_METADATA = ("reasoning_gym", "code")
"""Scorers that can do without gold answers; so can functions of a user."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a run is to learn from.

    Attributes:
        label: What says that an answer is right.
        features: What is read of the prompts.
        left_out: Why it learns nothing after all; empty if it does learn.
        stores: Where lessons of earlier runs lie and its own will, of each engine; None for one of which none are kept.
        agreement: How far answers to the same query are compared; None where queries are not asked again for that.
    """

    label: Label
    features: tuple[str, ...]
    left_out: str = ""
    stores: tuple[HeadStore | None, ...] = ()
    agreement: Agreement | None = None

    def report(self) -> LearningReport:
        """Return what can be said before the first answer."""
        return LearningReport(label=self.label, features=self.features, left_out=self.left_out)


def lesson_of(folder: Folder, config: RunConfig, *models: ModelCard) -> Lesson | None:
    """Return what a run is to learn from, or None if that is not asked of it.

    Args:
        folder: The run folder, with its queries.
        config: As for `run`.
        models: The models that answer, one for each engine, where lessons of them may be kept.
    """
    learns = config.estimate.learns if config.engines is None else any(named.learns for named in config.named_engines)
    if not learns or config.allocation.policy == "uniform":
        return None
    left_out = _hindrance(config)
    has = set() if left_out else _judged_by(folder)
    scorer = config.scoring.scorer
    judges = {"gold", "metadata"} if scorer in _READ_METADATA or ":" in (scorer or "") else {"gold"}
    is_judged = scorer is not None and bool(has & judges)
    features = config.estimate.features or DEFAULT_FEATURES
    _check_states(config, models)
    stores = tuple[HeadStore | None, ...]()
    if (location := config.estimate.store) is not None and models and not left_out:
        stores = tuple(
            open_store(location, _as_asked(model, named.config), features)
            if named.is_unknown or config.engines is None
            else None
            for model, named in zip(models, config.named_engines, strict=True)
        )
    features = features if config.estimate.encoder is None else (*features, ENCODER)
    if config.allocation.objective == "vote":
        return Lesson("agreement", features, left_out)  # agreement says little of the verdicts of a later run
    if not is_judged and config.compares_answers:
        return Lesson("agreement", features, left_out, stores, Agreement())
    return Lesson("verdict" if is_judged else "ended", features, left_out, stores)


def _check_states(config: RunConfig, models: Sequence[ModelCard]) -> None:
    """Refuse to learn on hidden states that an engine does not show.

    Raises:
        ConfigError: It is so.
    """
    if config.reads_states and not config.asks_first_tokens and any(not model.hidden_width for model in models):
        said = "the engine shows no hidden states"
        raise ConfigError(said, "estimate.features", "hidden", "Leave it out: text and ngrams need none.")


def _as_asked(model: ModelCard, config: EngineConfig) -> ModelCard:
    """Return the card of a model, which is another one for each effort that an endpoint is asked for."""
    if not isinstance(config, OpenAIConfig) or not config.extra_body:
        return model
    asked = json.dumps(config.extra_body, sort_keys=True)
    return replace(model, fingerprint=hashlib.sha256(f"{model.fingerprint}\n{asked}".encode()).hexdigest())


def head_name(lesson: Lesson | None, kind: str) -> str:
    """Return what a report calls the estimate: `learn` where the run's own answers alone are behind it, else the head."""
    learns_alone = lesson is not None and not lesson.left_out and kind == "prior"
    return "learn" if learns_alone else kind


def can_differ(folder: Folder, queries: int) -> NDArray[np.bool_]:
    """Return whether another answer to each query may differ from the first: not where its row asks for greedy sampling."""
    found = np.ones(queries, bool)
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["index", "sampling"])
        texts = table["sampling"].combine_chunks().dictionary_encode()
        greedy = [_is_greedy(Sampling.load(text)) for text in texts.dictionary.to_pylist()]
        is_greedy = np.array([*greedy, False])[texts.indices.fill_null(len(greedy)).to_numpy(zero_copy_only=False)]
        found[table["index"].to_numpy()[is_greedy]] = False
    return found


def _is_greedy(sampling: Sampling | None) -> bool:
    return sampling is not None and sampling.temperature == 0


def _hindrance(config: RunConfig) -> str:
    rounds = config.allocation.max_rounds
    if rounds is not None and rounds < FEWEST_ROUNDS:
        return f"learning takes {FEWEST_ROUNDS} rounds at least, and allocation.max_rounds is {rounds}"
    return ""


def _judged_by(folder: Folder) -> set[str]:
    """Return which of the columns that scorers read hold anything."""
    queries = folder.child("queries")
    source = ds.dataset(queries.files(".parquet"), filesystem=folder.filesystem, format="parquet")
    optional = ("gold", "metadata")
    return {name for name in optional if len(source.head(1, columns=["index"], filter=ds.field(name).is_valid()))}


def learning_offers(
    folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson
) -> OverlappingLearningOffers:
    """Return what a run that learns offers its queries; their coordinates are in its folder afterwards.

    Where the driver holds the curves of a sample alone, these are the offers to the sample, for its part of the budget.
    """
    batch, given = estimates.batch, earlier_for(folder, config, estimates, lesson)[0].given
    if config.estimate.frozen is False:
        given = incidence_of(batch.curves)
    x_NP = coordinates_of(
        folder,
        estimates.prompt_tokens_N,
        features=[name for name in lesson.features if name != ENCODER],
        seed=config.seed,
        encoder=config.estimate.encoder,
        sample=estimates.sample if estimates.is_sample else None,
    )
    offers = _offers(config, batch, lesson, x_NP, given, queries=estimates.queries)
    return replace(offers, is_streamed=folder.exists(COORDINATES_MAP))  # a resume goes on by the law that it began with


def widening_offers(
    config: RunConfig,
    batch: Batch,
    is_known_N: NDArray[np.bool_],
    coordinates: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    lesson: Lesson,
) -> WideningLearningOffers:
    """Return the same while prompts are being read, to the queries that are known.

    Args:
        config: As for `run`.
        batch: All queries; changes in place as they become known.
        is_known_N: Which are known; likewise.
        coordinates: Returns the coordinates of some of those.
        lesson: What the run learns from.
    """
    queries = len(is_known_N)
    law = replace(_offers(config, batch, lesson, np.zeros((queries, 0)), None, queries=queries), is_streamed=True)

    def law_of(index_K: NDArray[np.int64]) -> OverlappingLearningOffers:
        given = incidence_of(batch.curves.take(index_K)) if config.estimate.frozen is False else None
        return replace(law.some(index_K), x_NP=coordinates(index_K), given=given)

    return WideningLearningOffers(law_of, is_known_N, batch.cost_N, batch.max_tokens_N)


def _offers(
    config: RunConfig,
    batch: Batch,
    lesson: Lesson,
    x_NP: NDArray[np.float64],
    given: Incidence | None,
    *,
    queries: int,
) -> OverlappingLearningOffers:
    """Return what is offered to the queries of `batch`, which are some of so many, or all."""
    return OverlappingLearningOffers(
        x_NP=x_NP,
        tokens_K=batch.curves.tokens_K,
        weight_N=batch.weight_N,
        max_tokens_N=batch.max_tokens_N,
        tie_break_N=batch.tie_break_N,
        cost_N=batch.cost_N,
        budget_tokens=config.budget_tokens * len(batch.weight_N) // max(queries, 1),
        label=lesson.label,
        stages=stages_for(rounds_of(config)),
        given=given,
        seed=config.seed,
        asks_again=config.allocation.most_attempts > 1,
        calls=batch.calls,
        agreement=lesson.agreement,
    )


def earlier_for(folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson) -> tuple[Earlier, ...]:
    """Return what the runs before have learned of the queries, by each engine; in the run folder afterwards."""
    each = estimates.each
    return tuple(
        Earlier()
        if store is None
        else earlier_of(
            folder,
            store,
            one.prompt_tokens_N,
            tokens_K=estimates.batch.curves.tokens_K,
            label=lesson.label,
            seed=config.seed,
            engine=engine,
            sample=estimates.sample if estimates.is_sample else None,
        )
        for engine, (one, store) in enumerate(zip(each, lesson.stores or (None,) * len(each), strict=True))
    )


def with_earlier(
    folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson | None
) -> tuple[Estimates, Earlier]:
    """Return estimates by what the runs before have learned, if there is any of it, and that; for a plan."""
    if lesson is None or lesson.left_out:
        return estimates, Earlier()
    found = earlier_for(folder, config, estimates, lesson)
    tokens_K, known = estimates.batch.curves.tokens_K, []
    for one, earlier in zip(estimates.each, found, strict=True):
        if (given := earlier.given) is not None:
            curves = curves_from_incidence(given.right_NK, survival_NK=given.survival_NK, tokens_K=tokens_K)
            one = replace(one, batch=replace(one.batch, curves=curves))
        known.append(one)
    return replace(known[0], others=tuple(known[1:])), told_of(found)


def given_rows(folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson) -> GivenRows | None:
    """Return where beliefs of all queries lie that were there before the run, of a head or of earlier runs; None for none."""
    if config.estimate.frozen is False:
        return GivenRows(folder)
    return earlier_for(folder, config, estimates, lesson)[0].rows


def told_of(found: tuple[Earlier, ...]) -> Earlier:
    """Return what is told of what earlier runs have learned of each engine."""
    first, *others = found
    for other in others:
        first = first.beside(other)
    return first


def rounds_of(config: RunConfig) -> int:
    """Return how often a run that learns may clear its price."""
    allocation = config.allocation
    again = 0 if config.times_asked == 1 else allocation.most_rounds
    return allocation.max_rounds or LEARNING_ROUNDS + again


def stages_for(rounds: int) -> Stages:
    """Return the sizes of the stages of a run that may clear its price so often; the pilot and the last two are none."""
    stages, most = Stages(), rounds - FEWEST_ROUNDS
    return replace(stages, most_stages=max(1, min(stages.most_stages, most)), most_rounds=min(stages.most_rounds, most))


def incidence_of(curves: Curves) -> Incidence:
    """Return the chances behind curves, on their grid."""
    right_NK, survival_NK = curves.success_NK.astype(float), curves.survival_NK.astype(float)
    return Incidence(right_NK, (1.0 - right_NK - survival_NK).clip(0.0), survival_NK)


def learned(
    offers: LearningOffers, states: QueryStates, lesson: Lesson, believed_before: Batch
) -> tuple[Batch, LearningReport]:
    """Return what a run knows at its end: the batch by its last beliefs, and what they rest on."""
    observed = observe(states, label=offers.label)
    if not len(observed):
        return believed_before, lesson.report()
    belief = offers.learned(observed)
    found = belief.incidence(offers.x_NP, tokens_K=offers.tokens_K, given=offers.given, fold_N=offers.folds_N)
    curves = curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=offers.tokens_K)
    share, given_share = belief.evidence.shares()
    known = {
        "answers": len(observed),
        "evidence_nats": belief.evidence.learned_nats,
        "learned_share": share,
        "pooled_share": (1.0 - share - given_share) * belief.pooled_share,
        "given_share": given_share,
    }
    return replace(believed_before, curves=curves), lesson.report().model_copy(update=known)


def learned_of_known(
    offers: WideningLearningOffers, states: QueryStates, lesson: Lesson, believed_before: Batch
) -> tuple[Batch, LearningReport]:
    """Return the same of a run that began while prompts were read; of queries that were never read nothing is believed."""
    if (part := offers.part) is None:
        return believed_before, lesson.report()
    index_K, queries = part.index_K, len(believed_before.weight_N)
    known, report = learned(part.offers, states.some(index_K), lesson, believed_before.take(index_K))
    curves = known.curves if len(index_K) == queries else known.curves.placed(index_K, queries)
    return replace(believed_before, curves=curves), report
