"""What the completions of a run say of its scores: how many there are, for which reasons, and whether all are wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.errors import BudgetError
from clear_ray.storage import Folder
from clear_ray.tasks.survey import FIRST_SCORED, shape_of, survey_queries
from clear_ray.tasks.verdict import WRONG

_COLUMNS = ["index", "gold", "status", "correct", "verdict", "answer"]
_FEWEST = 5
"""Of fewer scored answers nothing is concluded from all of them being wrong."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a finished run.

    Attributes:
        has_gold_N: Which queries can be scored, shape (N,): those with a gold answer that the scorer could read.
        verdicts: How often each reason was given, the most frequent first.
        first: The first scored answers in order of `index`.
    """

    has_gold_N: NDArray[np.bool_]
    verdicts: dict[str, int]
    first: tuple[dict[str, Any], ...]

    def facts(self, folder: Folder, scorer: str | None) -> dict[str, Any]:
        """Return what a report says of them: `scorer`, `verdicts` and `warnings`.

        Args:
            folder: Folder of the run.
            scorer: As the configuration names it.
        """
        if scorer is None:
            return {}
        survey = survey_queries(folder.child("queries"), scorer).masked()
        warnings = list(survey.warnings())
        if len(self.first) >= _FEWEST and not any(row["correct"] for row in self.first):
            reasons = Counter(row["verdict"] or "" for row in self.first)
            read = next((row for row in self.first if row["verdict"] == WRONG and row["answer"]), None)
            shown = {"answer": shape_of(read["answer"]), "gold": shape_of(read["gold"])} if read else {}
            warnings.append(survey.all_wrong(len(self.first), reasons, **shown))
        return {"scorer": survey.choice() or scorer, "verdicts": self.verdicts, "warnings": tuple(warnings)}


def read_scores(folder: Folder, queries: int) -> Scores:
    """Read the scores of all completions, after making sure that every query has one and no second.

    Args:
        folder: Folder of the run.
        queries: Number of queries, N.

    Raises:
        BudgetError: It is not so; a defect of clear_ray.
    """
    has_gold_N, completions_N = np.zeros(queries, bool), np.zeros(queries, np.int64)
    verdicts: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    for path in folder.child("completions").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=_COLUMNS)
        index = table["index"].to_numpy()
        is_completed = pc.equal(table["status"], "completed")
        is_unread = pc.and_(is_completed, pc.is_null(table["correct"]))
        has_gold_N[index] = pc.and_not(pc.is_valid(table["gold"]), is_unread).to_numpy()
        completions_N += np.bincount(index, minlength=queries)
        for reason in pc.value_counts(table["verdict"].drop_null()):
            verdicts[reason["values"].as_py()] += reason["counts"].as_py()
        first = _first_of(first, table.filter(pc.and_(is_completed, pc.is_valid(table["correct"]))))
    if (completions_N != 1).any():
        worst = int((completions_N != 1).argmax())
        said = f"query {worst} has {completions_N[worst]} completions"
        raise BudgetError(said, folder.path, remedy="This is a defect of clear_ray: keep the run folder and report it.")
    return Scores(has_gold_N, dict(verdicts.most_common()), tuple(first))


def _first_of(first: list[dict[str, Any]], scored: pa.Table) -> list[dict[str, Any]]:
    """Return the scored rows of lowest index among those known and those of a table."""
    rows = first + scored.sort_by("index").slice(0, FIRST_SCORED).to_pylist()
    return sorted(rows, key=lambda row: int(row["index"]))[:FIRST_SCORED]
