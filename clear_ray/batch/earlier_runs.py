"""What earlier runs have learned of the model, read from a store at the start of a run, and its own lesson kept at the end.

    store --lessons--> head --every block of queries--> earlier/ --> driver: curves alone

Of a large batch both steps are tasks.

`earlier/` is marked as whole, with the names of what was read, before the first grant that depends on it. From then on the
store is not read again: a resumed run believes what it believed, whatever other runs have kept meanwhile.

Shapes: N queries of the batch, K grid points.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from clear_ray.batch.coordinates import READ_COLUMNS, read_block
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.batch.size_limits import is_spread
from clear_ray.batch.sorted_files import write_sorted
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError, own_error
from clear_ray.estimation.factorised import FactorisedHead
from clear_ray.estimation.factors import Label, Observed
from clear_ray.estimation.feature_sets import read_for
from clear_ray.estimation.gain import SampledAnswer
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.head_store import MOST_KEPT, HeadStore, KeptLesson, StoredLessons, fit_stored_head
from clear_ray.redaction import without_secrets
from clear_ray.report.summary import LearningReport
from clear_ray.run_folder.locations import refuse_passing
from clear_ray.storage import Folder, open_folder

EARLIER = "earlier"
_MOST_SOME = 64


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run begins with.

    Attributes:
        given: Beliefs by the lessons of earlier runs, of all queries or of a sample; None if there are none.
        answers: Answers that they rest on.
        some: Some of those, drawn at random; what they took, tokens.
        passed_over: Files of the store that were not read, and why.
        rows: Where the beliefs of all queries lie; None if there are none.
    """

    given: Incidence | None = None
    answers: int = 0
    some: tuple[SampledAnswer, ...] = ()
    passed_over: tuple[str, ...] = ()
    rows: GivenRows | None = None

    def beside(self, other: Earlier) -> Earlier:
        """Return what is told of two engines; nothing of what is believed."""
        return Earlier(None, self.answers + other.answers, (), (*self.passed_over, *other.passed_over))

    def told(self, learning: LearningReport) -> LearningReport:
        """Return what a run learns, with what it begins with."""
        return learning.model_copy(update={"earlier_answers": self.answers, "store_notes": self.passed_over})


def earlier_name(engine: int) -> str:
    """Return the folder of what is known of one of several engines, by its place; `NAME.json` says that it is whole."""
    return EARLIER if engine == 0 else f"{EARLIER}-{engine}"


def open_store(location: str, model: ModelCard, sets: Sequence[str]) -> HeadStore:
    """Return the store at a location, which need not exist."""
    return HeadStore(open_folder(location), model, tuple(sets))


def make_ready(location: str) -> None:
    """Make the folder of a store, so that what is amiss with it is found before anything is paid for.

    Raises:
        ConfigError: It cannot be made, or would go with the job that writes it.
    """
    with store_errors(location):
        folder = open_folder(location)
    refuse_passing(folder, "estimate.store")
    with store_errors(location):
        folder.make()


@contextmanager
def store_errors(location: str) -> Iterator[None]:
    """Raise as a ConfigError what keeps the folder of a store from being made.

    Raises:
        ConfigError: It is so.
    """
    try:
        yield
    except (OSError, ConfigError) as error:
        remedy, where = "Name a folder or URI that this user may write to.", without_secrets(location)
        said = f"{error.where}: {error.what}" if isinstance(error, ConfigError) else str(error)
        raise ConfigError(f"the store cannot be opened: {said}", "estimate.store", where, remedy) from error


def earlier_of(
    folder: Folder,
    store: HeadStore,
    prompt_tokens_N: NDArray[np.int64],
    *,
    tokens_K: NDArray[np.int64],
    label: Label,
    seed: int,
    engine: int = 0,
    sample: NDArray[np.int64] | None = None,
) -> Earlier:
    """Return what earlier runs say of the queries; made and written if the run folder does not hold it yet.

    Args:
        folder: The run folder, with its queries.
        store: The store.
        prompt_tokens_N: Length of every prompt, tokens.
        tokens_K: Grid of the curves.
        label: What says that an answer is right.
        seed: Seed of what is drawn.
        engine: Which of several engines it is of, by its place.
        sample: Of which queries to return the beliefs, rising; of all if not given.
    """
    name = earlier_name(engine)
    whole = f"{name}.json"
    if not folder.exists(whole):
        found = store.read()
        if found.lessons:
            _write(folder, name, found, store, prompt_tokens_N, (tokens_K, label, seed))
        facts = {
            "answers": sum(card.answers for card in found.cards),
            "runs": [card.run_id for card in found.cards],
            "some": [asdict(answer) for answer in _some(found, seed)],
            "passed_over": list(found.passed_over),
        }
        folder.write(whole, json.dumps(facts).encode())
    facts = json.loads(folder.read(whole))
    rows = GivenRows(folder, name) if facts["answers"] else None
    given = None if rows is None else rows.of(np.arange(len(prompt_tokens_N)) if sample is None else sample)
    some = tuple(SampledAnswer(**answer) for answer in facts["some"])
    return Earlier(given, facts["answers"], some, tuple(facts["passed_over"]), rows)


