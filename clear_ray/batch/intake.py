"""Where a run's queries come from: the caller, files or generated tasks; checked, and written to `queries/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from clear_ray.batch.retrying import take_in_again
from clear_ray.config.allocation import JUDGED
from clear_ray.config.engine import EngineConfig, ModelConfig, OpenAIConfig
from clear_ray.config.input import InputConfig
from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.build import prompt_limit
from clear_ray.engine.conversations import ConversationWatch
from clear_ray.engine.endpoint.seams import SeamWatch
from clear_ray.engine.row_sampling import reads_names, sampling_check
from clear_ray.errors import ConfigError, ResumeError, SchemaError
from clear_ray.ingest import (
    InputDigest,
    IntakeRules,
    NormalRow,
    PromptLimit,
    ReadingRules,
    SourceBatch,
    ingest,
    read_digest,
    read_input,
)
from clear_ray.ingest.option_numbers import CountsFromOneError, FirstOption
from clear_ray.run_folder.manifest import check_same_run, describe_input
from clear_ray.stages.scoring import load_scorer_from
from clear_ray.storage import Folder, open_folder
from clear_ray.tasks import generate_queries, survey_queries
from clear_ray.tasks.choices import options_of
from clear_ray.tasks.survey import Surveyor, keep_survey

if TYPE_CHECKING:
    from ray.data import Dataset

_BATCH_ROWS = 4_096


def take_in(
    queries: Dataset | None, config: RunConfig, folder: Folder, manifest: dict[str, Any] | None = None
) -> InputDigest:
    """Check the whole input and write `queries/`; nothing is left behind if it is refused.

    A run that began with a Dataset can be gone on with without it: what was taken in is on disk.

    Args:
        queries: As for `run`.
        config: As for `run`.
        folder: Run folder.
        manifest: Manifest of the run that is there: its input must be the same.

    Raises:
        SchemaError: A row cannot be read as a query.
        ConfigError: There is no input, or two, or it lies in the run folder.
        ResumeError: The run that is there had another input.
    """
    if queries is not None and (config.input.path or config.input.tasks or config.input.retry_of):
        raise ConfigError(
            "queries were passed and the configuration names an input", "input", remedy="Remove one of the two."
        )
    if config.input.retry_of:
        return take_in_again(config, folder, manifest)
    if queries is None and manifest is not None and not config.input.path and not config.input.tasks:
        return _taken_in_already(folder, manifest)
    try:
        return _taken_in(queries, config, folder, manifest, config.input.first_option)
    except CountsFromOneError:  # which only the whole column shows
        return _taken_in(queries, config, folder, manifest, 1)


def _batches_of(queries: Dataset | None, config: RunConfig) -> Iterable[SourceBatch]:
    if queries is not None:
        return _dataset_batches(queries, config.input)
    if config.input.tasks:
        return _row_batches(generate_queries(config.input.tasks), "generated query")
    return read_input(config.input, run_folder=open_folder(config.run_dir))  # before anything is replaced


def _taken_in(
    queries: Dataset | None,
    config: RunConfig,
    folder: Folder,
    manifest: dict[str, Any] | None,
    first_option: FirstOption,
) -> InputDigest:
    batches = _batches_of(queries, config)
    engines = [named.config for named in config.named_engines]
    golds, into = Surveyor(config.scoring.scorer), folder.child("queries")
    reading = ReadingRules(
        max_tokens=config.allocation.max_tokens,
        continues=all(isinstance(engine, ModelConfig) and engine.continue_final_message for engine in engines),
        check_sampling=_sampling_of_each(config),
        reads_names=partial(_any_reads_names, engines),
        temperature=_least_temperature(engines),
        splits=config.allocation.objective == "correct",
        options_of=_options_of if config.scoring.scorer == "choice" else None,
    )
    rules = IntakeRules(
        reading=reading,
        prompt_limit=_longest_limit(engines),
        on_error=config.input.on_error,
        first_option=first_option,
        watches=(
            *map(ConversationWatch, engines),
            *(SeamWatch(engine) for engine in engines if isinstance(engine, OpenAIConfig)),
            _GoldWatch(golds, config.allocation.objective),
        ),
        accept=None if manifest is None else lambda digest: check_same_run(manifest, describe_input(digest), folder),
    )
    digest = ingest(batches, queries=into, rules=rules)
    keep_survey(into, golds.survey())
    return digest


def _options_of(prompt: str, is_conversation: bool) -> dict[str, str]:
    """Return the lettered options in a prompt; none if they are numbered, for numbers name those by themselves."""
    options = options_of(prompt, is_conversation=is_conversation)
    return options if "A" in options else {}


def _longest_limit(engines: Sequence[EngineConfig]) -> PromptLimit | None:
    """Return how long a prompt may be that one of several engines can read; None where one knows no limit."""
    limits = [prompt_limit(engine) for engine in engines]
    known = [limit for limit in limits if limit is not None]
    return max(known, key=lambda limit: limit.context_tokens) if len(known) == len(limits) else None


def _any_reads_names(engines: Sequence[EngineConfig]) -> bool:
    return any(map(reads_names, engines))


def _least_temperature(engines: Sequence[EngineConfig]) -> float | None:
    drawn = [engine.temperature for engine in engines if engine.kind != "replay"]
    return min(drawn) if drawn else None


def _sampling_of_each(config: RunConfig) -> Callable[[Sampling], Sequence[str]]:
    """Return what says of a row's sampling which of it has no effect, with whichever engine."""
    if config.engines is None:
        return sampling_check(config.engine, attempts=config.allocation.most_attempts)
    checks = {name: sampling_check(engine) for name, engine in config.engines.items()}
    return lambda sampling: [f"{said} [{name}]" for name, check in checks.items() for said in check(sampling)]


