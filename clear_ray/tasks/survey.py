"""What the gold answers of a batch look like, and whether the scorer can read them: told before a token is generated."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq
import regex

from clear_ray.storage import Folder
from clear_ray.tasks.choices import label_of, options_of
from clear_ray.tasks.code_scorer import sandbox_warning
from clear_ray.tasks.formulas import is_mathematics
from clear_ray.tasks.gold import look_of, reference_of, short_answer, unwrapped_gold
from clear_ray.tasks.kinds import Kind, as_kind, can_read
from clear_ray.tasks.programs import tests_of
from clear_ray.tasks.scorers import AUTO
from clear_ray.tasks.structured import NOTHING, read_json
from clear_ray.tasks.verdict import CUT_OFF, NO_ANSWER, TIMED_OUT
from clear_ray.tasks.writing import asked_last, shortened

FIRST_SCORED = 50
"""If none of so many scored answers is right, a run says so."""
_BATCH_ROWS = 4_096
_KNOWN: dict[str | None, tuple[object, Survey]] = {}
"""By scorer, the last folder's files and what was found in them: a run asks at its beginning, every round and its end."""
_EXAMPLE = 60
_SHORT = 40
_TESTS = re.compile(r"(?:\A|[\n\"'\[;]) ?(?:assert [^\s=]|def check\()|\A\s*\{\s*\"(?:inputs|fn_name)\"")
_WORDING = {
    "number": "a number", "choice": "a letter or an option of its prompt", "math": "a formula or a short answer",
    "exact": "a short answer", "regex": "a regular expression", "json": "JSON", "code": "tests in Python",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unfit:
    """The first gold answer that a scorer cannot read.

    Attributes:
        row: Number of its row in the input, from 1.
        query_id: Id of that row.
        gold: How it begins.
    """

    row: int
    query_id: str
    gold: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What the gold answers of a batch are like.

    Attributes:
        scorer: As the configuration names it.
        golds: Rows with a gold answer.
        fitting: The kind that fits all of them.
        alike: How many have the look for which it was chosen.
        unfit: How many the scorer cannot read.
        first_unfit: The first of those.
        example: How the first gold answer begins.
        tests: How many look like tests of programs, which only a scorer that is named runs.
    """

    scorer: str | None
    golds: int
    fitting: Kind
    alike: int
    unfit: int
    first_unfit: Unfit | None
    example: str
    tests: int = 0

    @property
    def chosen(self) -> str | None:
        """The scorer to use: the one that is named, or for `auto` the one that fits."""
        return self.fitting if self.scorer == AUTO else self.scorer

    @property
    def needs_gold(self) -> bool:
        """Whether the scorer that is named compares with gold answers, and has no other way to judge."""
        return self.scorer is not None and _kind_of(self.scorer) is not None

    def choice(self) -> str:
        """Return which scorer was chosen for a batch that names none, and from what; empty if one is named."""
        return f"{self.fitting}, from {self.alike:,} of {self.golds:,} golds" if self.scorer == AUTO else ""

    def warnings(self) -> tuple[str, ...]:
        """Return what a user should know before the run, a line each."""
        if not self.golds:
            return ("no row has a gold answer: nothing will be scored",) if self.needs_gold else ()
        if self.scorer is None:
            fitting, alike = ("code", self.tests) if self.tests else (self.fitting, self.alike)
            return (
                f"{self.golds:,} rows have a gold answer and no scorer is named: nothing will be scored "
                f"(scoring.scorer: {fitting} fits {alike:,} of them)",
            )
        if self.scorer == AUTO and self.tests:
            what = (
                f"gold of {self.tests:,} of {self.golds:,} rows looks like tests of programs, which auto does not run"
            )
            return (f"{what}: scoring.scorer: code does",)
        lacks = sandbox_warning() if self.scorer == "code" else ""
        if self.first_unfit is None:
            return (lacks,) if lacks else ()
        wanted = _WORDING[_kind_of(self.chosen or "") or "exact"]
        first = (
            f"first in row {self.first_unfit.row:,} (query_id {self.first_unfit.query_id}): {self.first_unfit.gold!r}"
        )
        return (
            f"gold of {self.unfit:,} of {self.golds:,} rows does not look like {wanted}, which the scorer "
            f"{self.chosen} reads; {first}",
            *([lacks] if lacks else []),
        )

    def masked(self) -> Survey:
        """Return the same without what the gold answers say: reports, displays and their logs show their shape alone."""
        first = self.first_unfit
        unfit = None if first is None else replace(first, gold=shape_of(first.gold))
        return replace(self, first_unfit=unfit, example=shape_of(self.example))

    def all_wrong(
        self, scored: int, verdicts: Mapping[str, int] | None = None, *, answer: str = "", gold: str = ""
    ) -> str:
        """Return the line that says that none of the first answers was right, with the likeliest cause.

        Args:
            scored: How many answers that is.
            verdicts: How often each reason was given for them, as far as it is known.
            answer: What was read in the first of them that held an answer, if that is known.
            gold: Its gold answer.
        """
        shown = shortened(gold or self.example, _EXAMPLE)
        looks = f"gold looks like `{shown}`, scorer {self.chosen}"
        counts = Counter(verdicts or {})
        worst, times = counts.most_common(1)[0] if counts else ("", 0)
        which = f"none of the first {scored:,} scored answers was right; "
        if 2 * self.unfit > self.golds:
            return which + looks
        if worst in (CUT_OFF, NO_ANSWER, TIMED_OUT) and 2 * times > scored:
            said = {CUT_OFF: "were cut off", NO_ANSWER: "held no answer", TIMED_OUT: "could not be judged in time"}[
                worst
            ]
            return f"{which}{times:,} of them {said}; {looks}"
        return f"{which}read `{shortened(answer, _EXAMPLE)}` where {looks}" if answer else which + looks


def shape_of(text: str) -> str:
    """Return a text with each letter as `a` and each digit as `9`: `#### 12` is `#### 99`."""
    return str(regex.sub(r"[^\W\d_]", "a", regex.sub(r"\d", "9", text)))


def survey_queries(queries: Folder, scorer: str | None) -> Survey:
    """Read the gold answers of a folder of validated queries.

    Args:
        queries: `queries/` of a run.
        scorer: As the configuration names it; None if it names none.
    """
    known, stamp = _KNOWN.get(scorer), _stamp(queries)
    if known is None or known[0] != stamp:
        known = _KNOWN[scorer] = stamp, survey(_rows(queries, scorer), scorer)
    return known[1]


def _stamp(queries: Folder) -> object:
    files = queries.filesystem.get_file_info(sorted(queries.files(".parquet")))
    return tuple((info.path, info.size, info.mtime_ns) for info in files)


def keep_survey(queries: Folder, found: Survey) -> None:
    """Keep what was found in a folder of queries while it was written, so that it is not read for it again."""
    _KNOWN[found.scorer] = _stamp(queries), found


def survey(rows: Iterable[Mapping[str, Any]], scorer: str | None) -> Survey:
    """Look at every gold answer once.

    Args:
        rows: With `index`, `query_id`, `gold`, and of the rest of `records.QUERY_SCHEMA` what the scorer needs.
        scorer: As the configuration names it.
    """
    found = Surveyor(scorer)
    for row in rows:
        found.add(row)
    return found.survey()


class Surveyor:
    """Looks at gold answers one by one, and holds counts alone.

    Args:
        scorer: As the configuration names it.
    """

    def __init__(self, scorer: str | None) -> None:
        self._scorer = scorer
        self._kind = None if scorer is None else _kind_of(scorer)
        self._looks: Counter[str] = Counter()
        self._golds = self._unfit = self._tests = 0
        self._first: Unfit | None = None
        self._example = ""

    def add(self, row: Mapping[str, Any]) -> None:
        """Look at the gold answer of one row, if it has one; the columns are those of `survey`."""
        gold = row["gold"]
        if gold is None:
            return
        self._golds += 1
        self._example = self._example or shortened(gold, _EXAMPLE)
        self._looks[_look(gold)] += 1
        self._tests += _TESTS.search(gold) is not None
        if self._kind is not None and not _fits(self._kind, gold, row):
            self._unfit += 1
            self._first = self._first or Unfit(row["index"] + 1, row["query_id"], shortened(gold, _EXAMPLE))

    def survey(self) -> Survey:
        """Return what was found."""
        fitting, alike = _fitting(self._looks, self._golds)
        return Survey(self._scorer, self._golds, fitting, alike, self._unfit, self._first, self._example, self._tests)


def _rows(queries: Folder, scorer: str | None) -> Iterator[Mapping[str, Any]]:
    columns = ["index", "query_id", "gold"]
    columns += {"choice": ["prompt", "is_conversation"], "code": ["prompt", "is_conversation", "metadata"]}.get(
        scorer or "", []
    )
    for path in sorted(queries.files(".parquet")):
        with queries.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()


def _kind_of(scorer: str) -> Kind | None:
    """Return the kind that reads the gold answers; None for a scorer that has a way of its own."""
    return as_kind({AUTO: "exact", "math_verify": "math"}.get(scorer, scorer))


def _look(gold: str) -> str:
    return _known_look(gold) if len(gold) <= _SHORT else _look_of(gold)


@functools.lru_cache(maxsize=1 << 16)
def _known_look(gold: str) -> str:
    return _look_of(gold)


def _look_of(gold: str) -> str:
    stripped = gold.strip()
    if stripped.startswith("{") and stripped.endswith("}") and isinstance(value := read_json(gold), dict):
        reference = reference_of(gold, are_numbers_a_list=True)
        if reference.answers == (gold,) and value:
            return "json"
    reference = reference_of(gold, are_numbers_a_list=True)
    looks = {"text" if look == "date" else look for look in map(look_of, reference.answers)} or {"text"}
    if looks == {"text"} and all(_is_formula(short_answer(answer)) for answer in reference.answers):
        return "formula"
    return looks.pop() if len(looks) == 1 and not reference.is_set else "text"


def _is_formula(answer: str) -> bool:
    return is_mathematics(answer) and any(sign in answer for sign in "\\^+=/*()")


def _fitting(looks: Mapping[str, int], golds: int) -> tuple[Kind, int]:
    """Return the kind that reads all of these looks, and how many golds have the one for which it is chosen.

    Never `code`: to run what a model wrote is for the user to say.
    """
    seen = {look for look, times in looks.items() if times}
    for look, kind in (("number", "number"), ("choice", "choice"), ("json", "json")):
        if seen == {look}:
            return kind, golds  # type: ignore[return-value]
    if "formula" in seen and seen <= {"formula", "number"} and importlib.util.find_spec("math_verify") is not None:
        return "math", golds
    return "exact", golds - looks.get("prose", 0)


def _fits(kind: Kind, gold: str, row: Mapping[str, Any]) -> bool:
    if kind == "regex":
        try:
            regex.compile(unwrapped_gold(gold))
        except (regex.error, RecursionError, OverflowError, MemoryError):
            return False
        return True
    if kind == "json":
        return read_json(gold) is not NOTHING
    if kind == "code":
        asked = asked_last(row.get("prompt") or "", is_conversation=bool(row.get("is_conversation")))
        return tests_of(unwrapped_gold(gold), row.get("metadata"), asked) is not None
    reference = reference_of(gold, are_numbers_a_list=kind in ("exact", "math"))
    if kind == "choice":
        options = options_of(row.get("prompt") or "", is_conversation=bool(row.get("is_conversation")))
        return any(label_of(short_answer(answer), options) is not None for answer in reference.answers)
    if kind == "number" and _look(gold) == "number":
        return True
    if kind == "number":
        return can_read(reference, kind) and any(look_of(answer) == "number" for answer in reference.answers)
    if len(gold) <= _SHORT:
        return any(reference.answers)
    return can_read(reference, kind) and not all(look_of(answer) == "prose" for answer in reference.answers)