def _some(found: StoredLessons, seed: int) -> list[SampledAnswer]:
    answers = [
        SampledAnswer(float(tokens), bool(is_ended), float(right) if is_ended and np.isfinite(right) else None)
        for lesson in found.lessons
        for tokens, is_ended, right in zip(
            lesson.observed.tokens_M, lesson.observed.is_ended_M, lesson.observed.right_M, strict=True
        )
    ]
    drawn = np.random.default_rng([seed, 3]).permutation(len(answers))[:_MOST_SOME]
    return [answers[n] for n in drawn.tolist()]


def _fit(
    found: StoredLessons, store: HeadStore, tokens_K: NDArray[np.int64], label: Label, seed: int
) -> FactorisedHead:
    """Fit the head; runs in a task."""
    return fit_stored_head(found, store, tokens_K=tokens_K, label=label, seed=seed)


def keep_lesson(
    folder: Folder,
    store: HeadStore,
    observed: Observed,
    prompt_tokens_N: NDArray[np.int64],
    *,
    run_id: str,
    evidence_nats: float,
    seed: int,
) -> str:
    """Keep what a run has learned; return why that could not be done, or nothing.

    Args:
        folder: The run folder, with its queries.
        store: The store.
        observed: The answers of the run.
        prompt_tokens_N: Length of every prompt, tokens.
        run_id: Identity of the run.
        evidence_nats: How much better its answers were predicted with the prompts than without.
        seed: Which answers are kept, of many.
    """
    if not len(observed):
        return ""
    drawn = np.random.default_rng([seed, 2]).permutation(len(observed))[:MOST_KEPT]
    some = observed.take(np.sort(drawn))
    about = (run_id, evidence_nats, time.time())
    try:
        called(_keep, folder, store, some, prompt_tokens_N, *about, is_few=not is_spread(len(prompt_tokens_N)))
    except Exception as error:
        if (cause := _disk_error(error)) is None:
            raise
        return f"what was learned could not be kept in {store.folder.path}: {cause}"
    return ""


def _disk_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = getattr(error, "cause", None) or error.__cause__
    return error


def _keep(
    folder: Folder,
    store: HeadStore,
    observed: Observed,
    prompt_tokens_N: NDArray[np.int64],
    run_id: str,
    evidence_nats: float,
    ended_seconds: float,
) -> None:
    """Read the queries of the answers once more, and write the lesson; runs in a task."""
    is_wanted_N = np.zeros(len(prompt_tokens_N), bool)
    is_wanted_N[observed.query_M] = True
    tables = []
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=READ_COLUMNS)
        tables.append(table.filter(pa.array(is_wanted_N[table["index"].to_numpy()])))
    rows = pa.concat_tables(tables).sort_by("index")
    place_N = np.zeros(len(prompt_tokens_N), np.int64)
    place_N[rows["index"].to_numpy()] = np.arange(len(rows))
    known, texts, tasks = read_block(rows, prompt_tokens_N)
    readings = read_for(store.sets, known, texts, tasks).take(place_N[observed.query_M])
    own = Observed(np.arange(len(observed)), observed.tokens_M, observed.is_ended_M, observed.right_M)
    store.keep(run_id, KeptLesson(readings, own), ended_seconds=ended_seconds, evidence_nats=evidence_nats)


@dataclass(frozen=True)
class AddEarlier:
    """Callable that turns rows of `records.QUERY_SCHEMA` into what a stored head believes of them.

    Attributes:
        head: The head, or a reference to it.
        prompt_tokens: Length of every prompt, shape (N,), or a reference to it.
        sets: What the head reads.
    """

    head: Any
    prompt_tokens: Any
    sets: tuple[str, ...]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return index and incidences of each row."""
        head: FactorisedHead = _value(self.head)
        known, texts, tasks = read_block(batch, _value(self.prompt_tokens))
        found = head.incidence_of(read_for(self.sets, known, texts, tasks))
        table_N2K = np.ascontiguousarray(np.concatenate([found.right_NK, found.survival_NK], axis=1), np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(table_N2K.ravel()), table_N2K.shape[1])
        return pa.table({"index": batch["index"].combine_chunks(), "believed": column})


def _value(held: Any) -> Any:
    return ray.get(held) if isinstance(held, ray.ObjectRef) else held


def _write(
    folder: Folder,
    name: str,
    found: StoredLessons,
    store: HeadStore,
    prompt_tokens_N: NDArray[np.int64],
    how: tuple[NDArray[np.int64], Label, int],
) -> None:
    paths, is_few = folder.child("queries").files(".parquet"), not is_spread(len(prompt_tokens_N))
    head, prompt_tokens = (
        held if is_few else ray.put(held) for held in (called(_fit, found, store, *how, is_few=is_few), prompt_tokens_N)
    )
    with folder.replacing(name) as target:
        write_sorted([(paths, AddEarlier(head, prompt_tokens, store.sets))], target, by=["index"], is_few=is_few)
    folder.child(name).sync()


def called(function: Callable[..., Any], *arguments: Any, is_few: bool) -> Any:
    """Return what a function returns, called here or, of a large batch, in a task; its own errors as themselves."""
    if is_few:
        return function(*arguments)
    task: Any = ray.remote(function)
    try:
        return ray.get(task.remote(*arguments))
    except Exception as error:
        raise own_error(error) or error from error
