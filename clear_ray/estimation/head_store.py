"""What runs have learned of a model, kept for the next run of it.

    STORE/<model>/<feature sets>/<run>.parquet     one lesson a run: what was read of some queries, and what came of them

Kept are the lessons and not a head that was fitted on them: heads of two runs cannot be joined, their lessons can, and a head
is fitted on all of them in seconds, on whatever grid and label the next run has. A lesson holds no prompt and no answer, only
the hashed words and numbers that an estimate reads (`readings`), lengths and verdicts.

Each run writes a file of its own, whole or not at all: runs that end at the same time take nothing from each other, and one
that is resumed writes the same file again. A file says in its card which model and sets it is of, and the digest of its rows:
one that is damaged, or of something else, is passed over and named.

Shapes: M answers of a lesson.

Source: method.md section 8.6.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array

from clear_ray.engine.base import ModelCard
from clear_ray.estimation.factorised import LANDMARK_WIDTH, Coordinates, FactorisedHead, head_of
from clear_ray.estimation.factors import Label, Observed
from clear_ray.estimation.feature_sets import checked_sets, fit_map_to
from clear_ray.estimation.head import HeadCard
from clear_ray.estimation.landmarks import fit_landmarks
from clear_ray.estimation.learning import learn
from clear_ray.estimation.readings import HASHED, Readings, join_readings
from clear_ray.storage import Folder

FORMAT = 1
MOST_KEPT, MOST_READ, MOST_FILES = 2_000, 5_000, 64
"""Answers of one lesson; answers that a head is fitted on; lessons of a model and its sets: older ones are removed."""
_CARD = b"clear_ray.lesson"
_LISTINGS = 100
_SCHEMA = pa.schema(
    [
        ("prompt_tokens", pa.int64()),
        ("text", pa.list_(pa.float64())),
        ("terms", pa.list_(pa.uint16())),
        ("task", pa.string()),
        ("tokens", pa.int64()),
        ("is_ended", pa.bool_()),
        ("right", pa.float64()),
    ]
)
_NAME = re.compile(r"[\w-]{1,64}")


@dataclass(frozen=True, slots=True)
class LessonCard:
    """Where a lesson comes from.

    Attributes:
        model_name: Human-readable name of the model that answered.
        model_fingerprint: Its fingerprint.
        sets: What was read of the prompts.
        answers: M.
        data_digest: SHA-256 of the rows.
        run_id: The run.
        ended_seconds: When it ended, seconds since 1970.
        evidence_nats: How much better its answers were predicted with the prompts than without.
        format: Version of the file.
    """

    model_name: str
    model_fingerprint: str
    sets: tuple[str, ...]
    answers: int
    data_digest: str
    run_id: str
    ended_seconds: float
    evidence_nats: float
    format: int = FORMAT


@dataclass(frozen=True, slots=True, eq=False)
class KeptLesson:
    """Answers of one run.

    Attributes:
        readings: What was read of the query of each answer; M of them.
        observed: The answers; the query of each is its own row of the readings.
    """

    readings: Readings
    observed: Observed


@dataclass(frozen=True, slots=True, eq=False)
class StoredLessons:
    """What a store holds of a model and its sets.

    Attributes:
        lessons: Lessons that could be read, newest first; none if there are none.
        cards: Their cards.
        passed_over: Files that were not read, and why; one line each.
    """

    lessons: tuple[KeptLesson, ...]
    cards: tuple[LessonCard, ...]
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeadStore:
    """A folder of lessons.

    Attributes:
        folder: The folder.
        model: The model whose lessons are read and kept.
        sets: What is read of prompts; the names of cheap sets.
    """

    folder: Folder
    model: ModelCard
    sets: tuple[str, ...]

    @property
    def entry(self) -> Folder:
        """Where the lessons of this model and these sets lie."""
        model = hashlib.sha256(self.model.fingerprint.encode()).hexdigest()[:24]
        return self.folder.child(f"{model}/{'+'.join(checked_sets(self.sets))}")

    def keep(self, run_id: str, lesson: KeptLesson, *, ended_seconds: float, evidence_nats: float) -> LessonCard:
        """Write what a run has learned, in the place of what the same run has written before; remove the oldest of many.

        Raises:
            OSError: It cannot be written.
        """
        table = _table_of(lesson)
        card = LessonCard(
            self.model.name, self.model.fingerprint, checked_sets(self.sets), len(table), _digest(table), run_id,
            ended_seconds, evidence_nats,
        )  # fmt: skip
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_CARD: json.dumps(asdict(card))}), sink, compression="zstd")
        self.entry.write(f"{run_id if _NAME.fullmatch(run_id) else 'run'}.parquet", sink.getvalue().to_pybytes())
        cards = {path: found for path in self._paths() if isinstance(found := self._card_of(path), LessonCard)}
        for path in sorted(cards, key=lambda path: -cards[path].ended_seconds)[MOST_FILES:]:
            self.folder.filesystem.delete_file(path)
        return card

    def read(self, *, most_answers: int = MOST_READ) -> StoredLessons:
        """Return the newest lessons, as many as hold so many answers; changes nothing."""
        cards, passed_over = [], []
        for path in self._paths():
            found = self._card_of(path)
            if isinstance(found, LessonCard):
                cards.append((path, found))
            elif found:
                passed_over.append(f"{path.rsplit('/', 1)[-1]}: {found}")
        lessons, kept, answers = [], [], 0
        for path, card in sorted(cards, key=lambda each: (-each[1].ended_seconds, each[0])):
            if answers >= most_answers:
                break
            lesson = self._lesson_of(path, card)
            if isinstance(lesson, str):
                passed_over.append(f"{path.rsplit('/', 1)[-1]}: {lesson}")
                continue
            lessons.append(lesson)
            kept.append(card)
            answers += card.answers
        return StoredLessons(tuple(lessons), tuple(kept), tuple(passed_over))

    def _paths(self) -> list[str]:
        for _ in range(_LISTINGS):
            with suppress(FileNotFoundError):  # another run's file took its name while the folder was listed
                return self.entry.files(".parquet")
        return self.entry.files(".parquet")

    def _card_of(self, path: str) -> LessonCard | str:
        """Return the card of a lesson, or why it is none of ours; empty if another run has just removed it."""
        try:
            stored = pq.read_schema(path, filesystem=self.folder.filesystem).metadata or {}
            document = json.loads(stored[_CARD])
            if document["format"] != FORMAT:
                return f"it is of format {document['format']}, and this version reads {FORMAT}"
            card = LessonCard(**{**document, "sets": tuple(document["sets"])})
        except FileNotFoundError:
            return ""
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            return f"it is no lesson, or it is damaged ({type(error).__name__})"
        if card.model_fingerprint != self.model.fingerprint:
            return f"it is of another model, {card.model_name}"
        return card if card.sets == checked_sets(self.sets) else f"it reads other features, {', '.join(card.sets)}"

    def _lesson_of(self, path: str, card: LessonCard) -> KeptLesson | str:
        try:
            table = pq.read_table(path, filesystem=self.folder.filesystem).replace_schema_metadata(None)
            if table.schema != _SCHEMA or len(table) != card.answers or _digest(table) != card.data_digest:
                return "its rows are not those that its card names"
        except (OSError, pa.ArrowException) as error:
            return f"it cannot be read ({type(error).__name__})"
        return _lesson_from(table, card.sets)


def fit_stored_head(
    found: StoredLessons, store: HeadStore, *, tokens_K: NDArray[np.int64], label: Label, seed: int
) -> FactorisedHead:
    """Return a head that all lessons taught, trusted as far as their answers predict each other.

    Args:
        found: At least one lesson.
        store: Where they are from.
        tokens_K: Grid of the curves.
        label: What says that an answer is right.
        seed: Seed of what is drawn.
    """
    readings = join_readings([lesson.readings for lesson in found.lessons])
    observed = Observed(
        np.arange(len(readings)),
        *(
            np.concatenate([getattr(lesson.observed, name) for lesson in found.lessons])
            for name in ("tokens_M", "is_ended_M", "right_M")
        ),
    )
    fitted = fit_map_to(readings, sets=store.sets, seed=seed)
    z_MF = fitted.of(readings)
    coordinates = Coordinates(fitted, fit_landmarks(z_MF, seed=seed, width=LANDMARK_WIDTH))
    belief = learn(coordinates.landmarks(z_MF), observed, tokens_K=tokens_K, label=label, seed=seed)
    card = HeadCard(
        kind="factorised",
        model_name=store.model.name,
        model_fingerprint=store.model.fingerprint,
        data_digest=hashlib.sha256("".join(card.data_digest for card in found.cards).encode()).hexdigest(),
        seeds=(seed,),
        tokens_K=tuple(tokens_K.tolist()),
        diagnostics={"answers": float(len(observed)), "evidence_nats": belief.evidence.learned_nats},
        created_by="estimate.store",
        label=label,
    )
    return head_of(belief, coordinates, card=card)


def _table_of(lesson: KeptLesson) -> pa.Table:
    readings, observed = lesson.readings, lesson.observed
    terms = readings.terms_ND
    columns: dict[str, Any] = {
        "prompt_tokens": readings.prompt_tokens_N,
        "text": readings.text_NT.tolist(),
        "terms": pa.ListArray.from_arrays(terms.indptr.astype(np.int32), terms.indices.astype(np.uint16)),
        "task": list(readings.tasks) if readings.tasks is not None else [None] * len(readings),
        "tokens": observed.tokens_M,
        "is_ended": observed.is_ended_M,
        "right": observed.right_M,
    }
    return pa.table(
        {name: pa.array(columns[name], type_) for name, type_ in zip(_SCHEMA.names, _SCHEMA.types, strict=True)}
    )


def _lesson_from(table: pa.Table, sets: Sequence[str]) -> KeptLesson:
    table = table.combine_chunks()
    rows = len(table)
    terms = table["terms"].combine_chunks()
    indices = np.asarray(terms.flatten(), np.int64)
    width = HASHED if "ngrams" in sets else 0
    terms_ND = csr_array((np.ones(len(indices)), indices, np.asarray(terms.offsets)), shape=(rows, width))
    tasks = None if table["task"].null_count else tuple(table["task"].to_pylist())
    readings = Readings(
        table["prompt_tokens"].to_numpy(),
        np.array(table["text"].to_pylist(), np.float64).reshape(rows, -1),
        terms_ND,
        tasks,
    )
    return KeptLesson(
        readings,
        Observed(np.arange(rows), table["tokens"].to_numpy(), table["is_ended"].to_numpy(), table["right"].to_numpy()),
    )


def _digest(table: pa.Table) -> str:
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest()
