"""How a run is priced: on the driver, or where its estimates are; and whether its budget pays for the minimum service."""

from __future__ import annotations

from functools import partial

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.data import Dataset

from clear_ray.batch.dataset_price import is_sketched
from clear_ray.batch.learning import Lesson, learning_offers
from clear_ray.batch.sketched import SketchedOffers, reservation_prices_of_rows
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.batch import reservation_prices, taken_tokens
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.offers import BatchOffers
from clear_ray.run_folder.estimates import CURVE_COLUMNS, ESTIMATES, Estimates
from clear_ray.storage import Folder


def is_sketched_run(config: RunConfig, queries: int) -> bool:
    """Return whether a run of so many queries is priced where its estimates are."""
    allocation = config.allocation
    if (
        allocation.policy != "clear_ray" or allocation.most_attempts > 1
    ):  # plans of several attempts add up to no sketch
        return False
    return is_sketched(queries, allocation.sketched)


def offers_of(
    folder: Folder, config: RunConfig, estimates: Estimates, cost_N: NDArray[np.float64], lesson: Lesson | None = None
) -> BatchOffers | AttemptOffers | SketchedOffers | LearningOffers:
    """Return what every query is offered: further tokens, by its estimate or by what the run learns."""
    if lesson is not None and not lesson.left_out:
        return learning_offers(folder, config, estimates, lesson)
    if config.allocation.most_attempts > 1:
        return AttemptOffers(estimates.batch)
    if not is_sketched_run(config, estimates.queries):
        return BatchOffers(estimates.batch, policy=config.allocation.policy)
    return SketchedOffers(
        rows=partial(_estimate_rows, folder),
        tokens_K=estimates.batch.curves.tokens_K,
        tie_break_N=estimates.tie_break_N,
        cost_N=cost_N,
        max_tokens_N=estimates.max_tokens_N,
    )


def check_minimum_service(config: RunConfig, cost_N: NDArray[np.float64], folder: Folder) -> None:
    """Refuse a minimum service that the budget does not pay for, or whose floors no process holds; leave nothing behind.

    Raises:
        ConfigError: It is so.
    """
    tokens = config.allocation.minimum_service_tokens
    if tokens is None:
        return
    queries = len(cost_N)
    owed = taken_tokens(np.full(queries, tokens), cost_N)  # no query is owed more, and a ceiling may leave it less
    remedy = "Raise the budget or serve less."
    if owed <= config.budget_tokens and not is_sketched_run(config, queries):
        return
    said = f"the minimum service of {queries:,} queries takes {owed:,} tokens of a budget of {config.budget_tokens:,}"
    if owed <= config.budget_tokens:
        said, remedy = "a batch that is priced from sketches has no minimum service", "Leave one of them out."
    folder.delete("queries")
    raise ConfigError(said, "allocation.minimum_service_tokens", str(tokens), remedy)


def all_reservation_prices(folder: Folder, estimates: Estimates) -> NDArray[np.float64]:
    """Return the price above which each query is not worth a first token, shape (N,)."""
    if not estimates.is_sample:
        return reservation_prices(estimates.batch)
    return reservation_prices_of_rows(_estimate_rows(folder), estimates.batch.curves.tokens_K, estimates.queries)


def _estimate_rows(folder: Folder) -> Dataset:
    paths = folder.child(ESTIMATES).files(".parquet")
    return ray.data.read_parquet(paths, filesystem=folder.filesystem).select_columns(CURVE_COLUMNS)
