"""How a run is priced: on the driver, or where its estimates are; and whether its budget pays for the minimum service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.batch.coordinates import COORDINATES
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.batch.learning import Lesson, given_rows, learning_offers
from clear_ray.batch.menu import menu_offers
from clear_ray.batch.size_limits import is_sketched_run
from clear_ray.config.menu import NamedEngine
from clear_ray.config.prices import scaled_parts
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError
from clear_ray.ledger.client import MarketClient
from clear_ray.records import COST_PARTS
from clear_ray.report.wording import amount
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.batch import taken_tokens
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.learning_offers import LearningOffers
from clear_ray.rounds.menu import reservation_prices
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.offers import BatchOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.sampled_learning import SampledLearningOffers
from clear_ray.rounds.windowed import WindowedOffers
from clear_ray.run_folder.estimates import CURVE_COLUMNS, ESTIMATES, Estimates, read_weights
from clear_ray.run_folder.growing import GrowingBatch
from clear_ray.stages.charging import reserved_prompts
from clear_ray.stages.first_tokens import FirstTokenFee, first_token_parts
from clear_ray.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

    from clear_ray.batch.sketched import SketchedOffers
    from clear_ray.batch.sketched_learning import SketchedWhole

_LETTERS_A_TOKEN = 4
_FIRST_TOKENS_SHARE = 10
PROBE = "probe"
"""Name under which the market is charged for the probe."""


def offers_of(
    folder: Folder,
    config: RunConfig,
    estimates: Estimates,
    cost_N: NDArray[np.float64],
    lesson: Lesson | None = None,
    *,
    given: GivenRows | None = None,
) -> BatchOffers | AttemptOffers | SketchedOffers | LearningOffers | SampledLearningOffers[SketchedWhole] | MenuOffers:
    """Return what every query is offered: further tokens, by its estimate or by what the run learns.

    Args:
        folder: The run folder.
        config: As for `run`.
        estimates: What is known of the batch.
        cost_N: What a token of each query takes.
        lesson: What the run learns from; None for one that does not, and for a plan.
        given: For a plan, where what earlier runs have left lies, if the driver holds it of a sample alone.
    """
    learns = lesson is not None and not lesson.left_out
    if config.engines is not None:
        return menu_offers(folder, config, estimates, lesson)
    if is_sketched_run(config, estimates.queries):
        sketched = _sketched_offers(folder, estimates, cost_N, given)
        return _learning_on_a_sample(sketched, folder, config, estimates, lesson) if lesson and learns else sketched
    if lesson and learns:
        return learning_offers(folder, config, estimates, lesson)
    if config.allocation.most_attempts > 1:
        return AttemptOffers(estimates.batch)
    return BatchOffers(estimates.batch, policy=config.allocation.policy)


def streamed_offers(folder: Folder, config: RunConfig, growing: GrowingBatch) -> BatchOffers | WindowedOffers:
    """Return what queries are offered while prompts are read: those that are held, and all of a very large batch at the end.

    Args:
        folder: The run folder.
        config: As for `run`.
        growing: The batch as far as it is known.
    """
    if not is_sketched_run(config, len(growing.is_known_N)):
        return BatchOffers(growing.batch)
    whole = _sketched_offers(folder, growing.so_far(), growing.batch.cost_N, None)
    return WindowedOffers(growing.batch, growing.is_known_N, growing.window, whole)


def _sketched_offers(
    folder: Folder, estimates: Estimates, cost_N: NDArray[np.float64], given: GivenRows | None
) -> SketchedOffers:
    from clear_ray.batch.sketched import SketchedOffers

    return SketchedOffers(
        rows=partial(_estimate_rows, folder),
        tokens_K=estimates.batch.curves.tokens_K,
        tie_break_N=estimates.tie_break_N,
        cost_N=cost_N,
        max_tokens_N=estimates.max_tokens_N,
        calls=estimates.calls,
        given=given,
    )


def _learning_on_a_sample(
    uninformed: SketchedOffers, folder: Folder, config: RunConfig, estimates: Estimates, lesson: Lesson
) -> SampledLearningOffers[SketchedWhole]:
    from clear_ray.batch.sketched_learning import SketchedWhole

    part = learning_offers(folder, config, estimates, lesson)  # it writes the coordinates
    whole = SketchedWhole(
        uninformed,
        partial(_coordinate_rows, folder),
        read_weights(folder, estimates.queries),
        given_rows(folder, config, estimates, lesson),
    )
    return SampledLearningOffers(part, estimates.sample, whole)


def token_costs(
    config: RunConfig, cost_N: NDArray[np.float64], *, of: Callable[[Iterable[int]], int] = max
) -> NDArray[np.float64]:
    """Return what a token of each query takes from the budget, in its unit, by the costs of the input and the prices.

    Args:
        config: As for `run`.
        cost_N: Costs of the input.
        of: Of several engines, `max` for the dearest or `min` for the cheapest.
    """
    parts = of(0 if named.prices is None else named.prices.token_parts for named in config.named_engines)
    return _scaled_parts(parts, cost_N) / COST_PARTS if parts else cost_N


def priced(config: RunConfig, estimates: Estimates, cost_N: NDArray[np.float64]) -> Estimates:
    """Return estimates that know what calls cost; as they are where the budget counts tokens.

    Args:
        config: With the prices.
        estimates: As the probe left them.
        cost_N: Costs of the input, shape (N,).
    """
    first, *others = (
        _priced(named, each, cost_N) for named, each in zip(config.named_engines, estimates.each, strict=True)
    )
    return replace(first, others=tuple(others))


def _priced(named: NamedEngine, estimates: Estimates, cost_N: NDArray[np.float64]) -> Estimates:
    prices = named.prices
    if prices is None:
        return estimates
    calls = CallCosts(
        token_parts_N=_scaled_parts(prices.token_parts, cost_N),
        read_parts_N=_scaled_parts(prices.read_parts, cost_N),
        prompt_tokens_N=reserved_prompts(named.config, estimates.prompt_tokens_N),
    )
    sample = estimates.sample
    batch = replace(estimates.batch, cost_N=calls.token_parts_N[sample] / COST_PARTS, calls=calls.take(sample))
    return replace(estimates, batch=batch, calls=calls)


def first_token_fee(config: RunConfig, market: MarketClient) -> FirstTokenFee | None:
    """Return what calls for first tokens are charged, each before it is made; None where none is made."""
    if not config.asks_first_tokens:
        return None
    return FirstTokenFee(market.awaitable(), config.engine, config.model_prices, PROBE)


def planned_probe_parts(config: RunConfig, estimates: Estimates, cost_N: NDArray[np.float64]) -> int:
    """Return what the probe takes from the budget, calls for first tokens included if each is made once; thousandths."""
    parts = probe_parts(config, estimates, cost_N)
    if not config.asks_first_tokens:
        return parts
    return parts + first_token_parts(config.engine, config.model_prices, estimates.prompt_tokens_N, cost_N)


def probe_parts(config: RunConfig, estimates: Estimates, cost_N: NDArray[np.float64]) -> int:
    """Return what reading all prompts takes from the budget, thousandths of its unit; 0 where it is not paid for."""
    return sum(
        int(each.read_tokens_N @ _scaled_parts(named.prices.probe_parts, cost_N))
        for named, each in zip(config.named_engines, estimates.each, strict=True)
        if named.prices is not None and named.prices.probe_parts
    )


def _scaled_parts(parts: int, cost_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return what a token takes of each query, thousandths, rounded up."""
    return np.array([scaled_parts(parts, cost) for cost in cost_N.tolist()], np.int64)