@dataclass(frozen=True, slots=True)
class _GoldWatch:
    """Shows every query of an input to a surveyor of gold answers (`ingest.Watch`)."""

    golds: Surveyor
    objective: str

    def see(self, index: int, query: NormalRow) -> None:
        """Look at the gold answer of a query."""
        if query.gold is not None:
            self.golds.add({"index": index, **query._asdict()})

    def close(self, rows: int) -> tuple[str, ...]:
        """Return nothing, for what was found is told with the scores, unless queries would be asked again for no verdict.

        Raises:
            SchemaError: They would.
        """
        found = self.golds.survey()
        if self.objective in JUDGED and found.needs_gold and not found.golds:
            raise SchemaError(
                f"no row has a gold answer, and allocation.objective {self.objective} asks again by which answers are right",
                "input.columns.gold",
                remedy="Name the column of the gold answers, or leave the objective out.",
            )
        return ()


def _taken_in_already(folder: Folder, manifest: dict[str, Any]) -> InputDigest:
    digest = read_digest(folder.child("queries"))
    if digest is None:
        remedy = "Run the program again that started it, with its Dataset."
        raise ResumeError("the queries that were taken in are gone, and no input is named", folder.path, remedy=remedy)
    check_same_run(manifest, describe_input(digest), folder)
    return digest


def load_scorer_of(config: RunConfig, folder: Folder | None = None) -> Callable[[], Any] | None:
    """Return what makes the scorer of a run, after trying it once here, where a mistake can still be mended.

    Args:
        config: Configuration of the run.
        folder: Folder of the run, whose queries `auto` is chosen by.

    Raises:
        ConfigError: No such scorer.
    """
    scoring = config.scoring
    if scoring.scorer is None:
        return None
    name = scoring.scorer
    if name == "auto" and folder is not None:
        name = survey_queries(folder.child("queries"), name).chosen or name
    make = partial(load_scorer_from, os.getcwd(), name, **scoring.model_dump(exclude={"scorer", "agreement"}))
    make()
    return make


def _row_batches(rows: Iterator[dict[str, Any]], origin: str) -> Iterator[SourceBatch]:
    first_row = 1
    while chunk := list(islice(rows, _BATCH_ROWS)):
        yield SourceBatch(chunk, origin, range(first_row, first_row + len(chunk)))
        first_row += len(chunk)


def _dataset_batches(queries: Dataset, config: InputConfig) -> Iterator[SourceBatch]:
    first_row = 1
    options = queries.context.execution_options
    before, options.preserve_order = options.preserve_order, True  # the same rows in another order are another input
    try:
        for table in queries.iter_batches(batch_format="pyarrow", batch_size=_BATCH_ROWS):
            yield SourceBatch.from_arrow(table, origin="dataset", first_row=first_row, columns=config.columns)
            first_row += len(table)
    finally:
        options.preserve_order = before
