"""What a run and a plan begin with: engines, the probe, what the budget has to pay for, and the law of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clear_ray.batch.generate import rows_each
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.batch.learning import Lesson, can_differ, lesson_of, rounds_of, widening_offers
from clear_ray.batch.menu import cheapest_calls
from clear_ray.batch.pricing import (
    check_first_tokens,
    check_minimum_service,
    check_one_call,
    offers_of,
    streamed_offers,
    token_costs,
)
from clear_ray.batch.probe import probe, together
from clear_ray.batch.probe_start import opened_meanwhile
from clear_ray.batch.progress import Progress
from clear_ray.batch.startup import Beginning, Engines, beginning
from clear_ray.batch.streamed import StreamedProbe
from clear_ray.cluster.engines import EngineActors
from clear_ray.cluster.joining import quiet_data
from clear_ray.config.run import RunConfig
from clear_ray.estimation.head import Head
from clear_ray.report.live import Display
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.menu_offers import MenuOffers
from clear_ray.rounds.rounds import Rounds
from clear_ray.run_folder.estimates import (
    Estimates,
    read_answers_asked,
    read_costs,
)
from clear_ray.stages.first_tokens import FirstTokenFee
from clear_ray.stages.gate import Gate
from clear_ray.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset


@contextmanager
def begun_run(
    start_engines: Engines,
    queries: Dataset | None,
    config: RunConfig,
    heads: tuple[Head, ...],
    folder: Folder,
    display: Display,
) -> Iterator[tuple[Progress, Beginning]]:
    """Have Ray and the engines begin while the input is read; what waits for Ray sets Ray Data up as well, once."""
    room = [
        None if config.scaling.most_of(named.name) is None else rows_each(config, named.config, workers=1)
        for named in config.named_engines
    ]
    engines = [(named.config, head) for named, head in zip(config.named_engines, heads, strict=True)]
    with (
        Progress(config.budget_tokens, display, unit=config.unit) as progress,
        beginning(start_engines, engines, run_dir=folder.path, rows_each=room) as begun,
        ExitStack() as data,
    ):

        @cache
        def ray_and_data() -> None:
            begun.ray()
            data.enter_context(quiet_data())

        if queries is not None:  # they are read by Ray Data
            ray_and_data()
        progress.begin("read")
        yield progress, replace(begun, ray=ray_and_data)


def probed(
    folder: Folder,
    config: RunConfig,
    engines: EngineActors,
    heads: tuple[Head, ...],
    rows: int,
    progress: Progress,
    *,
    open_run: Callable[[], object] = lambda: None,
    has_states: bool = False,
    fee: FirstTokenFee | None = None,
) -> tuple[Estimates, Lesson | None]:
    """Open the run once its engines are up, and return what each of them finds in the prompts, and what is to be learned."""

    def opened(gate: Gate) -> Lesson | None:
        engines.wait(gate.is_there, progress.note_loaded)
        progress.begin(first_stage(config))
        open_run()
        gate.open()
        return lesson_of(folder, config, *(each.model for each in engines.each))

    told = progress.note_probed
    with opened_meanwhile(folder, opened) as (gate, lesson):
        found = [
            probe(folder, config, each, head.card, rows, told, gate=gate, number=number, has_states=has_states, fee=fee)
            for number, (each, head) in enumerate(zip(engines.each, heads, strict=True))
        ]
        return together(found), lesson()


def checked_costs(config: RunConfig, folder: Folder, queries: int) -> NDArray[np.float64]:
    """Return the costs of the input, after making sure that the run can be priced and its budget pays for it."""
    cost_N = read_costs(folder, queries)
    check_one_call(config, cost_N, folder)
    check_first_tokens(config, cost_N, folder)
    check_minimum_service(config, token_costs(config, cost_N, of=min), folder)
    return cost_N


def first_stage(config: RunConfig) -> str:
    """Return what the first stage is called: an endpoint reads no prompt before it answers."""
    return "probe" if config.is_probed else "estimate"


def start_of(config: RunConfig) -> str:
    """Return what has to be there before anything is asked."""
    if config.engines is not None:
        return f"starting {len(config.engines)} engines"
    words = {"openai": "asking the endpoint", "replay": "reading the recording"}
    return words.get(config.engine.kind, "loading the model")


def opened_rounds(
    folder: Folder,
    config: RunConfig,
    estimates: Estimates,
    cost_N: NDArray[np.float64],
    lesson: Lesson | None,
    *,
    given: GivenRows | None = None,
) -> Rounds:
    """Return the law of the rounds over these estimates."""
    offers, settings = offers_of(folder, config, estimates, cost_N, lesson, given=given), config.allocation
    learns = lesson is not None and not lesson.left_out
    most_alone = rounds_of(config) if learns else None
    if isinstance(offers, MenuOffers):
        settings = settings.model_copy(update={"max_rounds": rounds_of(config)})
        calls = cheapest_calls(offers)
        return Rounds(offers, settings, failed=estimates.error_of_index, rule=offers.rule, calls=calls)
    if lesson is not None and learns and lesson.agreement is not None:
        rule = lesson.agreement.rule(can_differ(folder, estimates.queries))
    else:
        rule = AttemptRule(settings.objective, _most_attempts(folder, config, estimates.queries))
    return Rounds(
        offers,
        settings,
        failed=estimates.error_of_index,
        rule=rule,
        calls=estimates.calls,
        most_alone=most_alone,
    )


def rounds_while_read(folder: Folder, config: RunConfig, reader: StreamedProbe, lesson: Lesson | None) -> Rounds:
    """Return the law of the rounds over what has been read, which is nothing yet."""
    growing, coordinates = reader.growing, reader.coordinates
    if lesson is None or coordinates is None:
        rounds = Rounds(streamed_offers(folder, config, growing), config.allocation)
    else:
        offers = widening_offers(config, growing.batch, growing.is_known_N, coordinates.of, lesson)
        rounds = Rounds(offers, config.allocation, most_alone=rounds_of(config))
    rounds.widen(0)
    return rounds


def _most_attempts(folder: Folder, config: RunConfig, queries: int) -> NDArray[np.int64]:
    """Return the most answers to each query: the run's, and no more than its row asks for."""
    settings = config.allocation
    most_N = np.full(queries, settings.most_attempts)
    if settings.objective == "correct":
        return most_N
    asked_N = read_answers_asked(folder, queries)
    own_N = asked_N if settings.attempts is None else np.minimum(asked_N, settings.attempts)
    return np.where(asked_N > 0, own_N, most_N)
