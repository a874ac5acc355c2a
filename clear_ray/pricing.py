"""One clearing of a running batch: on the driver, or where its estimates are; and what is owed as minimum service."""

from __future__ import annotations

import math

import numpy as np
import ray.data
from numpy.typing import NDArray
from ray.data import Dataset

from clear_ray.clearing_rows import clear_rows, reservation_prices_of_rows
from clear_ray.config import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.rounds.batch import reservation_prices
from clear_ray.rounds.clearing import Clearing, clear, nothing_to_grant
from clear_ray.rounds.minimum_service import minimum_service
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder import CURVE_COLUMNS, ESTIMATES, Estimates
from clear_ray.sketching import is_sketched
from clear_ray.storage import Folder


def is_sketched_run(config: RunConfig, queries: int) -> bool:
    """Return whether a run of so many queries is priced where its estimates are."""
    return config.allocation.policy == "clear_ray" and is_sketched(queries, config.allocation.sketched)


def clear_round(
    folder: Folder, config: RunConfig, estimates: Estimates, states: QueryStates, available_tokens: int
) -> Clearing:
    """Price what is available over the queries that are open, and grant it."""
    if is_sketched_run(config, estimates.queries):
        return clear_rows(
            _estimate_rows(folder),
            estimates.batch.curves.tokens_K,
            states,
            tie_break_N=estimates.tie_break_N,
            available_tokens=available_tokens,
        )
    return clear(
        estimates.batch,
        generated_tokens_N=states.answer_tokens_N,
        is_open_N=states.is_open_N,
        available_tokens=available_tokens,
        policy=config.allocation.policy,
        minimum_service_tokens=config.allocation.minimum_service_tokens or 0,
    )


def serve_the_rest(config: RunConfig, estimates: Estimates, states: QueryStates, available_tokens: int) -> Clearing:
    """Return the minimum service of the queries that no round has funded; no grants if there is none."""
    if config.allocation.minimum_service_tokens is None:
        return nothing_to_grant(estimates.queries)
    return minimum_service(
        estimates.batch,
        generated_tokens_N=states.answer_tokens_N,
        is_open_N=states.is_open_N & (states.rounds_N == 0),
        available_tokens=available_tokens,
        minimum_service_tokens=config.allocation.minimum_service_tokens,
        shadow_price=float(states.price_N[states.rounds_N == 0].max(initial=0.0)),
    )


def is_worth_a_round(config: RunConfig, states: QueryStates, number: int, available_tokens: int) -> bool:
    """Return whether there may be another clearing, and enough for it beside what is owed as minimum service."""
    is_owed_N = states.is_open_N & (states.rounds_N == 0)
    owed_tokens = (config.allocation.minimum_service_tokens or 0) * float(states.cost_N[is_owed_N].sum())
    is_enough = number == 1 or available_tokens - owed_tokens >= config.allocation.smallest_grant_tokens
    return number <= config.allocation.max_rounds and is_enough


def check_minimum_service(config: RunConfig, cost_N: NDArray[np.float64], folder: Folder) -> None:
    """Refuse a minimum service that the budget does not pay for, or whose floors no process holds; leave nothing behind.

    Raises:
        ConfigError: It is so.
    """
    tokens = config.allocation.minimum_service_tokens
    if tokens is None:
        return
    queries = len(cost_N)
    owed, remedy = math.ceil(tokens * cost_N.sum()), "Raise the budget or serve less."
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
