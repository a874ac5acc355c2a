"""The results that recorded answers give, for policies that compare them.

Shapes: N queries, S samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.errors import SchemaError
from clear_ray.sweep.recording import Recording, rows_of
from clear_ray.tasks import Kind, canonical, extract

_READ = ("text", "prompt")


def read_votes(path: str, recording: Recording, kind: Kind, *, model: str | None = None) -> NDArray[np.int64]:
    """Return a number for each answer's result, the same for equal results; 0 where it gives none, shape (N, S).

    Args:
        path: Parquet that the recording was read from, with the answers' text.
        recording: The recording.
        kind: How final answers are read.
        model: As for `read_recording`.

    Raises:
        SchemaError: There is no text, or it is of other answers than the recording.
    """
    table = rows_of(path, model)
    if missing := [name for name in _READ if name not in table.column_names]:
        raise SchemaError(
            f"answers are compared by their text, and there is no column {missing[0]}",
            path,
            remedy="Name a file that has it, or leave out the comparison.",
        )
    if len(table) != recording.length_NS.size:
        raise SchemaError(
            "answers are compared only where every query has as many samples",
            path,
            f"{len(table):,} rows, {recording.length_NS.size:,} of them read",
            "Leave out those beyond what all queries have.",
        )
    numbers: dict[str, int] = {}
    found = [_number(numbers, row, kind) for row in table.select(list(_READ)).to_pylist()]
    return np.array(found, np.int64).reshape(recording.length_NS.shape)


def _number(numbers: dict[str, int], row: dict[str, Any], kind: Kind) -> int:
    result = extract(str(row["text"] or ""), kind, prompt=str(row["prompt"] or ""))
    return 0 if result is None else numbers.setdefault(canonical(result, kind), len(numbers) + 1)