def check_one_call(config: RunConfig, cost_N: NDArray[np.float64], folder: Folder) -> None:
    """Refuse a budget that pays for no token of any query, its prompt as short as can be; leave nothing behind.

    Args:
        config: As for `run`.
        cost_N: Costs of the input, shape (N,).
        folder: The run folder, with its queries.

    Raises:
        ConfigError: It is so.
    """
    prices = [named.prices for named in config.named_engines]
    parts = min(COST_PARTS if each is None else each.token_parts + each.read_parts for each in prices)
    least = -(-scaled_parts(parts, float(cost_N.min())) // COST_PARTS)
    if len(cost_N) and config.budget_tokens < least:
        folder.delete("queries")
        said = f"the budget does not pay for one call: a token of the cheapest query takes {amount(least, config.unit)}"
        raise ConfigError(said, "budget", str(config.budget), "Raise it.")


def check_first_tokens(config: RunConfig, cost_N: NDArray[np.float64], folder: Folder) -> None:
    """Refuse to have the first token of each query generated for more than a tenth of the budget; leave nothing behind.

    Args:
        config: As for `run`.
        cost_N: Costs of the input, shape (N,).
        folder: The run folder, with its queries.

    Raises:
        ConfigError: It is so, by the letters of the prompts where these are paid for.
    """
    if not config.asks_first_tokens:
        return
    prices, each = config.model_prices, COST_PARTS
    if prices is not None:
        each = prices.token_parts + prices.read_parts * (_mean_letters(folder) // _LETTERS_A_TOKEN + 1)
    takes = -(-int(_scaled_parts(each, cost_N).sum()) // COST_PARTS)
    if takes * _FIRST_TOKENS_SHARE <= config.budget_tokens:
        return
    folder.delete("queries")
    about, budget = amount(takes, config.unit), amount(config.budget_tokens, config.unit)
    said = f"to ask for the first token of {len(cost_N):,} queries takes about {about}, more than a tenth of {budget}"
    raise ConfigError(said, "estimate.features", "logprobs", "Raise the budget, or leave it out.")


def _mean_letters(folder: Folder) -> int:
    """Return how long prompts are on average, letters."""
    letters, rows = 0, 0
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["prompt"])
        letters += pc.sum(pc.utf8_length(table["prompt"])).as_py() or 0
        rows += len(table)
    return letters // max(rows, 1)


def least_call(config: RunConfig, folder: Folder) -> str:
    """Return a line if a budget in money hardly pays for one call, by the length of the shortest prompt; else nothing.

    Args:
        config: As for `run`.
        folder: A folder with the run's queries.
    """
    shortest, cheapest = None, None
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["prompt"])
        letters = pc.min(pc.utf8_length(table["prompt"])).as_py()
        shortest = letters if shortest is None or (letters is not None and letters < shortest) else shortest
    tokens = (shortest or 0) // _LETTERS_A_TOKEN + 1
    for named in config.named_engines:
        if named.prices is not None:
            smallest = config.allocation.smallest_grant_tokens
            parts = named.prices.read_parts * tokens + named.prices.token_parts * smallest
            cheapest = parts if cheapest is None else min(cheapest, parts)
    if cheapest is None or cheapest <= config.budget_tokens * COST_PARTS:
        return ""
    takes = amount(-(-cheapest // COST_PARTS), config.unit)
    budget = amount(config.budget_tokens, config.unit)
    return f"a budget of {budget} may pay for no call: the shortest prompt is about {tokens} tokens, with an answer {takes}"


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


def all_reservation_prices(estimates: Estimates, rounds: Rounds) -> NDArray[np.float64]:
    """Return the price above which each query is not worth a first token, of any engine, shape (N,)."""
    if not estimates.is_sample:
        return np.asarray(np.max([reservation_prices(batch) for batch in estimates.batches], axis=0))
    if isinstance(offers := rounds.offers, SampledLearningOffers):
        whole: SketchedWhole = offers.whole
        return whole.reservation_prices(offers.learned(rounds.states, available_tokens=0))
    if isinstance(offers, WindowedOffers):  # what callers wrote once the end was ordered is not known to the driver
        return np.where(offers.is_known_N, cast("SketchedOffers", offers.whole).reservation_prices(), 0.0)
    return cast("SketchedOffers", offers).reservation_prices()


def _estimate_rows(folder: Folder) -> Dataset:
    return _rows(folder.child(ESTIMATES)).select_columns(CURVE_COLUMNS)


def _coordinate_rows(folder: Folder) -> Dataset:
    return _rows(folder.child(COORDINATES))


def _rows(folder: Folder) -> Dataset:
    import ray.data

    return ray.data.read_parquet(folder.files(".parquet"), filesystem=folder.filesystem)
