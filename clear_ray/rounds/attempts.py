"""What came of grants, in columns: all that the law of a run hears of an engine.

Shapes: M attempts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Attempts:
    """Some grants of one round that have been run, one row a query.

    Attributes:
        index_M: The query's number.
        granted_tokens_M: What it was granted.
        attempt_tokens_M: What it generated of that.
        answer_tokens_M: What its answer holds now, earlier grants included.
        has_stopped_M: Whether the answer ended by itself.
        has_failed_M: Whether it came to an error.
        is_at_end_M: Whether it was cut off short of its grant: a context or a recording has no more tokens.
        correct_M: The score of the answer; NaN if it has none.
        vote_M: The result that the answer gives, as a number, where votes are counted; 0 for none.
    """

    index_M: NDArray[np.int64]
    granted_tokens_M: NDArray[np.int64]
    attempt_tokens_M: NDArray[np.int64]
    answer_tokens_M: NDArray[np.int64]
    has_stopped_M: NDArray[np.bool_]
    has_failed_M: NDArray[np.bool_]
    is_at_end_M: NDArray[np.bool_]
    correct_M: NDArray[np.float64]
    vote_M: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.index_M)

    @property
    def is_over_M(self) -> NDArray[np.bool_]:
        """Whether nothing more can be granted to the query: the one place that says what closes it."""
        return self.has_stopped_M | self.has_failed_M | self.is_at_end_M
